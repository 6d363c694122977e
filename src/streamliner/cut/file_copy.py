"""Copy bytes from file to file without taking them into this process, and share whole files, where the system can.

What must be looked at is read in pieces, so that no tensor is in memory.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from streamliner.errors import ModelError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE_BLOCK = 4096
"""Bytes of a block of a file system. Whole blocks can be shared where they begin at the same place within a block."""
KERNEL_BYTES, READ_BYTES = 64 << 20, 4 << 20
"""Bytes of one call, so that Ctrl-C is heard: in the kernel, and through this process."""
FICLONE = 0x40049409
"""The number of Linux's call that makes a reflink; where it is another one, the call fails."""


def copy_range(source: FileIO, begin: int, size: int, target: FileIO) -> None:
    """Append to `target` the `size` bytes of `source` from `begin` on.

    Linux copies them itself, and shares the blocks where the file system can (Btrfs, XFS). A ModelError if `source`
    ends too early; an OSError names the file that cannot be read or written.
    """
    done = _copy_in_kernel(source, begin, size, target)
    # The rest, or all of it where the system cannot copy. What is wrong with a file shows again here, with its name.
    buffer = memoryview(bytearray(min(size - done, READ_BYTES)))
    source.seek(begin + done)
    while done < size:
        with _naming(source):
            count = source.readinto(buffer[: size - done])
        if not count:
            raise _too_short(source.name)
        write_all(target, buffer[:count])
        done += count


def pieces(path: Path, begin: int, size: int) -> Iterator[bytes]:
    """The `size` bytes of a file from `begin` on, a few megabytes at a time; a ModelError if it ends too early."""
    with path.open("rb") as reader:
        reader.seek(begin)
        while size:
            piece = reader.read(min(size, READ_BYTES))
            if not piece:
                raise _too_short(path)
            yield piece
            size -= len(piece)


def _too_short(file: object) -> ModelError:
    return ModelError(f"The file {file} ends too early.", "Download or copy it again.")


def write_all(target: FileIO, content: bytes | memoryview) -> None:
    """Write `content` at the position of `target`; an OSError names the file."""
    left = memoryview(content)
    while left:
        with _naming(target):
            left = left[target.write(left) :]


def share_file(source: Path, target: Path) -> str:
    """Make `target` a file with the content of `source` without copying: "reflinks" or "hard_links" says which.

    A reflink shares blocks until one of the two files is written to. A hard link is the same file under two names. An
    OSError says why neither can be made.
    """
    real = source.resolve()  # a hard link to a symbolic link would be one too, as in the hub's cache
    if _reflink(real, target):
        return "reflinks"
    os.link(real, target)
    return "hard_links"


def _copy_in_kernel(source: FileIO, begin: int, size: int, target: FileIO) -> int:
    """How many bytes Linux has copied; it stops at the first error."""
    copy = getattr(os, "copy_file_range", None)
    done, place = 0, target.tell()
    with suppress(OSError):
        while copy and done < size:
            count = min(size - done, KERNEL_BYTES)
            if (begin - place) % FILE_BLOCK == 0 and (begin + done) % FILE_BLOCK:
                count = min(count, -(begin + done) % FILE_BLOCK)  # from there on whole blocks can be shared
            copied = copy(source.fileno(), target.fileno(), count, begin + done, place + done)
            if not copied:
                break
            done += copied
    target.seek(place + done)
    return done


def _reflink(source: Path, target: Path) -> bool:
    if fcntl is None:
        return False
    with source.open("rb") as reader, target.open("xb") as writer, suppress(OSError):
        fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
        return True
    target.unlink()
    return False


@contextmanager
def _naming(file: FileIO) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from error
