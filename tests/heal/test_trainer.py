"""Training against a loop that stores hidden states, as LLM-Streamline's authors do; batches, precision, best state."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional

from healing import few_answers, heal, objective_of, settings, training_text
from places import TINY
from streamliner.errors import HealingError
from streamliner.heal.accelerator import make_accelerator
from streamliner.heal.state import HISTORY
from streamliner.heal.trainer import Prepared, Trainer
from streamliner.model.load import load_model
from streamliner.text.chat import counted


def reference_losses(model, removed, batches, steps, chosen):
    """A plain loop in the way of LLM-Streamline's script, independent of the code it checks."""
    start, stop = removed[0] - 1, removed[-1] + 1
    stored = []
    with torch.no_grad():
        for batch in batches:
            states = model.model(input_ids=batch, output_hidden_states=True).hidden_states
            stored.append((states[start], states[stop]))
    layer = type(model.model.layers[start])(model.config, layer_idx=start)
    layer.load_state_dict(model.model.layers[start].state_dict())
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=chosen.weight_decay)
    warmup = max(1, round(chosen.warmup * steps))
    positions = torch.arange(chosen.sequence_length)[None]
    found = []
    for step, (given_state, wanted) in enumerate(stored, 1):
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress, dtype=torch.float64))).item()
        low = chosen.min_learning_rate / chosen.learning_rate
        share = step / warmup if step < warmup else low + (1 - low) * cosine
        optimiser.param_groups[0]["lr"] = chosen.learning_rate * share
        rotary = model.model.rotary_emb(given_state, positions)
        out = layer(given_state, position_embeddings=rotary, attention_mask=None)
        loss = functional.mse_loss(out[0] if isinstance(out, tuple) else out, wanted)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), chosen.clip)
        optimiser.step()
        found.append(loss.item())
    return found


def test_streamed_training_has_the_losses_of_a_loop_that_stores_hidden_states(tiny, tokenizer, tmp_path):
    steps, removed = 50, (4, 5, 6, 7)
    chosen = settings(steps=steps)
    text = training_text(tokenizer, chosen)
    batches = [text.batch(chosen.global_batch_size) for _ in range(steps)]
    expected = reference_losses(tiny, removed, batches, steps, chosen)
    _, trained, rows = heal(tiny, tokenizer, tmp_path, removed=removed, steps=steps)
    assert [row["mse"] for row in rows[1:]] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < 0.8 * expected[0]
    assert rows[-1]["lr"] == pytest.approx(chosen.min_learning_rate)
    assert trained.tokens == steps * 4 * 64


def test_two_networks_in_one_pass_are_those_trained_alone(tiny, tokenizer, tmp_path):
    both, _, rows = heal(tiny, tokenizer, tmp_path / "both", removed=(4, 9), clip=1e9, validation_windows=0)
    apart = {}
    for name, removed in (("first", (4,)), ("second", (9,))):
        # The loss is the mean over networks, so alone each has twice the weight, which does not matter to AdamW.
        objective, _, own = heal(tiny, tokenizer, tmp_path / name, removed=removed, clip=1e9, validation_windows=0)
        apart |= dict(objective.networks.items())
        rows = [row | {name: alone["loss"]} for row, alone in zip(rows, own, strict=True)]
    assert all(row["loss"] == pytest.approx((row["first"] + row["second"]) / 2, rel=1e-3) for row in rows[1:])
    for place, network in both.networks.items():
        for one, other in zip(network.parameters(), apart[place].parameters(), strict=True):
            assert (one - other).abs().max() < 2e-4 + 1e-2 * other.abs().max()


def test_adapters_merge_to_what_was_trained(tiny, tokenizer, tmp_path, calibration):
    objective, trained, _ = heal(
        tiny, tokenizer, tmp_path, network="none", lora=4, loss={"kd": 1.0}, learning_rate=1e-2, steps=12
    )
    assert trained.best_loss < trained.first_loss
    blocks, windows = objective.graft.blocks, calibration.windows[:1]
    with torch.no_grad(), objective.graft.in_place():
        before = blocks.forward(windows).logits
        objective.graft.adapters.merge()
        after = blocks.forward(windows).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name in tiny.state_dict())


