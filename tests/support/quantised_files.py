"""Tiny quantised checkpoints in the layouts that libraries publish, without these libraries: names, types, settings.

The bytes are random where nothing here can read them; those of FP8 and MXFP4, which transformers dequantises on any
machine, are numbers. `tests/cut/test_quantised_libraries.py` has checkpoints that the libraries themselves wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from families import make_model
from public_models import fp8_tensors, mxfp4_tensors

SMALL = {"hidden_size": 32, "intermediate_size": 64}
GROUP = 16
LINEAR = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "gate_proj.weight", "up_proj.weight")
NOT_CONVERTED = ("model.layers.3.mlp.up_proj", "model.layers.1.self_attn.q_proj")
"""Modules that stay in floating point in every checkpoint that is made here: of a kept block and of a removed one."""


def _integers(kind: torch.dtype, *shape: int) -> Tensor:
    limits = torch.iinfo(kind)
    return torch.randint(limits.min, limits.max, shape, dtype=torch.int64).to(kind)


def _gptq(name: str, weight: Tensor) -> dict[str, Tensor]:
    rows, columns = weight.shape
    return {
        f"{name}.qweight": _integers(torch.int32, columns // 8, rows),
        f"{name}.qzeros": _integers(torch.int32, columns // GROUP, rows // 8),
        f"{name}.scales": torch.rand(columns // GROUP, rows).half(),
        f"{name}.g_idx": (torch.arange(columns) // GROUP).int(),
    }


def _awq(name: str, weight: Tensor) -> dict[str, Tensor]:
    rows, columns = weight.shape
    return {
        f"{name}.qweight": _integers(torch.int32, columns, rows // 8),
        f"{name}.qzeros": _integers(torch.int32, columns // GROUP, rows // 8),
        f"{name}.scales": torch.rand(columns // GROUP, rows).half(),
    }


def _packed(name: str, weight: Tensor) -> dict[str, Tensor]:
    rows, columns = weight.shape
    return {
        f"{name}.weight_packed": _integers(torch.int32, rows, columns // 8),
        f"{name}.weight_scale": torch.rand(rows, columns // GROUP),
        f"{name}.weight_shape": torch.tensor([rows, columns]),
    }


def _nf4(name: str, weight: Tensor) -> dict[str, Tensor]:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    return {
        f"{name}.weight": _integers(torch.uint8, weight.numel() // 2, 1),
        f"{name}.weight.absmax": _integers(torch.uint8, weight.numel() // 64),
        f"{name}.weight.quant_map": torch.rand(16),
        f"{name}.weight.nested_absmax": torch.rand(1),
        f"{name}.weight.nested_quant_map": torch.rand(256),
        f"{name}.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode())).to(torch.uint8),
    }


def _int8(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {
        f"{name}.weight": _integers(torch.int8, *weight.shape),
        f"{name}.SCB": torch.rand(len(weight)),
        f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def _torchao(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {
        f"{name}._weight_qdata": _integers(torch.int8, *weight.shape),
        f"{name}._weight_scale": torch.rand(len(weight), 1),
        f"{name}._weight_zero_point": torch.zeros(len(weight), 1, dtype=torch.int8),
    }


def _fp8(name: str, weight: Tensor) -> dict[str, Tensor]:
    return dict(fp8_tensors(f"{name}.weight", weight))


LAYOUTS: dict[str, Callable[[str, Tensor], dict[str, Tensor]]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _packed,
    "bitsandbytes 4 bits": _nf4,
    "bitsandbytes 8 bits": _int8,
    "fp8": _fp8,
    "torchao": _torchao,
    "mxfp4": lambda name, weight: {f"{name}.weight": weight},  # experts alone are quantised
}
"""Format -> tensors of a linear map whose module has this name."""

NAMES = ["lm_head", *NOT_CONVERTED]
INTEGERS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
SETTINGS = {
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": False,
        "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]],
        "dynamic": {
            r"-:model\.layers\.3\.mlp\.up_proj": {},
            r"-:model\.layers\.1\.self_attn\.q_proj": {},
            r".*\.(?:1|4|5)\..*gate.*": {"bits": 8},
        },
    },
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "modules_to_not_convert": NAMES},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": INTEGERS}},
        "ignore": ["lm_head", r"re:model\.layers\.[3]\.mlp\.up_proj", "model.layers.1.self_attn.q_proj"],
    },
    "bitsandbytes 4 bits": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_skip_modules": NAMES,
    },
    "bitsandbytes 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": NAMES},
    "fp8": {"quant_method": "fp8", "weight_block_size": [16, 16], "modules_to_not_convert": NAMES},
    "torchao": {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}, "_version": 2}},
        "modules_to_not_convert": NAMES,
    },
    "mxfp4": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    },
}
CUT_NAMES = ["lm_head", "model.layers.2.mlp.up_proj"]
CUT_SETTINGS = {
    "gptq": {"dynamic": {r"-:model\.layers\.2\.mlp\.up_proj": {}, r".*\.(?:3|4)\..*gate.*": {"bits": 8}}},
    "awq": {"modules_to_not_convert": CUT_NAMES},
    "compressed-tensors": {"ignore": ["lm_head", r"re:model\.layers\.2\.mlp\.up_proj"]},
    "bitsandbytes 4 bits": {"llm_int8_skip_modules": CUT_NAMES},
    "bitsandbytes 8 bits": {"llm_int8_skip_modules": CUT_NAMES},
    "fp8": {"modules_to_not_convert": CUT_NAMES},
    "torchao": {"modules_to_not_convert": CUT_NAMES},
    "mxfp4": {},
}
"""What of the settings is different without block 1."""


def write_quantised(name: str, folder: Path) -> Path:
    """Write a checkpoint of six blocks in the format `name` of `LAYOUTS`; returns the folder."""
    model = make_model("gpt_oss" if name == "mxfp4" else "llama", **SMALL)
    if name in ("fp8", "mxfp4"):
        model = model.bfloat16()
    model.save_pretrained(folder)
    file, tensors, metadata = folder / "model.safetensors", dict[str, Tensor](), {"format": "pt"}
    for key, tensor in load_file(file).items():
        module = key.removesuffix(".weight")
        if key.endswith(LINEAR) and module not in NOT_CONVERTED:
            tensors |= LAYOUTS[name](module, tensor)
            metadata[key] = json.dumps({"_type": "Int8Tensor", "_tensor_data_names": ["qdata", "scale", "zero_point"]})
        else:
            tensors |= dict(mxfp4_tensors(key, tensor) if name == "mxfp4" else [(key, tensor)])
            metadata[key] = json.dumps({"_type": "Tensor"})
    metadata["tensor_names"] = json.dumps([key for key in metadata if "." in key])
    save_file(tensors, file, metadata if name == "torchao" else {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": SETTINGS[name]}))
    if name == "gptq":
        (folder / "quantize_config.json").write_text(json.dumps(SETTINGS[name]))
    return folder
