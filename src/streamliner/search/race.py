"""A race of candidates: measured window by window, and dropped when they are clearly worse than the best."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean, median, stdev
from typing import Any, Generic, NamedTuple, TypeVar

from streamliner.measure.loss import Loss
from streamliner.measure.probe import Probe

Label = TypeVar("Label")
LEAST_WINDOWS = 3
"""No candidate is dropped on fewer windows: a standard error of two values means little."""
COMPARISONS_TOGETHER = 4
"""How often candidates are compared at most where windows go through the model together, as each time costs a forward.
Otherwise they are compared after each window at first, and later when there are a quarter more."""
COARSE = 0.01
"""Nats. Larger differences of mean losses are never rounding, so how large that may be is not measured."""
MOST_Z = 7.0
"""What is more unlikely is less than float64 can tell from nothing."""


class Dropped(NamedTuple):
    """Why a candidate was dropped: mean(d); what that is hardly below; how far it was over what it may be."""

    difference: float
    low: float
    margin: float


@dataclass
class Race(Generic[Label]):
    """Sets of blocks that may be removed, by label: in a round of SLEB the block that a set has more than those before.

    After n of N windows a candidate is dropped if, with d its losses minus those of the best so far,

        mean(d) > t * s / sqrt(n) * sqrt(1 - n / N)

    where s is the standard deviation of d, but not less than the median of those of all candidates: with few windows
    some happen to be small. t of Student's distribution is as unlikely as z of the normal one, with n - 1 degrees of
    freedom for each candidate, as if all d were independent and had one spread. They are not quite, so z is larger than
    a single comparison would need. The last factor is the correction for a finite population: what counts is the mean
    over all N windows, in random order. What 16 bits cannot tell apart stays, for `settle`. With z = 0 none is dropped.
    When the time of the search is up, all are dropped but the leader.

    Attributes:
        losses: of the candidates that were measured on all windows.
        estimates: mean losses of the dropped candidates: that of the best, plus mean(d) when they were dropped.
        lows: what these losses are hardly below: a candidate is dropped where mean(d) happens to be large, so estimates
            are too large more often than too small. These are lower, with z - 1 in the formula in place of z.
        window_losses: losses of one candidate on one window in this race.
        margin: the smallest difference, in nats, between both sides of the formula when a candidate was dropped.
    """

    probe: Probe
    z: float
    losses: dict[Label, Loss] = field(default_factory=dict)
    estimates: dict[Label, float] = field(default_factory=dict)
    lows: dict[Label, float] = field(default_factory=dict)
    window_losses: int = 0
    margin: float = math.inf
    _sets: dict[Label, tuple[int, ...]] = field(default_factory=dict, init=False)
    _settled: Label | None = field(default=None, init=False)

    @property
    def best(self) -> Label:
        """The candidate with the smallest loss, the first of equals; or what `settle` decided."""
        if self._settled is not None:
            return self._settled
        return min(self.losses, key=lambda label: _order(self.losses[label].mean, label))

    def settle(self) -> None:
        """Decide in float32, if the machine can, between candidates that are closer than the precision can tell.

        For the end of a race: what runs afterwards does not change the decision.
        """
        best, least = self.best, self.losses[self.best].mean
        apart = {label: loss.mean - least for label, loss in self.losses.items()}
        close = [label for label, nats in apart.items() if nats <= self.probe.resolution]
        if len(close) < 2 or not self.probe.resolution:
            return
        labels = {self._sets[label]: label for label in close}
        exact = {labels[key]: loss.mean for key, loss in self.probe.losses_in_float32(labels).items()}
        self._settled = min(exact, key=lambda label: _order(exact[label], label)) if exact else best
        names = {
            label: f"{{{', '.join(map(str, self._sets[label]))}}}"
            for label in sorted(close, key=self._sets.__getitem__)
        }
        apart_most, tell = max(apart[label] for label in close), self.probe.resolution
        how = "by losses in float32" if exact else "is taken"
        self.probe.say(
            f"Without {' or '.join(names.values())} the losses differ by {apart_most:.1g} nats, less than rounding "
            f"({tell:.1g}): {names[self._settled]} {how}."
        )

    def run(self, sets: Mapping[Label, tuple[int, ...]]) -> None:
        """Measure sets of blocks, sorted tuples, against each other and against the best so far."""
        keys = dict(sets)
        self._sets |= keys
        known = {self.best: self.losses[self.best].per_window} if self.losses and self.z else {}
        racing: dict[Label, tuple[float, ...]] = dict.fromkeys(keys, ())
        dropped: dict[Label, Dropped] = {}
        count = self.probe.num_windows
        for windows in self._steps(count):
            found = self.probe.losses([keys[label] for label in racing], windows)
            racing = {label: losses + found[keys[label]].per_window for label, losses in racing.items()}
            self.window_losses += len(racing) * len(windows)
            late = windows.stop < count and self.probe.deadline.is_over()
            if late or (self.z and LEAST_WINDOWS <= windows.stop < count):
                for label, why in self._beaten(racing, known, windows.stop, late).items():
                    del racing[label]
                    dropped[label] = why
                    self.margin = min(self.margin, why.margin)
            if not racing:
                break
        self.losses |= {label: Loss(losses) for label, losses in racing.items()}
        best = self.losses[self.best].mean
        self.estimates |= {label: best + why.difference for label, why in dropped.items()}
        self.lows |= {label: best + why.low for label, why in dropped.items()}

    def _steps(self, count: int) -> Iterator[range]:
        """The windows between two comparisons."""
        if not self.z and not self.probe.deadline.is_set:
            yield range(count)
            return
        together = math.ceil(count / COMPARISONS_TOGETHER) if self.probe.windows_at_once > 1 else 0
        done, parallel = 0, self.probe.windows_in_parallel
        while done < count:
            step = together or max(LEAST_WINDOWS - done, done // 4, 1)
            stop = min(count, done + math.ceil(step / parallel) * parallel)
            yield range(done, stop)
            done = stop

    def _beaten(
        self, racing: dict[Label, tuple[float, ...]], known: dict[Label, tuple[float, ...]], count: int, late: bool
    ) -> dict[Label, Dropped]:
        """Those clearly worse than the leader on the first `count` windows. If the time is up, all but the leader."""
        field = {label: losses[:count] for label, losses in (known | racing).items()}
        leader = min(field, key=lambda label: _order(fmean(field[label]), label))
        apart = {
            label: [own - best for own, best in zip(field[label], field[leader], strict=True)]
            for label in racing.keys() - {leader}
        }
        if not late:  # without a standard error a candidate stays in the race and loses it
            apart = {label: each for label, each in apart.items() if all(map(math.isfinite, each))}
        spreads = {
            label: stdev(each) if count > 1 and all(map(math.isfinite, each)) else 0.0 for label, each in apart.items()
        }
        typical = median(spreads.values()) if spreads else 0.0
        freedom, left = (count - 1) * len(apart), 1 - count / self.probe.num_windows
        t, t_low = (as_unlikely(max(0.0, z), freedom) for z in (self.z, self.z - 1))
        beaten = {}
        for label, each in apart.items():
            difference, error = fmean(each), max(spreads[label], typical) * math.sqrt(left / count)
            if late or (difference > t * error and not self._is_rounding(difference)):
                beaten[label] = Dropped(difference, difference - t_low * error, difference - t * error)
        return beaten

    def _is_rounding(self, difference: float) -> bool:
        """Whether mean losses that differ so much may be equal before they are rounded to 16 bits."""
        return difference < COARSE and difference <= self.probe.resolution


@lru_cache
def as_unlikely(z: float, freedom: int) -> float:
    """The t of Student's distribution that is exceeded as seldom as z of the normal one, which is at most MOST_Z.

    `freedom` are its degrees of freedom, at least 1. Its distribution function is a finite sum where that is an
    integer (Abramowitz and Stegun, 26.7.3 and 26.7.4), and is inverted by bisection.
    """
    if z <= 0 or freedom < 1:
        return z
    z = min(z, MOST_Z)
    inside, low, high = math.erf(z / math.sqrt(2)), z, 2 * z
    while _within(high, freedom) < inside:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < inside else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """How often Student's distribution is between -t and t."""
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for step in range(1, freedom // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * (2 * step / (2 * step + 1) if odd else (2 * step - 1) / (2 * step))
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _order(loss: float, label: Any) -> tuple[bool, float, Any]:
    """Smallest loss first, NaN last, the first of equals."""
    return math.isnan(loss), loss, label
