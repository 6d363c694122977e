"""ShortGPT: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import growing, measured, removable


@dataclass(frozen=True)
class BlockInfluence:
    """Remove the blocks that turn the residual stream least.

    Blocks go in ascending order of

        BI(j) = 1 - mean over tokens of cos(depth j, depth j+1)

    measured once on the dense model.

    References:
        arXiv 2403.03853, equation 1.
    """

    protect_first: int = 0
    protect_last: int = 0
    score = "greatest block influence among the removed"

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Points of 1 to `limit` blocks; each contains the one before."""
        cosine = probe.similarity().cosine
        damage = {block: 1 - cosine[block, block + 1].item() for block in removable(probe, self)}
        order = sorted(damage, key=lambda block: (damage[block], block))
        probe.expect(limit)
        for removed in growing(probe, order, limit):
            yield measured(probe, removed, max(damage[block] for block in removed), damage)
