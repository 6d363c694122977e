"""GGUF files as the converter of llama.cpp would write them: the trained fixture, and tiny random Gemmas."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from streamliner.model.gguf_header import read_header

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


GEMMA = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}


def write_gguf(
    folder: Path,
    path: Path,
    add: Callable[[gguf.GGUFWriter], None] | None = None,
    *,
    parts: int = 1,
    kinds: dict[str, str] | None = None,
) -> Path:
    """Convert a Llama checkpoint with a byte-level BPE tokenizer to `path`, in float32; `add` adds keys and tensors.

    Split into several `parts`, the file names end as those of llama.cpp's do. Returns the path, or that of the first.
    `kinds` are other types of matrices by a part of their names, "Q4_1" for "ffn_up" say, or for "", which is in all;
    the first counts. In a type that gguf cannot write, a matrix is zero.
    """
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=-(-len(tensors) // parts) if parts > 1 else 0)
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
    _add_tokenizer(writer, folder)
    for name, tensor in tensors.items():
        kind = next((kinds[part] for part in kinds or () if part in _name(name) and tensor.ndim > 1), "F32")
        _add(writer, _name(name), _value(name, tensor.float(), config).numpy(), kind)
    if add:
        add(writer)
    _finish(writer)
    return path if parts == 1 else next(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def write_gemma_gguf(model: PreTrainedModel, tokenizer_folder: Path, path: Path) -> Path:
    """Convert a random Gemma 2 or 3 to `path`, in float32, without its pattern of attention: so does llama.cpp's."""
    config, architecture = model.config, {"gemma2": "gemma2", "gemma3_text": "gemma3"}[model.config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    else:
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    _add_tokenizer(writer, tokenizer_folder)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(_name(name, GEMMA), (tensor + 1 if "norm" in name else tensor).numpy())
    _finish(writer)
    return path


def write_dequantised(source: Path, path: Path) -> Path:
    """The same GGUF file with all tensors in float32."""
    header = read_header(source)
    data, infos, offset = source.read_bytes(), b"", 0
    for name, place in header.places.items():
        infos += struct.pack("<Q", len(name)) + name.encode()
        infos += struct.pack(f"<I{len(place.shape)}QIQ", len(place.shape), *place.shape, 0, offset)
        offset += -(-math.prod(place.shape) * 4 // header.alignment) * header.alignment
    entries = [data[entry.begin : entry.end] for entry in header.entries.values()]
    head = b"GGUF" + struct.pack("<IQQ", header.version, len(header.places), len(entries)) + b"".join(entries) + infos
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % header.alignment))
        for place in header.places.values():
            stored = np.frombuffer(data, np.uint8, place.nbytes, place.begin)
            kind = gguf.GGMLQuantizationType(place.kind)
            if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
                values = stored.view(np.float32 if place.kind == 0 else np.float16).astype(np.float32)
            else:
                per_row, size = gguf.GGML_QUANT_SIZES[kind]
                values = gguf.dequantize(stored.reshape(-1, place.shape[0] // per_row * size), kind)
            file.write(values.astype(np.float32).tobytes())
            file.write(bytes(-values.nbytes % header.alignment))
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
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


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    try:
        data = gguf.quantize(values, number)
    except NotImplementedError:
        data = np.zeros(gguf.quant_shape_to_byte_shape(values.shape, number), np.uint8)
    writer.add_tensor(name, data, raw_dtype=number)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str, names: dict[str, str] = NAMES) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    block, _, inner = name.removeprefix("model.layers.").partition(".")
    return f"blk.{block}.{names[inner.removesuffix('.weight')]}.weight"


def _value(name: str, tensor: Tensor, config: dict) -> Tensor:
    """llama.cpp rotates pairs of neighbouring numbers of queries and keys; transformers rotates their halves."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for part, count in heads.items():
        if part in name:
            rows, columns = tensor.shape
            halves = tensor.view(count, 2, rows // count // 2, columns)
            return halves.transpose(1, 2).reshape(rows, columns).contiguous()
    return tensor
