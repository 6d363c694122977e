"""Config dict and removed blocks -> config dict of the cut model. Pure; one table of field names.

A field that speaks of blocks by their position must follow the removal, or the cut model is silently another one. Each
such field has a kind of rule below. What no rule can express is refused by the name of its key.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

from streamliner.errors import UnsupportedModelError

DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
"""Names under which configs keep the number of blocks. Each that is present and equals it is set; beside a name of the
decoder's own the others count the encoder."""

PER_BLOCK_LISTS = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "indexer_types",
    "no_rope_layers",
    "layer_rope_theta",
    "num_attention_heads_per_layer",
    "activation_sparsity_pattern",
    "intermediate_size",
    "attention_layers",
    "attn_layers",
)
"""One entry per block, where it is a list: the kept entries stay."""

INDEX_LISTS = (
    "mlp_only_layers",
    "moe_layers",
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "local_layer_ids",
)
"""0-based block indices: removed ones go, the others are renumbered."""

PREFIX_COUNTS = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
"""The first k blocks are special: k becomes the number of kept ones among them."""

REFUSED: dict[str, Callable[[Any], bool]] = {
    "scale_attn_by_inverse_layer_idx": bool,
    "num_kv_shared_layers": bool,
    "hybrid_layer_ids": bool,
    "per_layer_config": bool,
    "ple_layer_ids": bool,
    "rescale_every": bool,
    "n_layers_per_attn_res_block": lambda value: True,
    "num_mem_blocks": lambda value: True,
    "block_types": bool,
    "num_layers_per_stack": lambda value: True,
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
            if isinstance(value, list):
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
    for refit in (_refit_sparse_step, _refit_expert_range, _refit_periods, _refit_named, _refit_depth_scale):
        refit(result, config, kept, num_blocks)
    own = [key for key in DECODER_COUNTS if config.get(key) == num_blocks]
    for key in own or COUNTS:
        if config.get(key) == num_blocks:
            result[key] = len(kept)
    return result


def _kept_entries(key: str, value: list[Any], kept: list[int], num_blocks: int) -> list[Any]:
    if len(value) != num_blocks:
        raise UnsupportedModelError(f"The config key {key} has {len(value)} entries for {num_blocks} blocks.")
    return [value[index] for index in kept]


def _refit_sparse_step(result: dict[str, Any], config: dict[str, Any], kept: list[int], num_blocks: int) -> None:
    """Qwen MoE: block i is sparse if i is not in mlp_only_layers and (i + 1) is a multiple of decoder_sparse_step.

    With the step set to 1, the list of dense blocks alone says it all, for every removal.
    """
    step = config.get("decoder_sparse_step")
    if not isinstance(step, int) or step < 1:
        return
    dense = set(config.get("mlp_only_layers") or ())
    result["mlp_only_layers"] = [new for new, old in enumerate(kept) if old in dense or (old + 1) % step != 0]
    result["decoder_sparse_step"] = 1


def _refit_expert_range(result: dict[str, Any], config: dict[str, Any], kept: list[int], num_blocks: int) -> None:
    """ERNIE 4.5 MoE: block i has experts if start <= i <= end and (i + 1) is a multiple of the interval.

    A run of neighbours can be said with interval 1, anything else is refused.
    """
    if not {"moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"} <= set(config):
        return
    start, end, step = (config[f"moe_layer_{name}"] for name in ("start_index", "end_index", "interval"))
    end = num_blocks - 1 if end in (None, -1) else end
    experts = [new for new, old in enumerate(kept) if start <= old <= end and (old + 1) % step == 0]
    if not experts:
        raise UnsupportedModelError("No block with experts would stay, which moe_layer_start_index cannot say.")
    if experts != list(range(experts[0], experts[-1] + 1)):
        raise UnsupportedModelError(
            f"Blocks with experts would be {experts}, which moe_layer_interval = {step} cannot say."
        )
    result |= {"moe_layer_start_index": experts[0], "moe_layer_end_index": experts[-1], "moe_layer_interval": 1}


def _refit_periods(result: dict[str, Any], config: dict[str, Any], kept: list[int], num_blocks: int) -> None:
    """Jamba: block i is of a kind if i % period == offset. Another period and offset may say what is left."""
    for kind in ("attn_layer", "expert_layer"):
        period, offset = config.get(f"{kind}_period"), config.get(f"{kind}_offset")
        if not isinstance(period, int) or not isinstance(offset, int) or "layers_block_type" in config:
            continue
        wanted = [old % period == offset for old in kept]
        for new_period in range(1, len(kept) + 1):
            fitting = [o for o in range(new_period) if [i % new_period == o for i in range(len(kept))] == wanted]
            if fitting:
                result |= {f"{kind}_period": new_period, f"{kind}_offset": fitting[0]}
                break
        else:
            raise UnsupportedModelError(f"No {kind}_period and {kind}_offset give the pattern of the blocks that stay.")


def _refit_named(result: dict[str, Any], config: dict[str, Any], kept: list[int], num_blocks: int) -> None:
    """Fields whose form is a single architecture's."""
    if isinstance(result.get("attention_layers"), list) and "attention_types" in config:
        # GPT-Neo: the same list, run-length encoded.
        result["attention_types"] = [[[kind], 1] for kind in result["attention_layers"]]
    if 0 in (result.get("cross_attention_layers") or ()):
        raise UnsupportedModelError("Block 0 would be one of cross_attention_layers, which it cannot.")
    linear = config.get("linear_attn_config")
    if isinstance(linear, dict):  # Kimi: 1-based lists that other engines read
        lists = {key: linear[key] for key in ("full_attn_layers", "kda_layers") if isinstance(linear.get(key), list)}
        renumbered = {key: [kept.index(i - 1) + 1 for i in value if i - 1 in kept] for key, value in lists.items()}
        result["linear_attn_config"] = linear | renumbered


def _refit_depth_scale(result: dict[str, Any], config: dict[str, Any], kept: list[int], num_blocks: int) -> None:
    """MiniCPM: each block adds scale_depth / sqrt(number of blocks) times its output; the quotient must stay."""
    if isinstance(config.get("scale_depth"), (int, float)):
        result["scale_depth"] = config["scale_depth"] * math.sqrt(len(kept) / num_blocks)


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
