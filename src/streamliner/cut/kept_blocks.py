"""Find out which blocks of a dense model a checkpoint has, by the values at the beginnings of their tensors.

Names and numbers of blocks say nothing about it: other tools renumber blocks, or do not.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from streamliner.cut.file_copy import pieces
from streamliner.cut.safetensors_file import FLOATS, TensorFile
from streamliner.errors import UnsupportedModelError
from streamliner.model.gguf_header import read_header

SAMPLE_BYTES = 512
GGUF_FLOATS = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
GGUF_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Sample:
    """The beginning of a tensor."""

    kind: torch.dtype | str  # what its values are; of quantised ones the name of the type
    shape: tuple[int, ...]
    start: bytes

    def values(self) -> Tensor:
        """The values at its beginning, of a type that can be computed with."""
        assert isinstance(self.kind, torch.dtype)
        return torch.frombuffer(bytearray(self.start), dtype=self.kind)

    def comparable(self, other: "Sample") -> bool:
        """Whether it can be said that the values are, or are not, those of another one."""
        floats = isinstance(self.kind, torch.dtype) and isinstance(other.kind, torch.dtype)
        return self.shape == other.shape and (floats or self.kind == other.kind)

    def equals(self, other: "Sample") -> bool:
        """Whether these are the values of a dense tensor, `other`, rounded to the type that they have here."""
        if self.kind == other.kind or not isinstance(self.kind, torch.dtype):
            return self.start == other.start
        here, there = self.values(), other.values().to(self.kind)
        count = min(len(here), len(there))
        return torch.equal(here[:count], there[:count])


Block = Mapping[str, Sample]
"""Samples of a block's tensors by their names within it."""


def folder_blocks(files: Iterable[TensorFile], prefix: str) -> dict[int, dict[str, Sample]]:
    """Number of a block -> its tensors, of a checkpoint whose blocks are at `prefix`."""
    pattern, result = re.compile(re.escape(prefix) + r"\.(\d+)\."), dict[int, dict[str, Sample]]()
    for file in files:
        for name, header in file.tensors.items():
            if match := pattern.match(name):
                begin, size = file.data_start + header["data_offsets"][0], min(file.num_bytes(name), SAMPLE_BYTES)
                kind, shape = FLOATS.get(header["dtype"], header["dtype"]), tuple(header["shape"])
                sample = Sample(kind, shape, b"".join(pieces(file.path, begin, size)))
                result.setdefault(int(match[1]), {})[name[match.end() :]] = sample
    return result


def gguf_blocks(files: Iterable[Path]) -> dict[int, dict[str, Sample]]:
    """The same of a GGUF file, or of all parts of a split one."""
    result = dict[int, dict[str, Sample]]()
    for file in files:
        for name, place in read_header(file).places.items():
            if match := GGUF_BLOCK.match(name):
                start = b"".join(pieces(file, place.begin, min(place.nbytes, SAMPLE_BYTES)))
                sample = Sample(GGUF_FLOATS.get(place.kind, f"GGUF {place.kind}"), place.shape, start)
                result.setdefault(int(match[1]), {})[name[match.end() :]] = sample
    return result


def match_blocks(dense: Sequence[Block], blocks: Sequence[Block]) -> list[int | None]:
    """Which dense block each of `blocks` is; None for one that is none of them, or could be several.

    Most of the tensors that tell dense blocks apart must be equal, so that a block is known again if some of its
    weights were trained.
    """
    return [_best([_score(block, other, _telling(dense)) for other in dense]) for block in blocks]


def match_vectors(dense: Sequence[Block], blocks: Sequence[Block]) -> list[int | None]:
    """The same for a GGUF file and a folder, which name tensors differently, by the vectors among them.

    A converter keeps vectors in float32; those of norms that multiply by 1 + weight get the 1.
    """
    known = [_vectors(block, (0.0, 1.0)) for block in dense]
    shared = set.intersection(*known) if len(known) > 1 else set()
    result = []
    for block in blocks:
        own = _vectors(block, (0.0,)) - shared
        result.append(_best([len(own & other) / len(own) if own else 0.0 for other in known]))
    return result


def removed_blocks(found: Sequence[int | None], num_blocks: int) -> tuple[int, ...]:
    """The blocks of the dense model that are not in a checkpoint which has the blocks `found`, in this order.

    A block that was not known again is the one that is missing between its neighbours, if there is only one choice. An
    UnsupportedModelError if blocks are repeated, in another order or not those of the dense model.
    """
    known = [index for index in found if index is not None]
    if known != sorted(set(known)):
        raise UnsupportedModelError(
            f"Its blocks are {', '.join('?' if index is None else str(index) for index in found)} of the dense model, "
            "repeated or in another order. That is not a model from which blocks were removed."
        )
    result, before = list[int](), -1
    for position, index in enumerate([*found, num_blocks]):
        if index is None:
            continue
        unknown = position - 1 - max((at for at in range(position) if found[at] is not None), default=-1)
        between = list(range(before + 1, index))
        if unknown not in (0, len(between)):
            raise UnsupportedModelError(
                f"{unknown} of its blocks, before block {position}, are none of the dense model's blocks. Were they "
                "trained, or is it another model?"
            )
        result += between if not unknown else []
        before = index
    return tuple(result)


def _telling(dense: Sequence[Block]) -> set[str]:
    """Names of the tensors whose beginnings are not the same in all dense blocks."""
    names = {name for block in dense for name in block}
    return {name for name in names if len({block[name].start for block in dense if name in block}) > 1}


def _score(block: Block, dense: Block, telling: set[str]) -> float:
    """The share of comparable tensors that are equal."""
    pairs = [(block[name], dense[name]) for name in telling if name in block and name in dense]
    comparable = [one.equals(other) for one, other in pairs if one.comparable(other)]
    return sum(comparable) / len(comparable) if comparable else 0.0


def _best(scores: Sequence[float]) -> int | None:
    most = max(scores)
    return scores.index(most) if most > 0.5 and scores.count(most) == 1 else None


def _vectors(block: Block, offsets: Sequence[float]) -> set[bytes]:
    """The vectors of a block in float32, each with `offsets` added."""
    vectors = (
        each.values().float() for each in block.values() if len(each.shape) == 1 and isinstance(each.kind, torch.dtype)
    )
    shortest = SAMPLE_BYTES // 4  # as many values as there are in float32, the widest usual type
    return {(vector[:shortest] + offset).numpy().tobytes() for vector in vectors for offset in offsets}
