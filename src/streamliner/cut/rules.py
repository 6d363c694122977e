"""The table of config fields that depend on the position of blocks. A new config rule goes here.

A rule takes a field's name, its value and the removal, and returns the value for the cut model, or raises. `FIELDS`
applies wherever a field is in a config. Rules that need several fields at once are in `joint_rules.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from streamliner.cut.removal import Removal
from streamliner.errors import UnsupportedModelError

Rule = Callable[[str, Any, Removal], Any]


def per_block(key: str, value: Any, removal: Removal) -> Any:
    """A list with an entry per block, or a string with a letter per block: the entries of kept blocks stay.

    Other models have one number for all blocks under the same name; it stays.
    """
    if not isinstance(value, (list, tuple, str)):
        return value
    if len(value) != removal.num_blocks:
        if isinstance(value, str):
            return value
        raise UnsupportedModelError(f"The config key {key} has {len(value)} entries for {removal.num_blocks} blocks.")
    entries = [value[index] for index in removal.kept]
    return "".join(entries) if isinstance(value, str) else entries


def indices(key: str, value: Any, removal: Removal) -> Any:
    """A list of block indices: those of removed blocks are dropped, the others renumbered."""
    return [removal.new(index) for index in value if index in removal.kept] if isinstance(value, list) else value


def indices_from_1(key: str, value: Any, removal: Removal) -> Any:
    """The same, counted from 1."""
    return [index + 1 for index in indices(key, [i - 1 for i in value], removal)] if isinstance(value, list) else value


def by_index(key: str, value: Any, removal: Removal) -> Any:
    """A dict whose keys are block indices."""
    if not isinstance(value, dict):
        return value
    kept = {old: item for old, item in value.items() if int(old) in removal.kept}
    return {type(old)(removal.new(int(old))): item for old, item in kept.items()}


def first_blocks(key: str, value: Any, removal: Removal) -> Any:
    """The first k blocks are special: k becomes the number of kept blocks among them."""
    return sum(index < value for index in removal.kept) if isinstance(value, int) else value


def last_blocks(key: str, value: Any, removal: Removal) -> Any:
    """The last k blocks are special: the same."""
    if not isinstance(value, int):
        return value
    return sum(index >= removal.num_blocks - value for index in removal.kept)


def repeated(key: str, value: Any, removal: Removal) -> Any:
    """A pattern that repeats along the stack: written out in full, as the kept blocks may not repeat."""
    if not isinstance(value, (list, tuple)):
        return value
    return [value[index % len(value)] for index in removal.kept]


def scaled_by_depth(key: str, value: Any, removal: Removal) -> Any:
    """MiniCPM multiplies each block's output by value / sqrt(number of blocks), which must stay the same."""
    return value * math.sqrt(len(removal.kept) / removal.num_blocks) if isinstance(value, (int, float)) else value


def none_left(key: str, value: Any, removal: Removal) -> Any:
    """Blocks for multi-token prediction: the cut model has none.

    A checkpoint has them after the last block, and transformers drops them on loading by their index. Their input
    changes when blocks are removed, so they would need training.
    """
    return 0 if value else value


def refused(key: str, value: Any, removal: Removal) -> Any:
    """No value of this field describes the cut model."""
    if value:
        raise UnsupportedModelError(f"The config key {key} = {value!r} ties blocks to their position.")
    return value


FIELDS: dict[str, Rule] = {
    "activation_sparsity_pattern": per_block,
    "attention_layers": per_block,
    "attn_layers": per_block,
    "attn_type_list": per_block,
    "block_configs": per_block,
    "ffn_multipliers": per_block,
    "hybrid_layer_pattern": per_block,
    "hybrid_override_pattern": per_block,
    "indexer_types": per_block,
    "intermediate_size": per_block,
    "layer_rope_theta": per_block,
    "layer_types": per_block,
    "layers_block_type": per_block,
    "mlp_layer_types": per_block,
    "moe_intermediate_size": per_block,
    "moe_layer_freq": per_block,
    "moe_topk": per_block,
    "no_rope_layers": per_block,
    "num_attention_heads_per_layer": per_block,
    "num_experts": per_block,
    "num_kv_heads": per_block,
    "num_query_heads": per_block,
    "num_shared_expert": per_block,
    "sparse_attention_freq": per_block,
    "swiglu_limits": per_block,
    "swiglu_limits_shared": per_block,
    "attn_layer_indices": indices,
    "cross_attention_layers": indices,
    "full_attn_idxs": indices,
    "hybrid_layer_ids": indices,
    "local_layer_ids": indices,
    "mlp_only_layers": indices,
    "moe_layers": indices,
    "full_attn_layers": indices_from_1,
    "kda_layers": indices_from_1,
    "ple_layer_ids": indices_from_1,
    "per_layer_config": by_index,
    "pruned_heads": by_index,
    "first_k_dense_replace": first_blocks,
    "max_window_layers": first_blocks,
    "num_dense_layers": first_blocks,
    "num_kv_shared_layers": last_blocks,
    "block_types": repeated,
    "scale_depth": scaled_by_depth,
    "mtp_num_hidden_layers": none_left,
    "num_mtp_layers": none_left,
    "num_mtp_modules": none_left,
    "num_nextn_predict_layers": none_left,
    "cross_layer_interval": refused,
    "n_layers_per_attn_res_block": refused,
    "num_layers_per_stack": refused,
}
"""Field name -> rule."""


NESTED = ("linear_attn_config", "sparse_attention_config")
"""Dicts in a config that hold such fields."""


NOT_PER_BLOCK = (
    "architectures",
    "attention_types",
    "begin_suppress_tokens",
    "bos_token_id",
    "eos_token_id",
    "id2label",
    "label2id",
    "pad_token_id",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "suppress_tokens",
)
"""Lists and dicts that may have as many entries as there are blocks by chance."""
