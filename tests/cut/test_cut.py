"""Cutting in memory and on disk, compared with bypass for every family; and outputs that appear whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from close import assert_close
from families import FAMILIES, make_model
from multimodal import make_wrapper
from places import SUPPORT
from streamliner.cut import config_file as config_file_module
from streamliner.cut.checkpoint import cut_checkpoint
from streamliner.cut.memory import cut_model
from streamliner.cut.names import stack_prefix
from streamliner.cut.structure import Structure
from streamliner.cut.verification import Verification, reference_outputs, sample_tokens, verify_checkpoint, verify_model
from streamliner.errors import ModelError, OutputError, UnsupportedModelError, VerificationError
from streamliner.model.blocks import Blocks
from streamliner.runs.outputs import output_folder

REMOVALS = [(2,), (1, 3), (0,), (5,), (0, 1, 5)]
OUTSIDER = SUPPORT / "outsider.py"
SAMPLE = torch.randint(2, 128, (1, 24), generator=torch.Generator().manual_seed(0))


def bypassed(blocks, removed):
    with torch.inference_mode(), blocks.bypass(removed):
        return blocks.forward(SAMPLE).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_in_memory_and_on_disk_equal_bypass(family, tmp_path):
    model = make_model(family)
    blocks = Blocks(model)
    model.save_pretrained(tmp_path / "dense", max_shard_size="40KB")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 1
    structure, dense = Structure.of(model), reference_outputs(blocks, (), SAMPLE)
    for number, removed in enumerate(REMOVALS):
        expected = replace(dense, logits=bypassed(blocks, removed))  # its generation is that of the dense model
        cut = cut_model(model, removed)
        verify_model(cut, expected)
        on_disk = tmp_path / f"disk{number}"
        on_disk.mkdir()
        cut_checkpoint(tmp_path / "dense", on_disk, structure, removed)
        verify_checkpoint(on_disk, expected)
        cut.save_pretrained(tmp_path / f"memory{number}")
        verify_checkpoint(tmp_path / f"memory{number}", expected)
        assert_close(bypassed(blocks, removed), expected.logits)  # cutting does not change the dense model


def test_plain_transformers_loads_every_family(tmp_path):
    """In a process without streamliner: no missing keys, equal logits, the same generation with a cache as without."""
    folders = []
    for family in FAMILIES:
        model = make_model(family)
        blocks = Blocks(model)
        model.save_pretrained(tmp_path / f"{family}-dense")
        folder = tmp_path / family
        folder.mkdir()
        cut_checkpoint(tmp_path / f"{family}-dense", folder, Structure.of(model), (1, 4))
        save_file({"ids": SAMPLE, "logits": bypassed(blocks, (1, 4)).clone()}, f"{folder}.expected")
        folders.append(str(folder))
    subprocess.run([sys.executable, OUTSIDER, *folders], check=True, timeout=300)


def test_multi_token_prediction_blocks_are_dropped(tmp_path):
    model = make_model("deepseek_v3")
    model.save_pretrained(tmp_path / "dense")
    tensors = load_file(tmp_path / "dense" / "model.safetensors")
    extra = {name.replace("layers.5.", "layers.6."): t.clone() for name, t in tensors.items() if "layers.5." in name}
    save_file(tensors | extra, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "cut").mkdir()
    cut_checkpoint(tmp_path / "dense", tmp_path / "cut", Structure.of(model), (1,))
    names = load_file(tmp_path / "cut" / "model.safetensors")
    assert not any("layers.5." in name or "layers.6." in name for name in names)
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    expected = reference_outputs(Blocks(model), (1,), SAMPLE)
    verify_checkpoint(tmp_path / "cut", expected)


def test_tensors_of_any_dtype_and_other_files_are_copied(tmp_path):
    """Tensors are renamed, not read: an 8-bit float or an unknown tensor stays as it is."""
    model = make_model("llama")
    model.save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "model.safetensors"
    tensors = load_file(file)
    extra = {
        f"model.layers.{i}.self_attn.q_proj.scale": torch.full((3,), float(i)).to(torch.float8_e4m3fn) for i in range(6)
    }
    save_file(tensors | extra, file, metadata={"format": "pt", "note": "kept"})
    (tmp_path / "dense" / "tokenizer.model").write_bytes(b"\x00\x01verbatim")
    (tmp_path / "dense" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "cut").mkdir()
    cut_checkpoint(tmp_path / "dense", tmp_path / "cut", Structure.of(model), (1, 2))
    cut = load_file(tmp_path / "cut" / "model.safetensors")
    for new, old in enumerate((0, 3, 4, 5)):
        assert cut[f"model.layers.{new}.self_attn.q_proj.scale"].float().tolist() == [old] * 3
    assert (tmp_path / "cut" / "tokenizer.model").read_bytes() == b"\x00\x01verbatim"
    assert (tmp_path / "cut" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert len(cut) == len(tensors) + 6 - 2 * (len([n for n in tensors if "layers.0." in n]) + 1)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.layers.{}.a", "lm_head.weight"], "model.layers"),
        (["layers.{}.a"], "layers"),
        (["decoder.layers.{}.a"], "decoder.layers"),
        (["language_model.model.layers.{}.a", "vision.encoder.layers.{}.a"], "language_model.model.layers"),
        (["model.layers.{}.mlp.experts.layers.0.w"], "model.layers"),
        (["language_model.model.layers.{}.a", "vision_tower.vision_model.encoder.layers.{}.a"], "LANGUAGE"),
    ],
)
def test_the_stack_is_found_on_disk(names, expected):
    path = "model.layers"
    if expected == "LANGUAGE":  # in memory the names have another order
        path, expected = "model.language_model.layers", "language_model.model.layers"
    assert stack_prefix([n.format(i) for n in names for i in range(3)], path, 3) == expected


def test_a_checkpoint_with_other_names_is_refused():
    with pytest.raises(UnsupportedModelError, match="are not found in the checkpoint"):
        stack_prefix(["blocks.0.a", "blocks.1.a"], "model.layers", 2)


def test_verification_sees_a_wrong_weight(tmp_path):
    model = make_model("llama")
    expected = reference_outputs(Blocks(model), (2,), SAMPLE)
    cut = cut_model(model, (3,))
    cut.save_pretrained(tmp_path)
    with pytest.raises(VerificationError, match="logits"):
        verify_checkpoint(tmp_path, expected)
    with pytest.raises(VerificationError, match="logits"):
        verify_model(cut, expected)


def test_verification_says_what_was_compared():
    model = make_model("llama")
    found = verify_model(cut_model(model, (2,)), reference_outputs(Blocks(model), (2,), sample_tokens(model.config)))
    assert found.to_json() == {
        "max_logit_difference": found.max_logit_difference,
        "tolerance": found.tolerance,
        "cached_generation": True,
        "padded_generation": True,
        "tokens": 64,
        "dtype": "float32",
    }
    assert 0 <= found.max_logit_difference <= found.tolerance < 1e-3
    assert "on 64 tokens in float32" in repr(found)
    assert "generation with a cache equals generation without, also left-padded" in repr(found)


def test_a_record_of_an_earlier_release_is_read():
    record = {"max_logit_difference": 0.0, "exact": True, "cached_generation": True, "padded_generation": False}
    check = Verification.from_json(record | {"tokens": 256, "dtype": "bfloat16"})
    assert "not left-padded" in check.generation
    assert Verification.from_json(check.to_json()).to_json().keys() == check.to_json().keys()


def test_the_sample_leaves_out_special_tokens():
    """Each special token may be a number, a list or absent, in the config of the text or around it."""
    text = make_model("llama", eos_token_id=[9, 10], pad_token_id=None, vocab_size=16).config
    assert set(sample_tokens(text).unique().tolist()) == {8, 11, 12, 13, 14, 15}
    whole = make_wrapper("llava").config
    assert whole.image_token_index not in sample_tokens(whole)


def test_verification_sees_missing_tensors(tmp_path):
    model = make_model("llama")
    expected = reference_outputs(Blocks(model), (2,), SAMPLE)
    cut_model(model, (2,)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.4.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="missing keys"):
        verify_checkpoint(tmp_path, expected)


def test_only_what_transformers_would_load_is_cut(tmp_path):
    """A single file takes precedence over an index, and the index over further tensors in a shard."""
    model = make_model("llama")
    model.save_pretrained(tmp_path / "dense", max_shard_size="40KB")
    shard = sorted((tmp_path / "dense").glob("*.safetensors"))[0]
    stale = {"model.layers.3.mlp.up_proj.weight": torch.full((48, 32), 7.0)}
    save_file(load_file(shard) | stale, shard, metadata={"format": "pt"})
    for number, single in enumerate((False, True)):
        if single:
            other = make_model("llama", rms_norm_eps=1e-3)
            for parameter in other.parameters():
                parameter.data.mul_(2)
            other.save_pretrained(tmp_path / "other")
            (tmp_path / "other" / "model.safetensors").rename(tmp_path / "dense" / "model.safetensors")
        out = tmp_path / f"cut{number}"
        out.mkdir()
        cut_checkpoint(tmp_path / "dense", out, Structure.of(model), (1,))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
        verify_checkpoint(out, reference_outputs(Blocks(loaded), (1,), SAMPLE))


def test_a_config_file_that_would_be_read_differently_is_refused(tmp_path, monkeypatch):
    """The structure is checked with a config object; the file must be read as the same."""
    model = make_model("gemma3")
    model.save_pretrained(tmp_path / "dense")
    (tmp_path / "cut").mkdir()
    monkeypatch.setattr(config_file_module, "with_legacy_rope", lambda config: {"layer_types": ["full_attention"] * 5})
    with pytest.raises(UnsupportedModelError, match="would be read with layer_types"):
        cut_checkpoint(tmp_path / "dense", tmp_path / "cut", Structure.of(model), (1,))
    assert list((tmp_path / "cut").iterdir()) == []


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_module_names_in_a_config_file_are_renumbered_once(name, tmp_path):
    """In a model of one part, and in one of several parts, whose settings may be in the outer or the inner config."""
    model = make_model(name) if name in FAMILIES else make_wrapper(name)
    structure = Structure.of(model)
    model.save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "config.json"
    config = json.loads(file.read_text())
    kept = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", f"{structure.stack.path}.3.mlp"]}
    parts = [config, *(config[key] for key in ("text_config",) if key in config)]
    for part in parts:
        part["quantization_config"] = kept
    file.write_text(json.dumps(config))
    (tmp_path / "cut").mkdir()
    cut_checkpoint(tmp_path / "dense", tmp_path / "cut", structure, (1,))
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    for part in [written, *(written[key] for key in ("text_config",) if key in written)]:
        names = part["quantization_config"]["modules_to_not_convert"]
        assert names == ["lm_head", f"{structure.stack.path}.2.mlp"]


def test_multi_token_prediction_under_other_names_is_dropped(tmp_path):
    model = make_model("qwen3")
    model.save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "model.safetensors"
    save_file(load_file(file) | {"mtp.fc.weight": torch.ones(2, 2)}, file, metadata={"format": "pt"})
    (tmp_path / "cut").mkdir()
    cut_checkpoint(tmp_path / "dense", tmp_path / "cut", Structure.of(model), (1,))
    assert not any("mtp" in name for name in load_file(tmp_path / "cut" / "model.safetensors"))


def test_an_index_cannot_name_files_outside_its_folder(tmp_path):
    model = make_model("llama")
    model.save_pretrained(tmp_path / "dense", max_shard_size="40KB")
    index = tmp_path / "dense" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = "../secret.safetensors"
    index.write_text(json.dumps(content))
    (tmp_path / "cut").mkdir()
    with pytest.raises(ModelError, match="outside its folder"):
        cut_checkpoint(tmp_path / "dense", tmp_path / "cut", Structure.of(model), (1,))


def test_an_output_folder_appears_at_the_end_and_errors_leave_nothing(tmp_path):
    out = tmp_path / "a" / "out"
    with pytest.raises(RuntimeError), output_folder(out) as partial:  # noqa: PT012
        (partial / "x").write_text("half")
        assert not out.exists()
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []
    stale = tmp_path / "a" / ".out.partial-999999999"
    stale.mkdir()
    with output_folder(out) as partial:
        (partial / "streamliner.json").write_text("{}")
        assert not stale.exists()
    assert (out / "streamliner.json").exists()
    with pytest.raises(OutputError, match="exists"), output_folder(out):
        pass
    with output_folder(out, overwrite=True) as partial:
        (partial / "new").write_text("")
    assert [file.name for file in out.iterdir()] == ["new"]
    with pytest.raises(OutputError, match="did not write it"), output_folder(out, overwrite=True):
        pass
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["out"]
