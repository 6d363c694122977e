"""ShortGPT: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect"."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import least_first, removable, remove_in_order


@dataclass(frozen=True)
class BlockInfluence:
    """Remove the blocks that change the direction of the residual stream least.

    Blocks are removed in ascending order of

        BI(j) = 1 - mean over tokens of cos(depth j, depth j+1)

    measured once on the dense model.

    References:
        arXiv 2403.03853, equation 1.
    """

    protect_first: int = 0
    protect_last: int = 0
    score: ClassVar[str] = "greatest block influence among the removed"

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Points of 1 to `limit` blocks; each contains the one before."""
        cosine = probe.similarity().cosine
        influence = {block: 1 - cosine[block, block + 1].item() for block in removable(probe, self)}
        return remove_in_order(probe, least_first(influence), influence, limit)
