"""Cut a GGUF file: rewrite it by names and bytes, in any quantisation. No model is built, no tensor is computed.

Kept tensors and keys are copied as they are; `gguf_keys.py` says which keys change. A split file becomes one file.
"""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamliner.cut.file_copy import READ_BYTES, copy_range, pieces, write_all
from streamliner.cut.folds import block_axis
from streamliner.cut.gguf_keys import cut_keys
from streamliner.cut.rules import Removal
from streamliner.cut.structure import Structure
from streamliner.errors import ModelError, UnsupportedModelError, VerificationError
from streamliner.model.gguf_header import ARRAY, BOOL, NUMBERS, STRING, Header, TensorPlace, read_header
from streamliner.model.mark import GGUF_MARK
from streamliner.model.stack import check_indices

BLOCK = re.compile(r"blk\.(\d+)\.")
FOLDER_HINT = "Write a folder of safetensors files instead: -o NAME, without .gguf"


@dataclass(frozen=True)
class KeptTensor:
    """A tensor that stays."""

    name: str  # in the cut file
    old_name: str
    file: Path  # where it is
    place: TensorPlace
    new: bytes | None = None  # in place of what is there, in the type that `place` says

    def pieces(self) -> Iterator[bytes]:
        """What will be written, a few megabytes at a time. A ModelError if the file ends too early."""
        if self.new is None:
            return pieces(self.file, self.place.begin, self.place.nbytes)
        return (self.new[at : at + READ_BYTES] for at in range(0, len(self.new), READ_BYTES))

    def begins_as(self, other: "KeptTensor", count: int) -> bool:
        """Whether the first `count` bytes in both files are the same."""
        size = min(count, self.place.nbytes)
        one, another = (b"".join(pieces(each.file, each.place.begin, size)) for each in (self, other))
        return one == another


@dataclass(frozen=True)
class GgufCut:
    """A cut GGUF file, before it is written."""

    head: bytes  # all before the tensors
    alignment: int
    tensors: tuple[KeptTensor, ...]
    changed: dict[str, Any]  # keys with other values than the dense file, and new ones
    dense: Path  # the file, or the first part, with the keys
    left_out: tuple[str, ...]  # what is no block and is left out, in words

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.head) + sum(_padded(tensor.place.nbytes, self.alignment) for tensor in self.tensors)


def prepare_gguf(files: Sequence[Path], structure: Structure, removed: tuple[int, ...], mark: str = "") -> GgufCut:
    """Find out all about the cut file, reading headers alone.

    Args:
        files: the GGUF file, or all parts of a split one.
        structure: of the model in it.
        removed: the blocks to remove.
        mark: JSON for the key that says where the file comes from.

    Raises:
        UnsupportedModelError: keys or tensors cannot follow the removal.
        ModelError: a file is broken.
    """
    removed = check_indices(removed, len(structure))
    _check_structure(structure, removed)
    header, removal = read_header(files[0]), Removal.of(removed, len(structure))
    tensors, left_out = _kept_tensors(files, header, removal)
    changed = cut_keys(header, removal) | ({GGUF_MARK: mark} if mark else {})
    head = _head(files[0], header, tensors, changed)
    return GgufCut(head, header.alignment, tensors, changed, files[0], left_out)


def replace_in_gguf(file: Path, new: Mapping[str, tuple[int, bytes]], changed: dict[str, Any]) -> GgufCut:
    """The same file, before it is written, with other tensors: type and bytes by name, and keys with other values."""
    header, tensors = read_header(file), []
    for name, place in header.places.items():
        kind, data = new.get(name, (place.kind, None))
        tensors.append(KeptTensor(name, name, file, replace(place, kind=kind), data))
    return with_other_head(file, header, tensors, changed)


def with_other_head(file: Path, header: Header, tensors: Sequence[KeptTensor], changed: dict[str, Any]) -> GgufCut:
    """A file of these tensors, before it is written, with the keys of `file` but for those in `changed`."""
    return GgufCut(_head(file, header, tensors, changed), header.alignment, tuple(tensors), changed, file, ())


def check_gguf(files: Sequence[Path], structure: Structure) -> None:
    """Raise UnsupportedModelError, before a search, if no block can be removed from the file."""
    refusals = []
    for block in range(len(structure)):
        try:
            prepare_gguf(files, structure, (block,))
        except UnsupportedModelError as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]


def write_gguf(cut: GgufCut, target: Path) -> None:
    """Write the file; what stays is copied by the system itself where it can."""
    with target.open("wb", buffering=0) as writer:
        write_all(writer, cut.head)
        for tensor in cut.tensors:
            if tensor.new is None:
                with tensor.file.open("rb", buffering=0) as reader:
                    copy_range(reader, tensor.place.begin, tensor.place.nbytes, writer)
            else:
                write_all(writer, tensor.new)
            write_all(writer, bytes(-tensor.place.nbytes % cut.alignment))


