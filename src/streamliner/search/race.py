"""A race of candidates: measured window by window, and dropped when they are surely worse than the best."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, stdev

from streamliner.measure.loss import Loss
from streamliner.measure.probe import Probe

LEAST_WINDOWS = 3
"""Nobody is dropped on fewer: a standard error of two values means little."""


LOOKS = 16
"""At most so many times are candidates compared on the way through the windows."""


@dataclass
class Race:
    """One round's candidates beside `removed`.

    After n windows a candidate is dropped if, with d its losses minus those of the one with the least mean so far,

        mean(d) > z * stdev(d) / sqrt(n)

    Attributes:
        z: standard errors; 0 to drop nobody.
        losses: of those measured on all windows.
        estimates: of the mean loss of those dropped: the best's, plus mean(d) when they were dropped.
        window_losses: losses of one candidate on one window that took part.
        margin: the least excess, nats, of mean(d) over z standard errors when somebody was dropped.
    """

    probe: Probe
    removed: tuple[int, ...]
    z: float
    losses: dict[int, Loss] = field(default_factory=dict)
    estimates: dict[int, float] = field(default_factory=dict)
    window_losses: int = 0
    margin: float = math.inf

    @property
    def best(self) -> int:
        """The block without which the loss is least, the first of equals."""
        return min(self.losses, key=lambda block: _order(self.losses[block].mean, block))

    def run(self, candidates: list[int]) -> None:
        """Measure `candidates` against each other and the best so far."""
        keys = {block: tuple(sorted((*self.removed, block))) for block in candidates}
        champion = {self.best: self.losses[self.best].per_window} if self.losses else {}
        if not self.z:
            champion, step = {}, self.probe.num_windows
        else:
            step = math.ceil(self.probe.num_windows / (4 if self.probe.windows_at_once > 1 else LOOKS))
        racing: dict[int, tuple[float, ...]] = dict.fromkeys(keys, ())
        dropped: dict[int, float] = {}  # block -> how far it was behind
        for start in range(0, self.probe.num_windows, step):
            windows = range(start, min(start + step, self.probe.num_windows))
            found = self.probe.losses([keys[block] for block in racing], windows)
            racing = {block: losses + found[keys[block]].per_window for block, losses in racing.items()}
            self.window_losses += len(racing) * len(windows)
            if self.z and LEAST_WINDOWS <= windows.stop < self.probe.num_windows:
                for block, (behind, margin) in self._beaten(racing, champion, windows.stop).items():
                    del racing[block]
                    dropped[block] = behind
                    self.margin = min(self.margin, margin)
                    self.probe.expect_less(self.probe.num_windows - windows.stop)
            if not racing:
                break
        self.losses |= {block: Loss(losses) for block, losses in racing.items()}
        self.estimates |= {block: self.losses[self.best].mean + behind for block, behind in dropped.items()}

    def _beaten(
        self, racing: dict[int, tuple[float, ...]], champion: dict[int, tuple[float, ...]], count: int
    ) -> dict[int, tuple[float, float]]:
        """Those surely worse than the leader on the first `count` windows: by how much, and how far beyond z."""
        field = {block: losses[:count] for block, losses in (champion | racing).items()}
        leader = min(field, key=lambda block: _order(fmean(field[block]), block))
        beaten = {}
        for block in racing.keys() - {leader}:
            apart = [own - best for own, best in zip(field[block], field[leader], strict=True)]
            if not all(map(math.isfinite, apart)):
                continue  # overflow: no standard error, so it stays in the race, and loses it
            margin = fmean(apart) - self.z * stdev(apart) / math.sqrt(count)
            if margin > 0:
                beaten[block] = fmean(apart), margin
        return beaten


def _order(loss: float, block: int) -> tuple[bool, float, int]:
    """Least loss first, NaN last, the first of equals."""
    return math.isnan(loss), loss, block
