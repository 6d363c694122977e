"""The loss of a graft: which models run how far, on what."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from healing import REMOVED, heal, objective_of
from streamliner.cut.memory import cut_model
from streamliner.errors import HealingError
from streamliner.heal.trainer import reaches_all


def test_before_training_the_healed_model_is_the_cut_one(tiny, tokenizer, calibration):
    """A block that starts as the gap's first gives the cut model; its lm loss is the cut model's."""
    objective = objective_of(tiny, REMOVED, loss="lm")
    windows = calibration.windows[:2]
    cut = cut_model(tiny, REMOVED)
    with torch.no_grad():
        expected = cut(input_ids=windows, labels=windows).loss
        total, parts = objective(windows)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["lm"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_lowers_kd_and_leaves_dense_weights_unchanged(tiny, tokenizer, tmp_path):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    _, _, rows = heal(tiny, tokenizer, tmp_path, loss={"mse": 1.0, "kd": 0.5})
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
    assert rows[-1]["kd"] < rows[1]["kd"]
    assert rows[1]["loss"] == pytest.approx(rows[1]["mse"] + 0.5 * rows[1]["kd"], rel=1e-5)


def test_blocks_after_the_last_gap_do_not_run(tiny):
    objective = objective_of(tiny, (4, 5))
    ran = []
    for index, block in enumerate(objective.graft.blocks.modules):
        block.self_attn.register_forward_hook(lambda *_, index=index: ran.append(index))
    objective(torch.arange(2, 34).view(2, 16))
    assert ran == [0, 1, 2, 3, 4, 5]  # those in the gap once, for the target; the network is a copy


def test_shared_weights_are_refused(tiny):
    tiny.model.layers[7].mlp = tiny.model.layers[3].mlp
    with pytest.raises(HealingError, match="Blocks 3, 7 share weights"):
        objective_of(tiny, (4, 5))
    objective_of(tiny, (9,))


def test_networks_can_be_trained_on_the_cut_models_own_stream(tiny, calibration):
    """The second network's input is then the output of the first."""
    windows, removed = calibration.windows[:1], (4, 5, 8, 9)
    on_dense, on_cut = objective_of(tiny, removed), objective_of(tiny, removed, network_input="cut")
    states = cut_model(tiny, removed).model(input_ids=windows, output_hidden_states=True).hidden_states
    dense = tiny.model(input_ids=windows, output_hidden_states=True).hidden_states
    plain = [functional.mse_loss(states[4], dense[6]), functional.mse_loss(states[6], dense[10])]
    assert on_cut(windows)[0].item() == pytest.approx((sum(plain) / 2).item(), rel=1e-5)
    assert on_dense(windows)[0].item() < on_cut(windows)[0].item()


def test_parts_that_no_loss_reaches_are_noticed(tiny):
    objective = objective_of(tiny, REMOVED)
    assert reaches_all(objective)
    assert all(parameter.grad is None for parameter in objective.parameters())
    objective.networks["expert"] = nn.Linear(3, 3)
    assert not reaches_all(objective)
