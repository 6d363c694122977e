"""Healing: gaps, losses and streams against their plain forms; training against a loop that stores hidden states."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from places import TINY
from streamliner.cut.memory import cut_model
from streamliner.errors import HealingError, RemovalError, TextError
from streamliner.heal import losses
from streamliner.heal.adapters import merge_adapters
from streamliner.heal.gaps import find_gaps
from streamliner.heal.objective import make_objective
from streamliner.heal.settings import HealSettings
from streamliner.heal.state import HISTORY
from streamliner.heal.trainer import count_steps, make_accelerator, train
from streamliner.model.blocks import Blocks
from streamliner.model.load import load_model
from streamliner.model.source import locate
from streamliner.text.sources import PIECE, stream_documents
from streamliner.text.stream import Mixture

REMOVED = (4, 5, 9)
SHORT = {
    "data": (("python-docs", 1.0),),
    "sequence_length": 64,
    "batch_size": 4,
    "micro_batch": 2,
    "learning_rate": 1e-3,
    "validations": 2,
    "validation_windows": 4,
}


def settings(**changes):
    return HealSettings(**(SHORT | {"steps": 6} | changes))


def mixture(tokenizer, chosen):
    return Mixture(
        chosen.data,
        tokenizer,
        sequence_length=chosen.sequence_length,
        validation_windows=chosen.validation_windows,
        seed=chosen.seed,
    )


def heal(model, tokenizer, folder, removed=REMOVED, **changes):
    """Train; returns the objective, what came of it, and the rows of its history."""
    chosen = settings(**changes)
    blocks = Blocks(model)
    objective = make_objective(blocks, removed, chosen, bos=False)
    text = mixture(tokenizer, chosen)
    accelerator = make_accelerator(chosen, blocks.dtype, blocks.device, folder)
    steps = count_steps(chosen, text)
    trained = train(objective, text, chosen, steps, accelerator, folder, lambda row: None)
    rows = [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]
    return objective, trained, rows


# Gaps


@given(st.sets(st.integers(0, 11), min_size=1, max_size=11), st.integers(1, 3))
def test_gaps_cover_what_is_removed_and_places_stay(removed, depth):
    removed = tuple(sorted(removed))
    try:
        gaps = find_gaps(removed, 12, depth)
    except RemovalError:
        return
    inside = [block for gap in gaps for block in range(gap.start, gap.stop)]
    places = [block for gap in gaps for block in gap.places]
    assert len(set(inside)) == len(inside)
    assert sorted(set(inside) - set(places)) == list(removed)
    assert all(len(gap.places) == depth for gap in gaps)
    assert not set(places) & set(removed)


def test_gaps_of_the_paper():
    """Blocks l to l+n become one that starts from block l, so n are gone."""
    (gap,) = find_gaps(tuple(range(4, 12)), 20)
    assert (gap.start, gap.stop, gap.places) == (3, 12, (3,))
    assert str(gap).startswith("9 blocks become 1: 3, 4, ")
    assert [gap.places for gap in find_gaps((0, 5), 12)] == [(1,), (4,)]
    with pytest.raises(RemovalError, match="too few"):
        find_gaps((3, 5), 12, 2)


# Losses


@pytest.mark.parametrize("at_once", [1 << 30, 4 * 50 * 3 * 2])
@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("weights", [{"lm": 1.0}, {"kd": 1.0}, {"lm": 0.3, "kd": 0.7}])
def test_head_losses_and_gradients_equal_autograd(monkeypatch, at_once, top_k, weights):
    monkeypatch.setattr(losses, "LOGIT_BYTES", at_once)
    torch.manual_seed(0)
    words = torch.randn(50, 8)
    stream, dense = torch.randn(3, 7, 8, requires_grad=True), torch.randn(3, 7, 8)
    ids = torch.randint(0, 50, (3, 7))
    total, parts = losses.head_losses(lambda s, p: s[:, p] @ words.T, stream, dense, ids, weights, top_k, 50)
    (gradient,) = torch.autograd.grad(2 * total, stream)

    logits, goal = ((each[:, :-1] @ words.T).flatten(0, 1).log_softmax(-1) for each in (stream, dense))
    plain = {"lm": functional.nll_loss(logits, ids[:, 1:].flatten())}
    if top_k:
        goal, chosen = goal.topk(top_k, -1)
        logits = logits.gather(-1, chosen)
        logits, goal = (torch.cat([x, (1 - x.exp().sum(-1, keepdim=True)).log()], -1) for x in (logits, goal))
    plain["kd"] = functional.kl_div(logits, goal, reduction="batchmean", log_target=True)
    expected = sum(weight * plain[name] for name, weight in weights.items())
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {name: plain[name].item() for name in weights}, rel=1e-5
    )
    torch.testing.assert_close(gradient, torch.autograd.grad(2 * expected, stream)[0], rtol=1e-4, atol=1e-6)


def test_gradients_in_float16_neither_vanish_nor_overflow():
    """Near convergence, and with the first scale of a scaler: the same as in float32, but for rounding."""
    torch.manual_seed(0)
    words, dense = torch.randn(50, 8) * 0.3, torch.randn(4, 65, 8)
    ids = torch.randint(0, 50, (4, 65))
    gradients = []
    for dtype in (torch.float32, torch.float16):
        stream = (dense + 1e-2).to(dtype).requires_grad_(True)
        head = lambda s, p, dtype=dtype: s[:, p] @ words.to(dtype).T  # noqa: E731
        total, _ = losses.head_losses(head, stream, dense.to(dtype), ids, {"kd": 1.0}, None, 50)
        (total * 65536).backward()
        gradients.append(stream.grad.float())
    assert gradients[1].isfinite().all()
    assert (gradients[1][:, :-1] != 0).float().mean() > 0.99
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.2, atol=gradients[0].abs().max().item() * 0.2)


def test_shared_weights_are_refused(tiny):
    tiny.model.layers[7].mlp = tiny.model.layers[3].mlp
    with pytest.raises(HealingError, match="Blocks 3, 7 share weights"):
        make_objective(Blocks(tiny), (4, 5), settings(), bos=False)
    make_objective(Blocks(tiny), (9,), settings(), bos=False)


def test_stream_losses_leave_bos_out_and_normalise():
    output, target = torch.zeros(1, 3, 2), torch.tensor([[[1e4, 0.0], [2.0, 0.0], [0.0, 4.0]]])
    assert losses.stream_loss("mse", output, target, first=1).item() == pytest.approx((4 / 2 + 16 / 2) / 2)
    assert losses.stream_loss("normalized-mse", output, target, first=1).item() == pytest.approx(1.0)
    assert losses.stream_loss("mse", output, target, first=0).item() > 1e7


def test_before_training_the_healed_model_is_the_cut_one(tiny, tokenizer, calibration):
    """A block that starts as the gap's first gives the cut model; its lm loss is the cut model's."""
    blocks = Blocks(tiny)
    objective = make_objective(blocks, REMOVED, settings(loss={"lm": 1.0}), bos=False)
    windows = calibration.windows[:2]
    cut = cut_model(tiny, REMOVED)
    with torch.no_grad():
        expected = cut(input_ids=windows, labels=windows).loss
        total, parts = objective(windows)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["lm"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_kd_of_nothing_removed_is_zero_and_dense_weights_do_not_change(tiny, tokenizer, tmp_path):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    _, _, rows = heal(tiny, tokenizer, tmp_path, loss={"mse": 1.0, "kd": 0.5})
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
    assert rows[-1]["kd"] < rows[1]["kd"]
    assert rows[1]["loss"] == pytest.approx(rows[1]["mse"] + 0.5 * rows[1]["kd"], rel=1e-5)


def test_blocks_behind_the_last_gap_do_not_run(tiny):
    blocks = Blocks(tiny)
    objective = make_objective(blocks, (4, 5), settings(), bos=False)
    ran = []
    for index, block in enumerate(blocks.modules):
        block.self_attn.register_forward_hook(lambda *_, index=index: ran.append(index))
    objective(torch.arange(2, 34).view(2, 16))
    assert ran == [0, 1, 2, 3, 4, 5]  # those in the gap once, for the target; the network is a copy


# Parity with the authors' way: hidden states of the dense model are stored, then a network is trained on them


def reference_losses(model, removed, batches, steps, chosen):
    """A plain loop in the manner of LLM-Streamline's script, written apart from the code it checks."""
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
    text = mixture(tokenizer, chosen)
    batches = [text.batch(chosen.batch_size) for _ in range(steps)]
    expected = reference_losses(tiny, removed, batches, steps, chosen)
    _, trained, rows = heal(tiny, tokenizer, tmp_path, removed=removed, steps=steps)
    assert [row["mse"] for row in rows[1:]] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < 0.8 * expected[0]
    assert rows[-1]["lr"] == pytest.approx(chosen.min_learning_rate)
    assert trained.tokens == steps * 4 * 64


