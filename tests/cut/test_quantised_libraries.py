"""Checkpoints that the libraries of quantisation wrote themselves; each test runs where its library is installed.

They are too large for `make test`: `make quantised` installs them in an environment of its own.
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import streamliner as sl
from command import run
from families import make_model
from places import TINY
from quantised_files import write_quantised
from streamliner.errors import UnsupportedModelError
from streamliner.search.plan import read_plan

pytestmark = [
    pytest.mark.filterwarnings("default"),  # of libraries that are not ours to mend
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
REMOVED = (1, 4)
DEPTH = 8
NOT_CONVERTED = ("lm_head", "model.layers.1.mlp.up_proj", "model.layers.3.mlp.up_proj")
SAMPLE = torch.arange(8, 40)[None]


@pytest.fixture
def dense(tmp_path):
    widths = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_hidden_layers": DEPTH}
    make_model("llama", **widths).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def bitsandbytes(dense, out, **settings):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(llm_int8_skip_modules=list(NOT_CONVERTED), **settings)
    AutoModelForCausalLM.from_pretrained(dense, quantization_config=config).save_pretrained(out)


def nf4(dense, out):
    bitsandbytes(dense, out, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def int8(dense, out):
    bitsandbytes(dense, out, load_in_8bit=True)


def torchao(dense, out, size="50GB"):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2), modules_to_not_convert=list(NOT_CONVERTED))
    model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=config)
    model.save_pretrained(out, max_shard_size=size)


def torchao_shards(dense, out):
    torchao(dense, out, "100KB")
    assert len(list(out.glob("*.safetensors"))) > 2


def torchao_names(dense, out):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    int8 = quantization.Int8WeightOnlyConfig(version=2)
    names = {"_default": int8, r"re:model\.layers\.[13]\.mlp\.up_proj": None, "model.layers.5.self_attn.q_proj": None}
    config = TorchAoConfig(quantization.FqnToConfig(names))
    AutoModelForCausalLM.from_pretrained(dense, quantization_config=config).save_pretrained(out)


def compressed(dense, out, **weights):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    model = AutoModelForCausalLM.from_pretrained(dense)
    args = QuantizationArgs(symmetric=True, **weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    apply_quantization_config(model, QuantizationConfig(config_groups={"all": scheme}, ignore=list(NOT_CONVERTED)))
    largest = {"float": 448.0}.get(str(args.type), 2 ** (args.num_bits - 1) - 1)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None):
            groups = module.weight.reshape(len(module.weight), -1, args.group_size or module.weight.shape[1])
            module.weight_scale.data.copy_(groups.abs().amax(-1) / largest)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)


def packed(dense, out):
    compressed(dense, out, num_bits=4, type="int", strategy="group", group_size=32)


def float8(dense, out):
    compressed(dense, out, num_bits=8, type="float", strategy="channel")


def auto_round(dense, out, kind):
    auto = pytest.importorskip("auto_round")
    model = AutoModelForCausalLM.from_pretrained(dense)
    settings = {"bits": 4, "group_size": 32, "sym": True, "iters": 0, "disable_opt_rtn": True, "device_map": "cpu"}
    layers = {name: {"bits": 16} for name in NOT_CONVERTED}
    rounding = auto.AutoRound(model, AutoTokenizer.from_pretrained(TINY), layer_config=layers, **settings)
    rounding.quantize_and_save(str(out / "made"), format=kind)
    (folder,) = [file.parent for file in out.rglob("config.json")]
    for file in folder.iterdir():
        file.rename(out / file.name)


def gptq(dense, out):
    auto_round(dense, out, "auto_gptq")


def awq(dense, out):
    auto_round(dense, out, "auto_awq")


def parts(tensor):
    """The plain tensors in a tensor of torchao, or the tensor."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    return [part for name in names for part in parts(getattr(tensor, name))] or [tensor]


@pytest.mark.parametrize("make", [nf4, int8, torchao, torchao_shards, torchao_names, packed, float8])
def test_the_cut_checkpoint_is_the_dense_one_without_blocks(make, dense, tmp_path, capsys):
    """In memory, tensor by tensor, and in what it computes."""
    folder, out = tmp_path / "quantised", tmp_path / "cut"
    make(dense, folder)
    result = json.loads(run(capsys, "cut", folder, "--blocks", "1,4", "-o", out, "--json", "--quiet")[0])
    check = result["verification"]
    assert check["max_logit_difference"] <= check["tolerance"]
    assert check["cached_generation"] or make is int8  # which rounds inputs too: the dense model differs with a cache
    expected, found = (AutoModelForCausalLM.from_pretrained(each).eval() for each in (folder, out))
    for index in reversed(REMOVED):
        del expected.model.layers[index]
    before, after = expected.state_dict(), found.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        for old, new in zip(parts(tensor), parts(after[name]), strict=True):
            assert old.dtype == new.dtype
            assert torch.equal(old, new), name
    for new, old in enumerate(index for index in range(DEPTH) if index not in REMOVED):
        expected.model.layers[new].self_attn.layer_idx = new, old
    with torch.inference_mode():
        assert torch.allclose(
            expected(SAMPLE, use_cache=False).logits, found(SAMPLE, use_cache=False).logits, atol=1e-5
        )


def test_a_plan_found_on_a_load_in_4_bits_is_for_the_original(tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(TINY, quantization_config=config).eval()
    text = sl.calibration_set("python-docs", AutoTokenizer.from_pretrained(TINY), num_samples=1, sequence_length=32)
    plan = sl.search(model, text, method="block-influence", remove=2, quiet=True).plan()
    assert plan.model["precision"] == "bitsandbytes, 4 bits"
    with pytest.raises(UnsupportedModelError, match="quantised in memory"):
        sl.cut(model, plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    arguments = ("--plan", tmp_path / "plan.json", "-o", tmp_path / "cut")
    assert "bitsandbytes, 4 bits there, float32 here" in run(capsys, "cut", TINY, *arguments)[1].replace("\n", " ")
    assert read_plan(tmp_path / "cut").removed == plan.removed


@pytest.mark.parametrize("name", ["fp8", "mxfp4"])
def test_what_transformers_dequantises_computes_the_same(name, tmp_path, capsys):
    """In the published layout: transformers quantises to neither on a CPU."""
    folder = write_quantised(name, tmp_path / "dense")
    arguments = ("--blocks", "1,4", "-o", tmp_path / "cut", "--json", "--quiet")
    check = json.loads(run(capsys, "cut", folder, *arguments)[0])["verification"]
    assert check["max_logit_difference"] <= check["tolerance"]
    expected, found = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, tmp_path / "cut"))
    for index in reversed(REMOVED):
        del expected.model.layers[index]
    before, after = expected.state_dict(), found.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize("make", [gptq, awq])
def test_what_cannot_run_here_is_compared_by_names_and_bytes(make, dense, tmp_path, capsys):
    folder, out = tmp_path / "quantised", tmp_path / "cut"
    folder.mkdir()
    make(dense, folder)
    result = json.loads(run(capsys, "cut", folder, "--blocks", "1,4", "-o", out, "--json", "--quiet")[0])
    if result["verification"] is None:  # the kernels are of gptqmodel
        assert make.__name__ in result["logits_not_compared"]
        assert result["tensors_equal"] > 0
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    # What AutoRound says of modules in floating point, it says in its own file too.
    text = json.dumps(settings)
    assert "layers.2.mlp.up_proj" in re.sub(r"\\+", "", text)
    assert "layers.3.mlp.up_proj" not in re.sub(r"\\+", "", text)
    assert json.loads((out / "quantization_config.json").read_text()) == settings
