"""Config dict and removed blocks -> config dict of the cut model. Pure; one table of field names.

A field that speaks of blocks by their position must follow the removal, or the cut model is silently another one. Each
such field has a kind of rule below. What no rule can express is refused by the name of its key.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from streamliner.errors import UnsupportedModelError

DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
"""Names under which configs keep the number of blocks. Each that is present and equals it is set; beside a name of the
decoder's own the others count the encoder."""

PER_BLOCK_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "layer_rope_theta")
"""One entry per block: the kept entries stay."""

INDEX_LISTS = ("mlp_only_layers", "moe_layers", "attn_layer_indices")
"""0-based block indices: removed ones go, the others are renumbered."""

PREFIX_COUNTS = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
"""The first k blocks are special: k becomes the number of kept ones among them."""

REFUSED: dict[str, Callable[[Any], bool]] = {
    "scale_attn_by_inverse_layer_idx": bool,
    "num_kv_shared_layers": bool,
    "scale_depth": lambda value: True,
    "per_layer_config": bool,
    "attn_layer_period": lambda value: True,
    "expert_layer_period": lambda value: True,
    "moe_layer_interval": lambda value: value != 1,
    "moe_layer_start_index": lambda value: value not in (None, 0),
    "hybrid_layer_ids": bool,
    "cross_attention_layers": bool,
    "ple_layer_ids": bool,
    "rescale_every": bool,
    "n_layers_per_attn_res_block": lambda value: True,
    "num_mem_blocks": lambda value: True,
    "block_types": bool,
    "attn_layers": bool,
    "attention_layers": bool,
}
"""Fields that tie a block to its index in ways that no rule here expresses, with the values that do."""

MTP_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers")
"""Blocks for predicting several tokens. They lie after the last block in a checkpoint, `transformers` drops them on
load by their index, and their input is another once blocks are gone: the cut model has none."""

NOT_PER_BLOCK = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id", "suppress_tokens", "attention_types")
"""Lists that may by chance be as long as the stack."""


def cut_config(config: dict[str, Any], removed: tuple[int, ...], num_blocks: int) -> dict[str, Any]:
    """The config of the model without the blocks `removed`.

    Args:
        config: the complete dict of the config that describes the stack (`PretrainedConfig.to_dict`): defaults must be
            filled in, as a list may be derived from a period that no longer holds.
        removed: ascending block indices.
        num_blocks: blocks before.

    Raises:
        UnsupportedModelError: a key cannot follow the removal; the message names it.
    """
    kept = [index for index in range(num_blocks) if index not in removed]
    result = copy.deepcopy(config)
    for key, value in config.items():
        if key in REFUSED:
            if value is not None and REFUSED[key](value):
                raise UnsupportedModelError(
                    f"The config key {key} = {value!r} ties blocks to their position, "
                    "and cutting does not handle it yet."
                )
        elif key in PER_BLOCK_LISTS:
            if value is not None:
                result[key] = _kept_entries(key, value, kept, num_blocks)
        elif key in INDEX_LISTS:
            if value is not None:
                result[key] = [kept.index(index) for index in value if index in kept]
        elif key in PREFIX_COUNTS:
            if value is not None:
                result[key] = sum(index < value for index in kept)
        elif key in MTP_COUNTS:
            result[key] = 0 if value else value
        elif isinstance(value, list) and len(value) == num_blocks > 1 and key not in NOT_PER_BLOCK:
            raise UnsupportedModelError(
                f"The config key {key} has {num_blocks} entries, one per block it seems, and no rule for it is known."
            )
    _refit_sparse_step(result, config, kept)
    own = [key for key in DECODER_COUNTS if config.get(key) == num_blocks]
    for key in own or COUNTS:
        if config.get(key) == num_blocks:
            result[key] = len(kept)
    return result


def _kept_entries(key: str, value: list[Any], kept: list[int], num_blocks: int) -> list[Any]:
    if len(value) != num_blocks:
        raise UnsupportedModelError(f"The config key {key} has {len(value)} entries for {num_blocks} blocks.")
    return [value[index] for index in kept]


def _refit_sparse_step(result: dict[str, Any], config: dict[str, Any], kept: list[int]) -> None:
    """Qwen MoE: block i is sparse if i is not in mlp_only_layers and (i + 1) is a multiple of decoder_sparse_step.

    With the step set to 1, the list of dense blocks alone says it all, for every removal.
    """
    step = config.get("decoder_sparse_step")
    if not isinstance(step, int) or step < 1:
        return
    dense = set(config.get("mlp_only_layers") or ())
    result["mlp_only_layers"] = [new for new, old in enumerate(kept) if old in dense or (old + 1) % step != 0]
    result["decoder_sparse_step"] = 1


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
