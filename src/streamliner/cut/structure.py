"""What may be removed from a model: decided from its config and its structure, with no weights and before any work.

The cut model's config is made, a model of it is built on the meta device, and each kept block is compared with the
dense one's: classes, plain attributes, shapes, fixed buffers. Where one would be built differently at its new place,
and no fold makes up for that, the removal is refused and the attribute named.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from streamliner.cut.config import cut_around, cut_config
from streamliner.cut.folds import FOLDS, Change, Place, block_axis
from streamliner.cut.rules import Removal, indices
from streamliner.errors import UnsupportedModelError
from streamliner.model.shell import Fingerprint, fingerprint, make_shell
from streamliner.model.stack import Stack, check_indices, find_stack


def fixed_blocks(structure: Structure) -> dict[int, str]:
    """The blocks that the architecture does not let go alone, with the reason."""
    reasons = {index: structure.refusal((index,)) for index in range(len(structure))} if len(structure) > 1 else {}
    return {index: reason for index, reason in reasons.items() if reason}


def by_reason(fixed: Mapping[Any, str]) -> dict[str, str]:
    """Reason -> the blocks that it keeps, such as "Blocks 0, 3"."""
    result: dict[str, list[str]] = {}
    for index, reason in fixed.items():
        result.setdefault(reason, []).append(str(index))
    return {reason: f"Block{'s' * (len(names) > 1)} {', '.join(names)}" for reason, names in result.items()}


INDEX_NAMES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "idx", "index")
"""Attributes in which a module keeps its block's index, or that of one of its caches (two a block in LongCat)."""


REPORT = "If this model should work, please report it with its config.json: its architecture is new to streamliner."


class Structure:
    """A model's structure without its weights, and what can be removed from it.

    Attributes:
        shell: the model with its parameters on the meta device.
        stack: its blocks.
    """

    def __init__(self, shell: nn.Module) -> None:
        self.shell = shell
        self.stack = find_stack(shell)
        self._dense = fingerprint(shell, self.stack)
        self._fingerprints: dict[str, Fingerprint] = {}
        self._refusals: dict[tuple[int, ...], str] = {}

    @classmethod
    def of(cls, model: nn.Module) -> Structure:
        """The structure of a model in memory, built anew from its config."""
        return cls(make_shell(type(model)._from_config, model.config))  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.stack)

    def refusal(self, removed: tuple[int, ...]) -> str:
        """Why these blocks cannot be removed, or "" if they can. Remembers its answers."""
        key = tuple(sorted(removed))
        if key not in self._refusals:
            try:
                self.changes(key)
                self._refusals[key] = ""
            except UnsupportedModelError as error:
                self._refusals[key] = str(error.args[0])
        return self._refusals[key]

    def changes(self, removed: tuple[int, ...]) -> list[Change]:
        """The folds that the removal asks for.

        Raises:
            UnsupportedModelError: it cannot be done; the message names the config key or the attribute.
        """
        removed = check_indices(removed, len(self))
        removal = Removal.of(removed, len(self))
        config = cut_model_config(self.shell.config, self.stack, removed)
        cut = self._fingerprint_of(config)
        if len(cut.blocks) != len(removal.kept):
            raise UnsupportedModelError(
                f"A model of the cut config has {len(cut.blocks)} blocks, not {len(removal.kept)}.", REPORT
            )
        self._check_outside(cut, removal)
        changes = []
        for new, old in enumerate(removal.kept):
            changes += _compare(self._dense.blocks[old], cut.blocks[new], old, new, removal)
        return changes

    def cut_shell(self, removed: tuple[int, ...]) -> nn.Module:
        """The model without the blocks, its parameters on the meta device."""
        return self._build(cut_model_config(self.shell.config, self.stack, removed))

    def shared_with_kept(self, removed: tuple[int, ...]) -> dict[tuple[int, str], tuple[int, str]]:
        """Tensors of removed blocks that a kept block shares: (index, name within the block) -> the kept one's."""
        homes: dict[int, list[tuple[int, str]]] = {}
        for index, block in enumerate(self.stack.modules):
            for name, parameter in block.named_parameters(remove_duplicate=False):
                homes.setdefault(id(parameter), []).append((index, name))
        result: dict[tuple[int, str], tuple[int, str]] = {}
        for places in homes.values():
            kept = [place for place in places if place[0] not in removed]
            result |= {place: kept[0] for place in places if place[0] in removed and kept}
        return result

    def _build(self, config: Any) -> nn.Module:
        try:
            return make_shell(type(self.shell)._from_config, config)  # type: ignore[attr-defined]
        except Exception as error:  # a class that cannot be built from the cut config raises whatever it likes
            raise UnsupportedModelError(
                f"{type(self.shell).__name__} cannot be built from the cut config: {_last_line(error)}"
            ) from error

    def _fingerprint_of(self, config: Any) -> Fingerprint:
        # Many removals leave the same config: all of one block in a model of equal blocks.
        key = json.dumps(config.to_dict(), sort_keys=True, default=str)
        if key not in self._fingerprints:
            shell = self._build(config)
            self._fingerprints[key] = fingerprint(shell, find_stack(shell))
        return self._fingerprints[key]

    def _check_outside(self, cut: Fingerprint, removal: Removal) -> None:
        for name in sorted(set(self._dense.outside) | set(cut.outside)):
            before, after = self._dense.outside.get(name), cut.outside.get(name)
            axis = block_axis(name)
            if before != after and before and axis is not None:
                size = before[axis] // removal.num_blocks * len(removal.kept)
                before = (*before[:axis], size, *before[axis + 1 :])
            if before != after:
                raise UnsupportedModelError(
                    f"The tensor {name}, which belongs to no block, has shape {before} and would have {after}.", REPORT
                )


