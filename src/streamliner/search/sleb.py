"""SLEB: Song et al., "Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks"."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from streamliner.measure import Loss, Probe
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

    With `effort="adaptive"`, "iterative" measures a candidate anew only if it may be the least: the neighbours of the
    block just removed, and others in the order of their last known increase of loss while `slack` times that is below
    the best fresh increase. The list is that of "exact" unless some increase shrank by more than the slack between two
    measurements, which nothing rules out.

    References:
        arXiv 2402.09025, section 3.2 and algorithm 1.
    """

    metric: Literal["iterative", "one-shot", "similarity"] = "iterative"
    effort: Literal["exact", "adaptive"] = "exact"
    slack: float = 0.8
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
        increases: dict[int, float] = {}  # of loss, where last measured
        before = 0.0
        while len(removed) < limit and (candidates := removable(probe, self, removed)):
            if self.effort == "exact" or not removed:
                losses = probe.losses_without_each(removed, candidates)
            else:
                losses = self._lazily(probe, removed, candidates, increases, before)
            if self.effort == "adaptive":
                before = before if removed else probe.loss().mean
                increases |= {block: loss.mean - before for block, loss in losses.items()}
            best = min(losses, key=lambda block: (losses[block].mean, block))
            removed, before = (*removed, best), losses[best].mean
            yield Point(
                removed,
                losses[best].mean,
                losses[best].mean,
                losses[best].standard_error,
                {block: loss.mean for block, loss in losses.items()},
            )

    def _lazily(
        self,
        probe: Probe,
        removed: tuple[int, ...],
        candidates: list[int],
        increases: dict[int, float],
        before: float,
    ) -> dict[int, Loss]:
        """Losses of as many candidates as it takes to be sure of the least, if no increase shrank beyond the slack."""
        around = [block for block in candidates if block < removed[-1]][-1:]
        around += [block for block in candidates if block > removed[-1]][:1]
        never = [block for block in candidates if block not in increases]
        losses = probe.losses_without_each(removed, {*around, *never})
        while True:
            least = min((loss.mean for loss in losses.values()), default=math.inf) - before
            bounds = {block: self.slack * increases[block] for block in candidates if block not in losses}
            following = min(bounds, key=lambda block: (bounds[block], block), default=None)
            if following is None or bounds[following] >= least:
                return losses
            losses[following] = probe.loss((*removed, following))

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
