"""Config dict and removed blocks -> config dict of the cut model, by the rules in `rules.py` and `joint_rules.py`.

A field that depends on the position of blocks must follow the removal; otherwise the cut model is silently a different
one. What no rule can express is refused, naming the key.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from streamliner.cut.joint_rules import JOINT, OUTER
from streamliner.cut.removal import Removal
from streamliner.cut.rules import FIELDS, NESTED, NOT_PER_BLOCK
from streamliner.errors import UnsupportedModelError
from streamliner.model.stack import COUNTS, DECODER_COUNTS


def cut_config(
    config: dict[str, Any], removed: tuple[int, ...], num_blocks: int, count_name: str = ""
) -> dict[str, Any]:
    """The config of the model without the blocks `removed`.

    Args:
        config: the complete dict of the config that describes the stack (`PretrainedConfig.to_dict`). Defaults must be
            filled in: a list may have been derived from a period that no longer holds.
        removed: ascending block indices.
        num_blocks: number of blocks before.
        count_name: a further name under which this config keeps the number of blocks (`Stack.count_name`).

    Raises:
        UnsupportedModelError: a key cannot follow the removal; the message names it.
    """
    removal = Removal.of(removed, num_blocks)
    result = cut_fields(config, removal, count_name)
    for rule in JOINT:
        result |= rule(config, removal)
    return result


def cut_fields(config: dict[str, Any], removal: Removal, count_name: str = "") -> dict[str, Any]:
    """The part of `cut_config` that looks at one field at a time; `config` need not be complete.

    Raises:
        UnsupportedModelError: as for `cut_config`.
    """
    result = _apply_rules(config, removal)
    own_counts = [key for key in DECODER_COUNTS if config.get(key) == removal.num_blocks]
    for key in own_counts or (*COUNTS, count_name):
        if config.get(key) == removal.num_blocks and not isinstance(config[key], bool):
            result[key] = len(removal.kept)
    return result


def cut_outer_config(config: dict[str, Any], removed: tuple[int, ...], num_blocks: int) -> dict[str, Any]:
    """The fields that must change in the config of a model of several parts, around that of the text.

    Raises:
        UnsupportedModelError: as for `cut_config`.
    """
    removal = Removal.of(removed, num_blocks)
    result: dict[str, Any] = {}
    for rule in OUTER:
        result |= rule(config, removal)
    return result


def with_legacy_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Add `rope_theta` where only the `rope_parameters` of transformers 5 have it.

    Releases before 5, and engines that read configs as they did, ignore `rope_parameters` and silently use 10000.
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


def _apply_rules(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    result = copy.deepcopy(config)
    for key, value in config.items():
        if key in FIELDS:
            result[key] = FIELDS[key](key, value, removal)
        elif key in NESTED and isinstance(value, dict):
            result[key] = _apply_rules(value, removal)
        elif key not in NOT_PER_BLOCK:
            _check_unknown(key, value, removal)
    return result


def _check_unknown(key: str, value: Any, removal: Removal) -> None:
    """Refuse a field without a rule that looks as if it had an entry per block."""
    count = removal.num_blocks
    if isinstance(value, list) and len(value) == count > 1:
        raise UnsupportedModelError(
            f"The config key {key} has {count} entries, probably one per block, and there is no rule for it."
        )
    if isinstance(value, dict) and value and all(re.fullmatch(r"\d+", str(name)) for name in value):
        raise UnsupportedModelError(
            f"The config key {key} is a dict by number, probably of blocks, and there is no rule for it."
        )
