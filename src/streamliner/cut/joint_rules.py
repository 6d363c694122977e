"""Config rules that need several fields at once; those of a single field are in `rules.py`.

A rule takes the dense config and the removal, and returns the fields that it sets for the cut model, or raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamliner.cut.removal import Removal
from streamliner.cut.rules import per_block
from streamliner.errors import UnsupportedModelError

JointRule = Callable[[dict[str, Any], Removal], dict[str, Any]]


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
        wanted = [old % period == offset for old in removal.kept]
        found = _period_and_offset(wanted)
        if found is None:
            raise UnsupportedModelError(f"No {kind}_period and {kind}_offset describe the blocks that stay.")
        result |= {f"{kind}_period": found[0], f"{kind}_offset": found[1]}
    return result


def _period_and_offset(wanted: list[bool]) -> tuple[int, int] | None:
    for period in range(1, len(wanted) + 1):
        for offset in range(period):
            if [index % period == offset for index in range(len(wanted))] == wanted:
                return period, offset
    return None


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
    """Which blocks cannot be the first one."""
    first = removal.kept[0]
    if first in (config.get("cross_attention_layers") or ()):  # Mllama: it reads an image
        raise UnsupportedModelError(f"Block {first} would be the first, and is one of cross_attention_layers.")
    kinds = config.get("indexer_types")
    if isinstance(kinds, list) and kinds[first] != "full":
        raise UnsupportedModelError(f"Block {first} would be the first, but uses the index of a block before it.")
    if "linear_attn_alpha_factor" in config and config["layer_types"][first] != "full_attention":
        raise UnsupportedModelError(
            f"Block {first} would be the first, but MiniMax needs one with full attention there: its cache counts "
            "the tokens."
        )
    return {}


JOINT: tuple[JointRule, ...] = (
    sparse_step,
    expert_range,
    periods,
    attention_types,
    shared_keys_and_values,
    first_block,
)
"""Rules for the config that describes the stack."""


def images_into_first_blocks(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Qwen3-VL adds image features k of deepstack_visual_indexes after block k of the text, for k = 0, 1, ...

    The indices are those of the image tower, so no field can say that the features go to another block.
    """
    names = (config.get("vision_config") or {}).get("deepstack_visual_indexes") or ()
    removed = [index for index in range(len(names)) if index not in removal.kept]
    if removed:
        raise UnsupportedModelError(f"Image features are added after block {removed[0]} (deepstack_visual_indexes).")
    return {}


def images_into_named_blocks(config: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """Granite 4 Vision adds image features before the blocks that two lists name."""
    pairs, targets = config.get("deepstack_layer_map"), config.get("spatial_target_layers")
    if not isinstance(pairs, list) or not isinstance(targets, list):
        return {}
    removed = [index for index in [*(pair[1] for pair in pairs), *targets] if index not in removal.kept]
    if removed:
        raise UnsupportedModelError(
            f"Image features are added before block {removed[0]} (deepstack_layer_map, spatial_target_layers)."
        )
    return {
        "deepstack_layer_map": [[tower, removal.new(block)] for tower, block in pairs],
        "spatial_target_layers": [removal.new(block) for block in targets],
    }


OUTER: tuple[JointRule, ...] = (images_into_first_blocks, images_into_named_blocks)
"""Rules for the config of the whole model, around that of the text. A check on text cannot see a mistake here."""
