"""What may be removed from a model, decided from its structure without its weights and before any work.

A model of the cut config is built without weights, and each kept block is compared with the same block of the dense
model: classes, plain attributes, shapes, fixed buffers. Where a block would be built differently at its new place, and
no fold compensates for that, the removal is refused and the attribute named.
"""

import math
from collections.abc import Mapping
from typing import Any, Self

from torch import nn

from streamliner.cut.config import as_json, cut_config_object
from streamliner.cut.folds import FOLDS, Change, block_axis
from streamliner.cut.rules import Removal, indices
from streamliner.errors import UnsupportedModelError, is_out_of_memory, last_line
from streamliner.model.compat import attention_kernel
from streamliner.model.parts import shared_parameters
from streamliner.model.shell import Outline, make_shell, outline
from streamliner.model.stack import check_indices, find_stack

INDEX_NAMES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "idx", "index")
"""Attributes in which a module keeps the index of its block, or of one of its caches (LongCat has two per block)."""

MOST_OUTLINES = 100
"""Outlines that are kept: each takes up to a megabyte."""
_outlines: dict[tuple[type, str, str], Outline] = {}
"""Of cut models, by class, attention kernel and config: the steps of one command ask for the same ones."""
REPORT = "If this model should work, please report it with its config.json: its architecture is new to streamliner."


class Structure:
    """A model's structure without its weights (`shell`, on the meta device), and what can be removed from it."""

    def __init__(self, shell: nn.Module) -> None:
        self.shell = shell
        self.stack = find_stack(shell)
        self._dense = outline(shell, self.stack)
        self._refusals: dict[tuple[int, ...], str] = {}

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The structure of a model in memory, built again from its config."""
        return cls(make_shell(type(model), model.config))

    def __len__(self) -> int:
        return len(self.stack)

    @property
    def outside(self) -> tuple[str, ...]:
        """Names of the tensors that belong to no block."""
        return tuple(self._dense.outside)

    def kinds(self) -> list[str]:
        """What each block is built like: equal for blocks that could take each other's place."""
        plain = [
            {key: value for key, value in block.items() if key.rpartition(".")[2] not in INDEX_NAMES}
            for block in self._dense.blocks
        ]
        return [as_json(block) for block in plain]

    def refusal(self, removed: tuple[int, ...]) -> str:
        """Why these blocks cannot be removed, or "" if they can. Answers are kept."""
        key = tuple(sorted(removed))
        if key not in self._refusals:
            try:
                self.changes(key)
                self._refusals[key] = ""
            except UnsupportedModelError as error:
                self._refusals[key] = str(error.args[0])
        return self._refusals[key]

    def fixed_blocks(self) -> dict[int, str]:
        """The blocks that cannot be removed alone, with the reason."""
        blocks = range(len(self)) if len(self) > 1 else ()
        return {index: reason for index in blocks if (reason := self.refusal((index,)))}

    def changes(self, removed: tuple[int, ...]) -> list[Change]:
        """The folds that the removal needs.

        An UnsupportedModelError, which names the config key or the attribute, if the blocks cannot be removed.
        """
        removed = check_indices(removed, len(self))
        removal = Removal.of(removed, len(self))
        cut = self._outline_of(cut_config_object(self.shell.config, self.stack, removed))
        if len(cut.blocks) != len(removal.kept):
            found = f"{len(cut.blocks)} blocks, not {len(removal.kept)}"
            raise UnsupportedModelError(f"A model of the cut config has {found}.", REPORT)
        self._check_outside(cut, removal)
        blocks = [(self._dense.blocks[old], cut.blocks[new], old, new) for new, old in enumerate(removal.kept)]
        return [change for block in blocks for change in _compare(*block, removal)]

    def cut_shell(self, removed: tuple[int, ...]) -> nn.Module:
        """The model without the blocks, its parameters on the meta device."""
        return self._build(cut_config_object(self.shell.config, self.stack, removed))

    def shared_with_kept(self, removed: tuple[int, ...]) -> dict[tuple[int, str], tuple[int, str]]:
        """Tensors of removed blocks that a kept block shares: (index, name within the block) -> the kept block's."""
        result: dict[tuple[int, str], tuple[int, str]] = {}
        for places in shared_parameters(self.stack.modules):
            kept = next((place for place in places if place[0] not in removed), None)
            result |= {place: kept for place in places if kept and place[0] in removed}
        return result

    def _build(self, config: Any) -> nn.Module:
        try:
            return make_shell(type(self.shell), config)  # type: ignore[no-any-return]
        except Exception as error:  # model classes raise errors of many types
            if is_out_of_memory(error):
                raise
            name = type(self.shell).__name__
            raise UnsupportedModelError(f"{name} cannot be built from the cut config: {last_line(error)}") from error

    def _outline_of(self, config: Any) -> Outline:
        # Many removals leave the same config: in a model of equal blocks, all removals of one block.
        key = (type(self.shell), attention_kernel(config), as_json(config.to_dict()))
        if key not in _outlines:
            if len(_outlines) >= MOST_OUTLINES:
                del _outlines[next(iter(_outlines))]
            shell = self._build(config)
            _outlines[key] = outline(shell, find_stack(shell))
        return _outlines[key]

    def _check_outside(self, cut: Outline, removal: Removal) -> None:
        """Tensors outside the stack must have the same shapes, apart from those with a slice for each block."""
        for name in sorted(set(self._dense.outside) | set(cut.outside)):
            before, after = self._dense.outside.get(name), cut.outside.get(name)
            axis = block_axis(name)
            if before != after and before and axis is not None:
                size = before[axis] // removal.num_blocks * len(removal.kept)
                before = (*before[:axis], size, *before[axis + 1 :])
            if before != after:
                change = f"has shape {before} and would have {after}"
                raise UnsupportedModelError(f"The tensor {name}, which belongs to no block, {change}.", REPORT)


