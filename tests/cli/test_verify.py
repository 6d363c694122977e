"""`streamliner verify` on files that other tools left, and what it writes with --mend."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

import streamliner as sl
from command import run
from places import TINY
from streamliner.errors import VerificationError


@pytest.fixture
def broken(tmp_path):
    """The trained fixture without the tensors of blocks 3 and 7, otherwise as it was."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in TINY.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(TINY / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not n.startswith(("model.layers.3.", "model.layers.7."))}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_faults_are_shown_and_mended(capsys, broken, tmp_path):
    out = run(capsys, "verify", broken, status=1)[0]
    assert "2 faults in" in out
    assert "are missing: 3, 7 of 0 to 11" in out
    assert "Add --mend -o OUT" in out
    mended = tmp_path / "mended"
    assert f"A copy without them: {mended}" in run(capsys, "verify", broken, "--mend", "-o", mended)[0]
    assert "No fault was found" in run(capsys, "verify", mended)[0]
    found = json.loads(run(capsys, "verify", mended, "--dense", TINY, "--json")[0])
    assert (found["faults"], found["removed"]) == ([], [3, 7])
    assert found["verification"]["max_logit_difference"] < 1e-4


def test_with_the_dense_model_a_mended_copy_has_a_plan(capsys, broken, tmp_path):
    mended = tmp_path / "mended"
    run(capsys, "verify", broken, "--dense", TINY, "--mend", "-o", mended, "--quiet")
    assert sl.read_plan(mended).removed == (3, 7)
    assert "is right" in run(capsys, "verify", mended)[0]


def test_what_cannot_be_mended_writes_nothing(capsys, broken, tmp_path):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "is broken" in run(capsys, "verify", broken, status=1)[0]
    error = run(capsys, "verify", broken, "--mend", "-o", tmp_path / "mended", status=1)[1]
    assert "Nothing was written" in error
    assert not (tmp_path / "mended").exists()
    with pytest.raises(VerificationError):
        sl.mend(broken, tmp_path / "mended")


def test_a_wrong_call_says_what_to_type(capsys, broken, tmp_path):
    assert "Add -o OUT" in run(capsys, "verify", broken, "--mend", status=2)[1]
    assert "Add --mend" in run(capsys, "verify", broken, "-o", tmp_path / "x", status=2)[1]
    assert "must be a folder, but" in run(capsys, "verify", broken, "--mend", "-o", tmp_path / "x.gguf", status=2)[1]
    assert "There is no folder or file" in run(capsys, "verify", tmp_path / "none", status=2)[1]


def test_logits_of_trained_tensors_are_not_compared(capsys, broken, tmp_path):
    mended = tmp_path / "mended"
    sl.mend(broken, mended)
    tensors = load_file(mended / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"] += 1
    save_file(tensors, mended / "model.safetensors", metadata={"format": "pt"})
    found = sl.find_faults(mended, dense=TINY)
    assert (found.faults, found.trained) == ((), ("model.layers.2.mlp.down_proj.weight",))
    assert "1 tensors are not those" in run(capsys, "verify", mended, "--dense", TINY)[0]


def test_files_that_llama_cpps_converter_made(capsys, tmp_path):
    """Of a type that GGUF calls otherwise; named after its folder, and with the tensors in the order of their names."""
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    dense, small = tmp_path / "dense", tmp_path / "small"
    shutil.copytree(TINY, dense)
    config = json.loads((TINY / "config.json").read_text())
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    (dense / "config.json").write_text(json.dumps(config | mistral))
    run(capsys, "cut", dense, "--blocks", "3,7", "-o", small, "--no-verify")
    weights = load_file(small / "model.safetensors")
    save_file(dict(sorted(weights.items(), reverse=True)), small / "model.safetensors", {"format": "pt"})
    write_gguf(dense, tmp_path / "dense.gguf", lambda writer: writer.add_name("Dense"))
    names = {name: weights[name] for name in sorted(weights)}
    assert list(names) != list(weights)
    file = write_gguf(small, tmp_path / "small.gguf", lambda writer: writer.add_name("Small"))
    out, _ = run(capsys, "verify", file, "--dense", dense, "--mend", "-o", tmp_path / "mended.gguf")
    assert "Removed blocks: 3, 7" in out
    assert "There is nothing to mend" in out
    assert "No fault was found" in out
    assert not (tmp_path / "mended.gguf").exists()
    assert "small.gguf is right." in run(capsys, "verify", file, "--dense", tmp_path / "dense.gguf")[0]
    other = write_gguf(small, tmp_path / "other.gguf", lambda writer: writer.add_rope_scaling_factor(2.0))
    assert "scaling" in run(capsys, "verify", other, "--dense", tmp_path / "dense.gguf", status=1)[1]


def test_a_healed_model_has_no_fault_with_its_dense_model_either(capsys, tmp_path):
    cut, healed = tmp_path / "cut", tmp_path / "healed"
    run(capsys, "cut", TINY, "--blocks", "2,3", "-o", cut, "--no-verify")
    small = ("--sequence-length", "64", "--steps", "1", "--validation-windows", "1", "--no-verify")
    run(capsys, "heal", cut, "--dense", TINY, "--data", "python-docs", *small, "-o", healed, "--quiet")
    out = run(capsys, "verify", healed, "--dense", TINY)[0]
    assert "The model is healed" in " ".join(out.split())
