"""Config dict and removed blocks -> config dict of the cut model. Pure; the rules are in the table of `fields.py`.

A field that speaks of blocks by their position must follow the removal, or the cut model is silently another one. What
no rule can express is refused by the name of its key.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from streamliner.cut.rules import AROUND, FIELDS, JOINT, NESTED, NOT_PER_BLOCK, Removal
from streamliner.errors import UnsupportedModelError
from streamliner.model.stack import COUNTS, DECODER_COUNTS


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
    removal = Removal.of(removed, num_blocks)
    result = cut_fields(config, removal, count_name)
    for rule in JOINT:
        result |= rule(config, removal)
    return result


def cut_fields(config: dict[str, Any], removal: Removal, count_name: str = "") -> dict[str, Any]:
    """The part of `cut_config` that looks at one field at a time; for a config that is not complete.

    Raises:
        UnsupportedModelError: as for `cut_config`.
    """
    result = _cut_each(config, removal)
    num_blocks = removal.num_blocks
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
    removal = Removal.of(removed, num_blocks)
    result: dict[str, Any] = {}
    for rule in AROUND:
        result |= rule(config, removal)
    return result


def _cut_each(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    result = copy.deepcopy(config)
    for key, value in config.items():
        if key in FIELDS:
            result[key] = FIELDS[key](key, value, removal)
        elif key in NESTED and isinstance(value, dict):
            result[key] = _cut_each(value, removal)
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


def renumbered_names(value: Any, paths: tuple[str, ...], numbers: dict[int, int]) -> Any:
    """Module names in a `quantization_config`, in lists and as keys, with the blocks' new numbers.

    Args:
        value: the config, or a part of it.
        paths: where the stack is, in memory and on disk; a name may leave out the beginning. Another stack's names (an
            image tower's) stay.
        numbers: old index -> new index of the kept blocks; names of removed blocks are dropped.

    Raises:
        UnsupportedModelError: an expression names blocks by number.
    """
    if isinstance(value, dict):
        pairs = (
            (_renumbered(key, paths, numbers), renumbered_names(item, paths, numbers)) for key, item in value.items()
        )
        return {key: item for key, item in pairs if key is not None}
    if isinstance(value, list):
        items = [
            _renumbered(item, paths, numbers) if isinstance(item, str) else renumbered_names(item, paths, numbers)
            for item in value
        ]
        return [item for item in items if item is not None]
    return value


def _renumbered(name: str, paths: tuple[str, ...], numbers: dict[int, int]) -> str | None:
    last = re.escape(paths[0].split(".")[-1])
    if re.search(r"[\\*?+^$\[(|]", name) and re.search(rf"({last}\W*\.?|\\\.)\d", name):
        raise UnsupportedModelError(f"quantization_config names blocks by the expression {name}.")
    match = re.search(rf"(?:^|(?<=\.)|(?<=[-+:])){last}\.(\d+)(?=\.|$)", name)
    if match is None:
        return name
    before = re.sub(r"^[-+:]+", "", name[: match.start()]).rstrip(".")
    places = [path.rpartition(".")[0] for path in paths]
    if before and not any(f".{place}".endswith(f".{before}") for place in places):
        return name
    number = numbers.get(int(match[1]))
    return None if number is None else f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"


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
