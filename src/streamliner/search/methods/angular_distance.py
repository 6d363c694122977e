"""Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers"."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import remove_intervals


@dataclass(frozen=True)
class AngularDistance:
    """Remove the interval of n blocks with the smallest angular distance at the last token of a window.

    For n blocks it is [l, l+n) with

        argmin over l of  mean over windows of  arccos(cos(depth l, depth l+n)) / pi

    References:
        arXiv 2403.17887, equations 5 and 6.
    """

    protect_first: int = 0
    protect_last: int = 0
    score: ClassVar[str] = "angle across the interval at the last token, in units of pi"

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """The best interval of each length 1 to `limit`."""
        angle = probe.similarity().angle
        return remove_intervals(probe, self, lambda start, stop: angle[start, stop].item(), limit)
