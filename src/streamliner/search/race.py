"""A race of candidates: measured window by window, and dropped when they are clearly worse than the best."""

import math
from dataclasses import dataclass, field
from statistics import fmean, stdev

from streamliner.measure.loss import Loss
from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point

LEAST_WINDOWS = 3
"""No candidate is dropped on fewer windows: a standard error of two values means little."""
COMPARISONS, COMPARISONS_TOGETHER = 16, 4
"""How often candidates are compared at most. The second is for windows that go through the model together: then each
comparison costs a forward."""


@dataclass
class Race:
    """The candidates of one round, to be removed in addition to `removed`.

    After n windows a candidate is dropped if, with d its losses minus those of the best so far,

        mean(d) > z * stdev(d) / sqrt(n)

    With z = 0 none is dropped.

    Attributes:
        losses: of the candidates that were measured on all windows.
        estimates: mean losses of the dropped candidates: that of the best, plus mean(d) when they were dropped.
        window_losses: losses of one candidate on one window in this race.
        margin: the smallest difference, in nats, between mean(d) and z standard errors when a candidate was dropped.
    """

    probe: Probe
    removed: tuple[int, ...]
    z: float
    losses: dict[int, Loss] = field(default_factory=dict)
    estimates: dict[int, float] = field(default_factory=dict)
    window_losses: int = 0
    margin: float = math.inf
    _settled: int | None = field(default=None, init=False)

    @property
    def best(self) -> int:
        """The candidate with the smallest loss, the first of equals; or what `settle` decided."""
        if self._settled is not None:
            return self._settled
        return min(self.losses, key=lambda block: _order(self.losses[block].mean, block))

    def settle(self) -> None:
        """Decide in float32, if the machine can, between candidates that are closer than the precision can tell."""
        best, least = self.best, self.losses[self.best].mean
        apart = {block: loss.mean - least for block, loss in self.losses.items()}
        close = [block for block, nats in apart.items() if nats <= self.probe.resolution]
        if len(close) < 2 or not self.probe.resolution:
            return
        keys = {tuple(sorted((*self.removed, block))): block for block in close}
        exact = {keys[key]: loss.mean for key, loss in self.probe.losses_in_float32(keys).items()}
        self._settled = min(exact, key=lambda block: _order(exact[block], block)) if exact else best
        self.probe.say(
            f"Round {len(self.removed) + 1}: without block {' or '.join(map(str, sorted(close)))} the losses differ by "
            f"{max(apart[block] for block in close):.1g} nats, less than rounding ({self.probe.resolution:.1g}): "
            f"{f'block {self._settled} by losses in float32' if exact else f'block {best} is taken'}."
        )

    def point(self) -> Point:
        """The frontier's point with the best candidate removed too."""
        best = self.losses[self.best]
        found = {block: loss.mean for block, loss in self.losses.items()} | self.estimates
        return Point((*self.removed, self.best), best.mean, best.mean, best.standard_error, dict(sorted(found.items())))

    def run(self, candidates: list[int]) -> None:
        """Measure `candidates` against each other and against the best so far."""
        keys = {block: tuple(sorted((*self.removed, block))) for block in candidates}
        known = {self.best: self.losses[self.best].per_window} if self.losses and self.z else {}
        racing: dict[int, tuple[float, ...]] = dict.fromkeys(keys, ())
        dropped: dict[int, float] = {}  # block -> mean(d)
        count = self.probe.num_windows
        comparisons = COMPARISONS_TOGETHER if self.probe.windows_at_once > 1 else COMPARISONS
        step = math.ceil(count / comparisons) if self.z else count
        for start in range(0, count, step):
            windows = range(start, min(start + step, count))
            found = self.probe.losses([keys[block] for block in racing], windows)
            racing = {block: losses + found[keys[block]].per_window for block, losses in racing.items()}
            self.window_losses += len(racing) * len(windows)
            if self.z and LEAST_WINDOWS <= windows.stop < count:
                for block, (difference, margin) in self._beaten(racing, known, windows.stop).items():
                    del racing[block]
                    dropped[block] = difference
                    self.margin = min(self.margin, margin)
            if not racing:
                break
        self.losses |= {block: Loss(losses) for block, losses in racing.items()}
        self.estimates |= {block: self.losses[self.best].mean + difference for block, difference in dropped.items()}

    def _beaten(
        self, racing: dict[int, tuple[float, ...]], known: dict[int, tuple[float, ...]], count: int
    ) -> dict[int, tuple[float, float]]:
        """Those clearly worse than the leader on the first `count` windows: mean(d), and its excess over z errors."""
        field = {block: losses[:count] for block, losses in (known | racing).items()}
        leader = min(field, key=lambda block: _order(fmean(field[block]), block))
        beaten = {}
        for block in racing.keys() - {leader}:
            differences = [own - best for own, best in zip(field[block], field[leader], strict=True)]
            if not all(map(math.isfinite, differences)):
                continue  # there is no standard error; the candidate stays in the race and loses it
            margin = fmean(differences) - self.z * stdev(differences) / math.sqrt(count)
            if margin > 0:
                beaten[block] = fmean(differences), margin
        return beaten


def _order(loss: float, block: int) -> tuple[bool, float, int]:
    """Smallest loss first, NaN last, the first of equals."""
    return math.isnan(loss), loss, block