def cut_model_config(config: Any, stack: Stack, removed: tuple[int, ...]) -> Any:
    """The config object of the cut model: a copy of `config`, with the part that describes the stack cut."""
    cut = cut_config(stack.config.to_dict(), removed, len(stack), stack.count_name)
    cut.pop("quantization_config", None)  # the weights in memory are dense; a checkpoint keeps its own
    try:
        part = type(stack.config).from_dict(copy.deepcopy(cut))
    except Exception as error:  # validators of configs raise types of their own
        raise UnsupportedModelError(f"The config of the cut model would not be valid: {_last_line(error)}") from error
    # A class may set a field to another value than it was given, such as the kind of Gemma 4's last block.
    found = part.to_dict()
    for key in sorted(cut):
        given, taken = (json.dumps(each.get(key), sort_keys=True, default=str) for each in (cut, found))
        if given != taken and cut[key] != stack.config.to_dict().get(key):
            raise UnsupportedModelError(
                f"The cut config would have {key} = {cut[key]}, which its class changes to {found.get(key)}."
            )
    if _has_attention(stack.config) and not _has_attention(part):
        raise UnsupportedModelError(
            "One block with attention must stay: without it transformers cannot tell how long a cached text is."
        )
    part._attn_implementation = stack.config._attn_implementation
    path = config_path(config, stack.config)
    if not path:
        return part
    result = copy.deepcopy(config)
    for name, value in cut_around(config.to_dict(), removed, len(stack)).items():
        setattr(result, name, value)
    parent = result
    for name in path[:-1]:
        parent = getattr(parent, name)
    setattr(parent, path[-1], part)
    return result


def _has_attention(config: Any) -> bool:
    """Whether a block keeps keys and values, where a config tells kinds of blocks apart."""
    kinds = getattr(config, "layer_types", None)
    if not isinstance(kinds, (list, tuple)):
        return False
    return any("hybrid" in kind or ("attention" in kind and "linear" not in kind) for kind in kinds)


def config_path(config: Any, part: Any) -> tuple[str, ...]:
    """Names that lead from a config to the nested config `part`; none if it is the same object.

    Raises:
        UnsupportedModelError: it is not in there.
    """
    if config is part:
        return ()
    for name, value in vars(config).items():
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            try:
                return (name, *config_path(value, part))
            except UnsupportedModelError:
                continue
    raise UnsupportedModelError(f"{type(config).__name__} does not hold the config that describes the blocks.")


def _compare(before: dict[str, Any], after: dict[str, Any], old: int, new: int, removal: Removal) -> list[Change]:
    """The folds that make the block of `after` at `new` what that of `before` was at `old`."""
    differing = {
        key
        for key in before.keys() | after.keys()
        if not _same(before.get(key), after.get(key), removal)
        and not _is_index(key, before.get(key), after.get(key), old, new)
    }
    changes = []
    for key in sorted(before):
        prefix, dot, name = key.rpartition(".")
        fold = FOLDS.get(key) or FOLDS.get(name)
        if fold is None or not (key in differing or (fold.by_index and before[key] and old != new)):
            continue
        prefix += dot
        changes.append(Change(prefix, fold, Place(old, new, removal, before[key], after.get(key))))
        differing -= {key} | {prefix + other for other in fold.shows}
    if differing:
        key = min(differing)
        raise UnsupportedModelError(
            f"Block {old} would not be the same block in the cut model: {key} "
            f"is {before.get(key)!r} and would be {after.get(key)!r}.",
            REPORT,
        )
    return changes


def _same(before: Any, after: Any, removal: Removal) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        return before == after or math.isclose(before, after, rel_tol=1e-12)  # a quotient may be rounded otherwise
    if before != after and isinstance(before, tuple) and isinstance(after, tuple):
        # A list of the config that the module keeps, with an entry per block or of indices.
        per_block = len(before) == removal.num_blocks and after == tuple(before[index] for index in removal.kept)
        return per_block or list(after) == indices("", list(before), removal)
    return bool(before == after)


def _is_index(key: str, before: Any, after: Any, old: int, new: int) -> bool:
    if key.rpartition(".")[2] not in INDEX_NAMES or type(before) is not int or type(after) is not int:
        return False
    return before - after in (old - new, 2 * (old - new))


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
