"""The table of config fields that speak of blocks by their position, each with its kind of rule.

A rule takes a field's name and value and the removal, and gives the value for the cut model, or refuses. `FIELDS` is
for fields that stand alone, wherever they are in a config; `JOINT` for fields that only together say what a block is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamliner.errors import UnsupportedModelError


@dataclass(frozen=True)
class Removal:
    """Which blocks stay of how many; indices are those of the dense model."""

    kept: tuple[int, ...]
    num_blocks: int

    @classmethod
    def of(cls, removed: tuple[int, ...], num_blocks: int) -> Removal:
        """The removal of these blocks."""
        return cls(tuple(index for index in range(num_blocks) if index not in removed), num_blocks)

    @property
    def numbers(self) -> dict[int, int]:
        """Index in the dense model -> index in the cut model, of the kept blocks."""
        return {old: new for new, old in enumerate(self.kept)}

    def new(self, old: int) -> int:
        """Index in the cut model of a kept block."""
        return self.kept.index(old)


Rule = Callable[[str, Any, Removal], Any]


def per_block(key: str, value: Any, removal: Removal) -> Any:
    """One entry per block, in a list or a text of one letter per block: the kept ones stay.

    Of some such fields the same name holds a single value for all blocks, which stays.
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
    """A list of block indices: removed ones go, the others are renumbered."""
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
    """The first k blocks are special: k becomes the number of kept ones among them."""
    return sum(index < value for index in removal.kept) if isinstance(value, int) else value


def last_blocks(key: str, value: Any, removal: Removal) -> Any:
    """The last k blocks are special."""
    first = removal.num_blocks - value if isinstance(value, int) else 0
    return sum(index >= first for index in removal.kept) if isinstance(value, int) else value


def repeated(key: str, value: Any, removal: Removal) -> Any:
    """A pattern that repeats along the stack: written out, as what is left need not repeat."""
    if not isinstance(value, (list, tuple)):
        return value
    return [value[index % len(value)] for index in removal.kept]


def scaled_by_depth(key: str, value: Any, removal: Removal) -> Any:
    """MiniCPM: each block adds value / sqrt(number of blocks) times its output; the quotient must stay."""
    return value * math.sqrt(len(removal.kept) / removal.num_blocks) if isinstance(value, (int, float)) else value


def none_left(key: str, value: Any, removal: Removal) -> Any:
    """Blocks for predicting several tokens: the cut model has none.

    They lie after the last block in a checkpoint, `transformers` drops them on load by their index, and their input is
    another once blocks are gone.
    """
    return 0 if value else value


def refused(key: str, value: Any, removal: Removal) -> Any:
    """No value of this field says what is left."""
    if value:
        raise UnsupportedModelError(f"The config key {key} = {value!r} ties blocks to their position.")
    return value


FIELDS: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *(
                "layer_types",
                "mlp_layer_types",
                "layers_block_type",
                "indexer_types",
                "attention_layers",
                "attn_layers",
            ),
            *("no_rope_layers", "layer_rope_theta", "num_attention_heads_per_layer", "activation_sparsity_pattern"),
            *("intermediate_size", "moe_layer_freq", "hybrid_layer_pattern", "hybrid_override_pattern"),
            *("sparse_attention_freq", "attn_type_list", "swiglu_limits", "swiglu_limits_shared", "moe_topk"),
            *("num_experts", "num_shared_expert", "moe_intermediate_size", "num_query_heads", "num_kv_heads"),
            *("ffn_multipliers", "block_configs"),
        ),
        per_block,
    ),
    **dict.fromkeys(
        (
            *("mlp_only_layers", "moe_layers", "attn_layer_indices", "cross_attention_layers", "full_attn_idxs"),
            *("local_layer_ids", "hybrid_layer_ids"),
        ),
        indices,
    ),
    **dict.fromkeys(("ple_layer_ids", "full_attn_layers", "kda_layers"), indices_from_1),
    **dict.fromkeys(("per_layer_config", "pruned_heads"), by_index),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "max_window_layers"), first_blocks),
    "num_kv_shared_layers": last_blocks,
    "block_types": repeated,
    "scale_depth": scaled_by_depth,
    **dict.fromkeys(
        ("num_nextn_predict_layers", "num_mtp_layers", "num_mtp_modules", "mtp_num_hidden_layers"), none_left
    ),
    **dict.fromkeys(("n_layers_per_attn_res_block", "num_layers_per_stack", "cross_layer_interval"), refused),
}
"""Field name -> rule."""


NESTED = ("linear_attn_config", "sparse_attention_config")
"""Dicts in a config that hold such fields."""


