"""Where the blocks are in a checkpoint, and the new names of tensors when blocks are removed."""

import itertools
import re
from collections.abc import Collection, Iterable, Mapping

from streamliner.cut.rules import Removal
from streamliner.errors import UnsupportedModelError

MULTI_TOKEN_PREDICTION = re.compile(r"(^|\.)mtp\.")
"""Tensors of multi-token prediction where they do not follow the last block."""


def stack_prefix(
    names: Iterable[str], stack_path: str, num_blocks: int, in_memory: Mapping[str, str] | None = None
) -> str:
    """Where the blocks are in a checkpoint: P such that its tensors are called `P.{0..N-1}.*`.

    `names` are those of all its tensors. In memory the blocks are at `stack_path`; the last part of the path must be
    the same on disk, unless loading renames the tensors: `in_memory` has their names then. An UnsupportedModelError if
    no prefix fits, or if several do.
    """
    last = stack_path.split(".")[-1]
    pattern = re.compile(rf"((?:[^.]+\.)*?{re.escape(last)})\.(\d+)\.")
    loaded = re.compile(rf"{re.escape(stack_path)}\.(\d+)\.")
    found: dict[str, set[int]] = {}
    for name in names:
        if match := pattern.match(name):
            found.setdefault(match[1], set()).add(int(match[2]))
        elif (match := loaded.match((in_memory or {}).get(name, ""))) and (
            place := re.search(rf"\.{match[1]}\.", name)
        ):
            found.setdefault(name[: place.start()], set()).add(int(match[1]))
    fitting = {p: _likeness(p, stack_path) for p, indices in found.items() if indices >= set(range(num_blocks))}
    best = [prefix for prefix, likeness in fitting.items() if likeness == max(fitting.values())]
    if len(best) != 1:
        raise UnsupportedModelError(
            f"The {num_blocks} blocks of {stack_path} are not found in the checkpoint: "
            f"{len(best)} groups of tensor names fit, among {sorted(found) or 'none'}."
        )
    return best[0]


def _likeness(prefix: str, stack_path: str) -> tuple[int, int]:
    """Number of equal parts at the end, then of equal parts anywhere, as releases order the parts differently."""
    ours, theirs = stack_path.split("."), prefix.split(".")
    tail = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ours[::-1], theirs[::-1], strict=False))
    return len(list(tail)), len(set(ours) & set(theirs))


def renamed_tensors(
    names: Collection[str], prefix: str, removal: Removal, shared: Mapping[tuple[int, str], tuple[int, str]]
) -> dict[str, str]:
    """New name -> old name of the tensors that stay. Blocks after the last one (multi-token prediction) are dropped.

    `shared` are tensors in removed blocks that a kept block shares: (index, name within the block) -> the same for the
    kept block. A checkpoint stores such a tensor once, with one of the blocks.
    """
    numbers, pattern = removal.numbers, re.compile(re.escape(prefix) + r"\.(\d+)\.")
    result: dict[str, str] = {}
    for name in names:
        match = pattern.match(name)
        if match is None:
            if not MULTI_TOKEN_PREDICTION.search(name):
                result[name] = name
            continue
        index, tail = int(match[1]), name[match.end() :]
        if index not in numbers and (index, tail) in shared:
            index, tail = shared[index, tail]
            if f"{prefix}.{index}.{tail}" in names:
                continue
        if index in numbers:
            result[f"{prefix}.{numbers[index]}.{tail}"] = name
    return result


def extra_blocks(names: Iterable[str], prefix: str, num_blocks: int) -> list[str]:
    """Where a checkpoint has blocks for multi-token prediction, which are left out: `model.layers.61`, `mtp`."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    found = set[str]()
    for name in names:
        if (match := pattern.match(name)) and int(match[1]) >= num_blocks:
            found.add(match[0].rstrip("."))
        elif match is None and (match := MULTI_TOKEN_PREDICTION.search(name)):
            found.add(name[: match.end()].rstrip("."))
    return sorted(found)
