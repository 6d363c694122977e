"""In what the weights of a model are stored: a type of floating point, or how they were quantised."""

from collections import Counter
from typing import Any

from streamliner.model.gguf_header import read_header
from streamliner.model.source import ModelSource


def quantisation(config: Any) -> dict[str, Any]:
    """The `quantization_config` of a model's config, or of a part of it, as a dict; empty for weights that are dense.

    `config` is an object or the content of a config.json. That of a model in memory is gone where loading dequantised
    the weights.
    """
    fields = config if isinstance(config, dict) else vars(config)
    inner = (each if isinstance(each, dict) else getattr(each, "__dict__", {}) for each in fields.values())
    for part in (fields, *inner):
        if found := part.get("quantization_config"):
            return dict(found if isinstance(found, dict) else found.to_dict())
    return {}


def quantised_by(config: Any) -> str:
    """The name of the method in the config, such as "gptq"; "" for weights that are not quantised."""
    found = quantisation(config)
    method = found.get("quant_method", "a method without a name") if found else ""
    return str(getattr(method, "value", method))


def precision(source: ModelSource, config: Any) -> str:
    """In words, such as "bfloat16", "gptq, 4 bits" or "GGUF, mostly Q4_1"; "" where the config does not say it."""
    if source.kind == "gguf":
        from gguf import GGMLQuantizationType

        sizes = Counter[int]()
        for file in source.gguf_files:  # the first part of a split file may have no tensors
            for place in read_header(file).places.values():
                sizes[place.kind] += place.nbytes
        return f"GGUF, mostly {GGMLQuantizationType(sizes.most_common(1)[0][0]).name}"
    found = quantisation(config)
    if not found:
        return str(getattr(config, "dtype", None) or "").removeprefix("torch.")
    bits = sorted(_bits(found))
    return f"{quantised_by(config)}{', ' if bits else ''}{' and '.join(map(str, bits))}{' bits' if bits else ''}"


def _bits(settings: dict[str, Any]) -> set[int]:
    """Bits of a weight; several where modules differ, none where the settings do not say."""
    found = {settings[key] for key in ("bits", "w_bit") if isinstance(settings.get(key), int)}
    found |= {bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")}
    for group in (settings.get("config_groups") or {}).values():
        found |= {(group.get("weights") or {}).get("num_bits")} - {None}
    return found
