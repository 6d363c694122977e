"""Config fields that depend on the position of blocks. A new config rule goes here.

A rule for one field takes its name, its value and the removal, and returns the value for the cut model, or raises;
`FIELDS` applies wherever a field is in a config. A rule for several fields at once (`JOINT`, `OUTER`) takes the dense
config and the removal, and returns the fields that it sets for the cut model, or raises.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from streamliner.errors import UnsupportedModelError


@dataclass(frozen=True)
class Removal:
    """Which blocks stay of how many; indices are those of the dense model."""

    kept: tuple[int, ...]
    num_blocks: int

    @classmethod
    def of(cls, removed: tuple[int, ...], num_blocks: int) -> Self:
        """The removal of these blocks."""
        return cls(tuple(index for index in range(num_blocks) if index not in removed), num_blocks)

    @property
    def numbers(self) -> dict[int, int]:
        """Index in the dense model -> index in the cut model, of the kept blocks."""
        return {old: new for new, old in enumerate(self.kept)}


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
    numbers = removal.numbers
    return [numbers[index] for index in value if index in numbers] if isinstance(value, list) else value


def indices_from_1(key: str, value: Any, removal: Removal) -> Any:
    """The same, counted from 1."""
    return [index + 1 for index in indices(key, [i - 1 for i in value], removal)] if isinstance(value, list) else value


def by_index(key: str, value: Any, removal: Removal) -> Any:
    """A dict whose keys are block indices."""
    if not isinstance(value, dict):
        return value
    numbers = removal.numbers
    return {type(old)(numbers[int(old)]): item for old, item in value.items() if int(old) in numbers}


def first_blocks(key: str, value: Any, removal: Removal) -> Any:
    """The first k blocks are special: k becomes the number of kept blocks among them."""
    return sum(index < value for index in removal.kept) if isinstance(value, int) else value


def last_blocks(key: str, value: Any, removal: Removal) -> Any:
    """The last k blocks are special: the same."""
    return sum(index >= removal.num_blocks - value for index in removal.kept) if isinstance(value, int) else value


def repeated(key: str, value: Any, removal: Removal) -> Any:
    """A pattern that repeats along the stack: written out in full, as the kept blocks may not repeat."""
    return [value[index % len(value)] for index in removal.kept] if isinstance(value, (list, tuple)) else value


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


def not_per_block(key: str, value: Any, removal: Removal) -> Any:
    """A list or dict that may have as many entries as there are blocks by chance."""
    return value


NAMES: dict[Rule, str] = {
    per_block: """
        activation_sparsity_pattern attention_layers attn_layers attn_type_list block_configs ffn_multipliers
        hybrid_layer_pattern hybrid_override_pattern indexer_types intermediate_size layer_rope_theta layer_types
        layers_block_type mlp_layer_types moe_intermediate_size moe_layer_freq moe_topk no_rope_layers
        num_attention_heads_per_layer num_experts num_kv_heads num_query_heads num_shared_expert
        sparse_attention_freq swiglu_limits swiglu_limits_shared
    """,
    indices: """
        attn_layer_indices cross_attention_layers full_attn_idxs hybrid_layer_ids local_layer_ids mlp_only_layers
        moe_layers
    """,
    indices_from_1: "full_attn_layers kda_layers ple_layer_ids",
    by_index: "per_layer_config pruned_heads",
    first_blocks: "first_k_dense_replace max_window_layers num_dense_layers",
    last_blocks: "num_kv_shared_layers",
    repeated: "block_types",
    scaled_by_depth: "scale_depth",
    none_left: "mtp_num_hidden_layers num_mtp_layers num_mtp_modules num_nextn_predict_layers",
    refused: "cross_layer_interval n_layers_per_attn_res_block num_layers_per_stack",
    not_per_block: """
        architectures attention_types begin_suppress_tokens bos_token_id eos_token_id id2label label2id pad_token_id
        quantization_config rope_parameters rope_scaling suppress_tokens
    """,
}
"""Rule -> names of the fields that follow it."""

FIELDS = {name: rule for rule, names in NAMES.items() for name in names.split()}
"""Field name -> rule."""

NESTED = ("linear_attn_config", "sparse_attention_config")
"""Dicts in a config that hold such fields."""


def sparse_step(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Qwen MoE: block i has experts if it is not in mlp_only_layers and decoder_sparse_step divides i + 1.

    With a step of 1, the list of blocks without experts describes every removal.
    """
    step = config.get("decoder_sparse_step")
    if not isinstance(step, int) or step < 1:
        return {}
    dense = set(config.get("mlp_only_layers") or ())
    without = [new for new, old in enumerate(removal.kept) if old in dense or (old + 1) % step != 0]
    return {"mlp_only_layers": without, "decoder_sparse_step": 1}


