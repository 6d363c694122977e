"""The config of the cut model, by the rules in `rules.py`: as a dict, and as a checked object.

A field that depends on the position of blocks must follow the removal; otherwise the cut model is silently a different
one. What no rule can express is refused, naming the key.
"""

import copy
import json
import re
from functools import reduce
from typing import Any

from streamliner.cut.rules import FIELDS, JOINT, NESTED, OUTER, Removal
from streamliner.errors import UnsupportedModelError, last_line
from streamliner.model.compat import copy_attention_kernel
from streamliner.model.stack import COUNTS, DECODER_COUNTS, Stack, config_path


def cut_config(
    config: dict[str, Any], removed: tuple[int, ...], num_blocks: int, count_name: str = ""
) -> dict[str, Any]:
    """The config of the model without the blocks `removed`, ascending indices of its `num_blocks` blocks.

    `config` is the complete dict of the config that describes the stack (`PretrainedConfig.to_dict`). Defaults must be
    filled in: a list may have been derived from a period that no longer holds. `count_name` is a further name under
    which it keeps the number of blocks (`Stack.count_name`).

    Raises:
        UnsupportedModelError: a key cannot follow the removal; the message names it.
    """
    removal = Removal.of(removed, num_blocks)
    result = cut_fields(config, removal, count_name)
    for rule in JOINT:
        result |= rule(config, removal)
    return result


def cut_fields(config: dict[str, Any], removal: Removal, count_name: str = "") -> dict[str, Any]:
    """The part of `cut_config` that looks at one field at a time; `config` need not be complete."""
    result = _apply_rules(config, removal)
    own_counts = [key for key in DECODER_COUNTS if config.get(key) == removal.num_blocks]
    for key in own_counts or (*COUNTS, count_name):
        if config.get(key) == removal.num_blocks and not isinstance(config[key], bool):
            result[key] = len(removal.kept)
    return result


def cut_outer_config(config: dict[str, Any], removed: tuple[int, ...], num_blocks: int) -> dict[str, Any]:
    """The fields that must change in the config of a model of several parts, around that of the text."""
    removal = Removal.of(removed, num_blocks)
    return {key: value for rule in OUTER for key, value in rule(config, removal).items()}


def cut_config_object(config: Any, stack: Stack, removed: tuple[int, ...]) -> Any:
    """A copy of the config object `config` with the part that describes the stack cut.

    An UnsupportedModelError if a key cannot follow the removal, or if the class changes its value.
    """
    part, path = _cut_part(stack, removed), config_path(config, stack.config)
    if not path:
        return part
    result = copy.deepcopy(config)
    for name, value in cut_outer_config(config.to_dict(), removed, len(stack)).items():
        setattr(result, name, value)
    setattr(reduce(getattr, path[:-1], result), path[-1], part)
    return result


OLD_SCALINGS = ("linear", "dynamic", "yarn", "longrope", "llama3")
"""Kinds of rotary scaling that releases before 5 know."""


def with_legacy_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Add `rope_theta` and `rope_scaling` where only the `rope_parameters` of transformers 5 have them.

    Releases before 5, and engines that read configs as they did, ignore `rope_parameters`, and would silently use 10000
    and no scaling.
    """
    rope, old = config.get("rope_parameters"), dict[str, Any]()
    if isinstance(rope, dict):
        nested = isinstance(rope.get("full_attention"), dict)
        full, sliding = (rope["full_attention"], rope.get("sliding_attention")) if nested else (rope, None)
        if "rope_theta" in full:
            old["rope_theta"] = full["rope_theta"]
        if isinstance(sliding, dict) and "rope_theta" in sliding:
            old["rope_local_base_freq"] = sliding["rope_theta"]
        if "partial_rotary_factor" in full and not nested:
            old["partial_rotary_factor"] = full["partial_rotary_factor"]
        if full.get("rope_type") in OLD_SCALINGS:
            new = ("rope_theta", "partial_rotary_factor")
            old["rope_scaling"] = {key: value for key, value in full.items() if key not in new}
    return config | {key: value for key, value in old.items() if config.get(key) is None}


def _apply_rules(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    result = copy.deepcopy(config)
    for key, value in result.items():
        if key in FIELDS:
            result[key] = FIELDS[key](key, value, removal)
        elif key in NESTED and isinstance(value, dict):
            result[key] = _apply_rules(value, removal)
        elif isinstance(value, list) and len(value) == removal.num_blocks > 1:
            found = f"has {len(value)} entries, probably one per block"
            raise UnsupportedModelError(f"The config key {key} {found}, and there is no rule for it.")
        elif isinstance(value, dict) and value and all(re.fullmatch(r"\d+", str(name)) for name in value):
            found = "is a dict by number, probably of blocks"
            raise UnsupportedModelError(f"The config key {key} {found}, and there is no rule for it.")
    return result


def _cut_part(stack: Stack, removed: tuple[int, ...]) -> Any:
    """The config object that describes the stack, cut; its class must keep what the rules decided."""
    before = stack.config.to_dict()
    cut = cut_config(before, removed, len(stack), stack.count_name)
    cut.pop("quantization_config", None)  # the weights in memory are dense; a checkpoint keeps its own
    try:
        part = type(stack.config).from_dict(copy.deepcopy(cut))
    except Exception as error:  # validators of configs raise errors of their own types
        raise UnsupportedModelError(f"The config of the cut model would not be valid: {last_line(error)}") from error
    # A class may change a value that it is given, as Gemma 4's does with the kind of the last block.
    after = part.to_dict()
    for key in sorted(cut):
        if as_json(cut[key]) != as_json(after.get(key)) and cut[key] != before.get(key):
            change = f"{key} = {cut[key]}, which its class changes to {after.get(key)}"
            raise UnsupportedModelError(f"The cut config would have {change}.")
    if _has_attention(stack.config) and not _has_attention(part):
        reason = "without it transformers cannot tell how long a cached text is"
        raise UnsupportedModelError(f"One block with attention must stay: {reason}.")
    copy_attention_kernel(stack.config, part)
    return part


def as_json(value: Any) -> str:
    """A string that is equal for equal values, also where one has tuples and the other has lists."""
    return json.dumps(value, sort_keys=True, default=str)


def _has_attention(config: Any) -> bool:
    """Whether a block caches keys and values, if the config names the kinds of its blocks."""
    kinds = getattr(config, "layer_types", None)
    return isinstance(kinds, (list, tuple)) and any(
        "hybrid" in kind or ("attention" in kind and "linear" not in kind) for kind in kinds
    )
