"""SLEB: Song et al., "Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from streamliner.measure import Probe
from streamliner.search.frontier import Point
from streamliner.search.registry import measured, removable


@dataclass(frozen=True)
class Sleb:
    """Remove one block at a time: each round the one without which the already pruned model has the least loss.

    With R the blocks removed so far, round r removes

        argmin over j not in R of  loss(R + {j})          metric "iterative", the paper's metric 3 and its choice
        argmin over j not in R of  loss({j})              metric "one-shot", metric 2: measured once on the dense model
        argmax over j not in R of  cos(depth j, depth j+1)  metric "similarity", metric 1

    The loss is the mean next-token cross-entropy on the calibration set. The first and the last block stay.

    References:
        arXiv 2402.09025, section 3.2 and algorithm 1.
    """

    metric: Literal["iterative", "one-shot", "similarity"] = "iterative"
    protect_first: int = 1
    protect_last: int = 1
    score = "calibration loss, nats per token"

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Points of 1, 2, ... `limit` removed blocks; each contains the one before."""
        candidates = removable(probe, self)
        if self.metric == "iterative":
            yield from self._iterative(probe, candidates, limit)
        else:
            yield from self._ranked(probe, candidates, limit)

    def _iterative(self, probe: Probe, candidates: list[int], limit: int) -> Iterator[Point]:
        probe.expect(sum(len(candidates) - removed for removed in range(limit)))
        removed: tuple[int, ...] = ()
        for _ in range(limit):
            losses = probe.losses_without_each(removed, [c for c in candidates if c not in removed])
            best = min(losses, key=lambda block: (losses[block].mean, block))
            removed = (*removed, best)
            yield Point(
                removed,
                losses[best].mean,
                losses[best].mean,
                losses[best].standard_error,
                {block: loss.mean for block, loss in losses.items()},
            )

    def _ranked(self, probe: Probe, candidates: list[int], limit: int) -> Iterator[Point]:
        if self.metric == "one-shot":
            probe.expect(len(candidates))
            losses = probe.losses_without_each((), candidates)
            damage = {block: loss.mean for block, loss in losses.items()}
        else:
            cosine = probe.similarity().cosine
            damage = {block: 1 - cosine[block, block + 1].item() for block in candidates}
        order = sorted(candidates, key=lambda block: (damage[block], block))
        probe.expect(limit)
        for count in range(1, limit + 1):
            yield measured(probe, tuple(order[:count]), damage[order[count - 1]], damage)
