"""Quantised checkpoints are cut by name and bytes, with their settings; a plan is for all precisions of a model."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import streamliner as sl
from command import run
from families import make_model
from places import TINY
from quantised_files import CUT_SETTINGS, LAYOUTS, SETTINGS, SMALL, write_quantised
from streamliner.cut.quantised import ModuleNames, renamed_metadata, renamed_modules
from streamliner.cut.rules import Removal
from streamliner.cut.same_bytes import compare_checkpoint
from streamliner.cut.structure import Structure
from streamliner.errors import HealingError, UnsupportedModelError, VerificationError
from streamliner.heal.checks import check_healable
from streamliner.model.precision import precision, quantised_by
from streamliner.model.session import Session, open_model
from streamliner.search.plan import read_plan

DEPTH = 24
REMOVED = (1, 5, 18)
TAILS = ("self_attn.q_proj.weight", "mlp.gate_proj.weight", "mlp.experts.3.up_proj.weight")
TENSORS = [f"model.layers.{index}.{tail}" for index in range(DEPTH) for tail in TAILS]
TENSORS += ["lm_head.weight", "vision.layers.3.mlp.gate_proj.weight"]


def names(*paths, tensors=TENSORS):
    return ModuleNames(tensors, paths or ("model.layers", "model.layers"), Removal.of(REMOVED, DEPTH))


UNCHANGED = [
    *("lm_head", "Linear", "mlp.gate", "re:.*gate", "-:lm_head", "self_attn.q_proj"),
    *("model.layers.*.self_attn", "re:.*self_attn.*", "*lm_head*", "model.layers.*", r"re:model\.layers\.\d+\.mlp.*"),
    *("mlp.experts.3.up_proj", "vision.layers.3", "re:vision.*layers.3.*", r"re:.*\.experts\.3\..*"),
    *("vision_tower.encoder.layers.3.fc", "encoder.layers.3"),  # stacks that this checkpoint does not have
]


@pytest.mark.parametrize("entry", UNCHANGED)
def test_entries_that_select_by_something_else_stay(entry):
    assert names().renamed(entry) == entry


RENAMED = {
    "model.layers.3.mlp.gate_proj": "model.layers.2.mlp.gate_proj",
    "model.layers.10": "model.layers.8",
    "layers.3.": "layers.2.",
    ".6.mlp": ".4.mlp",
    "model.layers.1.mlp": None,
    r"re:.*layers\.5\..*": None,
    r"-:model\.layers\.20\.mlp.*": r"-:model\.layers\.17\.mlp.*",
    r".*\.20\..*gate.*": r".*\.17\..*gate.*",
    r"re:model\.layers\.(?:18|19|20)\..*": r"re:model\.layers\.(?:16|17)\..*",
    r"re:model\.layers\.([0-2])\.mlp.*": r"re:model\.layers\.(?:0|1)\.mlp.*",
    r"re:model\.layers\.1[0-2]\.mlp.*": r"re:model\.layers\.(?:8|9|10)\.mlp.*",
    # Blocks of one digit, which are others now.
    r"re:model\.layers\.\d\.mlp.*": r"re:model\.layers\.(?:0|1|2|3|4|5|6|7)\.mlp.*",
    "*.layers.20.mlp*": "*.layers.17.mlp*",
    "model.layers.6*": "model.layers.4*",
    r"re:model.layers.2.mlp.experts.3.*": "re:model.layers.1.mlp.experts.3.*",
}


@pytest.mark.parametrize("entry", RENAMED)
def test_entries_that_name_blocks_get_their_new_numbers(entry):
    assert names().renamed(entry) == RENAMED[entry]


REFUSED = {
    r"re:model\.layers\.(?!3\.).*": "no change of its numbers",
    "model.layers.2*": "no change of its numbers",  # 2 and 20 to 23: no longer what one star says
    r"re:.*layers\.3\..*": "no change of its numbers",  # in the tower too
    ".3.mlp": "no change of its numbers",
    r"re:model\.layers\.3\.qkv": "matches no module of it",  # a name that an engine made up
    "re:model.layers.(3": "not understood",
}


@pytest.mark.parametrize("entry", REFUSED)
def test_other_expressions_are_refused(entry):
    with pytest.raises(UnsupportedModelError, match=f"by {re.escape(entry)}, .*{REFUSED[entry]}") as error:
        names().renamed(entry)
    assert "one by one" in error.value.hint


def test_names_follow_in_lists_and_as_keys():
    settings = {
        "modules_to_not_convert": ["lm_head", "model.layers.1.mlp", "model.layers.3.self_attn"],
        "dynamic": {"+:model.layers.3.mlp": {"bits": 8}, "-:model.layers.1.mlp": {}, "lm_head": {}},
        "config_groups": {"gone": {"targets": ["model.layers.5.mlp"]}, "kept": {"targets": ["Linear"]}},
        "fqn_to_config": {"model.layers.3.mlp": None, "_default": {"bits": 4}},
        "nested": [["self_attn.q_proj"], None, 3],
        "bits": 4,
    }
    assert renamed_modules(settings, names()) == {
        "modules_to_not_convert": ["lm_head", "model.layers.2.self_attn"],
        "dynamic": {"+:model.layers.2.mlp": {"bits": 8}, "lm_head": {}},
        "config_groups": {"kept": {"targets": ["Linear"]}},
        "fqn_to_config": {"model.layers.2.mlp": None, "_default": {"bits": 4}},
        "nested": [["self_attn.q_proj"], None, 3],
        "bits": 4,
    }
    # GPTQModel's rules select from the beginning of a name: this one blocks 1 and 10 to 19.
    with pytest.raises(UnsupportedModelError, match="no change of its numbers"):
        renamed_modules({"dynamic": {"model.layers.1": {}}}, names())


def test_a_stack_has_other_names_in_memory_than_on_disk():
    tensors = [name.replace("model.", "language_model.model.", 1) for name in TENSORS if "vision" not in name]
    several = names("model.language_model.layers", "language_model.model.layers", tensors=tensors)
    for entry in ("model.language_model.layers.3.mlp", "language_model.model.layers.3.mlp", "layers.3.mlp"):
        assert several.renamed(entry) == entry.replace("3", "2")
        expression = "re:" + entry.replace(".", r"\.")
        if not entry.startswith("layers"):
            assert several.renamed(expression) == expression.replace("3", "2")


def test_metadata_of_files_follows():
    before = {"format": "pt", "tensor_names": '["a.3.w", "a.1.w", "b"]', "a.3.w": "x", "a.1.w": "y", "b": "z"}
    after = {"format": "pt", "tensor_names": '["a.2.w", "b"]', "a.2.w": "x", "b": "z"}
    assert renamed_metadata(before, "a", Removal.of(REMOVED, DEPTH)) == after
    assert renamed_metadata({"format": "pt"}, "a", Removal.of(REMOVED, DEPTH)) == {"format": "pt"}


WINDOWS = ("--num-samples", "1", "--sequence-length", "16", "--calibration", "python-docs")


def new_name(name):
    """Without block 1; None in it."""
    match = re.match(r"model\.layers\.(\d+)", name)
    index = int(match[1]) if match else 0
    return name if index < 1 else None if index == 1 else f"model.layers.{index - 1}{name[match.end() :]}"


def cut(capsys, folder, out, *arguments):
    return json.loads(run(capsys, "cut", folder, "--blocks", "1", "-o", out, "--json", "--quiet", *arguments)[0])


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_keeps_its_bytes_and_its_settings(name, capsys, tmp_path):
    folder = write_quantised(name, tmp_path / "dense")
    quick = ("--no-verify",) if name == "mxfp4" else ()  # its logits take seconds: test_quantised_libraries.py
    result = cut(capsys, folder, tmp_path / "cut", *quick)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "cut"))
    kept = {new_name(old): tensor for old, tensor in before.items() if new_name(old)}
    assert after.keys() == kept.keys()
    for key, tensor in kept.items():
        assert after[key].dtype == tensor.dtype
        assert torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (after[key], tensor))), key
    expected = SETTINGS[name] | CUT_SETTINGS[name]
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["quantization_config"] == expected
    if name == "gptq":
        assert json.loads((tmp_path / "cut" / "quantize_config.json").read_text()) == expected
    with safe_open(tmp_path / "cut" / "model.safetensors", "pt") as opened:
        metadata = opened.metadata()
    if name == "torchao":
        assert sorted(json.loads(metadata["tensor_names"])) == sorted(key for key in metadata if "." in key)
        assert json.loads(metadata["model.layers.2.mlp.up_proj.weight"]) == {"_type": "Tensor"}
        assert {key for key in metadata if key.endswith("proj.weight")} == {
            re.sub(r"_weight_\w+$", "weight", key) for key in after if "proj" in key
        }
    # Either logits were compared, or it says why not, and that names and bytes were.
    if name == "fp8":
        assert result["verification"]["max_logit_difference"] <= result["verification"]["tolerance"]
    if name in ("gptq", "awq"):
        assert result["verification"] is None
    if result["verification"] is None and not quick:
        assert result["tensors_equal"] == len(after)
        assert name.split()[0] in result["logits_not_compared"]


def test_what_was_not_compared_is_said(capsys, tmp_path):
    folder = write_quantised("awq", tmp_path / "dense")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / file, folder / file)
    out, messages = run(capsys, "cut", folder, "--blocks", "1", "-o", tmp_path / "cut")
    assert "Verifying: names and bytes of tensors" in messages
    assert "byte for byte" in out
    assert "Logits not compared: awq does not run on this machine" in out
    assert "Verified" not in out
    # What needs its logits says what to do.
    error = run(capsys, "search", folder, "--remove", "1", "-o", tmp_path / "run", *WINDOWS, status=2)[1]
    assert "search the model that it was quantised from: a plan is for both" in " ".join(error.split())


def test_a_comparison_of_bytes_finds_every_difference(tmp_path, capsys):
    folder, out = write_quantised("gptq", tmp_path / "dense"), tmp_path / "cut"
    cut(capsys, folder, out, "--no-verify")
    structure, file = Structure(open_model(folder).shell), out / "model.safetensors"
    whole = load_file(file)
    assert compare_checkpoint(folder, out, structure, (1,)) == len(whole)
    name = "model.layers.3.mlp.up_proj.qweight"
    changed = whole[name].clone()
    changed[-1, -1] ^= 1
    for broken, message in (
        (whole | {name: changed}, f"{name} is not {name.replace('3', '4')}"),
        (whole | {name: whole[name].reshape(-1)}, f"{name} is not"),
        (whole | {"model.layers.9.x": torch.ones(1)}, "a tensor too many: model.layers.9.x"),
        ({key: tensor for key, tensor in whole.items() if key != name}, f"lacks the tensor: {name}"),
    ):
        save_file(broken, file)
        with pytest.raises(VerificationError, match=message):
            compare_checkpoint(folder, out, structure, (1,))


def test_a_model_that_is_not_quantised_must_run(capsys, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("a fault")

    make_model("llama").save_pretrained(tmp_path / "dense")
    monkeypatch.setattr(Session, "load", refuse)
    with pytest.raises(RuntimeError, match="a fault"):
        cut(capsys, tmp_path / "dense", tmp_path / "cut")


@pytest.mark.parametrize("way", ["quantised to dense", "dense to quantised"])
def test_a_plan_travels_between_precisions(way, capsys, tmp_path):
    fp8, dense = write_quantised("fp8", tmp_path / "fp8"), tmp_path / "dense"
    make_model("llama", **SMALL).save_pretrained(dense)
    there, here = (fp8, dense) if way == "quantised to dense" else (dense, fp8)
    cut(capsys, there, tmp_path / "plan", "--no-verify")
    arguments = ("-o", tmp_path / "out", "--no-verify", "--overwrite")
    messages = run(capsys, "cut", here, "--plan", tmp_path / "plan", *arguments)[1]
    found = {"quantised to dense": "fp8 there, float32 here", "dense to quantised": "float32 there, fp8 here"}
    assert f"another precision: {found[way]}" in " ".join(messages.split())
    assert read_plan(tmp_path / "out").removed == (1,)
    # Of the same weights nothing is said; of a plan without a precision, which earlier releases wrote, neither.
    plan = json.loads((tmp_path / "plan" / "streamliner.json").read_text())
    del plan["model"]["precision"]
    (tmp_path / "old.json").write_text(json.dumps(plan))
    shutil.copytree(tmp_path / "out", tmp_path / "known")
    for known in (tmp_path / "known", tmp_path / "old.json"):
        assert "precision" not in run(capsys, "cut", here, "--plan", known, *arguments)[1]


def test_precision_in_words(tmp_path):
    found = {
        "mxfp4": "mxfp4",
        "compressed-tensors": "compressed-tensors, 4 bits",
        "bitsandbytes 8 bits": "bitsandbytes, 8 bits",
    }
    for name, words in found.items():
        session = open_model(write_quantised(name, tmp_path / name))
        assert precision(session.source, session.config) == words
    assert quantised_by({"text_config": {"quantization_config": {"quant_method": "awq"}}}) == "awq"


def test_healing_quantised_weights_is_refused(capsys, tmp_path):
    fp8, dense = write_quantised("fp8", tmp_path / "fp8"), tmp_path / "dense"
    make_model("llama", **SMALL).save_pretrained(dense)
    cut(capsys, fp8, tmp_path / "cut", "--no-verify")
    for given in ((), ("--dense", dense)):  # the norms of both models are the same
        for kind in (("--network", "block"), ("--network", "none", "--fold", "refit")):
            error = run(capsys, "heal", tmp_path / "cut", "-o", tmp_path / "healed", *kind, *given, status=2)[1]
            assert "are quantised, so they cannot be healed" in " ".join(error.split())
            assert f"--plan {tmp_path / 'cut'}" in " ".join(error.split())
    error = run(capsys, "prune", fp8, "--remove", "1", "--fold", "refit", "-o", tmp_path / "pruned", status=2)[1]
    assert "a plan is for both" in " ".join(error.split())
    assert not (tmp_path / "healed").exists()
    model = make_model("llama")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(HealingError, match="are quantised"):
        check_healable("x", model, model.config, one_device=True)
    with pytest.raises(UnsupportedModelError, match=r"quantised in memory \(bitsandbytes\)") as raised:
        sl.cut(model, (1,))
    assert "streamliner cut FOLDER" in raised.value.hint