NOT_PER_BLOCK = (
    *("architectures", "eos_token_id", "bos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("attention_types", "rope_parameters", "rope_scaling", "quantization_config", "id2label", "label2id"),
)
"""Lists and dicts that may by chance have as many entries as there are blocks."""


def sparse_step(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Qwen MoE: block i is sparse if i is not in mlp_only_layers and (i + 1) is a multiple of decoder_sparse_step.

    With the step set to 1, the list of dense blocks alone says it all, for every removal.
    """
    step = config.get("decoder_sparse_step")
    if not isinstance(step, int) or step < 1:
        return {}
    dense = set(config.get("mlp_only_layers") or ())
    plain = [new for new, old in enumerate(removal.kept) if old in dense or (old + 1) % step != 0]
    return {"mlp_only_layers": plain, "decoder_sparse_step": 1}


def expert_range(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """ERNIE 4.5 MoE: block i has experts if start <= i <= end and (i + 1) is a multiple of the interval.

    A run of neighbours can be said with interval 1, anything else only if the interval goes on.
    """
    if not {"moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"} <= set(config):
        return {}
    start, end, step = (config[f"moe_layer_{name}"] for name in ("start_index", "end_index", "interval"))
    if not (isinstance(start, int) and isinstance(step, int) and isinstance(end, (int, type(None)))):
        raise UnsupportedModelError(f"moe_layer_start_index = {start!r}: only one range of experts is understood.")
    end = removal.num_blocks - 1 if end in (None, -1) else end
    experts = [new for new, old in enumerate(removal.kept) if start <= old <= end and (old + 1) % step == 0]
    if not experts:
        raise UnsupportedModelError("No block with experts would stay, which moe_layer_start_index cannot say.")
    first, last = experts[0], experts[-1]
    for interval in range(1, len(removal.kept) + 1):
        if experts == [i for i in range(first, last + 1) if (i + 1) % interval == 0]:
            names = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
            return dict(zip(names, (first, last, interval), strict=True))
    raise UnsupportedModelError(
        f"Blocks with experts would be {experts}, which no moe_layer_interval and range can say (it is {step} now)."
    )


def periods(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Jamba: block i is of a kind if i % period == offset. Another period and offset may say what is left."""
    result: dict[str, Any] = {}
    for kind in ("attn_layer", "expert_layer"):
        period, offset = config.get(f"{kind}_period"), config.get(f"{kind}_offset")
        if not isinstance(period, int) or not isinstance(offset, int) or "layers_block_type" in config:
            continue
        wanted = [old % period == offset for old in removal.kept]
        count = len(wanted)
        for new_period in range(1, count + 1):
            fitting = [o for o in range(new_period) if [i % new_period == o for i in range(count)] == wanted]
            if fitting:
                result |= {f"{kind}_period": new_period, f"{kind}_offset": fitting[0]}
                break
        else:
            raise UnsupportedModelError(f"No {kind}_period and {kind}_offset give the pattern of the blocks that stay.")
    return result


def attention_types(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """GPT-Neo: the list attention_layers, run-length encoded."""
    layers = config.get("attention_layers")
    if "attention_types" not in config or not isinstance(layers, list):
        return {}
    return {"attention_types": [[[kind], 1] for kind in per_block("attention_layers", layers, removal)]}


def shared_keys_and_values(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Gemma 3n and 4: the last blocks use the keys and values of the last block of their kind before them."""
    shared, kinds = config.get("num_kv_shared_layers"), config.get("layer_types")
    if not shared or not isinstance(kinds, list):
        return {}
    first = removal.num_blocks - shared
    for kind in dict.fromkeys(kinds[:first]):
        producer = max(index for index in range(first) if kinds[index] == kind)
        users = [index for index in removal.kept if index >= first and kinds[index] == kind]
        if producer not in removal.kept and users:
            raise UnsupportedModelError(
                f"Block {producer} makes the keys and values that later blocks use: {', '.join(map(str, users))} "
                "(num_kv_shared_layers)."
            )
    return {}


def first_block(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """What the first block cannot be: a reader of images (Mllama), or of another block's index of tokens."""
    first = removal.kept[0]
    if first in (config.get("cross_attention_layers") or ()):
        raise UnsupportedModelError(f"Block {first} would be the first, and is one of cross_attention_layers.")
    kinds = config.get("indexer_types")
    if isinstance(kinds, list) and kinds[first] != "full":
        raise UnsupportedModelError(f"Block {first} would be the first, but uses the index of a block before it.")
    if "linear_attn_alpha_factor" in config and config["layer_types"][first] != "full_attention":
        raise UnsupportedModelError(
            f"Block {first} would be the first, whose cache MiniMax asks for the text's length."
        )
    return {}


JOINT: tuple[Callable[[dict[str, Any], Removal], dict[str, Any]], ...] = (
    sparse_step,
    expert_range,
    periods,
    attention_types,
    shared_keys_and_values,
    first_block,
)
"""Rules over several fields: dense config and removal -> the fields that they set."""


def images_into_first_blocks(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Qwen3-VL: image features k of deepstack_visual_indexes are added behind block k of the text, for k = 0, 1, ...

    The indices are those of the image tower, so no field could say that the features go elsewhere.
    """
    names = (config.get("vision_config") or {}).get("deepstack_visual_indexes") or ()
    gone = [index for index in range(len(names)) if index not in removal.kept]
    if gone:
        raise UnsupportedModelError(f"Image features are added behind block {gone[0]} (deepstack_visual_indexes).")
    return {}


def images_into_named_blocks(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Granite 4 Vision: image features are added before the blocks that two lists name."""
    pairs, targets = config.get("deepstack_layer_map"), config.get("spatial_target_layers")
    if not isinstance(pairs, list) or not isinstance(targets, list):
        return {}
    gone = [index for index in [*(pair[1] for pair in pairs), *targets] if index not in removal.kept]
    if gone:
        raise UnsupportedModelError(
            f"Image features are added before block {gone[0]} (deepstack_layer_map, spatial_target_layers)."
        )
    return {
        "deepstack_layer_map": [[tower, removal.new(block)] for tower, block in pairs],
        "spatial_target_layers": [removal.new(block) for block in targets],
    }


AROUND: tuple[Callable[[dict[str, Any], Removal], dict[str, Any]], ...] = (
    images_into_first_blocks,
    images_into_named_blocks,
)
"""Rules over the config around the text's own, in models of several parts. Checks on text would not see them broken."""
