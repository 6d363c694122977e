"""SLEB: Song et al., "Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks"."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from streamliner.errors import MethodError
from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import growing, measured, removable
from streamliner.search.race import Race


@dataclass(frozen=True)
class Sleb:
    """Remove one block at a time: each round the one without which the already pruned model has the least loss.

    With R the blocks removed so far, round r removes

        argmin over j not in R of  loss(R + {j})          metric "iterative", the paper's metric 3 and its choice
        argmin over j not in R of  loss({j})              metric "one-shot", metric 2: measured once on the dense model
        argmax over j not in R of  cos(depth j, depth j+1)  metric "similarity", metric 1

    The loss is the mean next-token cross-entropy on the calibration set. The first and the last block stay.

    With `effort="adaptive"`, "iterative" measures less, in two ways. *Lazy*: a candidate is measured anew only if it is
    next to the block just removed, or if its last known increase of loss, less 1 - `slack` of its size, is below the
    best fresh one.
    *Racing*: candidates are measured window by window and dropped when they are behind the best by more than `z`
    standard errors of the paired difference (`race.py`); 0 drops none. The list is that of "exact" unless some
    increase shrank by more than the slack between two measurements, or a winner was more than z standard errors behind
    on its first windows. Neither can be ruled out, so "exact" is the default.

    References:
        arXiv 2402.09025, section 3.2 and algorithm 1.
    """

    metric: Literal["iterative", "one-shot", "similarity"] = "iterative"
    effort: Literal["exact", "adaptive"] = "exact"
    slack: float = 0.8
    z: float = 3.0
    protect_first: int = 1
    protect_last: int = 1
    score = "calibration loss, nats per token"

    def __post_init__(self) -> None:
        if self.effort == "adaptive" and self.metric != "iterative":
            raise MethodError(f"effort adaptive is for metric iterative; {self.metric} measures each block once.")

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
        if self.effort == "adaptive":
            probe.expect(1)
            before = probe.loss().mean
        while len(removed) < limit and (candidates := removable(probe, self, removed)):
            probe.expect_less(max(0, alone - len(removed) - len(candidates)) * probe.num_windows)
            if self.effort == "exact":
                race, margin = Race(probe, removed, 0), math.inf
                race.run(candidates)
            else:
                race, margin = self._adaptively(probe, removed, candidates, increases, before)
            found = {block: loss.mean for block, loss in race.losses.items()} | race.estimates
            increases |= {block: loss - before for block, loss in found.items()}
            best = race.losses[race.best]
            removed, before = (*removed, race.best), best.mean
            damage = {block: found[block] for block in sorted(found)}
            point = Point(removed, best.mean, best.mean, best.standard_error, damage)
            yield (
                point
                if self.effort == "exact"
                else dataclasses.replace(
                    point, window_losses=race.window_losses, margin=margin if math.isfinite(margin) else None
                )
            )

    def _adaptively(
        self, probe: Probe, removed: tuple[int, ...], candidates: list[int], increases: dict[int, float], before: float
    ) -> tuple[Race, float]:
        """Race as many candidates as it takes; returns the race and the margin of what was not measured."""
        race = Race(probe, removed, self.z)
        around = [block for block in candidates if removed and block < removed[-1]][-1:]
        around += [block for block in candidates if removed and block > removed[-1]][:1]
        race.run(sorted({*around, *(block for block in candidates if block not in increases)}))
        while True:
            least = race.losses[race.best].mean - before
            bounds = {
                block: increases[block] - (1 - self.slack) * abs(increases[block])
                for block in candidates
                if block not in race.losses and block not in race.estimates
            }
            may_be_less = [block for block in bounds if bounds[block] < least]
            if not may_be_less:
                probe.expect_less(len(bounds) * probe.num_windows)
                return race, min([race.margin, *(bound - least for bound in bounds.values())])
            race.run(may_be_less)

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
