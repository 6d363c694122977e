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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamliner.errors import MissingExtraError, TextError

HUB_SETS = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "text"),
    "c4": ("allenai/c4", "en", "text"),
}
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
    elif name in HUB_SETS:
        dataset, config, field = HUB_SETS[name]
        text = _hub(source, dataset, config, rest or "train", field)
    elif name == "hf":
        text = _named_hub_set(source, rest)
    else:
        text = _local(source)
    if not text.documents:
        raise TextError(f"The text {source} is empty.", "Give a source with text in it.")
    return text


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


def _named_hub_set(source: str, rest: str) -> Text:
    dataset, _, selection = rest.partition(":")
    split, _, field = selection.partition(":")
    parts = dataset.split("/")
    if not dataset or len(parts) > 3:
        raise TextError(f"{source} is not a source.", "Write hf:dataset[/config][:split[:field]].")
    config = parts[2] if len(parts) == 3 else None
    return _hub(source, "/".join(parts[:2]), config, split or "train", field or "text")


def _hub(source: str, dataset: str, config: str | None, split: str, field: str) -> Text:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(f"The text {source}, a set on the hub,", "hub") from error
    try:
        # WikiText-2 is small and read whole; larger sets are streamed, their first documents taken.
        whole = dataset == HUB_SETS["wikitext2"][0]
        rows = load_dataset(dataset, config, split=split, streaming=not whole)
        texts = [row[field] for row in itertools.islice(rows, None if whole else HUB_DOCUMENTS)]
    except KeyError as error:
        raise TextError(f"The set {dataset} has no field {field}.", "Name it: hf:dataset:split:field.") from error
    except Exception as error:  # datasets raises many types of its own for "no network" and "no such set"
        raise TextError(
            f"The text {source} cannot be had from the hub: {str(error).splitlines()[0][:200]}",
            "With no network, use --calibration python-docs or a file of your own.",
        ) from error
    # WikiText-2's rows are lines of one text, customarily joined by blank lines and tokenised as one.
    documents = ("\n\n".join(texts),) if whole else tuple(text for text in texts if text.strip())
    origin = {"dataset": dataset, "config": config or "", "split": split, "sha256": _hash(documents)}
    return Text(source, documents if any(documents) else (), origin)


def _local(source: str) -> Text:
    path, field = Path(source).expanduser(), "text"
    if not path.exists() and ".jsonl:" in source:
        name, _, field = source.rpartition(":")
        path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
        if not files:
            raise TextError(f"The folder {source} holds no text.", f"It is searched for {', '.join(TEXT_SUFFIXES)}.")
        documents = tuple(itertools.chain.from_iterable(_documents(file, field) for file in files))
        return Text(source, documents, {"folder": str(path), "files": str(len(files)), "sha256": _hash(documents)})
    if path.is_file():
        documents = tuple(_documents(path, field))
        return Text(source, documents, {"file": str(path), "sha256": _hash(documents)})
    raise TextError(
        f"There is no text {source}.",
        "Sources are wikitext2, c4, python-docs, a .txt or .jsonl[:field] file, a folder, or hf:dataset.",
    )


def _documents(path: Path, field: str) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if path.suffix != ".jsonl":
        if text.strip():
            yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
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
