"""`streamliner heal` and `prune --heal` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from command import run
from kill import finish
from places import SUPPORT, TINY

QUICK = [
    *(
        "--steps",
        "6",
        "--global-batch-size",
        "2",
        "--sequence-length",
        "64",
        "--lr",
        "1e-3",
        "--validation-windows",
        "2",
    ),
    *("--validations", "2", "--dtype", "float32"),
]


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healing") / "cut"
    finish("cut", TINY, "--blocks", "5,6", "-o", folder, "-q")
    return folder


def heal(capsys, cut, out, *arguments, status=0):
    return run(capsys, "heal", str(cut), "--dense", str(TINY), "-o", str(out), *QUICK, *arguments, status=status)


def copied(folder, to):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


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
    outsider = SUPPORT / "outsider_healed.py"
    subprocess.run([sys.executable, outsider, tmp_path / "healed"], check=True, timeout=300)


def test_custom_code_says_so_loads_only_with_trust_and_generates(capsys, cut, tmp_path):
    out, _ = heal(capsys, cut, tmp_path / "healed", "--network", "ffn")
    assert "trust_remote_code=True" in " ".join(out.split())
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "healed", trust_remote_code=False)
    outsider = SUPPORT / "outsider_healed.py"
    subprocess.run([sys.executable, outsider, tmp_path / "healed", "--trust"], check=True, timeout=300)
    assert "Traceback" not in run(capsys, "inspect", str(tmp_path / "healed"), status=2)[1]


def test_swiglu_says_what_a_stock_block_costs(capsys, cut, tmp_path):
    out, _ = heal(capsys, cut, tmp_path / "healed", "--network", "swiglu")
    assert "unused parameters" in " ".join(out.split())
    assert not list((tmp_path / "healed").glob("*.py"))


def test_prune_and_heal_removes_as_many_as_asked(capsys, tmp_path):
    search = ["--method", "streamline", "--remove", "3", "--num-samples", "2", "--sequence-length", "64"]
    healing = ["--heal", "--tokens", "512", "--global-batch-size", "2", "--validation-windows", "2"]
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
    assert f"output: {tmp_path / 'b'}" in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_mistakes(capsys, cut, tmp_path):
    assert "There is no cut checkpoint" in heal(capsys, tmp_path / "nothing", tmp_path / "x", status=2)[1]
    assert "has no streamliner.json" in heal(capsys, TINY, tmp_path / "x", status=2)[1]
    assert "is not a run folder" in heal(capsys, cut, tmp_path / "x", "--run", str(cut), status=2)[1]
    for folder in (tmp_path / "x", tmp_path / "x" / "run"):
        assert "is inside the " in heal(capsys, cut, tmp_path / "x", "--run", folder, status=2)[1]
    assert "--loss has no l2" in heal(capsys, cut, tmp_path / "x", "--loss", "l2", status=2)[1]
    assert "is not a weight" in heal(capsys, cut, tmp_path / "x", "--loss", "mse=much", status=2)[1]
    assert "has no such tracker" in heal(capsys, cut, tmp_path / "x", "--track", "paper", status=2)[1]
    assert "positions of" in heal(capsys, cut, tmp_path / "x", "--sequence-length", "9999", status=2)[1]
    budget = run(capsys, "heal", cut, "--dense", TINY, "-o", tmp_path / "x", "--tokens", "many", status=2)[1]
    assert "is not a number of tokens" in budget
    assert "was cut from: " in run(capsys, "heal", cut, "--dense", cut, "-o", tmp_path / "x", *QUICK, status=2)[1]
    for flag, value, message in (("--lora", -3, "at least 0"), ("--init", "last", "for block networks")):
        assert message in heal(capsys, cut, tmp_path / "x", "--network", "swiglu", flag, value, status=2)[1]
    assert "--learning-rate must be" in heal(capsys, cut, tmp_path / "x", "--learning-rate", "-1", status=2)[1]
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.run").exists()


def test_another_dense_model_and_a_healed_one_are_refused(capsys, cut, tmp_path):
    heal(capsys, cut, tmp_path / "healed")
    assert "is healed already" in heal(capsys, tmp_path / "healed", tmp_path / "x", status=2)[1]
    other = copied(cut, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 2
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert "was not cut from this dense model" in heal(capsys, other, tmp_path / "x", status=2)[1]
    assert not (tmp_path / "x").exists()


def test_what_no_class_knows_is_kept_and_what_did_not_change_is_the_same_bytes(capsys, cut, tmp_path):
    """A tensor of a tower beside the model; norms in another precision than the rest; a lower one in memory."""
    other = copied(cut, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["vision_tower.proj.weight"] = torch.randn(3, 5)
    tensors = {name: tensor.float() if "norm" in name else tensor for name, tensor in tensors.items()}
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    heal(capsys, other, tmp_path / "healed", "--dtype", "float16")
    healed = load_file(tmp_path / "healed" / "model.safetensors")
    assert healed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert healed[name].dtype == tensor.dtype, name
        assert torch.equal(healed[name], tensor) != name.startswith("model.layers.4.") or "norm" in name, name


def test_a_config_cannot_smuggle_code_into_a_checkpoint(capsys, cut, tmp_path):
    other = copied(cut, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["model_type"] = f'llama"; open("{tmp_path}/pwned", "w") #'
    (other / "config.json").write_text(json.dumps(config))
    assert "is of type" in heal(capsys, other, tmp_path / "x", "--network", "ffn", status=2)[1]
    assert not (tmp_path / "pwned").exists()


def test_overwrite_replaces_the_output_and_continues_the_run(capsys, cut, tmp_path):
    heal(capsys, cut, tmp_path / "healed")
    before = (tmp_path / "healed.run" / "state.safetensors").stat().st_mtime_ns
    assert "--overwrite" in heal(capsys, cut, tmp_path / "healed", status=2)[1]
    _, err = heal(capsys, cut, tmp_path / "healed", "--overwrite")
    assert "after step 6 of 6" in err
    assert (tmp_path / "healed.run" / "state.safetensors").stat().st_mtime_ns == before
    _, err = heal(capsys, cut, tmp_path / "healed", "--overwrite", "--seed", "1")
    assert "Continuing" not in err


def test_another_text_is_another_run(capsys, cut, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The for statement iterates over a sequence.\n" * 200)
    heal(capsys, cut, tmp_path / "a", "--data", text, "--run", tmp_path / "run")
    text.write_text("The while statement repeats as long as it holds.\n" * 200)
    _, err = heal(capsys, cut, tmp_path / "b", "--data", text, "--run", tmp_path / "run", status=2)
    assert "is of another run: text was" in err


def test_prune_knows_before_the_search_that_it_cannot_heal(capsys, tmp_path):
    search = ["prune", TINY, "--remove", "2", "--heal", "-o", tmp_path / "out"]
    for arguments, message in (
        (["--data", "nowhere.txt"], "There is no text nowhere.txt"),
        (["--micro-batch", "3", "--global-batch-size", "8"], "cannot be divided"),
        (["--device", "auto"], "Leave out --device auto"),
        (["--run", tmp_path / "out" / "run"], "is inside the output"),
    ):
        assert message in run(capsys, *search, *arguments, status=2)[1]
    assert not list(tmp_path.iterdir())


def test_a_network_with_custom_code_besides_adapters(capsys, cut, tmp_path):
    pytest.importorskip("peft")
    heal(capsys, cut, tmp_path / "healed", "--network", "ffn", "--lora", "2", "--loss", "kd")
    assert list((tmp_path / "healed").glob("*.py"))


def test_trackers(capsys, cut, tmp_path):
    pytest.importorskip("tensorboard")
    heal(capsys, cut, tmp_path / "healed", "--track", "tensorboard")
    assert list((tmp_path / "healed.run" / "streamliner").rglob("events.out.*"))
