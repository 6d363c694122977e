"""Whether transformers understood all that a GGUF file says of its model.

transformers derives a config from the keys of a GGUF file that it has a name for, and silently leaves the others to the
defaults of the config's class: another model, which is not seen anywhere. Here every key and every tensor is accounted
for: read by transformers, put into the config (`FIELDS`, `_rope`), without effect, or refused by its name.
"""

import math
from collections.abc import Callable
from typing import Any

from streamliner.errors import UnsupportedModelError
from streamliner.model.compat import gguf_keys_read, gguf_names
from streamliner.model.gguf_header import ROPE_TENSORS, Header

NO_EFFECT = (
    *("general.", "tokenizer.", "split.", "quantize.", "imatrix.", "GGUF.", "mradermacher.", "unsloth."),
    "streamliner.",
)
"""What keys begin with that say nothing of what the model computes."""
NO_EFFECT_OF_MODEL = ("tensor_data_layout",)
"""The same for keys of the architecture, without its name."""
FIELDS: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.key_length_swa": ("head_dim",),
    "attention.shared_kv_layers": ("num_kv_shared_layers",),
    "embedding_length_per_layer_input": ("hidden_size_per_layer_input",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "expert_count": ("num_experts", "num_local_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_shared_count": ("n_shared_experts",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "leading_dense_block_count": ("first_k_dense_replace", "num_dense_layers"),
}
"""Key of the architecture, without its name -> fields of configs that say the same; a config has one of them."""

LARGEST_GEMMAS = {"gemma2": 46, "gemma3": 62}
"""Architecture -> blocks of its model of 27B, which scales attention by the share of a head in the width."""


def complete_config(config: Any, header: Header) -> None:
    """Put into `config`, as transformers derived it, what it left out.

    An UnsupportedModelError names the keys for which the config has no field.
    """
    read = gguf_keys_read(header.architecture)
    if read is None:  # transformers derives the config of this architecture from all keys that it needs
        return
    lost = []
    for name in header.keys:
        own = name.removeprefix(f"{header.architecture}.")
        if name.startswith(NO_EFFECT) or own in (*NO_EFFECT_OF_MODEL, *read) or own.startswith("rope."):
            continue
        if own == name or not _set(config, header, own):
            lost.append(name)
    lost += _rope(config, header, read)
    _assumed_scale(config, header)
    if lost:
        count = f"{len(lost)} of {len(header.keys)} keys of the GGUF file are not understood: {', '.join(lost)}"
        raise UnsupportedModelError(
            f"{count}. transformers would load another model.", "Use the original safetensors checkpoint."
        )


def check_tensors(header: Header, shell: Any) -> None:
    """Raise UnsupportedModelError if the file has tensors that the model, without weights, has no place for."""
    read = gguf_names(header.architecture, shell)
    lost = [name for name in header.tensors if name not in read and name not in ROPE_TENSORS] if read else []
    if lost:
        raise UnsupportedModelError(
            f"{len(lost)} of {len(header.tensors)} tensors of the GGUF file have no place in "
            f"{type(shell).__name__}: {', '.join(lost[:3])}. transformers would load another model.",
            "Use the original safetensors checkpoint.",
        )


def _set(config: Any, header: Header, own: str) -> bool:
    """Put a key's value into the field of the config that says the same; False if there is none."""
    value = header.own(own)
    special = SPECIAL.get(own)
    if special is not None and (done := special(config, value)) is not None:
        return done
    name = next((name for name in FIELDS.get(own, ()) if hasattr(config, name)), None)
    if name is None:
        return False
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    setattr(config, name, value)
    return True


def _value_length(config: Any, value: Any) -> bool:
    """Values of attention are as wide as keys, in models that have no field for it."""
    own = getattr(config, "v_head_dim", None) or _head_dim(config)
    return bool(own == value)


def _sliding_pattern(config: Any, value: Any) -> bool | None:
    """Which blocks attend to a window: a list of booleans, or a period whose last block attends to all."""
    kinds = getattr(config, "layer_types", None)
    if not isinstance(kinds, list):
        return None
    is_window = value if isinstance(value, list) else by_period(value, len(kinds))
    config.layer_types = ["sliding_attention" if window else "full_attention" for window in is_window]
    return len(is_window) == len(kinds)


def by_period(period: int, count: int) -> list[bool]:
    """Which of `count` blocks attend to a window, where the last of each `period` attends to all; all where it is 0."""
    return [period == 0 or index % period < period - 1 for index in range(count)]


def _attention_scale(config: Any, value: Any) -> bool | None:
    """Gemma's field is the whole number whose root divides the scores."""
    if hasattr(config, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = round(value**-2)
        return math.isclose(config.query_pre_attn_scalar, value**-2, rel_tol=1e-5)
    if hasattr(config, "attention_multiplier"):
        return None
    return math.isclose(value, _head_dim(config) ** -0.5, rel_tol=1e-5)


def _assumed_scale(config: Any, header: Header) -> None:
    """Put the scale of attention into Gemma's config that llama.cpp assumes where the file does not say it."""
    if header.own("attention.scale") is None and hasattr(config, "query_pre_attn_scalar"):
        whole = config.hidden_size // config.num_attention_heads
        largest = header.own("block_count") == LARGEST_GEMMAS.get(header.architecture)
        config.query_pre_attn_scalar = whole if largest else _head_dim(config)


def _gating(config: Any, value: Any) -> bool | None:
    """How scores of experts are normalised: 1 is softmax, 2 sigmoid."""
    name = getattr(config, "scoring_func", "softmax")
    return {1: "softmax", 2: "sigmoid"}.get(value) == name


SPECIAL: dict[str, Callable[[Any, Any], bool | None]] = {
    "attention.value_length": _value_length,
    "attention.value_length_swa": _value_length,
    "attention.sliding_window_pattern": _sliding_pattern,
    "attention.scale": _attention_scale,
    "attention.causal": lambda config, value: bool(value),
    "pooling_type": lambda config, value: value == 0,
    "expert_gating_func": _gating,
}
"""Keys whose value is not that of a field: (config, value) -> whether the config says the same now; None for FIELDS."""


def _head_dim(config: Any) -> int:
    own: int | None = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def _rope(config: Any, header: Header, read: set[str]) -> list[str]:
    """Put the rotary embedding into the config; returns the keys for which there is no place."""
    lost = [f"{header.architecture}.{name}" for name in _unknown_rope_keys(header)]
    parameters = getattr(config, "rope_parameters", None)
    scaling, freqs = _scaling(config, header), header.factors.get("rope_freqs.weight")
    if parameters is None:
        return lost + [name for name in header.keys if ".rope.scaling." in name and scaling]
    nested = isinstance(parameters.get("full_attention"), dict)
    part = parameters["full_attention"] if nested else parameters
    if (base := header.own("rope.freq_base")) is not None:
        part["rope_theta"] = base
    if (base := header.own("rope.freq_base_swa")) is not None:
        if not nested or "sliding_attention" not in parameters:
            lost.append(f"{header.architecture}.rope.freq_base_swa")
        else:
            parameters["sliding_attention"]["rope_theta"] = base
    width = header.own("rope.dimension_count")
    if width is not None and "rope.dimension_count" not in read:
        part |= {"partial_rotary_factor": width / _head_dim(config)} if width != _head_dim(config) else {}
    if freqs is not None:
        scaling = _llama3(config, part["rope_theta"], freqs)
        if scaling is None:
            lost.append("rope_freqs.weight")
    part |= scaling or {}
    config.rope_parameters = parameters
    return lost


def _unknown_rope_keys(header: Header) -> list[str]:
    names = [name.removeprefix(f"{header.architecture}.") for name in header.keys if ".rope." in name]
    known = {
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.dimension_count",
        "rope.scale_linear",
        "rope.scaling.finetuned",
    }
    known |= {f"rope.scaling.{name}" for name in ("type", "factor", "attn_factor", "original_context_length")}
    known |= {f"rope.scaling.{name}" for name in YARN}
    return [name for name in names if name not in known]


YARN = {"yarn_ext_factor": "", "yarn_attn_factor": "", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
"""Keys of yarn's settings, and their names in `rope_parameters`; those without one must have the usual value, 1."""


def _scaling(config: Any, header: Header) -> dict[str, Any] | None:
    """`rope_parameters` of the scaling that the keys describe, None if there is none."""
    own = {name: header.own(f"rope.scaling.{name}") for name in ("type", "factor", "attn_factor", *YARN)}
    original = header.own("rope.scaling.original_context_length")
    factor = own["factor"] or header.own("rope.scale_linear")
    kind = own["type"] or ("linear" if factor else "none")
    attention = {} if own["attn_factor"] in (None, 1.0) else {"attention_factor": own["attn_factor"]}
    lengths = {} if original is None else {"original_max_position_embeddings": original}
    long, short = (header.factors.get(f"rope_factors_{name}.weight") for name in ("long", "short"))
    if long is not None and short is not None:
        ratio = config.max_position_embeddings / (original or config.max_position_embeddings)
        both = {"long_factor": long, "short_factor": short, "factor": ratio}
        return {"rope_type": "longrope", **both, **lengths, **attention}
    if kind == "none" or not factor or factor == 1.0:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and own["yarn_ext_factor"] in (None, 1.0) and own["yarn_attn_factor"] in (None, 1.0):
        betas = {new: own[old] for old, new in YARN.items() if new and own[old] is not None}
        return {"rope_type": "yarn", "factor": factor, **lengths, **betas, **attention}
    raise UnsupportedModelError(f"The GGUF file scales rotary embeddings by {kind}, with settings unknown here.")


def _llama3(config: Any, base: float, freqs: list[float]) -> dict[str, Any] | None:
    """The settings of Llama 3's scaling whose divisors of the frequencies are `freqs`; None if it is another scaling.

    A wavelength w is divided by 1 where w < original / high, by `factor` where w > original / low, and between by
    1 / ((1 - s) / factor + s) with s = (original / w - low) / (high - low). All published models have low 1 and high 4.
    """
    count, factor, low, high = len(freqs), max(freqs), 1.0, 4.0
    waves = [2 * math.pi * base ** (index / count) for index in range(count)]
    for original in (8192, 4096, 16384, 32768, 2048, config.max_position_embeddings):
        found = []
        for wave in waves:
            s = min(1.0, max(0.0, (original / wave - low) / (high - low)))
            found.append(1 / ((1 - s) / factor + s))
        if all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(found, freqs, strict=True)):
            settings = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": original}
            return {"rope_type": "llama3", "factor": factor, **settings}
    return None
