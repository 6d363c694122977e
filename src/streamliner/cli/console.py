"""Results go to stdout, messages and progress to stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from streamliner.format import short_names

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)
PLAIN_INTERVAL = 20.0
"""Seconds between lines of progress where stderr is not a terminal."""
SIDE_BY_SIDE = 3
"""Models that a table has columns for."""


class Terminal:
    """The reporter of the command line (`pipeline.Reporter`)."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def say(self, message: str) -> None:
        """One line on stderr, unless quiet."""
        if not self._quiet:
            error_console.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A bar with the time left; plain lines now and then where stderr is not a terminal."""
        if self._quiet:
            yield lambda done, total: None
        elif not error_console.is_terminal:
            yield self._plain(label)
        else:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

            columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
            with Progress(*columns, TimeElapsedColumn(), "left:", TimeRemainingColumn(), console=error_console) as bar:
                task = bar.add_task(label, total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def training(self, steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A table that grows with each validation, its last row the present step; plain lines without a terminal."""
        if self._quiet:
            yield lambda row: None
            return
        rows = TrainingRows(steps)
        if error_console.is_terminal:
            from rich.live import Live

            with Live(console=error_console, refresh_per_second=4) as live:

                def update(row: dict[str, Any]) -> None:
                    rows.add(row)
                    live.update(rows.table())

                yield update
        else:
            last = time.monotonic() - PLAIN_INTERVAL

            def say(row: dict[str, Any]) -> None:
                nonlocal last
                shown = rows.add(row)
                if time.monotonic() - last >= PLAIN_INTERVAL or "validation" in row:
                    last = time.monotonic()
                    parts = (f"{name} {value}" for name, value in zip(TrainingRows.NAMES, shown, strict=True) if value)
                    self.say(", ".join(parts))

            yield say

    def _plain(self, label: str) -> Callable[[int, int], None]:
        start = last = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PLAIN_INTERVAL and done:
                last = now
                self.say(f"{label}: {done} of {total}, about {(now - start) / done * (total - done):.0f} s left")

        return update


class TrainingRows:
    """What a training run shows: a row for each validation, and one for the step that it is at."""

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
        cells = (
            f"{step}/{self._steps}",
            "" if row["loss"] is None else f"{row['loss']:.4g}",
            "" if validation is None else f"{validation:.4g}",
            f"{row['lr']:.2g}" if step else "",
            f"{rate:,.0f}" if rate else "",
            "" if left is None else f"{int(left) // 60}:{int(left) % 60:02}",
        )
        if validation is not None:
            self._validated.append(cells)
        self._now = cells
        return cells

    def table(self) -> Any:
        """As a table of rich."""
        from rich.table import Table

        table = Table(*self.NAMES, title="Healing")
        rows = self._validated[-self.SHOWN :]
        for cells in rows if rows and rows[-1] is self._now else [*rows, self._now]:
            table.add_row(*cells)
        return table


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    from streamliner.runs.files import finite

    print(json.dumps(finite(value), indent=2, ensure_ascii=False))


def print_models(models: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """A table of what was measured of models, by label: a few models side by side, more of them one below another."""
    from rich.markup import escape
    from rich.table import Table

    names = [escape(name) for name in short_names(models)]
    labels = [escape(label) for label, _ in rows]
    if len(models) <= SIDE_BY_SIDE:
        table = Table("", *names)
        for label, (_, cells) in zip(labels, rows, strict=True):
            table.add_row(label, *cells)
    else:
        table = Table("", *labels)
        for place, name in enumerate(names):
            table.add_row(name, *(cells[place] for _, cells in rows))
    console.print(table)


def human_bytes(count: int | None) -> str:
    """Such as "1.07 GB"."""
    if count is None:
        return "not known before download"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def indices(blocks: tuple[int, ...] | list[int]) -> str:
    """The full list, never a range."""
    return ", ".join(map(str, blocks))
