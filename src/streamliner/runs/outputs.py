"""Outputs: which existing files and folders may be replaced, and folders that appear whole or not at all."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from streamliner.errors import OutputError
from streamliner.format import human_bytes
from streamliner.runs.files import write_through
from streamliner.runs.lock import held, is_free

MARK = "streamliner.json"
"""The plan, in every checkpoint folder that streamliner wrote. No other folder is ever replaced."""
NO_CONTENT = (".partial-", ".new-", ".kept-", "lost+found")
REPORT_MARKS = {
    **dict.fromkeys((".html", ".htm"), "<title>streamliner report</title>"),
    ".md": "# streamliner report\n",
}
"""What a report by streamliner contains, by file suffix."""


def check_result_file(file: str | Path | None, *, overwrite: bool = False) -> None:
    """Check, before any work, that a result can be written to `file` (None is fine).

    Raises OutputError if it cannot, or if it exists and `overwrite` is false, or streamliner did not write it.
    """
    if file is None:
        return
    path = Path(file).expanduser().absolute()
    if path.is_dir():
        raise OutputError(f"{file} is a folder, but -o takes the name of a file.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist.", "Create it, or choose another file with -o.")
    if path.exists() and not _is_result(path):
        raise OutputError(f"{file} exists, and streamliner did not write it.", "Choose another name.")
    if path.exists() and not overwrite:
        raise OutputError(f"The output {file} exists.", "Choose another name, or add --overwrite to replace it.")
    _try_to_write(path.parent, file)


def _is_result(path: Path) -> bool:
    """Whether a file is a result or a report that streamliner wrote."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix in REPORT_MARKS:
        return REPORT_MARKS[path.suffix] in text
    try:
        return "schema_version" in json.loads(text)
    except (json.JSONDecodeError, TypeError):
        return False


def check_output(
    out: str | Path, *, overwrite: bool = False, model_folder: str | Path | None = None, needed: int = 0
) -> Path:
    """Check, before any work, that the folder `out` can be written, by doing so; leaves nothing behind.

    `needed` are the bytes that will be written. An OutputError if there is no room for them, if it cannot be created,
    if it exists and `overwrite` is false, or if streamliner did not write it.
    """
    path = Path(out).expanduser().absolute()
    _put_back(path)
    if model_folder and path.exists() and path.samefile(model_folder):
        raise OutputError(f"The output {out} is the model itself.", "Choose another folder.")
    if path.is_symlink() and not path.exists():
        raise OutputError(f"{out} is a link to a place that does not exist.", "Choose another name.")
    if path.exists() and not path.is_dir():
        raise OutputError(f"{out} exists, and is not a folder.", "Choose another name.")
    if path.is_dir() and _content(path):
        if not (path / MARK).is_file():
            raise OutputError(f"{out} exists, and streamliner did not write it.", "Choose another name.")
        if not overwrite:
            raise OutputError(f"The output {out} exists.", "Choose another name, or add --overwrite to replace it.")
    ancestor = path if _is_filled(path) else next(parent for parent in path.parents if parent.exists())
    _try_to_write(ancestor, out)
    _check_room(ancestor, out, needed)
    return path


def check_outside(name: str, folder: Path, others: Mapping[str, Path]) -> None:
    """Raise OutputError if a folder is one of the others, or inside it; all are called by their names."""
    place = folder.expanduser().absolute()
    for other, holder in others.items():
        if holder.expanduser().absolute() in (place, *place.parents):
            raise OutputError(f"The {name} {folder} is inside the {other}.", "Choose another folder.")


def is_gguf_name(out: str | Path) -> bool:
    """Whether an output is to be a GGUF file, by its name; a folder may have that name too."""
    return Path(out).suffix.lower() == ".gguf" and not Path(out).expanduser().is_dir()


def check_output_file(
    out: str | Path,
    *,
    overwrite: bool = False,
    sources: Sequence[Path] = (),
    needed: int = 0,
    is_ours: Callable[[Path], bool] = lambda path: False,
) -> Path:
    """The same for a file with a model: `sources` are the files of the dense one, `is_ours` says who wrote a file."""
    path = Path(out).expanduser().absolute()
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist.", "Create it, or choose another file with -o.")
    if path.is_symlink() and not path.exists():
        raise OutputError(f"{out} is a link to a place that does not exist.", "Choose another name.")
    if path.exists():
        if any(path.samefile(source) for source in sources):
            raise OutputError(f"The output {out} is the model itself.", "Choose another name.")
        if not path.is_file() or not is_ours(path):
            raise OutputError(f"{out} exists, and streamliner did not write it.", "Choose another name.")
        if not overwrite:
            raise OutputError(f"The output {out} exists.", "Choose another name, or add --overwrite to replace it.")
    _try_to_write(path.parent, out)
    _check_room(path.parent, out, needed)
    return path


def _check_room(folder: Path, out: str | Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        found = f"{out} needs {human_bytes(needed)}, and the disk of {folder} has {human_bytes(free)} left."
        raise OutputError(found, "Make room, or name a place on another disk with -o.")


def _try_to_write(folder: Path, out: str | Path) -> None:
    """Write a folder into `folder`, rename it and remove it, as will be done with `out`."""
    if not folder.is_dir():
        raise OutputError(f"{out} cannot be created: {folder} is not a folder.")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".streamliner-") as trial:
            new = Path(trial) / "new"
            new.mkdir()
            new.rename(Path(trial) / "renamed")
    except OSError as error:
        raise OutputError(f"{out} cannot be created: {folder} is not writable: {error.strerror}.") from error


