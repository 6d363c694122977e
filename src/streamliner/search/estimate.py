"""How long a search will take, before it starts."""

import dataclasses
from dataclasses import dataclass

from streamliner.format import duration
from streamliner.measure.pass_time import PassTime
from streamliner.measure.probe import Probe
from streamliner.search.method import Method
from streamliner.search.methods.refine import Refine
from streamliner.search.methods.sleb import ENOUGH_WINDOWS, Sleb

ADAPTIVE_SHARE = 1 / 3
"""Losses that `adaptive` measures with 12 windows or more, as a share of those of `exact`. With 8 it is a half (.50 and
.54 in the log), and with 4 all: few windows know their standard error badly."""
WORTH_A_LINE, LONG = 10.0, 60.0
"""Seconds from which on the time is said, and the ways that take less."""
FEWEST_WINDOWS = 2
CHECK = 9
"""Forwards of a window that compare forked losses with plain ones, at the start."""


@dataclass(frozen=True)
class Estimate:
    """The time of searches on one probe, here.

    Attributes:
        probe: what will be measured.
        times: of a forward of one of its windows.
        windows: how many of its windows this process measures.
        forks: whether candidates are measured together.
    """

    probe: Probe
    times: PassTime
    windows: int
    forks: bool

    def seconds(self, method: Method, limit: int) -> float:
        """Seconds to search for up to `limit` blocks. A method that may stop early takes at most this.

        Of losses that are asked for together, each takes half of the blocks: the other half is shared, on average
        (`model/fork.py`).
        """
        whole = self.times.rest + self.times.block * self.probe.num_blocks
        left = getattr(method, "losses_left", None)
        if left is None:  # one pass of the dense model, and a loss for each point
            return (2 + limit) * whole * self.windows
        losses = left(self.probe, (), limit)
        if isinstance(method, Sleb) and method.is_adaptive(self.probe):
            losses *= min(1, max(ADAPTIVE_SHARE, 4 / self.probe.num_windows))
        blocks = (self.probe.num_blocks - limit / 2) * (0.5 if self.forks else 1)
        one = self.times.rest + self.times.block * blocks
        return float(whole + losses * one) * self.windows + (CHECK * whole if self.forks else 0)

    def announce(self, method: Method, limit: int, *, continues: bool = False, at_most: bool = False) -> None:
        """Say how long the search will take, and if that is long, how to search for less.

        Of a run that `continues` it is the time of the whole: what is in its journal takes none. With `at_most` a limit
        of damage may end it before.
        """
        seconds = self.seconds(method, limit)
        if seconds < WORTH_A_LINE:
            return
        line = f"The search will take {'at most ' if at_most else ''}about {duration(seconds)} on this machine."
        if continues:
            self.probe.say(f"{line} That is from its beginning: what was measured before takes no time now.")
            return
        if seconds >= LONG:
            ways = {name: self.seconds(cheaper, limit) for name, cheaper in self._ways(method).items()}
            faster = [f"about {duration(s)} with {name}" for name, s in ways.items() if s < 0.8 * seconds]
            less = "less with fewer --num-samples or a --time-limit"
            line += f" It would take {', '.join([*faster, less])}."
        self.probe.say(line)

    def _ways(self, method: Method) -> dict[str, Method]:
        """Cheaper searches, by what a user types for them."""
        refine = Refine(protect_first=method.protect_first, protect_last=method.protect_last)
        ways: dict[str, Method] = {"--method refine": refine}
        if isinstance(method, Sleb) and method.metric == "iterative" and not method.is_adaptive(self.probe):
            ways = {"--search-effort adaptive": dataclasses.replace(method, effort="adaptive")} | ways
        return ways

    def windows_that_fit(self, method: Method, limit: int, seconds: float) -> int:
        """How many of the windows a search of so many seconds has time for."""
        share = seconds / self.seconds(method, limit)
        fit = min(self.probe.num_windows, max(FEWEST_WINDOWS, int(self.probe.num_windows * share)))
        if (
            not isinstance(method, Sleb)
            or method.effort != "auto"
            or not fit < ENOUGH_WINDOWS <= self.probe.num_windows
        ):
            return fit
        # On so few windows the search is exact, and takes longer for each.
        exact = self.windows_that_fit(dataclasses.replace(method, effort="exact"), limit, seconds)
        return min(exact, ENOUGH_WINDOWS - 1)
