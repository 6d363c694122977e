"""Where text comes from: SOURCE -> documents with their provenance.

A SOURCE is `wikitext2[:split]` or `c4[:split]` (from the hub), `python-docs[:split]` (the documentation topics that
every Python has in `pydoc_data`, so they need no network), a file of text or of rows with an optional `:field`
(`text/formats.py` has the formats), a folder of those, or `hf:dataset[/config][:split[:field]]`.
"""

import hashlib
import itertools
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from streamliner.errors import MissingExtraError, TextError, did_you_mean, first_line
from streamliner.text.formats import TEXT_SUFFIXES, Document, kind_of_file, read_documents, text_of_row
from streamliner.text.large import LargeText, as_large

HUB_SETS = {"wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "text"), "c4": ("allenai/c4", "en", "text")}
"""Name -> dataset, config, field."""

HUB_DOCUMENTS = 20_000
"""Documents that are read from a large dataset on the hub, at most; windows are chosen among them."""

PIECE = 1 << 20
"""Characters after which a plain text file that is streamed is divided, at the next end of a line."""


@dataclass(frozen=True)
class Text:
    """Documents, none of them empty, and where they come from."""

    name: str  # the SOURCE as the user wrote it
    documents: tuple[Document, ...]
    origin: dict[str, str]  # file and hash, or dataset, config, split and hash


def read_text(text: str | Text | Iterable[str]) -> Text:
    """Read a SOURCE (see the module), or take documents that are in memory.

    Raises:
        TextError: it does not exist, is empty or is not understood, or a document is not a str.
        MissingExtraError: a dataset on the hub without the `hub` extra.
    """
    if isinstance(text, Text):
        return text
    if not isinstance(text, str):
        text = _from_memory(list(text))
    elif text.partition(":")[0] == "python-docs":
        text = _python_docs(text)
    else:
        text = _from_hub(text) if _is_on_hub(text) else _from_files(text)
    if not text.documents:
        raise TextError(f"The text {text.name} is empty.", "Give at least one document with text in it.")
    return text


def default_text(of_hub_model: bool, say: Callable[[str], None]) -> Text:
    """The calibration text if the user names none: SLEB's WikiText-2 for a model on the hub, otherwise python-docs."""
    try:
        if of_hub_model:
            return read_text("wikitext2")
        say("Calibrating on python-docs, which needs no network. SLEB's text is on the hub: --calibration wikitext2.")
    except (TextError, MissingExtraError) as error:
        say(f"{error} Calibrating on python-docs instead.")
    return read_text("python-docs")


def stream_documents(source: str, skip: int = 0) -> Iterator[Document]:
    """The documents of a SOURCE one after another, without the first `skip`. Some may be empty.

    They are never all in memory: a plain text file is divided into pieces of about a megabyte that end with a line, and
    a dataset on the hub is streamed. Raises the errors of `read_text`, some only when a document is asked for.
    """
    if source.partition(":")[0] == "python-docs":
        return iter(read_text(source).documents[skip:])
    if _is_on_hub(source):
        return _hub_rows(source, streaming=True, skip=skip)
    _, files, field = find_files(source)
    return itertools.islice((piece for file in files for piece in read_documents(file, field, PIECE)), skip, None)


def _from_memory(documents: list[str]) -> Text:
    for number, document in enumerate(documents):
        if not isinstance(document, str):
            raise TextError(
                f"Document {number} of the text is of type {type(document).__name__}, not str.",
                'Give a list of str, such as a column of a dataset: dataset["text"].',
            )
    filled = tuple(document for document in documents if document.strip())
    return Text("text in memory", filled, {"sha256": _hash(filled)})


def _python_docs(source: str) -> Text:
    from pydoc_data.topics import topics

    split = source.partition(":")[2] or "train"
    if split not in ("train", "test"):
        hint = did_you_mean(split, ("train", "test"))
        raise TextError(f"python-docs has the splits train and test, not {split}.", hint)
    # Every fifth topic, by name, is in the test split. A text with two names belongs to the first of them.
    first_names: dict[str, str] = {}
    for topic in sorted(topics):
        first_names.setdefault(topics[topic], topic)
    test = set(sorted(topics)[4::5])
    documents = tuple(text for text, topic in first_names.items() if (topic in test) == (split == "test"))
    return Text(source, documents, {"python": platform.python_version(), "split": split, "sha256": _hash(documents)})


def _is_on_hub(source: str) -> bool:
    return source.partition(":")[0] in ("hf", *HUB_SETS)


def _hub_place(source: str) -> tuple[str, str | None, str, str]:
    """Dataset, config, split and field."""
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


def _hub_rows(source: str, *, streaming: bool, skip: int = 0) -> Iterator[Document]:
    dataset, config, split, field = _hub_place(source)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(f"The text {source}, a dataset on the hub,", "hub") from error
    try:
        rows = load_dataset(dataset, config, split=split, streaming=streaming)
        for number, row in enumerate(rows.skip(skip) if skip else rows, skip + 1):
            yield text_of_row(row, field, f"Row {number} of the dataset {dataset}")
    except TextError:
        raise
    except Exception as error:  # datasets raises many types of its own for "no network" and "no such dataset"
        raise TextError(
            f"The text {source} cannot be read from the hub: {first_line(error)}",
            "Without a network, use python-docs or a file of your own.",
        ) from error


def _from_hub(source: str) -> Text:
    # WikiText-2 is small and read whole; of larger datasets the first documents are streamed.
    dataset, config, split, _ = _hub_place(source)
    whole = dataset == HUB_SETS["wikitext2"][0]
    rows = list(itertools.islice(_hub_rows(source, streaming=not whole), None if whole else HUB_DOCUMENTS))
    # WikiText-2's rows are the lines of one text; the literature joins them by blank lines and tokenises them as one.
    documents = ("\n\n".join(map(str, rows)),) if whole else tuple(each for each in rows if each)
    origin = {"dataset": dataset, "config": config or "", "split": split, "sha256": _hash(documents)}
    return Text(source, documents if any(documents) else (), origin)


def _from_files(source: str) -> Text:
    path, files, field = find_files(source)
    every = (document for file in files for document in read_documents(file, field))
    documents = tuple(each for each in every if not isinstance(each, str) or each.strip())
    origin = {"folder": str(path), "files": str(len(files))} if path.is_dir() else {"file": str(path)}
    return Text(source, documents, origin | {"sha256": _hash(documents)})


def large_text(source: str) -> LargeText | None:
    """The text of a SOURCE in files that are too large to tokenise whole; None for all others."""
    if source.partition(":")[0] == "python-docs" or _is_on_hub(source):
        return None
    path, files, field = find_files(source)
    return as_large(source, path, files, field)


def find_files(source: str) -> tuple[Path, list[Path], str]:
    """The path that a SOURCE names, the files there, and the field of their rows."""
    path, field = Path(source).expanduser(), "text"
    if not path.exists() and ":" in source:
        name, _, field = source.rpartition(":")
        path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and kind_of_file(file) in TEXT_SUFFIXES)
        if not files:
            hint = f"It is searched for {', '.join(TEXT_SUFFIXES)} files, also compressed with gzip."
            raise TextError(f"The folder {source} contains no text.", hint)
        return path, files, field
    if path.is_file():
        return path, [path], field
    sources = "wikitext2, c4, python-docs, a file of text or rows (FILE or FILE:FIELD), a folder, or hf:dataset"
    near = itertools.islice(path.parent.iterdir(), 1000) if path.parent.is_dir() else ()
    known = (*HUB_SETS, "python-docs", *(each.name for each in near))
    raise TextError(f"There is no text {source}.", did_you_mean(path.name, known, f"Sources are {sources}."))


def _hash(documents: tuple[Document, ...]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        text = document if isinstance(document, str) else json.dumps(document)
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
