"""Losses over a part of the vocabulary, against those over all of it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from families import make_model
from healing import REMOVED, heal, objective_of, settings, training_text
from streamliner.errors import HealingError, UnsupportedModelError
from streamliner.heal.objective import Objective
from streamliner.heal.sampled_softmax import SampledSoftmax, make_sampled_softmax
from streamliner.model.blocks import Blocks

FULL = {"network": "none", "train_blocks": "all", "loss": {"kd": 1.0, "lm": 0.5}}


def losses_and_gradients(objective, windows):
    total, parts = objective(windows)
    objective.zero_grad()
    total.backward()
    gradient = torch.cat([each.grad.flatten() for each in objective.trainable().values()])
    return {name: value.item() for name, value in parts.items()}, gradient


@pytest.mark.parametrize("answers_only", [False, True])
def test_a_sample_of_all_others_gives_the_losses_of_the_whole_vocabulary(tiny, calibration, answers_only):
    chosen = FULL | {"answers_only": answers_only}
    windows, plain = calibration.windows[:2].clone(), objective_of(tiny, REMOVED, **chosen)
    if answers_only:
        windows[:, 3:40] = ~windows[:, 3:40]  # marked: their losses do not count
    blocks, whole = plain.graft.blocks, tiny.lm_head.weight
    sampled = SampledSoftmax(blocks, torch.arange(300), tiny.config.vocab_size, 0)
    objective = Objective(plain.graft, settings(**chosen), first=0, sampled=sampled)
    expected, found = (losses_and_gradients(each, windows) for each in (plain, objective))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert torch.allclose(found[1], expected[1], rtol=1e-3, atol=1e-6)
    assert tiny.lm_head.weight is whole


def test_a_sample_is_right_in_the_mean_and_without_gradients_there_is_none(tiny, calibration):
    """The sum that a softmax divides by, over 100 samples; each stands for 17 tokens that are not in the text."""
    windows, plain = calibration.windows[:1], objective_of(tiny, REMOVED, **FULL)
    blocks = plain.graft.blocks
    stream = blocks.streams(windows, {12})[12].detach()
    positions = torch.arange(8)
    whole = blocks.logits(stream, windows, positions).exp().sum(-1)
    sums = []
    for seed in range(100):
        sampled = SampledSoftmax(blocks, torch.arange(200), 40, seed)
        with sampled.drawn_for(windows) as drawn, torch.no_grad():
            sums.append((blocks.logits(stream, windows, positions) + drawn.correction).exp().sum(-1))
        assert torch.equal(drawn.tokens[drawn.windows], windows)
        assert len(drawn.tokens) < 200 + 40 + len(windows.unique())
    mean, error = torch.stack(sums).mean(0), torch.stack(sums).std(0) / 10
    assert ((mean - whole).abs() < 5 * error + 1e-3 * whole).all()
    objective = Objective(plain.graft, settings(**FULL), first=0, sampled=sampled)
    with torch.no_grad():
        assert objective(windows)[0].item() == plain(windows)[0].item()


def test_a_head_that_shares_its_weights_with_the_embeddings_leaves_them_alone(calibration):
    """Gemma's weights are shared, and its logits are soft-capped here: on the narrowed head too."""
    model = make_model("gemma2", vocab_size=1024, final_logit_softcapping=3.0)
    windows = calibration.windows[:2]
    plain = objective_of(model, (2,), **FULL)
    sampled = SampledSoftmax(plain.graft.blocks, torch.arange(300), 1024, 0)
    objective = Objective(plain.graft, settings(**FULL), first=0, sampled=sampled)
    expected, found = (losses_and_gradients(each, windows) for each in (plain, objective))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert torch.allclose(found[1], expected[1], rtol=1e-3, atol=1e-6)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_frequent_tokens_of_texts_are_those_of_their_first_windows_by_weight(tokenizer, tmp_path):
    (tmp_path / "other.txt").write_text("with " * 2000)
    text = training_text(tokenizer, settings(data={"python-docs": 0.9, str(tmp_path / "other.txt"): 0.1}))
    before = text.state()
    found = text.frequent_tokens(4, 3).tolist()
    assert text.state()[0] == before[0]
    counts = [Counter(token for _ in range(3) for token in packer.next()) for packer in text._packers]
    shares = [{token: number / count.total() for token, number in count.items()} for count in counts]
    pairs = list(zip((0.9, 0.1), shares, strict=True))
    weighted = {token: sum(w * s.get(token, 0) for w, s in pairs) for s in shares for token in s}
    assert found == sorted(weighted, key=lambda token: (-weighted[token], token))[:4]
    assert {max(share, key=share.get) for share in shares} <= set(found)


def test_little_to_leave_out_is_said(tiny, tokenizer):
    said = []
    chosen = settings(**FULL, sampled_softmax=900)
    assert make_sampled_softmax(Blocks(tiny), chosen, training_text(tokenizer, chosen), 2, said.append) is None
    assert "The losses are over the whole vocabulary" in said[0]


def test_the_same_windows_have_the_same_sample_and_others_another(tiny, calibration):
    """So a run that was killed continues with the losses of an undisturbed one."""
    drawn = []
    for window in (0, 0, 1):
        with SampledSoftmax(Blocks(tiny), torch.arange(900), 20, 3).drawn_for(calibration.windows[[window]]) as found:
            drawn.append(found.tokens)
    assert torch.equal(drawn[0], drawn[1])
    assert drawn[0].shape != drawn[2].shape or not torch.equal(drawn[0], drawn[2])


def test_training_on_a_part_of_the_vocabulary_helps_as_much(tiny, tokenizer, tmp_path):
    options = FULL | {"steps": 12}
    _, plain, _ = heal(tiny, tokenizer, tmp_path / "plain", **options)
    objective, found, _ = heal(tiny, tokenizer, tmp_path / "sampled", **options, sampled_softmax=128)
    assert objective._sampled is not None
    assert found.first_loss == plain.first_loss  # validation is over all tokens
    assert found.first_loss - found.best_loss > 0.8 * (plain.first_loss - plain.best_loss) > 0


@pytest.mark.parametrize("wrong", [{"loss": "mse"}, {"train_head": True}, {"top_k": 5}])
def test_what_does_not_go_together(wrong):
    with pytest.raises(HealingError, match="--sampled-softmax is for"):
        settings(**{"network": "block", "loss": "kd", "sampled_softmax": 8} | wrong)


@pytest.mark.parametrize("kind", ["a bias of its own", "other numbers", "the embeddings"])
def test_other_heads_are_refused(tiny, kind):
    if kind == "a bias of its own":
        tiny.lm_head.register_forward_hook(lambda _, inputs, out: out + torch.zeros(1024))
    elif kind == "other numbers":
        tiny.lm_head.register_forward_hook(lambda _, inputs, out: out - out.mean(-1, keepdim=True))
    else:
        tiny.get_output_embeddings = tiny.get_input_embeddings
    with pytest.raises(UnsupportedModelError, match="cannot be computed for a part"):
        SampledSoftmax(Blocks(tiny), torch.arange(9), 9, 0)