def test_the_best_state_is_kept(tiny, tokenizer, tmp_path):
    """A learning rate that ruins the network: what was best is what comes out."""
    objective, trained, rows = heal(tiny, tokenizer, tmp_path, learning_rate=1.0, min_learning_rate=1.0, clip=1e9)
    validations = {row["step"]: row["validation"] for row in rows if "validation" in row}
    assert trained.best_loss == min(validations.values()) < validations[6]
    assert trained.best_step == min(validations, key=lambda step: validations[step])
    chosen = settings()
    with torch.no_grad():
        again = [objective(window[None])[0].item() for window in training_text(tokenizer, chosen).validation]
    assert sum(again) / len(again) == pytest.approx(trained.best_loss, rel=1e-5)


def test_a_range_test_takes_the_best_rate_and_leaves_all_else_as_it_was(tiny, tokenizer, tmp_path):
    chosen = settings(learning_rate=1e-4, find_learning_rate=True)
    objective = objective_of(tiny, learning_rate=1e-4)
    before = {name: value.clone() for name, value in objective.trainable().items()}
    text, other = training_text(tokenizer, chosen), training_text(tokenizer, chosen)
    accelerator = make_accelerator(chosen, torch.float32, torch.device("cpu"), tmp_path)
    trainer = Trainer(objective, Prepared(chosen, text, 6), accelerator, tmp_path)
    found = trainer.find_learning_rate()
    rates = list(found)[1:]
    assert rates == pytest.approx([1e-5, 3e-5, 1e-4, 3e-4, 1e-3])
    best = min(rates, key=lambda rate: found[rate])
    assert found[best] < found[0.0]
    assert best > 1e-4  # this loss and network want more
    assert all(torch.equal(before[name], value) for name, value in objective.trainable().items())
    assert torch.equal(text.batch(4), other.batch(4))

    text.load(*other.state())
    trained = trainer.run(lambda row: None)
    assert trained.learning_rate == best
    history = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert max(row["lr"] for row in history) == pytest.approx(best)
    again = Trainer(objective_of(tiny), Prepared(chosen, training_text(tokenizer, chosen), 6), accelerator, tmp_path)
    assert again.progress.learning_rate == best


def test_micro_batches_add_up(tiny, tokenizer, tmp_path):
    rows = []
    for size in (1, 4):
        model = load_model(str(TINY), dtype="float32")
        rows.append(heal(model, tokenizer, tmp_path / str(size), micro_batch=size, loss={"lm": 1.0})[2])
    assert [row["loss"] for row in rows[0][1:]] == pytest.approx([row["loss"] for row in rows[1][1:]], rel=1e-5)


def test_bfloat16_trains_in_mixed_precision(tokenizer, tmp_path):
    model = load_model(str(TINY), dtype="bfloat16")
    objective, trained, _ = heal(model, tokenizer, tmp_path, loss={"mse": 1.0, "lm": 1.0}, steps=10)
    assert all(parameter.dtype == torch.float32 for parameter in objective.trainable().values())
    assert trained.best_loss < trained.first_loss
    with pytest.raises(HealingError, match="trained in float32"):
        heal(model, tokenizer, tmp_path, mixed_precision="no")


def test_each_answered_token_counts_alike_whatever_the_micro_batch(tokenizer, tmp_path):
    """A window with few answers weighs less, one without any nothing, in training and in validation."""
    more = {"data": few_answers(tmp_path), "answers_only": True, "loss": "lm", "steps": 2, "clip": 1e9}
    text = training_text(tokenizer, settings(**more))
    counts = counted(text.held_out).sum(1)
    assert counts.min() < counts.max()
    rows = {}
    for size in (1, 4):
        model = load_model(TINY, dtype="float32")
        rows[size] = heal(model, tokenizer, tmp_path / str(size), micro_batch=size, **more)[2]
    for one, other in zip(rows[1], rows[4], strict=True):
        assert one["validation"] == pytest.approx(other["validation"], abs=1e-5)
        assert (one["loss"] or 0) == pytest.approx(other["loss"] or 0, abs=1e-5)


def test_the_last_rate_is_the_lowest_also_of_a_peak_that_was_found(tiny, tokenizer, tmp_path):
    chosen = settings(find_learning_rate=True, learning_rate=1e-4, min_learning_rate=5e-6, steps=4)
    objective = objective_of(tiny)
    blocks, text = objective.graft.blocks, training_text(tokenizer, chosen)
    accelerator = make_accelerator(chosen, blocks.dtype, blocks.device, tmp_path)
    trainer = Trainer(objective, Prepared(chosen, text, 4), accelerator, tmp_path)
    trainer.find_learning_rate()
    assert trainer.peak * trainer._share_of_peak(4) == pytest.approx(5e-6)
