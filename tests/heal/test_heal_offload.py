"""Healing with gradients through blocks that are computed again, and whose weights may wait on the disk."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks

from command import run
from kill import finish
from places import TINY
from streamliner.heal.graft import make_graft
from streamliner.heal.objective import Objective
from streamliner.heal_settings import HealSettings
from streamliner.model.session import open_model
from streamliner.settings import ModelSettings

SMALL = ["--steps", "3", "--global-batch-size", "4", "--micro-batch", "2", "--sequence-length", "32", "--lr", "1e-3"]
SMALL += ["--validation-windows", "2", "--validations", "1", "--device", "cpu", "-q"]


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healing") / "cut"
    finish("cut", TINY, "--blocks", "5,6", "-o", folder, "-q")
    return folder


def losses(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [row[key] for row in rows for key in ("loss", "validation") if row.get(key) is not None]


@pytest.mark.parametrize(
    "settings",
    [
        ["--loss", "mse"],
        ["--loss", "kd", "--loss", "normalized-mse=0.1", "--train-blocks", "2", "--init", "mean"],
        ["--loss", "lm", "--network", "swiglu"],
    ],
    ids=" ".join,
)
def test_a_model_on_the_disk_is_healed_as_one_in_memory(capsys, cut, tmp_path, settings):
    """The same losses, and a checkpoint that was compared with the healed model."""
    ways = {"memory": [], "again": ["--gradient-checkpointing"], "disk": ["--offload", "disk"]}
    if "kd" not in settings:
        del ways["again"]
    for name, more in ways.items():
        run(capsys, "heal", cut, "--dense", TINY, "-o", tmp_path / name, *SMALL, *settings, *more)
    expected = losses(tmp_path / "memory.run")
    assert len(expected) == 5
    assert expected[-1] < expected[0]
    weights = load_file(tmp_path / "memory" / "model.safetensors")
    for name in [*ways][1:]:
        assert losses(tmp_path / f"{name}.run") == pytest.approx(expected, rel=1e-6)
        found = load_file(tmp_path / name / "model.safetensors")
        assert found.keys() == weights.keys()
        assert all(torch.allclose(found[each], weights[each], atol=1e-5) for each in weights)
        mark = json.loads((tmp_path / name / "streamliner.json").read_text())
        assert mark["healing"]["verification"]["max_logit_difference"] < 1e-4


@pytest.mark.parametrize("recomputes", [True, False])
def test_no_weight_of_a_frozen_block_is_kept_for_gradients(cut, recomputes):
    session = open_model(TINY, ModelSettings(device="cpu", offload="disk"))
    graft = make_graft(session.load(), (5, 6), HealSettings(loss="lm"))
    assert graft.recomputes
    graft.recomputes = recomputes
    assert [index for index, nbytes in enumerate(graft.blocks.offloaded_bytes) if not nbytes] == [4]  # the network's
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
        loss, _ = Objective(graft, HealSettings(loss="lm"), first=0)(torch.arange(64)[None])
    loss.backward()
    weights = {each.shape for each in graft.blocks.modules[9].parameters() if each.ndim > 1}
    assert bool(weights & set(kept)) != recomputes
    assert all(each.is_meta for each in graft.blocks.modules[9].parameters())
    assert all(each.grad is not None for each in graft.networks[4].parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora", "4", "--network", "none", "--loss", "kd"], "--lora changes blocks all over the model"),
        (["--fold", "refit"], "--fold changes blocks all over the model"),
        (["--network", "ffn"], "needs all weights in memory"),
    ],
    ids=["lora", "fold", "ffn"],
)
def test_what_needs_weights_in_memory_is_refused(capsys, cut, tmp_path, arguments, message):
    size = SMALL if "refit" not in arguments else SMALL[4:8] + SMALL[10:]
    out = tmp_path / "healed"
    _, err = run(capsys, "heal", cut, "--dense", TINY, "-o", out, "--offload", "disk", *size, *arguments, status=2)
    assert message in " ".join(err.split())
    assert not out.exists()
