"""The trained fixture as a GGUF file, as the converter of llama.cpp would write it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
from safetensors.torch import load_file
from torch import Tensor

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path, add: Callable[[gguf.GGUFWriter], None] | None = None) -> Path:
    """Convert a Llama checkpoint with a byte-level BPE tokenizer to `path`, in float32; `add` adds keys and tensors."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_token_list(tokens)
    special = (config["bos_token_id"], config["eos_token_id"])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens))]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(_name(name), _value(name, tensor.float(), config).numpy())
    if add:
        add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    block, _, inner = name.removeprefix("model.layers.").partition(".")
    return f"blk.{block}.{NAMES[inner.removesuffix('.weight')]}.weight"


def _value(name: str, tensor: Tensor, config: dict) -> Tensor:
    """llama.cpp rotates pairs of neighbouring numbers of queries and keys; transformers rotates their halves."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for part, count in heads.items():
        if part in name:
            rows, columns = tensor.shape
            halves = tensor.view(count, 2, rows // count // 2, columns)
            return halves.transpose(1, 2).reshape(rows, columns).contiguous()
    return tensor
