"""Messages and progress on stderr, for the command line and for Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table

PLAIN_INTERVAL = 20.0
"""Seconds between lines of progress where stderr is not a terminal."""


class Reporter:
    """Prints to stderr; a quiet one prints nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._draws = self._console.is_terminal and not quiet

    def say(self, message: str) -> None:
        """Print one line."""
        self._console.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A bar with the time left, or a line now and then where stderr is not a terminal.

        Yields a function to call with (done, total).
        """
        if not self._draws:
            yield self._plain_progress(label)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

        columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), "left:", TimeRemainingColumn(), console=self._console) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def training(self, steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A table that grows with each validation, or a line now and then where stderr is not a terminal.

        Yields a function to call with each step's row of the history.
        """
        rows = TrainingRows(steps)
        if not self._draws:
            yield self._plain_training(rows)
            return
        from rich.live import Live

        with Live(console=self._console, refresh_per_second=4) as live:

            def update(row: dict[str, Any]) -> None:
                rows.add(row)
                live.update(rows.table())

            yield update

    def _plain_progress(self, label: str) -> Callable[[int, int], None]:
        start = last = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PLAIN_INTERVAL and done:
                last = now
                self.say(f"{label}: {done} of {total}, about {(now - start) / done * (total - done):.0f} s left")

        return update

    def _plain_training(self, rows: TrainingRows) -> Callable[[dict[str, Any]], None]:
        last = time.monotonic() - PLAIN_INTERVAL

        def update(row: dict[str, Any]) -> None:
            nonlocal last
            cells = rows.add(row)
            if time.monotonic() - last >= PLAIN_INTERVAL or "validation" in row:
                last = time.monotonic()
                self.say(", ".join(f"{name} {cell}" for name, cell in zip(rows.NAMES, cells, strict=True) if cell))

        return update


class TrainingRows:
    """The rows that a training run shows: one for each validation, and one for the current step."""

    NAMES = ("step", "loss", "validation", "lr", "tokens/s", "left")
    SHOWN = 12
    """Rows on a terminal: the latest."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._validated: list[tuple[str, ...]] = []
        self._now: tuple[str, ...] = ()
        self._start: tuple[float, int, int] | None = None

    def add(self, row: dict[str, Any]) -> tuple[str, ...]:
        """Take in what happened in a step; returns its cells, in the order of NAMES."""
        now, step, tokens = time.monotonic(), row["step"], row["tokens"]
        self._start = self._start or (now, step, tokens)
        seconds, done = now - self._start[0], step - self._start[1]
        rate = (tokens - self._start[2]) / seconds if done and seconds else 0.0
        left = seconds / done * (self._steps - step) if done else None
        validation = row.get("validation")
        self._now = (
            f"{step}/{self._steps}",
            "" if row["loss"] is None else f"{row['loss']:.4g}",
            "" if validation is None else f"{validation:.4g}",
            f"{row['lr']:.2g}" if step else "",
            f"{rate:,.0f}" if rate else "",
            "" if left is None else f"{int(left) // 60}:{int(left) % 60:02}",
        )
        if validation is not None:
            self._validated.append(self._now)
        return self._now

    def table(self) -> Table:
        """The latest rows."""
        from rich.table import Table

        table = Table(*self.NAMES, title="Healing")
        rows = self._validated[-self.SHOWN :]
        for cells in rows if rows and rows[-1] is self._now else [*rows, self._now]:
            table.add_row(*cells)
        return table
