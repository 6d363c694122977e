"""Compare the tensors of a cut checkpoint with those of the dense one, for a format that cannot run on this machine."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from streamliner.cut.checkpoint import find_prefix
from streamliner.cut.file_copy import pieces
from streamliner.cut.folds import block_axis
from streamliner.cut.names import renamed_tensors
from streamliner.cut.rules import Removal
from streamliner.cut.safetensors_file import TensorFile, read_checkpoint
from streamliner.cut.structure import Structure
from streamliner.errors import VerificationError


def compare_checkpoint(folder: Path, out: Path, structure: Structure, removed: tuple[int, ...]) -> int:
    """Compare names, types, shapes and bytes of the tensors in `out` with those of the kept blocks in `folder`.

    Returns the number of tensors that are equal byte for byte. Those that a fold changed are not, and have no such
    check. A VerificationError names a tensor that is missing, has no place or differs.
    """
    removal = Removal.of(removed, len(structure))
    dense, cut = ({name: file for file in read_checkpoint(place) for name in file.tensors} for place in (folder, out))
    prefix = find_prefix(dense, structure)
    folded = tuple(change.where(prefix) for change in structure.changes(removed))
    expected = renamed_tensors(dense, prefix, removal, structure.shared_with_kept(removed))
    for name in sorted(expected.keys() ^ cut.keys()):
        if not name.startswith(folded):
            what = "lacks the tensor" if name in expected else "has a tensor too many"
            raise VerificationError(f"The written checkpoint {what}: {name}.")
    equal = 0
    for name in sorted(expected.keys() & cut.keys()):
        if _is_same(dense[expected[name]], expected[name], cut[name], name):
            equal += 1
        elif not name.startswith(folded) and block_axis(name) is None:
            raise VerificationError(f"In the written checkpoint {name} is not {expected[name]} of the dense one.")
    return equal


def _is_same(file: TensorFile, name: str, other: TensorFile, other_name: str) -> bool:
    headers = (file.tensors[name], other.tensors[other_name])
    if any(headers[0][key] != headers[1][key] for key in ("dtype", "shape")):
        return False
    return all(one == another for one, another in zip_longest(_pieces(file, name), _pieces(other, other_name)))


def _pieces(file: TensorFile, name: str) -> Iterator[bytes]:
    begin, _ = file.tensors[name]["data_offsets"]
    return pieces(file.path, file.data_start + begin, file.num_bytes(name))