def test_two_networks_in_one_pass_are_those_trained_alone(tiny, tokenizer, tmp_path):
    for name in ("both", "first", "second"):
        (tmp_path / name).mkdir()
    both, _, rows = heal(tiny, tokenizer, tmp_path / "both", removed=(4, 9), clip=1e9, validation_windows=0)
    apart = {}
    for name, removed in (("first", (4,)), ("second", (9,))):
        # The loss is the mean over networks, so alone each has twice the weight; AdamW does not mind.
        objective, _, own = heal(tiny, tokenizer, tmp_path / name, removed=removed, clip=1e9, validation_windows=0)
        apart |= dict(objective.networks.items())
        rows = [row | {name: alone["loss"]} for row, alone in zip(rows, own, strict=True)]
    assert all(row["loss"] == pytest.approx((row["first"] + row["second"]) / 2, rel=1e-3) for row in rows[1:])
    for place, network in both.networks.items():
        for one, other in zip(network.parameters(), apart[place].parameters(), strict=True):
            assert (one - other).abs().max() < 2e-4 + 1e-2 * other.abs().max()


def test_a_network_may_see_the_cut_models_own_stream(tiny, calibration):
    """The second network's input is then what the first puts out."""
    blocks, windows = Blocks(tiny), calibration.windows[:1]
    removed = (4, 5, 8, 9)
    on_dense = make_objective(blocks, removed, settings(), bos=False)
    on_cut = make_objective(blocks, removed, settings(network_input="cut"), bos=False)
    states = cut_model(tiny, removed).model(input_ids=windows, output_hidden_states=True).hidden_states
    dense = tiny.model(input_ids=windows, output_hidden_states=True).hidden_states
    plain = [functional.mse_loss(states[4], dense[6]), functional.mse_loss(states[6], dense[10])]
    assert on_cut(windows)[0].item() == pytest.approx((sum(plain) / 2).item(), rel=1e-5)
    assert on_dense(windows)[0].item() < on_cut(windows)[0].item()