def compare_gguf(file: Path, cut: GgufCut, *, of_another_tool: bool = False) -> int:
    """Compare a cut file with the dense one: keys, and kept tensors byte for byte. Returns how many these are.

    A file of another tool has its own name and licence (`general.*`), and its own order of tensors. A VerificationError
    names what differs.
    """
    try:
        found, dense = read_header(file), read_header(cut.dense)
    except ModelError as error:
        raise VerificationError(str(error.args[0])) from error
    kept = {name for name in dense.entries if not name.startswith("split.")}
    names = found.entries.keys() | kept | cut.changed.keys()
    if of_another_tool:
        names = {name for name in names if not name.startswith("general.") or name == "general.architecture"}
    for name in sorted(names):
        if name in cut.changed:
            same = found.keys.get(name) == cut.changed[name]
        else:
            same = _entry(file, found, name) == _entry(cut.dense, dense, name) != b""
        if not same:
            raise VerificationError(f"The key {name} of the cut file is not what it should be.")
    tensors, expected = list(found.tensors), [tensor.name for tensor in cut.tensors]
    if tensors != expected and not (of_another_tool and sorted(tensors) == sorted(expected)):
        raise VerificationError("The cut file has other tensors than those that should stay.")
    for tensor in cut.tensors:
        place = found.places[tensor.name]
        alike = (place.shape, place.kind) == (tensor.place.shape, tensor.place.kind)
        pairs = zip(pieces(file, place.begin, place.nbytes), tensor.pieces(), strict=True) if alike else ()
        if not alike or any(here != there for here, there in pairs):
            raise VerificationError(f"The tensor {tensor.name} of the cut file is not {tensor.old_name}.")
    return len(cut.tensors)


def _check_structure(structure: Structure, removed: tuple[int, ...]) -> None:
    """Refuse what the architecture does not allow, and what only other weights could express."""
    for change in structure.changes(removed):
        found = f"Block {change.old} computes with its index: its weights would have to change, and they are quantised"
        raise UnsupportedModelError(f"{found}.", FOLDER_HINT)
    if structure.shared_with_kept(removed):
        raise UnsupportedModelError("A removed block shares weights with a kept one.", FOLDER_HINT)
    sliced = next((name for name in structure.outside if block_axis(name) is not None), None)
    if sliced:
        raise UnsupportedModelError(f"The tensor {sliced} has a slice for each block, and is quantised.", FOLDER_HINT)


def _kept_tensors(
    files: Sequence[Path], header: Header, removal: Removal
) -> tuple[tuple[KeptTensor, ...], tuple[str, ...]]:
    """The tensors that stay, and what is left out besides the removed blocks."""
    numbers, kept, seen = removal.numbers, [], set()
    for file in files:
        for name, place in read_header(file).places.items():
            match = BLOCK.match(name)
            index = int(match[1]) if match else None
            if index is not None:
                seen.add(index)
            if match is None or index in numbers:
                new = name if match is None else f"blk.{numbers[int(match[1])]}.{name[match.end() :]}"
                kept.append(KeptTensor(new, name, file, place))
    count, total = removal.num_blocks, header.own("block_count")
    extra = total - count if isinstance(total, int) else -1
    if extra not in (0, header.own("nextn_predict_layers")) or seen != set(range(count + extra)):
        found = f"{len(seen)} blocks, its block_count is {total}, and the model has {count}"
        raise UnsupportedModelError(f"The tensors of the GGUF file are in {found}.", FOLDER_HINT)
    left_out = (f"blk.{index} (multi-token prediction, trained after all blocks)" for index in range(count, total))
    return tuple(kept), tuple(left_out)


def _head(file: Path, header: Header, tensors: Sequence[KeptTensor], changed: dict[str, Any]) -> bytes:
    """All before the tensors: kept keys as they are in `file`, changed ones in their places, new ones at the end."""
    entries = [
        _encoded(name, changed[name], header, file) if name in changed else _entry(file, header, name)
        for name in header.entries
        if not name.startswith("split.")
    ]
    entries += [_encoded(name, value, header, file) for name, value in changed.items() if name not in header.entries]
    infos, offset = [], 0
    for tensor in tensors:
        shape = tensor.place.shape
        infos.append(_text(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        infos.append(struct.pack("<IQ", tensor.place.kind, offset))
        offset += _padded(tensor.place.nbytes, header.alignment)
    head = b"GGUF" + struct.pack("<IQQ", header.version, len(tensors), len(entries)) + b"".join(entries + infos)
    return head + bytes(-len(head) % header.alignment)


def _entry(file: Path, header: Header, name: str) -> bytes:
    """A key with its value as the file has it; nothing if it is not there."""
    entry = header.entries.get(name)
    if entry is None:
        return b""
    with file.open("rb") as reader:
        reader.seek(entry.begin)
        return reader.read(entry.end - entry.begin)


def _encoded(name: str, value: Any, header: Header, file: Path) -> bytes:
    """A key with a new value, in the types that the file has for it; a list of booleans and text may be new."""
    kind, inner = (ARRAY, BOOL) if isinstance(value, list) else (STRING, 0)
    if name in header.entries:
        entry = header.entries[name]
        old = _entry(file, header, name)[entry.value - entry.begin :]
        old_kind = struct.unpack_from("<I", old)[0]
        if old_kind == ARRAY or not isinstance(value, list):
            kind, inner = old_kind, struct.unpack_from("<I", old, 4)[0] if old_kind == ARRAY else 0
    start = _text(name) + struct.pack("<I", kind)
    if kind == STRING:
        return start + _text(value)
    if kind != ARRAY:
        return start + struct.pack(f"<{NUMBERS[kind]}", value)
    start += struct.pack("<IQ", inner, len(value))
    if inner == STRING:
        return start + b"".join(map(_text, value))
    return start + struct.pack(f"<{len(value)}{NUMBERS[inner]}", *value)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
