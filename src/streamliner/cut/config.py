"""Config dict and removed blocks -> config dict of the cut model. Pure; the rules are in the table of `fields.py`.

A field that speaks of blocks by their position must follow the removal, or the cut model is silently another one. What
no rule can express is refused by the name of its key.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from streamliner.blocks import COUNTS, DECODER_COUNTS
from streamliner.cut.fields import AROUND, FIELDS, JOINT, NESTED, NOT_PER_BLOCK, Removal
from streamliner.errors import UnsupportedModelError


def cut_config(
    config: dict[str, Any], removed: tuple[int, ...], num_blocks: int, count_name: str = ""
) -> dict[str, Any]:
    """The config of the model without the blocks `removed`.

    Args:
        config: the complete dict of the config that describes the stack (`PretrainedConfig.to_dict`): defaults must be
            filled in, as a list may be derived from a period that no longer holds.
        removed: ascending block indices.
        num_blocks: blocks before.
        count_name: a further name under which this config keeps the number of blocks (`Stack.count_name`).

    Raises:
        UnsupportedModelError: a key cannot follow the removal; the message names it.
    """
    removal = Removal(tuple(index for index in range(num_blocks) if index not in removed), num_blocks)
    result = _cut_fields(config, removal)
    for rule in JOINT:
        result |= rule(config, removal)
    own = [key for key in DECODER_COUNTS if config.get(key) == num_blocks]
    for key in own or (*COUNTS, count_name):
        if config.get(key) == num_blocks and not isinstance(config[key], bool):
            result[key] = len(removal.kept)
    return result


def cut_around(config: dict[str, Any], removed: tuple[int, ...], num_blocks: int) -> dict[str, Any]:
    """The fields that must change in the config around the one that describes the stack, in a model of several parts.

    Raises:
        UnsupportedModelError: as for `cut_config`.
    """
    removal = Removal(tuple(index for index in range(num_blocks) if index not in removed), num_blocks)
    result: dict[str, Any] = {}
    for rule in AROUND:
        result |= rule(config, removal)
    return result


def _cut_fields(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    result = copy.deepcopy(config)
    for key, value in config.items():
        if key in FIELDS:
            result[key] = FIELDS[key](key, value, removal)
        elif key in NESTED and isinstance(value, dict):
            result[key] = _cut_fields(value, removal)
        elif key not in NOT_PER_BLOCK:
            _check_unknown(key, value, removal)
    return result


def _check_unknown(key: str, value: Any, removal: Removal) -> None:
    """Refuse what looks as if it had an entry per block and has no rule."""
    count = removal.num_blocks
    if isinstance(value, list) and len(value) == count > 1:
        raise UnsupportedModelError(
            f"The config key {key} has {count} entries, one per block it seems, and no rule for it is known."
        )
    if isinstance(value, dict) and value and all(re.fullmatch(r"\d+", str(name)) for name in value):
        raise UnsupportedModelError(
            f"The config key {key} is a dict by number, of blocks it seems, and no rule for it is known."
        )


def renumbered_names(value: Any, stack_name: str, numbers: dict[int, int]) -> Any:
    """Module names in a `quantization_config`, in lists and as keys, with the blocks' new numbers.

    Args:
        value: the config, or a part of it.
        stack_name: last part of the stack's path, such as "layers".
        numbers: old index -> new index of the kept blocks; names of removed blocks are dropped.

    Raises:
        UnsupportedModelError: a regular expression names a block by number.
    """
    pattern = re.compile(rf"(?<![\w]){re.escape(stack_name)}\.(\d+)(?=\.|$)")

    def renamed(name: str) -> str | None:
        match = pattern.search(name)
        if name.startswith("re:") and re.search(rf"{re.escape(stack_name)}\W+\d", name):
            raise UnsupportedModelError(f"quantization_config names blocks by the expression {name}.")
        if match is None:
            return name
        number = numbers.get(int(match[1]))
        return None if number is None else f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"

    if isinstance(value, dict):
        pairs = ((renamed(key), renumbered_names(item, stack_name, numbers)) for key, item in value.items())
        return {key: item for key, item in pairs if key is not None}
    if isinstance(value, list):
        names = [
            renamed(item) if isinstance(item, str) else renumbered_names(item, stack_name, numbers) for item in value
        ]
        return [name for name in names if name is not None]
    return value


def with_legacy_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Add `rope_theta` where only transformers 5's `rope_parameters` has it.

    Releases before 5, and engines that read configs as those did, ignore `rope_parameters` and would silently use their
    default of 10000.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return config
    result = dict(config)
    if "rope_theta" in rope:
        result.setdefault("rope_theta", rope["rope_theta"])
    elif isinstance(rope.get("full_attention"), dict) and isinstance(rope.get("sliding_attention"), dict):
        result.setdefault("rope_theta", rope["full_attention"].get("rope_theta"))
        result.setdefault("rope_local_base_freq", rope["sliding_attention"].get("rope_theta"))
    return result
