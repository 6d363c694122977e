"""The time that a search may take."""

import time
from collections.abc import Callable

import torch

from streamliner.runs.ranks import Ranks


class Deadline:
    """A moment from which on a search takes no more measurements than it needs for an answer.

    Args:
        seconds: from now on; None for a search without a limit.
        ranks: the processes, for all of which it is over when it is for one; all must ask alike.
        say: called once, with a message, when it is over.
    """

    def __init__(
        self,
        seconds: float | None = None,
        ranks: Ranks | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.is_set = seconds is not None
        self._end = time.monotonic() + (seconds or 0)
        self._ranks, self._say, self._is_over = ranks or Ranks(), say, False

    def is_over(self) -> bool:
        """Whether the time is up."""
        if self.is_set and not self._is_over:
            here = torch.tensor(float(time.monotonic() >= self._end))
            self._is_over = self._ranks.total(here).item() > 0
            if self._is_over:
                self._say("The time is up: what is left is decided on fewer windows, and the best so far is taken.")
        return self._is_over

    @property
    def message(self) -> str:
        """What it meant for the search; "" if the time was not up."""
        return "The time limit was reached: what was left then was decided on fewer windows." if self._is_over else ""
