"""LLM-Streamline's layer pruning: Chen et al., "Streamlining Redundant Layers to Compress Large Language Models"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import intervals, measured


@dataclass(frozen=True)
class Streamline:
    """Remove the run of n consecutive blocks across which the residual stream turns least.

    For n blocks the interval [l, l+n) with

        argmax over l of  mean over tokens of cos(depth l, depth l+n)

    where the last depth is taken before the final norm (the authors' script takes it after). The dense model is run
    once for all n. The paper protects no block.

    References:
        arXiv 2403.19135, section 3.1; for `network` 3.2.
    """

    network: int = 0
    protect_first: int = 0
    protect_last: int = 0
    score = "1 - cosine across the interval"

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """The best interval of each length 1 to `limit`."""
        cosine = probe.similarity().cosine
        probe.expect(limit)
        for count in range(1, limit + 1):
            length = count + self.network
            runs = intervals(probe, self, length, self.network)
            damage = {run[0]: 1 - cosine[run[0], run[0] + length].item() for run in runs}
            if not damage:
                continue
            start = min(damage, key=lambda block: (damage[block], block))
            removed = tuple(range(start + self.network, start + length))
            yield measured(probe, removed, damage[start], damage)