def _is_filled(path: Path) -> bool:
    """Whether `path` is a folder that nothing can take the place of: a mount point, a link, where a shell is."""
    if not path.is_dir():
        return False
    return path.is_symlink() or path.is_mount() or path.resolve() == Path.cwd()


@contextmanager
def output_folder(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the context ends, and is removed if it raises.

    It is next to `out`, and takes its place in one step once it is on the disk. A folder that cannot be replaced, such
    as a mount point, is filled, `config.json` last. A result that cannot be put in place is kept, and the error says
    where. A killed process leaves its temporary folder, `.NAME.partial-*`; the next run with this output removes it.
    """
    path = check_output(out, overwrite=overwrite)
    fill = _is_filled(path)
    home, hidden = (path, "") if fill else (path.parent, f".{path.name}")
    home.mkdir(parents=True, exist_ok=True)
    with _partial_folder(home, hidden) as partial:
        yield partial
        _write_all_through(partial)
        with _kept(out, partial, partial):
            if fill:
                _fill(path, partial)
            else:
                _replace(path, partial, overwrite=overwrite)
            write_through(home)


@contextmanager
def output_file(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """The same for a file: a path of the same name in a temporary folder next to `out`, which `check_output_file` saw.

    Without `overwrite` a file that has appeared meanwhile is not replaced.
    """
    path = Path(out).expanduser().absolute()
    with _partial_folder(path.parent, f".{path.name}") as partial:
        new = partial / path.name
        yield new
        _write_all_through(partial)
        with _kept(out, partial, new):
            if overwrite:
                new.replace(path)
            else:
                _move_to_free_name(new, path)
            write_through(path.parent)


class _KeptError(OutputError):
    """A result that cannot be put in place, and is kept where it is."""


@contextmanager
def _kept(out: str | Path, partial: Path, result: Path) -> Iterator[None]:
    """While open, an error of the disk keeps `partial`, with the result, under a name that no later run removes."""
    try:
        yield
    except OSError as error:
        kept = partial.with_name(partial.name.replace(".partial-", ".kept-"))
        with suppress(OSError):
            partial.rename(kept)
        place = (kept if kept.exists() else partial) / result.relative_to(partial)
        reason = f"{error.strerror}. The result is whole, and kept in {place}."
        raise _KeptError(f"{out} cannot be put in place: {reason}", "Move it by hand.") from error


@contextmanager
def _partial_folder(home: Path, hidden: str) -> Iterator[Path]:
    """A new folder in `home`, which is removed at the end unless its content is kept; removes those of killed runs."""
    for stale in home.glob(f"{hidden}.partial-*"):
        if is_free(stale):
            shutil.rmtree(stale, ignore_errors=True)
    new = Path(tempfile.mkdtemp(dir=home, prefix=f"{hidden}.new-"))
    new.chmod(0o777 & ~_umask())  # as any other new folder
    partial, keep = new.with_name(new.name.replace(".new-", ".partial-")), False
    try:
        with held(new):  # before it has the name by which others find what is left over
            new.rename(partial)
            yield partial
    except _KeptError:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(partial, ignore_errors=True)


def _put_back(path: Path) -> None:
    """Give an old output its name again if a run was killed after it took that away, and before the new one had it."""
    for old in sorted(path.parent.glob(f".{path.name}.old-*")):
        new = old.with_name(old.name.replace(".old-", ".partial-"))
        if new.exists() and not is_free(new):
            continue  # a run that is at it
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


def _move_to_free_name(new: Path, path: Path) -> None:
    """Rename a file, but not onto another; a FileExistsError if there is one."""
    taken = FileExistsError(errno.EEXIST, "it has appeared meanwhile")
    try:
        os.link(new, path)  # in one step, where a check and a renaming are two
    except FileExistsError as error:
        raise taken from error
    except OSError:  # a disk without links
        if path.exists():
            raise taken from None
        new.rename(path)


def _write_all_through(folder: Path) -> None:
    """Wait until a folder and all in it are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            write_through(path)


def _replace(path: Path, partial: Path, *, overwrite: bool) -> None:
    if path.is_dir() and _content(path):
        if not overwrite:
            raise FileExistsError(errno.EEXIST, "it has appeared meanwhile")
        old = partial.with_name(partial.name.replace(".partial-", ".old-"))
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.rename(path)  # replaces an empty folder in one step


def _fill(path: Path, partial: Path) -> None:
    for old in _content(path):
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    # The mark first, so that the next run knows whose the folder is; `config.json` last, so that none loads a part.
    for new in sorted(partial.iterdir(), key=lambda new: (new.name != MARK, new.name == "config.json")):
        new.rename(path / new.name)


def _content(folder: Path) -> list[Path]:
    """What is in a folder, without what a killed run left in a folder that is filled, and what a file system has."""
    return [each for each in folder.iterdir() if not each.name.startswith(NO_CONTENT)]


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
