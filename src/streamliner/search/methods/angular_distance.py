"""Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import intervals, measured


@dataclass(frozen=True)
class AngularDistance:
    """Remove the run of n consecutive blocks with the least angular distance at the last token of a window.

    For n blocks the interval [l, l+n) with

        argmin over l of  mean over windows of  arccos(cos(depth l, depth l+n)) / pi

    References:
        arXiv 2403.17887, equations 5 and 6.
    """

    protect_first: int = 0
    protect_last: int = 0
    score = "angle across the interval at the last token, in units of pi"

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """The best interval of each length 1 to `limit`."""
        angle = probe.similarity().angle
        probe.expect(limit)
        for count in range(1, limit + 1):
            damage = {run[0]: angle[run[0], run[0] + count].item() for run in intervals(probe, self, count)}
            if not damage:
                continue
            start = min(damage, key=lambda block: (damage[block], block))
            yield measured(probe, tuple(range(start, start + count)), damage[start], damage)