def by_reason(fixed: Mapping[Any, str]) -> dict[str, str]:
    """Reason -> the blocks that it keeps, such as "Blocks 0, 3"."""
    result: dict[str, list[str]] = {}
    for index, reason in fixed.items():
        result.setdefault(reason, []).append(str(index))
    return {reason: f"Block{'s' * (len(names) > 1)} {', '.join(names)}" for reason, names in result.items()}


def _compare(before: dict[str, Any], after: dict[str, Any], old: int, new: int, removal: Removal) -> list[Change]:
    """The folds that make the block of `after` at index `new` what the block of `before` was at index `old`."""
    keys = before.keys() | after.keys()
    differing = {key for key in keys if not _same(key, before.get(key), after.get(key), old - new, removal)}
    changes = []
    for key in sorted(before):
        prefix, dot, name = key.rpartition(".")
        fold = FOLDS.get(key) or FOLDS.get(name)
        if fold is None or not (key in differing or (fold.by_index and before[key] and old != new)):
            continue
        prefix += dot
        changes.append(Change(fold, prefix, old, new, removal, before[key], after.get(key)))
        differing -= {key} | {prefix + other for other in fold.shows}
    if differing:
        key = min(differing)
        change = f"{key} is {before.get(key)!r} and would be {after.get(key)!r}"
        raise UnsupportedModelError(f"Block {old} would not be the same block in the cut model: {change}.", REPORT)
    return changes


def _same(key: str, before: Any, after: Any, distance: int, removal: Removal) -> bool:
    """Whether an attribute says the same of a block before and after it moves `distance` places to the front."""
    if before == after:
        return True
    if isinstance(before, float) and isinstance(after, float):
        return math.isclose(before, after, rel_tol=1e-12)  # a quotient may be rounded differently
    if isinstance(before, tuple) and isinstance(after, tuple):
        # A list from the config that the module keeps, with an entry per block or of indices.
        per_block = len(before) == removal.num_blocks and after == tuple(before[index] for index in removal.kept)
        return per_block or list(after) == indices("", list(before), removal)
    is_index = key.rpartition(".")[2] in INDEX_NAMES and type(before) is int and type(after) is int
    return is_index and before - after in (distance, 2 * distance)
