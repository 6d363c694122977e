"""Files of text: plain text, and rows of JSON, CSV or Parquet; also compressed by gzip -> documents."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from streamliner.errors import MissingExtraError, TextError, did_you_mean

Messages = list[dict[str, str]]
"""A conversation: messages with a role and their content. The model's chat template makes text of it."""
Document = str | Messages

LINES, TABLES, JSON, PARQUET = (".jsonl", ".ndjson"), (".csv", ".tsv"), ".json", ".parquet"
TEXT_SUFFIXES = (".txt", ".md", ".raw", ".rst", *LINES, *TABLES, JSON, PARQUET)
"""Suffixes of the files that a folder is searched for, each also with `.gz` after it."""
NOT_TEXT = (".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".pdf", ".docx", ".epub", ".arrow", ".npy", ".bin")
CHATS = {"messages": ("role", "content"), "conversations": ("from", "value")}
"""Fields that hold a conversation, and the keys of its messages."""
ROLES = {"human": "user", "gpt": "assistant"}
"""Roles in `conversations`, and what chat templates call them."""
PROMPT, COMPLETION = "prompt", "completion"
"""Fields that hold a question and its answer: plain texts, or messages. They are also the roles of the two plain texts
in a conversation that needs no chat template: one follows the other."""
LONGEST_CELL = 1 << 30
BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def kind_of_file(path: Path) -> str:
    """The suffix that says what is in a file, in lower case; without `.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_documents(path: Path, field: str, piece: int = -1) -> Iterator[Document]:
    """The documents in a file, one after another; those without text are left out.

    A plain text is one document, or pieces of about `piece` characters, each with whole lines. `field` is that of rows
    with the text; rows without `text` may have a conversation instead (CHATS), or a question with its answer (PROMPT).

    Raises TextError if it cannot be read or a row has no text, MissingExtraError for Parquet without the `hub` extra.
    """
    kind = kind_of_file(path)
    if kind in NOT_TEXT:
        hint = f"Unpack or convert it: {', '.join(TEXT_SUFFIXES)}, also compressed with gzip, can be read."
        raise TextError(f"{path} is not text that can be read here.", hint)
    try:
        if kind == PARQUET:
            yield from _texts(path, _parquet_rows(path, field), field)
            return
        with open_text(path) as file:
            if kind in ROWS:
                yield from _texts(path, ROWS[kind](path, file), field)
                return
            while lines := file.readlines(piece):
                yield "".join(lines)
    except GeneratorExit:  # at the end of the program, when `csv` may be gone already
        raise
    except (OSError, EOFError, csv.Error) as error:
        raise TextError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at position {error.start}.",
            "Convert it to UTF-8, such as with iconv.",
        ) from error


def open_text(path: Path) -> TextIO:
    """Open a file of UTF-8 or, with its mark at the start, UTF-16; a mark is skipped, CRLF becomes a line end."""
    raw = cast(BinaryIO, (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb"))
    encoding = BOMS.get(raw.read(2), "utf-8-sig")
    raw.seek(0)
    return io.TextIOWrapper(raw, encoding=encoding)


def text_of_row(row: Any, field: str, where: str) -> Document:
    """The text of a row, or its conversation; `where` is the row in messages. A TextError if it has neither."""
    if isinstance(row, str):
        return row
    if isinstance(row, dict):
        if isinstance(row.get(field), str):
            return cast(str, row[field])
        named = field if field in CHATS else next((name for name in CHATS if field == "text" and name in row), None)
        if named is not None and named in row and (named == field or "text" not in row):
            return _messages(row[named], *CHATS[named], where)
        if field == "text" and field not in row and {PROMPT, COMPLETION} <= row.keys():
            return _question_and_answer(row, where)
        if field in row:
            found = f"{field!r} of {where} is {'null' if row[field] is None else type(row[field]).__name__}, not text."
            raise TextError(found, "Leave out such rows, or name another field: FILE:FIELD.")
    found = f"it has: {', '.join(map(str, row))}" if isinstance(row, dict) else f"it is of type {type(row).__name__}"
    hint = did_you_mean(field, row if isinstance(row, dict) else (), "Name the field: FILE:FIELD.")
    raise TextError(f"{where} has no text field {field!r}; {found}.", hint)


def _messages(value: Any, role: str, content: str, where: str) -> Messages:
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(each, dict) and isinstance(each.get(content), str) for each in rows):
        raise TextError(f"The conversation of {where} is not a list of messages with {role!r} and {content!r}.")
    return [{"role": ROLES.get(str(each.get(role)), str(each.get(role))), "content": each[content]} for each in rows]


def _question_and_answer(row: dict[str, Any], where: str) -> Messages:
    names = (PROMPT, COMPLETION)
    if all(isinstance(row[name], str) for name in names):
        return [{"role": name, "content": row[name]} for name in names]
    return [message for name in names for message in _messages(row[name], *CHATS["messages"], where)]


def _texts(path: Path, rows: Iterable[tuple[str, Any]], field: str) -> Iterator[Document]:
    for where, row in rows:
        text = text_of_row(row, field, f"{where} of {path}")
        if not isinstance(text, str) or text.strip():
            yield text


def _line_rows(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    """Rows of JSON, one in each line, with their places."""
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield f"Line {number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise TextError(f"Line {number} of {path} is not JSON: {error}") from error


def _json_rows(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    try:
        value = json.load(file)
    except (json.JSONDecodeError, RecursionError) as error:
        hint = "With one JSON value in each line, it needs the suffix .jsonl."
        raise TextError(f"{path} is not JSON: {error}", hint) from error
    rows = value if isinstance(value, list) else [value]
    yield from ((f"Record {number}", row) for number, row in enumerate(rows, 1))


def _csv_rows(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(LONGEST_CELL)
    rows = csv.DictReader(file, delimiter="\t" if kind_of_file(path) == ".tsv" else ",")
    yield from ((f"Row {number}", row) for number, row in enumerate(rows, 1))


def _parquet_rows(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError(f"Reading {path}, a Parquet file,", "hub") from error
    try:
        file, number = parquet.ParquetFile(path), 0
        known = (field, *CHATS, PROMPT, COMPLETION)
        columns = [name for name in file.schema_arrow.names if name in known] or None
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"Row {number}", row
    except ArrowException as error:
        raise TextError(f"{path} cannot be read as Parquet: {error}") from error


ROWS: dict[str, Callable[[Path, TextIO], Iterator[tuple[str, Any]]]] = {
    **dict.fromkeys(LINES, _line_rows),
    **dict.fromkeys(TABLES, _csv_rows),
    JSON: _json_rows,
}
"""Suffixes of files of rows, and what reads them: rows with their places."""
