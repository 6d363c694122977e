"""Results go to stdout, messages and progress to stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)
PLAIN_INTERVAL = 20.0
"""Seconds between lines of progress where stderr is not a terminal."""


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

    def _plain(self, label: str) -> Callable[[int, int], None]:
        start = last = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PLAIN_INTERVAL and done:
                last = now
                self.say(f"{label}: {done} of {total}, about {(now - start) / done * (total - done):.0f} s left")

        return update


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    from streamliner.run import finite

    print(json.dumps(finite(value), indent=2, ensure_ascii=False))


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
