"""Where calibration text comes from: SOURCE -> documents with their provenance.

A SOURCE is `wikitext2[:split]`, `c4[:split]` (from the hub), `python-docs[:split]` (the documentation topics that every
Python carries in `pydoc_data`, so the tool works with no network), a text file, a `.jsonl[:field]` file, a folder of
those, or `hf:dataset[/config][:split[:field]]`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamliner.errors import MissingExtraError, TextError

HUB_SETS = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "text"),
    "c4": ("allenai/c4", "en", "text"),
}


PIECE = 1 << 20
"""Characters after which a plain text file that is streamed is divided, at the next end of a line."""


HUB_DOCUMENTS = 20_000
"""At most so many documents are read from a streamed hub set; the choice of windows is among them."""


TEXT_SUFFIXES = (".txt", ".md", ".raw", ".rst", ".jsonl")


@dataclass(frozen=True)
class Text:
    """Documents and where they came from.

    Attributes:
        name: the SOURCE as typed.
        documents: their texts, none empty.
        origin: what identifies the text: file and hash, or set, revision and split.
    """

    name: str
    documents: tuple[str, ...]
    origin: dict[str, str]


def read_text(source: str) -> Text:
    """Read a SOURCE (see the module).

    Raises:
        TextError: it is not there, empty or not understood.
        MissingExtraError: a hub set without the `hub` extra.
    """
    name, _, rest = source.partition(":")
    if name == "python-docs":
        text = _python_docs(source, rest or "train")
    elif _is_on_hub(source):
        text = _hub(source)
    else:
        text = _local(source)
    if not text.documents:
        raise TextError(f"The text {source} is empty.", "Give a source with text in it.")
    return text


def stream_documents(source: str, skip: int = 0) -> Iterator[str]:
    """The documents of a SOURCE one after another from the `skip`-th on, never held all at once; some may be empty.

    A plain text file comes in pieces of about a megabyte that end with a line; a hub set is streamed.

    Raises:
        TextError, MissingExtraError: as `read_text`, some only when a document is asked for.
    """
    if source.partition(":")[0] == "python-docs":
        return iter(read_text(source).documents[skip:])
    if _is_on_hub(source):
        return _hub_texts(source, streaming=True, skip=skip)
    _, files, field = _local_files(source)
    return itertools.islice((piece for file in files for piece in _documents(file, field, PIECE)), skip, None)


def _python_docs(source: str, split: str) -> Text:
    from pydoc_data.topics import topics

    if split not in ("train", "test"):
        raise TextError(f"python-docs has the splits train and test, not {split}.")
    # Every fifth topic, by name, is held out. Some topics have two names: the text then belongs to the first.
    first_names: dict[str, str] = {}
    for topic in sorted(topics):
        first_names.setdefault(topics[topic], topic)
    held_out = set(sorted(topics)[4::5])
    documents = tuple(text for text, topic in first_names.items() if (topic in held_out) == (split == "test"))
    return Text(source, documents, {"python": platform.python_version(), "split": split, "sha256": _hash(documents)})


def _is_on_hub(source: str) -> bool:
    name = source.partition(":")[0]
    return name == "hf" or name in HUB_SETS


def _hub_place(source: str) -> tuple[str, str | None, str, str]:
    """Set, config, split and field."""
    name, _, rest = source.partition(":")
    if name in HUB_SETS:
        dataset, config, field = HUB_SETS[name]
        return dataset, config, rest or "train", field
    dataset, _, selection = rest.partition(":")
    split, _, field = selection.partition(":")
    parts = dataset.split("/")
    if not dataset or len(parts) > 3:
        raise TextError(f"{source} is not a source.", "Write hf:dataset[/config][:split[:field]].")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train", field or "text"


def _hub_texts(source: str, *, streaming: bool, skip: int = 0) -> Iterator[str]:
    dataset, config, split, field = _hub_place(source)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(f"The text {source}, a set on the hub,", "hub") from error
    try:
        rows = load_dataset(dataset, config, split=split, streaming=streaming)
        for row in rows.skip(skip) if skip else rows:
            yield row[field]
    except KeyError as error:
        raise TextError(f"The set {dataset} has no field {field}.", "Name it: hf:dataset:split:field.") from error
    except GeneratorExit:
        raise
    except Exception as error:  # datasets raises many types of its own for "no network" and "no such set"
        raise TextError(
            f"The text {source} cannot be had from the hub: {str(error).splitlines()[0][:200]}",
            "With no network, use python-docs or a file of your own.",
        ) from error


def _hub(source: str) -> Text:
    # WikiText-2 is small and read whole; larger sets are streamed, their first documents taken.
    dataset, config, split, _ = _hub_place(source)
    whole = dataset == HUB_SETS["wikitext2"][0]
    texts = list(itertools.islice(_hub_texts(source, streaming=not whole), None if whole else HUB_DOCUMENTS))
    # WikiText-2's rows are lines of one text, customarily joined by blank lines and tokenised as one.
    documents = ("\n\n".join(texts),) if whole else tuple(text for text in texts if text.strip())
    origin = {"dataset": dataset, "config": config or "", "split": split, "sha256": _hash(documents)}
    return Text(source, documents if any(documents) else (), origin)


def _local(source: str) -> Text:
    path, files, field = _local_files(source)
    documents = tuple(itertools.chain.from_iterable(_documents(file, field) for file in files))
    origin = {"folder": str(path), "files": str(len(files))} if path.is_dir() else {"file": str(path)}
    return Text(source, documents, origin | {"sha256": _hash(documents)})


def _local_files(source: str) -> tuple[Path, list[Path], str]:
    """The path that a SOURCE names, the files there, and the field of their rows."""
    path, field = Path(source).expanduser(), "text"
    if not path.exists() and ".jsonl:" in source:
        name, _, field = source.rpartition(":")
        path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
        if not files:
            raise TextError(f"The folder {source} holds no text.", f"It is searched for {', '.join(TEXT_SUFFIXES)}.")
        return path, files, field
    if path.is_file():
        return path, [path], field
    raise TextError(
        f"There is no text {source}.",
        "Sources are wikitext2, c4, python-docs, a .txt or .jsonl[:field] file, a folder, or hf:dataset.",
    )


def _documents(path: Path, field: str, piece: int | None = None) -> Iterator[str]:
    """The documents in a file: of a plain text the whole, or pieces of about `piece` characters."""
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".jsonl":
                yield from _rows(path, file, field)
            elif piece is None:
                text = file.read()
                if text.strip():
                    yield text
            else:
                while lines := file.readlines(piece):
                    yield "".join(lines)
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _rows(path: Path, file: Iterable[str], field: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise TextError(f"Line {number} of {path} is not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise TextError(
                f"Line {number} of {path} has no text field {field!r}; it has: {found}.", f"Name it: {path}:FIELD"
            )
        if row[field].strip():
            yield row[field]


def _hash(documents: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
