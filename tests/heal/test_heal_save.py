"""Healed checkpoints of every kind on every family: they reload with the same logits, and generate with a cache."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from families import FAMILIES, make_model
from streamliner.cut.verify import expect, verify
from streamliner.heal.custom_code import FILE
from streamliner.heal.objective import make_objective
from streamliner.heal.save import settle, write_healed
from streamliner.heal.settings import HealSettings
from streamliner.model.blocks import Blocks
from streamliner.model.session import ModelSettings, open_session
from streamliner.verbs.cut import cut_to_folder, manual_plan

REMOVED = {"deepseek_v3": (3, 4)}
SWIGLU_IS_STOCK = {"llama", "mistral", "qwen2", "qwen3"}
"""Of FAMILIES: those whose blocks are pre-norm with a SwiGLU, and whose network's place has no experts."""


def healed(tmp_path, family, kind, **settings):
    """A dense model of `family` and its cut, with untrained but changed networks; written and verified."""
    model = make_model(family)
    model.save_pretrained(tmp_path / "dense")
    session = open_session(ModelSettings(str(tmp_path / "dense"), dtype="float32"))
    removed = REMOVED.get(family, (2, 3))
    cut_to_folder(session, manual_plan(session, removed), tmp_path / "cut")
    blocks = Blocks(model)
    objective = make_objective(blocks, removed, HealSettings(network=kind, **settings), bos=False)
    torch.manual_seed(1)
    for parameter in objective.trainable().values():
        parameter.data += torch.randn_like(parameter) * 0.1
    ids = torch.arange(2, 22)[None]
    with torch.no_grad(), objective.graft.in_place():
        trained = blocks.forward(ids).logits
    custom, wasted = settle(objective.graft, tmp_path / "cut", ids)
    with torch.no_grad(), objective.graft.in_place():
        settled = blocks.forward(ids).logits
    assert (settled - trained).abs().max() < 1e-4 * trained.abs().max()
    expected = dataclasses.replace(expect(blocks, (), ids), logits=settled)
    (tmp_path / "healed").mkdir()
    write_healed(objective.graft, custom, tmp_path / "cut", tmp_path / "healed")
    return verify(tmp_path / "healed", expected, trust_remote_code=bool(custom)), custom, wasted


@pytest.mark.parametrize("kind", ["block", "swiglu", "ffn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_on_every_family(tmp_path, family, kind):
    verification, custom, wasted = healed(tmp_path, family, kind)
    assert verification.max_logit_difference < 1e-4
    assert verification.cached_generation is not False
    stock = kind == "block" or (kind == "swiglu" and family in SWIGLU_IS_STOCK)
    assert bool(custom) != stock
    assert bool(wasted) == (stock and kind == "swiglu")
    assert (tmp_path / "healed" / FILE).exists() != stock
    if stock:
        ours, cut = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("healed", "cut"))
        assert ours == cut
