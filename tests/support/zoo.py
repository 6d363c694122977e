"""Tiny random models of every decoder type that transformers can build from a config alone.

Sizes are set by the names of config fields, also in nested configs, and lists with one kind per block are made for the
small depth. So most types of a new release need no entry; `SPECIAL` has what a few types need in addition.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

BLOCKS = 6
ENCODER_BLOCKS = 2
"""Depth of towers for images and sound, which are built and saved but not tested."""

SIZES: dict[str, Any] = {
    # Vocabulary and positions. Tests use the ids 8 to 120 and up to 48 tokens.
    "vocab_size": 128,
    "unpadded_vocab_size": 128,
    "decoder_vocab_size": 128,
    "vocab_size_per_layer_input": 128,
    "pronunciation_vocab_size": 128,
    "shape_vocab_size": 128,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "max_seq_len": 256,
    "context_length": 256,
    "max_source_positions": 64,
    "max_target_positions": 256,
    # Width.
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "emb_dim": 64,
    "embedding_size": 64,
    "word_embed_proj_dim": 64,
    "input_embedding_size": 64,
    "output_embedding_size": 64,
    "hidden_size_global": 64,
    "backbone_hidden_size": 64,
    "hidden_size_per_layer_input": 16,
    "pronunciation_embed_dim": 16,
    "shape_embed_dim": 16,
    "intermediate_size": 96,
    "dense_intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "ffn_hidden_size": 96,
    "ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "feed_forward_size": 96,
    "n_inner": 96,
    "d_inner": 96,
    "d_ff": 96,
    "dff": 96,
    "dim_ff": 96,
    "mlp_dim": 96,
    # Heads.
    "num_attention_heads": 4,
    "attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "swa_num_attention_heads": 4,
    "num_key_value_heads": 2,
    "swa_num_key_value_heads": 2,
    "kv_n_heads": 2,
    "head_dim": 16,
    "swa_head_dim": 16,
    "attention_head_size": 16,
    "d_head": 16,
    "d_kv": 16,
    "dim_head": 16,
    "rotary_dim": 8,
    "rel_extent": 32,
    "is_decoder": True,
    # Local attention: windows shorter than the tests' sequences, in the first or the last blocks if a count says so.
    "sliding_window": 16,
    "sliding_window_size": 16,
    "attention_window_size": 16,
    "attention_chunk_size": 16,
    "window_size": 16,
    "local_attention": 16,
    "local_attention_window_len": 16,
    "block_size": 16,
    "use_sliding_window": True,
    "max_window_layers": 3,
    "no_rope_layer_interval": 3,
    # Experts.
    "moe_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_experts_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
    "mlp_only_layers": [0, 3],
    "interleave_moe_layer_step": 2,
    "num_dense_layers": 2,
    "router_hidden_size": 16,
    # Latent attention and its indexer, which keeps more tokens than the tests have: otherwise rounding could change
    # which tokens it keeps.
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "o_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "index_n_heads": 4,
    "index_head_dim": 32,
    "index_topk": 64,
    "index_block_size": 8,
    "gated_norm_rank": 8,
    # Recurrent blocks: the inner width is twice `hidden_size`.
    "state_size": 8,
    "ssm_state_size": 8,
    "n_groups": 1,
    "time_step_rank": 4,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_d_ssm": 128,
    "mamba_dt_rank": 4,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "lru_width": 64,
    # Towers for images and sound.
    "image_size": 32,
    "patch_size": 16,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}

DEPTHS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "depth"),
    *("decoder_layers", "num_decoder_layers", "encoder_layers"),
)
"""Fields that hold the number of blocks. In some encoder-decoders the decoder may not be deeper than the encoder."""

LISTS = ("layer_types", "layers_block_type", "mlp_layer_types", "indexer_types")
"""Fields with one kind per block: their defaults suit the default depth."""
TWO_THEN_ONE = (0, 0, 1, 0, 0, 1)
"""Which of two kinds each block has. The second comes last, as some types need, and in more than one block."""
CROSSED = (0, 1, 0, 1, 1, 1)
"""The same for the feed-forward part, so that all four pairs of kinds occur."""


def _alternating(first: str, second: str) -> list[str]:
    return [(first, second)[which] for which in TWO_THEN_ONE]


ROPE_THETAS = [10000.0, 0, 500.0, 10000.0, 500.0, 10000.0]
"""0 is a block without positions."""
LOCAL_AND_GLOBAL = _alternating("sliding_attention", "full_attention")
QWEN4: dict[str, Any] = {
    "hc_lowrank": 8,
    "ple_layer_ids": [1, 4],  # 1-based
    "ple_embed_dim": 64,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 2,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
DOTS3: dict[str, Any] = {  # swa_* are the heads of local blocks, which become a `per_layer_config`
    "head_dim": 32,
    "index_head_dim": 32,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 32,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 32,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
}
GEMMA4: dict[str, Any] = {"global_head_dim": 32, "num_kv_shared_layers": 2}
"""The last two blocks use keys and values of blocks 2 and 3; the `per_layer_config` has the width of the heads."""

SPECIAL: dict[str, dict[str, Any]] = {
    # Blocks of several kinds, where the default has one kind or too long a period.
    "bamba": {"attn_layer_indices": [2, 5]},
    "cohere_compass_text": {
        "layer_types": LOCAL_AND_GLOBAL,
        # `None` is without positions. The three axes of an image share half of a head.
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
            "full_attention": None,
        },
    },
    "deepseek_v4": {  # one head of keys and values for all
        "num_key_value_heads": 1,
        "o_groups": 2,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "glm_moe_dsa": {"indexer_types": _alternating("full", "shared")},
    "gpt_neo": {"attention_types": [[["global", "local"], BLOCKS // 2]]},
    "granite_swa": {"layer_rope_theta": ROPE_THETAS},
    "granitemoe_swa": {"layer_rope_theta": ROPE_THETAS},
    "granitemoehybrid": {"layer_types": _alternating("linear_attention", "full_attention")},
    "inkling2_text": {"n_layers_per_attn_res_block": 2},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 2},
    "laguna": {"layer_types": LOCAL_AND_GLOBAL, "num_attention_heads_per_layer": [4, 4, 2, 4, 4, 2]},
    "lfm2": {"full_attn_idxs": [2, 5]},
    "lfm2_moe": {"layer_types": _alternating("conv", "full_attention")},
    "mellum": {"layer_types": LOCAL_AND_GLOBAL},
    "minimax_m3_vl_text": {"layer_types": _alternating("full_attention", "minimax_m3_sparse")},
    "ministral": {"layer_types": LOCAL_AND_GLOBAL},
    "mllama": {"text_config": {"cross_attention_layers": [3]}},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "full_attention"],
        "chunk_size": 16,
    },
    "zaya": {"layer_types": _alternating("hybrid_sliding", "hybrid"), "num_experts_per_tok": 1},
    # Blocks that depend on each other or on their place.
    "dots3_note": {
        "text_config": DOTS3,
        "vision_config": {"pyramid_num_routed": [-1, 2], "adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {
            "feature_size": 16,
            "downsample_hidden_size": 8,
            "adapter_input_size": 64,
            "adapter_out_dim": 64,
        },
    },
    "dots3_note_text": DOTS3,
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "intermediate_size": [96, 96, 96, 64, 64, 64],
        "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0, 0.0, 0.0],
        "laurel_rank": 8,
    },
    "gemma4": {"text_config": GEMMA4 | {"enable_moe_block": True, "top_k_experts": 2}},
    "gemma4_text": GEMMA4,
    "gemma4_unified": {"text_config": GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1}},
    "gemma4_unified_text": GEMMA4 | {"use_double_wide_mlp": True},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "minicpm3": {"scale_depth": 1.4, "dim_model_base": 64},
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "rwkv": {"rescale_every": 0},
    # Widths and counts that must match others, or that have unusual names.
    "blt": {"global_config": {"num_hidden_layers": BLOCKS}, "encoder_hash_byte_group_vocab": 128},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},  # read, but not declared or without a default
    "doge": {"is_moe": True},
    "dots1": {"n_shared_experts": 1},
    "got_ocr2": {"vision_config": {"output_channels": 16}},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "mamba2": {"num_heads": 8, "chunk_size": 16},  # heads x head_dim = 2 x hidden_size
    "phi4_multimodal": {
        "audio_config": {"ext_pw_out_channel": 64, "depthwise_separable_out_channel": 64, "nemo_conv_channels": 16},
        "vision_config": {"crop_size": 32},
    },
    "reformer": {  # the product of axial_pos_shape is the number of positions
        "axial_pos_shape": (16, 16),
        "axial_pos_embds_dim": (32, 32),
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "xlm": {"causal": True},
    "xlstm": {"chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"chunk_size": 16},
}
"""Further fields by model type; a dict for a nested config."""

UNBUILDABLE: dict[str, str] = {
    "gemma3n": "its image tower comes from the package timm",
    "gemma4_assistant": "drafts for another model: works on that model's hidden states, keys and values only",
    "gemma4_unified_assistant": "drafts for another model: works on that model's hidden states, keys and values only",
    "musicgen": "AutoModelForCausalLM hands the decoder the config of the whole model, which it cannot read",
    "musicgen_melody": "AutoModelForCausalLM hands the decoder the config of the whole model, which it cannot read",
}
"""Model types that cannot be built from a config and run on token ids, with the reason."""


def model_types() -> list[str]:
    """All types of the causal-LM mapping."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    """A config of `model_type` with small sizes."""
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**copy.deepcopy(_values(config_class, SPECIAL.get(model_type, {}))))


def _values(config_class: Any, special: dict[str, Any], blocks: int = BLOCKS) -> dict[str, Any]:
    """Keyword arguments for `config_class`.

    Args:
        config_class: only fields that it declares are set; it derives others from depth and widths.
        special: overrides, with dicts for nested configs.
        blocks: how deep.
    """
    declared = {field.name for field in dataclasses.fields(config_class)}
    aliases = {own: alias for alias, own in config_class.attribute_map.items()}
    values = {}
    for name in declared:
        key = name if name in SIZES else aliases.get(name, name)
        if key in SIZES:
            values[name] = SIZES[key]
    values |= dict.fromkeys(declared.intersection(DEPTHS), blocks)
    if "kv_lora_rank" in declared and "num_key_value_heads" in declared:  # all heads share the latent
        values["num_key_value_heads"] = SIZES["num_attention_heads"]
    values |= _kinds(config_class, declared, blocks)
    values |= special
    for name, nested in config_class.sub_configs.items():
        spec = config_class.sub_configs_defaults.get(name)
        if name in special or spec is None or not spec.optional:
            nested_class = CONFIG_MAPPING[spec.model_type] if nested is AutoConfig else nested
            depth = BLOCKS if name.startswith(("text", "decoder")) else ENCODER_BLOCKS
            values[name] = {"model_type": nested_class.model_type} | _values(nested_class, special.get(name, {}), depth)
    return values


def _kinds(config_class: Any, declared: set[str], blocks: int) -> dict[str, list[str]]:
    """The fields of `LISTS` with one kind per block, from the kinds in the default."""
    default = config_class()
    result = {}
    for name in declared.intersection(LISTS):
        kinds = list(dict.fromkeys(getattr(default, name) or ()))
        if name == "mlp_layer_types" and kinds == ["sparse"]:
            kinds = ["dense", "sparse"]
        if len(kinds) == 2:
            pattern = CROSSED if name == "mlp_layer_types" else TWO_THEN_ONE
            result[name] = [kinds[which] for which in pattern][:blocks]
        elif len(kinds) > 2:
            result[name] = [kinds[block % len(kinds)] for block in range(blocks)]
    return result


def tiny_model(model_type: str) -> Any:
    """A model of `tiny_config` in float32, random enough that a wrong block shows in the logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).float()
    for name, parameter in model.named_parameters():
        _randomise(name, parameter.data)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:  # some types set it to zero on loading
            module.weight.data[module.padding_idx] = 0
    return model.eval().requires_grad_(False)


def _randomise(name: str, weight: torch.Tensor) -> None:
    if not weight.any():  # a bias, or a norm that adds 1
        weight.normal_(0, 0.05)
    elif weight.ndim < 2 or name.endswith("A_log") or weight.min() == weight.max():
        # Norms, and the decay rates of recurrences: far from these the model may diverge.
        weight.mul_(1 + 0.1 * torch.randn_like(weight))
    else:
        weight.normal_(0, 0.08)
