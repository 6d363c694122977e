"""Tiny random models of every decoder type that transformers can build from a config alone.

Sizes are set by the names of config fields, so a type that a new release brings is built as well; `SPECIAL` holds what
a few types need besides.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

BLOCKS = 6
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "n_inner": 96,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": BLOCKS,
    "n_layer": BLOCKS,
    "n_layers": BLOCKS,
    "num_layers": BLOCKS,
    "decoder_layers": BLOCKS,
    "encoder_layers": BLOCKS,
    "num_decoder_layers": BLOCKS,
    "num_encoder_layers": 2,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "sliding_window": 16,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "word_embed_proj_dim": 64,
    "embedding_size": 64,
    "first_k_dense_replace": 2,
    "num_dense_layers": 2,
    "index_n_heads": 4,
    "index_head_dim": 32,
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 16,
}
SPECIAL: dict[str, dict[str, Any]] = {}
"""Further fields by model type."""


def model_types() -> list[str]:
    """All types of the causal-LM mapping."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    """A config of `model_type` with small sizes."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    text = default.get_text_config(decoder=True)
    fields = set(vars(text)) | set(text.attribute_map)
    values = {key: value for key, value in SIZES.items() if key in fields}
    # Both names of an aliased field would be set twice.
    values = {
        key: value for key, value in values.items() if text.attribute_map.get(key, key) == key or key not in fields
    }
    values |= SPECIAL.get(model_type, {})
    if text is default:
        return config_class(**values)
    name = next((name for name, value in vars(default).items() if value is text), None)
    if name is None:  # an encoder-decoder: the text config is a view of it
        return config_class(**{key: value for key, value in SIZES.items() if key in vars(default)})
    return config_class(**{name: text.to_dict() | values | _derived(text)})


def _derived(text: Any) -> dict[str, Any]:
    """Fields that the default of a nested config filled in for its own depth."""
    return {
        key: None for key in ("layer_types", "mlp_layer_types", "no_rope_layers", "moe_layers") if hasattr(text, key)
    }


def tiny_model(model_type: str) -> Any:
    """A model of `tiny_config`, float32, random enough that an exchanged block shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.08)
    return model.float().eval().requires_grad_(False)