@pytest.mark.parametrize("init", ["first", "last", "mean", "random"])
def test_init(tiny, init):
    blocks = Blocks(tiny)
    objective = make_objective(blocks, (4, 5), settings(init=init, network_depth=2), bos=False)
    gap = range(2, 6)
    assert sorted(objective.networks) == ["2", "3"]
    for number, place in enumerate(("2", "3")):
        own = objective.networks[place].mlp.up_proj.weight
        weights = [blocks.modules[index].mlp.up_proj.weight for index in gap]
        expected = {"first": weights[number], "last": weights[2 + number], "mean": torch.stack(weights).mean(0)}
        if init == "random":
            assert own.std().item() == pytest.approx(tiny.config.initializer_range, rel=0.1)
        else:
            torch.testing.assert_close(own, expected[init])
        assert own.requires_grad


def test_adapters_merge_to_what_was_trained(tiny, tokenizer, tmp_path, calibration):
    objective, trained, _ = heal(
        tiny, tokenizer, tmp_path, network="none", lora=4, loss={"kd": 1.0}, learning_rate=1e-2, steps=12
    )
    assert trained.best_loss < trained.first_loss
    blocks, windows = objective.graft.blocks, calibration.windows[:1]
    with torch.no_grad(), objective.graft.in_place():
        before = blocks.forward(windows).logits
        merge_adapters(blocks)
        after = blocks.forward(windows).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name in tiny.state_dict())


# Training


def test_the_best_state_is_kept(tiny, tokenizer, tmp_path):
    """A learning rate that ruins the network: what was best is what comes out."""
    objective, trained, rows = heal(tiny, tokenizer, tmp_path, learning_rate=1.0, min_learning_rate=1.0, clip=1e9)
    validations = {row["step"]: row["validation"] for row in rows if "validation" in row}
    assert trained.best_loss == min(validations.values()) < validations[6]
    assert trained.best_step == min(validations, key=lambda step: validations[step])
    chosen = settings()
    with torch.no_grad():
        again = [objective(window[None])[0].item() for window in mixture(tokenizer, chosen).validation]
    assert sum(again) / len(again) == pytest.approx(trained.best_loss, rel=1e-5)


def test_micro_batches_add_up(tiny, tokenizer, tmp_path):
    rows = []
    for size in (1, 4):
        (tmp_path / str(size)).mkdir()
        model = load_model(locate(str(TINY)), dtype="float32")
        rows.append(heal(model, tokenizer, tmp_path / str(size), micro_batch=size, loss={"lm": 1.0})[2])
    assert [row["loss"] for row in rows[0][1:]] == pytest.approx([row["loss"] for row in rows[1][1:]], rel=1e-5)


