"""Locks that end with their process, whatever ends it: one writer for each run folder and each unfinished output."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from streamliner.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows has none: there two writers are not noticed
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(path: Path) -> Iterator[None]:
    """While open, other processes see that `path`, a file or a folder, is in use. BlockingIOError if one uses it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # some network disks have no locks
            pass
        yield
    finally:
        os.close(descriptor)


def is_free(path: Path) -> bool:
    """Whether no process uses `path`; False where that cannot be known."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        if fcntl is None:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def one_writer(folder: Path, work: str) -> Iterator[None]:
    """While open, this process alone does `work`, such as "search", in a run folder, which is created.

    An OutputError if another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f".{work}.lock"
    file.touch()
    with ExitStack() as stack:
        try:
            stack.enter_context(held(file))
        except BlockingIOError as error:
            found = f"Another process is at work in {folder} ({work})."
            raise OutputError(found, "Wait for it, or choose another folder.") from error
        yield
