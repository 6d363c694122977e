"""Every key and tensor of a GGUF file is put into the model, or refused by its name."""

from __future__ import annotations

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("gguf")

from close import assert_close
from gguf_files import write_gguf
from places import TINY
from streamliner.errors import ModelError, UnsupportedModelError
from streamliner.model.gguf_config import complete_config
from streamliner.model.gguf_header import Header, read_header
from streamliner.model.load import load_config, load_model
from streamliner.model.session import open_model
from streamliner.model.source import locate

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0}


def frequencies(rope):
    """What a llama.cpp converter writes for Llama 3: the divisors of the frequencies."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**json.loads((TINY / "config.json").read_text()) | {"rope_parameters": rope})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    width = config.head_dim
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2) / width)
    return (plain / scaled).numpy().astype(np.float32)


def long_factors(count):
    return np.linspace(1.0, 3.0, count, dtype=np.float32)


SCALINGS = {
    "linear": (
        {"rope_type": "linear", "factor": 4.0},
        lambda w: (w.add_string("llama.rope.scaling.type", "linear"), w.add_float32("llama.rope.scaling.factor", 4.0)),
    ),
    "linear, by its old name": (
        {"rope_type": "linear", "factor": 2.0},
        lambda w: w.add_float32("llama.rope.scale_linear", 2.0),
    ),
    "a factor alone is linear": (
        {"rope_type": "linear", "factor": 2.0},
        lambda w: w.add_float32("llama.rope.scaling.factor", 2.0),
    ),
    "none": ({"rope_type": "default"}, lambda w: w.add_string("llama.rope.scaling.type", "none")),
    "yarn": (
        {"rope_type": "yarn", **YARN},
        lambda w: (
            w.add_string("llama.rope.scaling.type", "yarn"),
            w.add_float32("llama.rope.scaling.factor", 4.0),
            w.add_uint32("llama.rope.scaling.original_context_length", 64),
            w.add_float32("llama.rope.scaling.yarn_beta_fast", 16.0),
            w.add_float32("llama.rope.scaling.yarn_beta_slow", 2.0),
        ),
    ),
    "llama3": (
        {"rope_type": "llama3", **LLAMA3},
        lambda w: w.add_tensor(
            "rope_freqs.weight", frequencies({"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3})
        ),
    ),
    "longrope": (
        {"rope_type": "longrope", "original_max_position_embeddings": 64, "attention_factor": 1.25},
        lambda w: (
            w.add_uint32("llama.rope.scaling.original_context_length", 64),
            w.add_float32("llama.rope.scaling.attn_factor", 1.25),
            w.add_tensor("rope_factors_long.weight", long_factors(w_width() // 2)),
            w.add_tensor("rope_factors_short.weight", long_factors(w_width() // 2)),
        ),
    ),
}


def w_width():
    return json.loads((TINY / "config.json").read_text())["head_dim"]


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_scaling_is_that_of_the_file(name, tmp_path):
    rope, add = SCALINGS[name]
    config = json.loads((TINY / "config.json").read_text())
    if name == "longrope":
        both = {f"{kind}_factor": long_factors(w_width() // 2).tolist() for kind in ("long", "short")}
        rope = rope | both | {"factor": config["max_position_embeddings"] / 64}
    folder = tmp_path / "folder"
    shutil.copytree(TINY, folder)
    config["rope_parameters"] |= rope
    (folder / "config.json").write_text(json.dumps(config))
    source = locate(str(write_gguf(TINY, tmp_path / "m.gguf", add)))
    ids = torch.arange(3, 120)[None]
    with torch.inference_mode():
        expected = load_model(str(folder), dtype="float32")(input_ids=ids).logits
        found = load_model(source)(input_ids=ids).logits
    assert_close(found, expected, 1e-4)
    if name != "none":
        plain = load_model(str(TINY), dtype="float32")
        with torch.inference_mode():
            assert (plain(input_ids=ids).logits - expected).abs().max() > 1e-2, "the case shows nothing"


REFUSED = {
    "llama.attention.clamp_kqv": lambda w: w.add_float32("llama.attention.clamp_kqv", 8.0),
    "llama.logit_scale": lambda w: w.add_float32("llama.logit_scale", 0.25),
    "llama.attn_logit_softcapping": lambda w: w.add_float32("llama.attn_logit_softcapping", 50.0),
    "llama.attention.sliding_window": lambda w: w.add_uint32("llama.attention.sliding_window", 16),
    "llama.expert_count": lambda w: w.add_uint32("llama.expert_count", 4),
    "llama.rope.freq_base_swa": lambda w: w.add_float32("llama.rope.freq_base_swa", 1e4),
    "llama.rope.dimension_sections": lambda w: w.add_array("llama.rope.dimension_sections", [4, 4, 0, 0]),
    "adapter.type": lambda w: w.add_string("adapter.type", "lora"),
    "rope_freqs.weight": lambda w: w.add_tensor("rope_freqs.weight", np.linspace(1, 9, 16, dtype=np.float32)),
    "blk.0.attn_q_norm.weight": lambda w: w.add_tensor("blk.0.attn_q_norm.weight", np.ones(32, dtype=np.float32)),
    "blk.3.attn_q.bias": lambda w: w.add_tensor("blk.3.attn_q.bias", np.ones(32, dtype=np.float32)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name_before_any_work(name, tmp_path):
    path = write_gguf(TINY, tmp_path / "m.gguf", REFUSED[name])
    with pytest.raises(UnsupportedModelError, match=name.replace(".", r"\.")):
        open_model(str(path)).shell  # noqa: B018
    with pytest.raises(UnsupportedModelError, match=name.replace(".", r"\.")):
        load_model(str(path))


def test_attention_scale_that_is_the_usual_one_is_understood(tmp_path):
    scale = w_width() ** -0.5
    path = write_gguf(TINY, tmp_path / "m.gguf", lambda w: w.add_float32("llama.attention.scale", scale))
    assert load_config(str(path)).num_hidden_layers == 12


@pytest.mark.parametrize("seed", range(40))
def test_a_broken_header_is_said(seed, tmp_path):
    whole = write_gguf(TINY, tmp_path / "m.gguf").read_bytes()[:20_000]
    random = np.random.default_rng(seed)
    broken = bytearray(whole[: random.integers(1, 9000)] if seed % 2 else whole)
    for at in random.integers(0, min(len(broken), 2000), 3):
        broken[at] = random.integers(256)
    path = tmp_path / f"{seed}.gguf"
    path.write_bytes(broken)
    with contextlib.suppress(ModelError):  # any other error fails
        assert read_header(path).tensors


FIELDS = [  # architecture, class of the config, key, value, field, what it says then
    ("gemma2", "Gemma2Config", "attn_logit_softcapping", 25.0, "attn_logit_softcapping", 25.0),
    ("gemma2", "Gemma2Config", "final_logit_softcapping", 12.5, "final_logit_softcapping", 12.5),
    ("gemma2", "Gemma2Config", "attention.scale", 0.125, "query_pre_attn_scalar", 64.0),
    ("gemma3", "Gemma3TextConfig", "attention.sliding_window_pattern", 2, "layer_types", None),
    ("phi3", "Phi3Config", "attention.sliding_window", 99, "sliding_window", 99),
    ("qwen3", "Qwen3Config", "attention.key_length", 64, "head_dim", 64),
    ("qwen3moe", "Qwen3MoeConfig", "expert_feed_forward_length", 77, "moe_intermediate_size", 77),
    ("qwen3moe", "Qwen3MoeConfig", "expert_weights_norm", True, "norm_topk_prob", True),
    ("qwen2moe", "Qwen2MoeConfig", "expert_shared_feed_forward_length", 88, "shared_expert_intermediate_size", 88),
    ("starcoder2", "Starcoder2Config", "attention.sliding_window", 33, "sliding_window", 33),
]


@pytest.mark.parametrize("case", FIELDS, ids=lambda case: f"{case[0]} {case[2]}")
def test_keys_that_transformers_leaves_out_are_put_into_the_config(case):
    architecture, name, key, value, field, expected = case
    config = getattr(transformers, name)(num_hidden_layers=4)
    complete_config(config, Header(architecture, {f"{architecture}.{key}": value}, ()))
    if field == "layer_types":
        expected = ["sliding_attention", "full_attention"] * 2
    assert getattr(config, field) == expected


@pytest.mark.parametrize(
    ("architecture", "blocks", "keys", "expected"),
    [
        ("gemma2", 26, {}, 256),
        ("gemma2", 46, {}, 144),  # of 27B: the width by the heads, as llama.cpp concludes from the number of blocks
        ("gemma3", 62, {}, 144),
        ("gemma3", 46, {}, 256),
        ("gemma3", 62, {"attention.scale": 0.0625}, 256),
    ],
)
def test_the_scale_of_attention_of_gemma_is_the_one_that_llama_cpp_assumes(architecture, blocks, keys, expected):
    name = {"gemma2": "Gemma2Config", "gemma3": "Gemma3TextConfig"}[architecture]
    config = getattr(transformers, name)(
        num_hidden_layers=blocks, hidden_size=4608, num_attention_heads=32, head_dim=256, query_pre_attn_scalar=1
    )
    named = {f"{architecture}.{key}": value for key, value in (keys | {"block_count": blocks}).items()}
    complete_config(config, Header(architecture, named, ()))
    assert config.query_pre_attn_scalar == expected


@pytest.mark.parametrize(
    ("key", "value"), [("attention.causal", False), ("pooling_type", 1), ("attention.value_length", 3)]
)
def test_values_that_no_field_can_say_are_refused(key, value):
    with pytest.raises(UnsupportedModelError, match=key):
        complete_config(transformers.LlamaConfig(), Header("llama", {f"llama.{key}": value}, ()))