def test_bfloat16_trains_in_mixed_precision(tokenizer, tmp_path):
    model = load_model(locate(str(TINY)), dtype="bfloat16")
    objective, trained, _ = heal(model, tokenizer, tmp_path, loss={"mse": 1.0, "lm": 1.0}, steps=10)
    assert all(parameter.dtype == torch.float32 for parameter in objective.trainable().values())
    assert trained.best_loss < trained.first_loss
    with pytest.raises(HealingError, match="trained in float32"):
        heal(model, tokenizer, tmp_path, mixed_precision="no")


def test_budgets(tokenizer):
    text = mixture(tokenizer, settings())
    assert count_steps(settings(steps=7), text) == 7
    assert count_steps(settings(steps=None, tokens=4 * 64 * 9 + 5), text) == 9
    windows = text.windows_in_a_pass()
    assert count_steps(settings(steps=None, epochs=2), text) == 2 * windows // 4
    assert text.batch(2).tolist() == mixture(tokenizer, settings()).batch(2).tolist()  # counting changes nothing
    with pytest.raises(HealingError, match="less than one step"):
        count_steps(settings(steps=None, tokens=5), text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "mlp"}, "--network has no mlp"),
        ({"loss": {"mae": 1.0}}, "--loss has no mae"),
        ({"loss": {"mse": -1.0}}, "must be more than 0"),
        ({"network": "none"}, "nothing to train"),
        ({"network": "none", "lora": 4}, "through the whole model"),
        ({"network": "none", "lora": 4, "loss": {"kd": 1.0, "mse": 1.0}}, "no stream to match"),
        ({"tokens": 5, "epochs": 1.0, "steps": None}, "more than once"),
        ({"top_k": 5}, "--loss kd"),
        ({"batch_size": 0}, "--batch-size must be more than 0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(HealingError, match=message):
        settings(**changes)


# Text


def test_mixture_goes_on_where_it_was(tokenizer, tmp_path):
    for name, count in (("a", 300), ("b", 40)):
        rows = [json.dumps({"text": f"{name} {number} " * 20}) for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    chosen = settings(data=((str(tmp_path / "a.jsonl"), 3.0), (str(tmp_path / "b.jsonl"), 1.0)))
    text, other = mixture(tokenizer, chosen), mixture(tokenizer, chosen)
    text.batch(700)
    state, buffer = text.state()
    other.load(json.loads(json.dumps(state)), buffer)
    assert torch.equal(text.batch(100), other.batch(100))
    assert text.passes == other.passes
    assert text.passes[str(tmp_path / "b.jsonl")] > 0


def test_mixture_has_its_shares_and_holds_out(tokenizer, tmp_path):
    for name in ("aaaa", "bbbb"):
        (tmp_path / f"{name}.txt").write_text((f"{name} " * 30 + "\n") * 400)
    chosen = settings(data=((str(tmp_path / "aaaa.txt"), 3.0), (str(tmp_path / "bbbb.txt"), 1.0)), validation_windows=8)
    text = mixture(tokenizer, chosen)
    batch = tokenizer.batch_decode(text.batch(800))
    assert sum("aaaa" in window for window in batch) / 800 == pytest.approx(0.75, abs=0.05)
    held = tokenizer.batch_decode(text.validation)
    assert ["aaaa" in window for window in held] == [True] * 6 + [False] * 2


def test_held_out_windows_are_never_trained_on(tokenizer):
    chosen = settings(validation_windows=20)
    text = mixture(tokenizer, chosen)
    held = {tuple(window) for window in text.validation.tolist()}
    total = text.windows_in_a_pass()
    seen = [tuple(window) for window in text.batch(3 * total).tolist()]
    assert len(held) == 20
    assert not held & set(seen)
    assert len(set(seen)) == total
    assert text.passes["python-docs"] >= 2


def test_text_that_is_too_short(tokenizer, tmp_path):
    (tmp_path / "x.txt").write_text("too short")
    with pytest.raises(TextError, match="none is left"):
        mixture(tokenizer, settings(data=((str(tmp_path / "x.txt"), 1.0),)))


def test_a_large_text_file_comes_in_pieces_that_end_with_a_line(tmp_path):
    path = tmp_path / "large.txt"
    whole = "".join(f"line {number} of a text\n" for number in range(200_000))
    path.write_text(whole)
    pieces = list(stream_documents(str(path)))
    assert len(pieces) > 3
    assert all(len(piece) < PIECE + 100 and piece.endswith("\n") for piece in pieces)
    assert "".join(pieces) == whole
    assert next(stream_documents(str(path), skip=2)) == pieces[2]
