"""SLEB: Song et al., "Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from streamliner.measure import Probe
from streamliner.search.frontier import Point
from streamliner.search.registry import growing, measured, removable


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
        if self.metric == "iterative":
            yield from self._iterative(probe, limit)
        else:
            yield from self._ranked(probe, limit)

    def _iterative(self, probe: Probe, limit: int) -> Iterator[Point]:
        alone = len(removable(probe, self))
        probe.expect(sum(max(0, alone - removed) for removed in range(limit)))
        removed: tuple[int, ...] = ()
        while len(removed) < limit and (candidates := removable(probe, self, removed)):
            losses = probe.losses_without_each(removed, candidates)
            best = min(losses, key=lambda block: (losses[block].mean, block))
            removed = (*removed, best)
            yield Point(
                removed,
                losses[best].mean,
                losses[best].mean,
                losses[best].standard_error,
                {block: loss.mean for block, loss in losses.items()},
            )

    def _ranked(self, probe: Probe, limit: int) -> Iterator[Point]:
        candidates = removable(probe, self)
        if self.metric == "one-shot":
            probe.expect(len(candidates))
            losses = probe.losses_without_each((), candidates)
            damage = {block: loss.mean for block, loss in losses.items()}
        else:
            cosine = probe.similarity().cosine
            damage = {block: 1 - cosine[block, block + 1].item() for block in candidates}
        order = sorted(candidates, key=lambda block: (damage[block], block))
        probe.expect(limit)
        for removed in growing(probe, order, limit):
            yield measured(probe, removed, max(damage[block] for block in removed), damage)
