"""Texts too large to tokenise whole: documents from any place in them, so that cost follows what is asked for."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from streamliner.errors import TextError
from streamliner.text.formats import BOMS, JSON, LINES, NOT_TEXT, PARQUET, TABLES, Document, kind_of_file, text_of_row

LARGE_BYTES = 16_000_000
"""Texts in files of more bytes are sampled. A tokenizer needs a second and 200 MB for each million, or more."""
CHUNK = 1 << 16


@dataclass(frozen=True)
class LargeText:
    """Plain text or rows of JSON in files, read from any place.

    Attributes:
        name: the SOURCE as the user wrote it.
        files: with their sizes in bytes.
        field: of rows, with the text.
        origin: file or folder, and the hash of all bytes.
    """

    name: str
    files: tuple[tuple[Path, int], ...]
    field: str
    origin: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    def documents_from(self, share: float, piece: int = CHUNK) -> Iterator[Document]:
        """The text after a place, 0 for its beginning to 1 for its end, from the next line on.

        Plain text comes in pieces of about `piece` bytes.
        """
        start = int(share * self.size)
        for file, size in self.files:
            if start < size:
                yield from self._documents(file, max(start, 0), max(piece, CHUNK))
            start -= size

    def _documents(self, file: Path, start: int, size: int) -> Iterator[Document]:
        rows = kind_of_file(file) in LINES
        with file.open("rb") as opened:
            opened.seek(start)
            rest = b""
            if start:
                chunk = opened.read(size)
                while rows and b"\n" not in chunk and (more := opened.read(size)):
                    chunk += more
                # Between two lines; in a text without line ends, after the next space; otherwise after a character.
                marks = (b"\n",) if rows else (b"\n", b" ")
                end = next((chunk.index(mark) + 1 for mark in marks if mark in chunk), 0)
                rest = chunk[end:] if end or not rows else b""
                while not end and rest and 0x80 <= rest[0] < 0xC0:
                    rest = rest[1:]
            while chunk := rest + opened.read(size):
                at = chunk.rfind(b"\n") + 1 or (0 if rows else chunk.rfind(b" ") + 1)
                last = len(chunk) - len(rest) < size
                text, rest = (chunk, b"") if last else (chunk[:at], chunk[at:])
                if not rows and len(rest) > 16 * size:
                    raise TextError(f"{file} has no line end and no space in a megabyte.", "Is it text?")
                yield from self._rows(file, text) if rows else self._decoded(file, text)
                if last:
                    return

    def _decoded(self, file: Path, text: bytes) -> Iterator[str]:
        try:
            decoded = text.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise TextError(f"{file} is not UTF-8 text: {error}", "Convert it to UTF-8, such as with iconv.") from error
        if decoded.strip():
            yield decoded

    def _rows(self, file: Path, lines: bytes) -> Iterator[Document]:
        for line in lines.splitlines():
            if line.strip():
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    raise TextError(f"A line of {file} is not JSON: {error}") from error
                text = text_of_row(row, self.field, f"A line of {file}")
                if not isinstance(text, str) or text.strip():
                    yield text


def as_large(name: str, path: Path, files: list[Path], field: str) -> LargeText | None:
    """The text in these files if they are large, and can be read from any place; otherwise None."""
    sizes = tuple((file, file.stat().st_size) for file in files)
    kinds = {kind_of_file(file) for file in files}
    compressed = any(file.name.lower().endswith(".gz") for file in files)
    if sum(size for _, size in sizes) <= LARGE_BYTES or compressed or kinds & {*TABLES, *NOT_TEXT, JSON, PARQUET}:
        return None
    digest = hashlib.sha256()
    for file, _ in sizes:
        with file.open("rb") as opened:
            if opened.read(2) in BOMS:
                return None
            opened.seek(0)
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    where = {"folder": str(path), "files": str(len(files))} if path.is_dir() else {"file": str(path)}
    return LargeText(name, sizes, field, where | {"sha256": digest.hexdigest()})
