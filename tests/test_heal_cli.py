"""`streamliner heal` and `prune --heal` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conftest import TINY
from test_cli import run

QUICK = [
    *("--steps", "6", "--batch-size", "2", "--sequence-length", "64", "--lr", "1e-3", "--validation-windows", "2"),
    *("--validations", "2", "--dtype", "float32"),
]


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healing") / "cut"
    command = [sys.executable, "-m", "streamliner", "cut", str(TINY), "--blocks", "5,6", "-o", str(folder), "-q"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def heal(capsys, cut, out, *arguments, status=0):
    return run(capsys, "heal", str(cut), "--dense", str(TINY), "-o", str(out), *QUICK, *arguments, status=status)


def test_a_healed_block_is_a_stock_checkpoint(capsys, cut, tmp_path):
    out, err = heal(capsys, cut, tmp_path / "healed")
    assert "3 blocks become 1: 4, 5, 6." in err
    assert "step 6/6" in err
    assert "12 blocks dense, 10 healed" in " ".join(out.split())
    healed, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "healed", cut))
    changed = {name for name in before if not torch.equal(before[name], healed[name])}
    assert changed
    assert all(name.startswith("model.layers.4.") for name in changed)
    assert {name: tensor.dtype for name, tensor in healed.items()} == {name: t.dtype for name, t in before.items()}
    assert (tmp_path / "healed" / "config.json").read_bytes() == (cut / "config.json").read_bytes()
    assert "## Healing" in (tmp_path / "healed" / "README.md").read_text()
    mark = json.loads((tmp_path / "healed" / "streamliner.json").read_text())
    assert mark["removed"] == [5, 6]
    assert mark["healing"]["validation_perplexity"]["healed"] < mark["healing"]["validation_perplexity"]["cut"]
    outsider = Path(__file__).parent / "outsider_healed.py"
    subprocess.run([sys.executable, outsider, tmp_path / "healed"], check=True, timeout=300)


def test_custom_code_says_so_loads_only_with_trust_and_generates(capsys, cut, tmp_path):
    out, _ = heal(capsys, cut, tmp_path / "healed", "--network", "ffn")
    assert "trust_remote_code=True" in " ".join(out.split())
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "healed", trust_remote_code=False)
    outsider = Path(__file__).parent / "outsider_healed.py"
    subprocess.run([sys.executable, outsider, tmp_path / "healed", "--trust"], check=True, timeout=300)
    assert "Traceback" not in run(capsys, "inspect", str(tmp_path / "healed"), status=2)[1]


def test_swiglu_says_what_a_stock_block_costs(capsys, cut, tmp_path):
    out, _ = heal(capsys, cut, tmp_path / "healed", "--network", "swiglu")
    assert "carried for nothing" in " ".join(out.split())
    assert not list((tmp_path / "healed").glob("*.py"))


def test_prune_and_heal_removes_as_many_as_asked(capsys, tmp_path):
    search = ["--method", "streamline", "--remove", "3", "--num-samples", "2", "--sequence-length", "64"]
    healing = ["--heal", "--tokens", "512", "--heal-set", "batch_size=2", "--heal-set", "validation_windows=2"]
    out, _ = run(capsys, "prune", str(TINY), *search, *healing, "-o", str(tmp_path / "out"), "--json")
    result = json.loads(out)
    (gap,) = result["healing"]["gaps"]
    assert gap["stop"] - gap["start"] == 4
    assert gap["places"] == [gap["start"]]
    assert result["plan"]["removed"] == list(range(gap["start"] + 1, gap["stop"]))
    assert result["healing"]["blocks_after"] == 9
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run"]
    again = run(capsys, "prune", str(TINY), *search, *healing, "-o", str(tmp_path / "out"), status=2)[1]
    assert "--overwrite" in again


def test_a_run_is_continued_only_as_it_was(capsys, cut, tmp_path):
    heal(capsys, cut, tmp_path / "a", "--run", str(tmp_path / "run"))
    _, err = heal(capsys, cut, tmp_path / "b", "--run", str(tmp_path / "run"), "--seed", "1", status=2)
    assert "settings.seed was 0 there and is 1 now" in err
    _, err = heal(capsys, cut, tmp_path / "b", "--run", str(tmp_path / "run"))
    assert "Continuing the run" in err
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_mistakes(capsys, cut, tmp_path):
    assert "There is no cut checkpoint" in heal(capsys, tmp_path / "nothing", tmp_path / "x", status=2)[1]
    assert "holds no streamliner.json" in heal(capsys, TINY, tmp_path / "x", status=2)[1]
    assert "is no run folder" in heal(capsys, cut, tmp_path / "x", "--run", str(cut), status=2)[1]
    assert "--loss has no l2" in heal(capsys, cut, tmp_path / "x", "--loss", "l2", status=2)[1]
    assert "is not a weight" in heal(capsys, cut, tmp_path / "x", "--loss", "mse=much", status=2)[1]
    assert "knows no such tracker" in heal(capsys, cut, tmp_path / "x", "--track", "paper", status=2)[1]
    assert "positions of" in heal(capsys, cut, tmp_path / "x", "--sequence-length", "9999", status=2)[1]
    assert "is not a number of tokens" in heal(capsys, cut, tmp_path / "x", "--tokens", "many", status=2)[1]
    assert (
        "not --heal"
        in run(capsys, "prune", str(TINY), "--remove", "2", "--lora", "4", "-o", str(tmp_path / "x"), status=2)[1]
    )
    assert (
        "is no setting of healing"
        in run(
            *(
                capsys,
                "prune",
                str(TINY),
                "--remove",
                "2",
                "--heal",
                "--heal-set",
                "speed=9",
                "-o",
                str(tmp_path / "x"),
            ),
            status=2,
        )[1]
    )
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.run").exists()


def test_another_dense_model_and_a_healed_one_are_refused(capsys, cut, tmp_path):
    heal(capsys, cut, tmp_path / "healed")
    assert "is healed already" in heal(capsys, tmp_path / "healed", tmp_path / "x", status=2)[1]
    other = tmp_path / "other"
    other.mkdir()
    for file in cut.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 2
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert "was not cut from this dense model" in heal(capsys, other, tmp_path / "x", status=2)[1]
    assert not (tmp_path / "x").exists()


def test_trackers(capsys, cut, tmp_path):
    pytest.importorskip("tensorboard")
    heal(capsys, cut, tmp_path / "healed", "--track", "tensorboard")
    assert list((tmp_path / "healed.run" / "streamliner").rglob("events.out.*"))
