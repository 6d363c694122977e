"""LLM-Streamline's layer pruning: Chen et al., "Streamlining Redundant Layers to Compress Large Language Models"."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import remove_intervals


@dataclass(frozen=True)
class Streamline:
    """Remove the interval of n blocks across which the residual stream changes direction least.

    For n blocks it is [l, l+n) with

        argmax over l of  mean over tokens of cos(depth l, depth l+n)

    where the last depth is before the final norm (in the authors' script it is after the norm). The dense model runs
    once for all n. The paper protects no block.

    With `network` > 0 the interval is longer by that number of blocks; its first ones stay, to be retrained in place
    of the removed ones.

    References:
        arXiv 2403.19135, section 3.1; section 3.2 for `network`.
    """

    network: int = 0
    protect_first: int = 0
    protect_last: int = 0
    score: ClassVar[str] = "1 - cosine across the interval"

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """The best interval of each length 1 to `limit`."""
        cosine = probe.similarity().cosine
        return remove_intervals(probe, self, lambda start, stop: 1 - cosine[start, stop].item(), limit, self.network)
