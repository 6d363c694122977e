"""The loss of a graft: which models run how far, on what."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from healing import REMOVED, heal, objective_of
from streamliner.cut.memory import cut_model
from streamliner.errors import HealingError
from streamliner.heal import losses
from streamliner.heal.objective import reaches_all


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


def test_what_is_the_same_in_both_models_runs_once(tiny, calibration):
    """Blocks below the first that is trained run for the dense model alone, and losses and gradients stay the same."""
    windows, ran = calibration.windows[:1], []
    objective = objective_of(tiny, (4, 5), network="none", train_blocks=5, loss={"kd": 1.0, "lm": 0.5})
    for index, block in enumerate(objective.graft.blocks.modules):
        block.self_attn.register_forward_hook(lambda *_, index=index: ran.append(index))
    total, _ = objective(windows)
    assert [ran.count(block) for block in range(12)] == [1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1]  # networks are copies
    total.backward()
    found = {name: parameter.grad.clone() for name, parameter in objective.trainable().items()}
    objective.zero_grad()
    graft = objective.graft
    whole = type(graft).healed_streams
    graft.healed_streams = lambda ids, depths, start: whole(graft, ids, depths)
    again, _ = objective(windows)
    again.backward()
    assert again.item() == pytest.approx(total.item(), rel=1e-6)
    for name, parameter in objective.trainable().items():
        assert torch.allclose(parameter.grad, found[name], rtol=1e-4, atol=1e-7), name


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


def test_blocks_trained_whole_have_the_gradients_of_a_plain_model(tiny, calibration):
    """All kept blocks are trained; the loss `lm` and every gradient are those of the cut model trained alone."""
    windows = calibration.windows[:2]
    objective = objective_of(tiny, REMOVED, network="none", train_blocks="all", loss="lm")
    objective(windows)[0].backward()
    cut = cut_model(copy.deepcopy(tiny), REMOVED).requires_grad_(True)
    cut(input_ids=windows, labels=windows).loss.backward()
    kept = [block for block in range(12) if block not in REMOVED]
    assert sorted(objective.graft.networks) == kept
    for new, old in enumerate(kept):
        plain = dict(cut.model.layers[new].named_parameters())
        for name, parameter in objective.graft.networks[old].named_parameters():
            assert torch.allclose(parameter.grad, plain[name].grad, rtol=1e-3, atol=1e-6), (old, name)


def test_the_last_blocks_are_trained_next_to_a_network_and_adapters(tiny):
    objective = objective_of(tiny, REMOVED, train_blocks=2, lora=2, loss={"kd": 1.0, "mse": 0.1})
    assert sorted(objective.graft.networks) == [3, 8, 10, 11]
    adapted = {name.split("layers.")[1].split(".")[0] for name in objective.trainable() if "lora_" in name}
    assert adapted == {"0", "1", "2", "6", "7"}


def test_without_a_network_streams_are_compared_behind_each_run_of_removed_blocks(tiny, calibration):
    windows = calibration.windows[:1]
    states = cut_model(tiny, REMOVED).model(input_ids=windows, output_hidden_states=True).hidden_states
    dense = tiny.model(input_ids=windows, output_hidden_states=True).hidden_states
    plain = [functional.mse_loss(states[4], dense[6]), functional.mse_loss(states[7], dense[10])]
    objective = objective_of(tiny, REMOVED, network="none", lora=2, loss={"lm": 1.0, "mse": 0.5})
    _, parts = objective(windows)
    assert parts["mse"].item() == pytest.approx((sum(plain) / 2).item(), rel=1e-5)


def test_parts_that_no_loss_reaches_are_noticed(tiny):
    objective = objective_of(tiny, REMOVED)
    assert reaches_all(objective)
    assert all(parameter.grad is None for parameter in objective.parameters())
    objective.networks["expert"] = nn.Linear(3, 3)
    assert not reaches_all(objective)


def untied(model):
    """The model with a head of its own, equal to its embeddings."""
    model = copy.deepcopy(model)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    return model


@pytest.mark.parametrize("train_blocks", [0, "all"])
def test_a_head_that_is_trained_has_the_gradients_of_a_plain_model(tiny, calibration, monkeypatch, train_blocks):
    """Final norm and head are trained, with logits in pieces; loss and gradients are those of the cut model alone."""
    monkeypatch.setattr(losses, "LOGIT_BYTES", 40 * 4 * tiny.config.vocab_size)
    windows, model = calibration.windows[:2], untied(tiny)
    chosen = {"network": "none", "train_head": True, "train_blocks": train_blocks, "loss": "lm"}
    objective = objective_of(model, REMOVED, **chosen)
    total, _ = objective(windows)
    total.backward()
    cut = cut_model(copy.deepcopy(model), REMOVED).requires_grad_(True)
    expected = cut(input_ids=windows, labels=windows).loss
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    norm, head = objective.head.copies
    for ours, plain in ((norm, cut.model.norm), (head, cut.lm_head)):
        assert ours.weight.grad.abs().max() > 0
        assert torch.allclose(ours.weight.grad, plain.weight.grad, rtol=1e-3, atol=1e-6)


def test_a_trained_head_does_not_change_the_dense_model_that_it_is_compared_with(tiny, calibration):
    windows, model = calibration.windows[:1], untied(tiny)
    objective = objective_of(model, REMOVED, network="none", train_head=True, loss="kd")
    with torch.no_grad():
        before = objective(windows)[0].item()
        objective.head.copies[1].weight += 0.1 * torch.randn_like(objective.head.copies[1].weight)
        after = objective(windows)[0].item()
        logits = model(input_ids=windows).logits[:, :-1].log_softmax(-1)
        state = cut_model(model, REMOVED).model(input_ids=windows).last_hidden_state[:, :-1]
        ours = (state @ objective.head.copies[1].weight.T).log_softmax(-1)
    assert after != pytest.approx(before, rel=0.01)
    assert after == pytest.approx((logits.exp() * (logits - ours)).sum(-1).mean().item(), rel=1e-5)


def test_a_head_that_is_the_embeddings_too_is_refused(tiny):
    with pytest.raises(HealingError, match=r"shares weights with model.embed_tokens.weight"):
        objective_of(tiny, REMOVED, network="none", train_head=True, loss="kd")
