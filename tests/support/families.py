"""Tiny random models of well-known families, built from their configs."""

from __future__ import annotations

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        EXPERTS | {"decoder_sparse_step": 2, "mlp_only_layers": [3], "shared_expert_intermediate_size": 16},
    ),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS | {"mlp_only_layers": [0, 4]}),
    "gemma2": ("Gemma2Config", {"sliding_window": 8, "final_logit_softcapping": 30.0}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 8}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt2": ("GPT2Config", {"n_inner": 48}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 8}),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "first_k_dense_replace": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
}


def make_model(family: str, **overrides: object) -> PreTrainedModel:
    """A tiny model of `family` with random weights, float32, in evaluation mode."""
    config_class, special = FAMILIES[family]
    cls = getattr(transformers, config_class)
    config = cls(**(SMALL | special | overrides))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    # Larger than usual, so that removing or exchanging a block changes the logits.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.15)
    return model.eval().requires_grad_(False)
