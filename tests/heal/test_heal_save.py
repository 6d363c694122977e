"""Healed checkpoints of every kind on every family: they reload with the same logits, and generate with a cache."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from families import FAMILIES, make_model
from streamliner.cut.safetensors_file import read_checkpoint
from streamliner.cut.verification import verify_checkpoint
from streamliner.errors import VerificationError
from streamliner.heal import merge as merge_module
from streamliner.heal.custom_code import FILE
from streamliner.heal.graft import make_graft
from streamliner.heal.merge import difference_of_logits, merge
from streamliner.heal.networks.make import FEED_FORWARDS
from streamliner.heal.objective import Objective
from streamliner.heal.save import healed_reference, usual_precision, write_healed
from streamliner.heal_settings import HealSettings
from streamliner.model.blocks import Blocks
from streamliner.model.session import open_model
from streamliner.settings import CutSettings, ModelSettings
from streamliner.verbs.cut import cut_to_folder

REMOVED = {"deepseek_v3": (3, 4)}
SWIGLU_IS_STOCK = {"llama", "mistral", "qwen2", "qwen3"}
"""Of FAMILIES: those whose blocks are pre-norm with a SwiGLU, and whose network's place has no experts."""


def healed(tmp_path, family, **settings):
    """A dense model of `family` and its cut, with untrained but changed networks; written and verified."""
    model = make_model(family)
    model.save_pretrained(tmp_path / "dense")
    session = open_model(str(tmp_path / "dense"), ModelSettings(dtype="float32"))
    removed = REMOVED.get(family, (2, 3))
    cut_to_folder(session, removed, tmp_path / "cut", CutSettings(verify=False, quiet=True))
    blocks, chosen = Blocks(model), HealSettings(**settings)
    model.requires_grad_(False)
    objective = Objective(make_graft(blocks, removed, chosen), chosen, first=0)
    graft = objective.graft
    torch.manual_seed(1)
    for parameter in objective.trainable().values():
        parameter.data += torch.randn_like(parameter) * 0.1
    ids = torch.arange(2, 22)[None]
    with torch.no_grad(), graft.in_place():
        trained = blocks.forward(ids).logits
    unused = merge(graft, usual_precision(tmp_path / "cut"), ids)
    reference = healed_reference(graft, ids)
    assert (reference.logits - trained).abs().max() < 1e-4 * trained.abs().max()
    (tmp_path / "healed").mkdir()
    write_healed(graft, tmp_path / "cut", tmp_path / "healed")
    custom = bool(graft.networks)
    return verify_checkpoint(tmp_path / "healed", reference, trust_remote_code=custom), custom, unused


@pytest.mark.parametrize("kind", ["block", *FEED_FORWARDS])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_on_every_family(tmp_path, family, kind):
    verification, custom, unused = healed(tmp_path, family, network=kind)
    assert verification.cached_generation is not False
    stock = kind == "block" or (kind == "swiglu" and family in SWIGLU_IS_STOCK)
    assert custom != stock
    assert bool(unused) == (stock and kind == "swiglu")
    assert (tmp_path / "healed" / FILE).exists() != stock
    if stock:
        ours, cut = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("healed", "cut"))
        assert ours == cut


def test_one_position_that_rounding_changes_is_no_other_model():
    """As in a healed model of 16 bits, where a token of random text was a sink or not."""
    torch.manual_seed(0)
    logits = 5 * torch.randn(1, 64, 1000)
    rounded = logits + 0.2 * torch.randn_like(logits)
    rounded[0, 40] = 5 * torch.randn(1000)
    assert difference_of_logits(rounded, logits) == pytest.approx(0.04, rel=0.1)
    assert difference_of_logits(5 * torch.randn(1, 64, 1000), logits) > 1
    assert math.isnan(difference_of_logits(rounded / 0, logits))


def test_weights_that_do_not_arrive_in_the_model_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(merge_module, "stock_blocks", lambda graft, sample: {})
    with pytest.raises(VerificationError, match="of their spread"):
        healed(tmp_path, "llama", network="block", train_blocks=2, loss="kd")


@pytest.mark.parametrize("kind", ["none", "block", "ffn"])
def test_adapters_besides_networks(tmp_path, kind):
    pytest.importorskip("peft")
    verification, custom, _ = healed(tmp_path, "llama", network=kind, lora=2, loss="kd")
    assert verification.cached_generation
    assert custom == (kind == "ffn")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_blocks_that_were_trained_whole(tmp_path, family):
    verification, custom, _ = healed(tmp_path, family, network="block", train_blocks=2, loss="kd")
    assert verification.cached_generation
    assert not custom


@pytest.mark.parametrize("network", ["none", "swiglu", "ffn"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_head_that_was_trained(tmp_path, family, network):
    verification, _, _ = healed(tmp_path, family, network=network, train_head=True, loss="kd")
    assert verification.cached_generation
    cut, ours = (
        {name: file.unchanged(name).load() for file in read_checkpoint(tmp_path / each) for name in file.tensors}
        for each in ("cut", "healed")
    )
    changed = {name for name in cut.keys() & ours.keys() if not torch.equal(cut[name], ours[name])}
    if network == "none":
        norm = {
            "llama": {"model.norm.weight"},
            "gpt_neox": {f"gpt_neox.final_layer_norm.{k}" for k in ("weight", "bias")},
        }
        assert changed == norm[family] | {{"llama": "lm_head.weight", "gpt_neox": "embed_out.weight"}[family]}


def test_custom_code_imports_only_torch_and_transformers(tmp_path):
    healed(tmp_path, "llama", network="ffn")
    code = (tmp_path / "healed" / FILE).read_text()
    imports = re.findall(r"^\s*(?:from|import) (\w+)", code, re.MULTILINE)
    assert set(imports) == {"typing", "torch", "transformers"}
    assert "class FFN" in code
    assert "class SwiGLU" not in code