def expert_range(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """ERNIE 4.5 MoE: block i has experts if start <= i <= end and the interval divides i + 1."""
    names = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
    if not set(names) <= set(config):
        return {}
    start, end, step = (config[name] for name in names)
    if not (isinstance(start, int) and isinstance(step, int) and isinstance(end, (int, type(None)))):
        raise UnsupportedModelError(f"moe_layer_start_index = {start!r}: only one range of experts is supported.")
    end = removal.num_blocks - 1 if end in (None, -1) else end
    experts = [new for new, old in enumerate(removal.kept) if start <= old <= end and (old + 1) % step == 0]
    if not experts:
        raise UnsupportedModelError("No block with experts would stay, which moe_layer_start_index cannot express.")
    first, last = experts[0], experts[-1]
    for interval in range(1, len(removal.kept) + 1):
        if experts == [i for i in range(first, last + 1) if (i + 1) % interval == 0]:
            return dict(zip(names, (first, last, interval), strict=True))
    raise UnsupportedModelError(
        f"Blocks with experts would be {experts}, which no range and moe_layer_interval describe (it is {step} now)."
    )


def periods(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Jamba: block i is of a kind if i % period == offset. Another period and offset may describe the kept blocks."""
    result: dict[str, Any] = {}
    for kind in ("attn_layer", "expert_layer"):
        period, offset = config.get(f"{kind}_period"), config.get(f"{kind}_offset")
        if not isinstance(period, int) or not isinstance(offset, int) or "layers_block_type" in config:
            continue
        count, wanted = len(removal.kept), [old % period == offset for old in removal.kept]
        for period, offset in ((p, o) for p in range(1, count + 1) for o in range(p)):
            if [new % period == offset for new in range(count)] == wanted:
                result |= {f"{kind}_period": period, f"{kind}_offset": offset}
                break
        else:
            raise UnsupportedModelError(f"No {kind}_period and {kind}_offset describe the blocks that stay.")
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
            later = f"that later blocks use: {', '.join(map(str, users))} (num_kv_shared_layers)"
            raise UnsupportedModelError(f"Block {producer} makes the keys and values {later}.")
    return {}


def first_block(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Which blocks cannot be the first one."""
    first = removal.kept[0]
    if first in (config.get("cross_attention_layers") or ()):  # Mllama: it reads an image
        raise UnsupportedModelError(f"Block {first} would be the first, and is one of cross_attention_layers.")
    kinds = config.get("indexer_types")
    if isinstance(kinds, list) and kinds[first] != "full":
        raise UnsupportedModelError(f"Block {first} would be the first, but uses the index of a block before it.")
    if "linear_attn_alpha_factor" in config and config["layer_types"][first] != "full_attention":
        needs = "MiniMax needs one with full attention there: its cache counts the tokens"
        raise UnsupportedModelError(f"Block {first} would be the first, but {needs}.")
    return {}


JOINT = (sparse_step, expert_range, periods, attention_types, shared_keys_and_values, first_block)
"""Rules for the config that describes the stack."""


def images_into_first_blocks(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Qwen3-VL adds image features k of deepstack_visual_indexes after block k of the text, for k = 0, 1, ...

    The indices are those of the image tower, so no field can say that the features go to another block.
    """
    names = (config.get("vision_config") or {}).get("deepstack_visual_indexes") or ()
    for index in range(len(names)):
        if index not in removal.kept:
            raise UnsupportedModelError(f"Image features are added after block {index} (deepstack_visual_indexes).")
    return {}


def images_into_named_blocks(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Granite 4 Vision adds image features before the blocks that two lists name."""
    pairs, targets = config.get("deepstack_layer_map"), config.get("spatial_target_layers")
    if not isinstance(pairs, list) or not isinstance(targets, list):
        return {}
    numbers, lists = removal.numbers, "deepstack_layer_map, spatial_target_layers"
    for index in [*(block for _, block in pairs), *targets]:
        if index not in numbers:
            raise UnsupportedModelError(f"Image features are added before block {index} ({lists}).")
    moved = [[tower, numbers[block]] for tower, block in pairs]
    return {"deepstack_layer_map": moved, "spatial_target_layers": [numbers[block] for block in targets]}


OUTER = (images_into_first_blocks, images_into_named_blocks)
"""Rules for the config of the whole model, around that of the text. A check on text cannot see a mistake here."""
