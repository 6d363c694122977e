"""Conversations: which tokens are answers, and that only their loss counts."""

from __future__ import annotations

import json

import pytest
import torch

from chats import TALK, chatting, rows_file
from healing import settings
from streamliner.errors import HealingError, TextError
from streamliner.heal.graft import make_graft
from streamliner.heal.objective import Objective
from streamliner.model.blocks import Blocks
from streamliner.text.chat import counted, encode, encode_answers, token_ids
from streamliner.text.stream import TrainingText

FORGETFUL = "{% for m in messages %}{% if loop.last %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"


def training_text(tokenizer, source, **options):
    sources = ((source, 1.0),)
    return TrainingText(sources, tokenizer, sequence_length=64, validation_windows=4, seed=0, **options)


def test_answers_and_their_ends_count(tokenizer):
    talking = chatting(tokenizer)
    found = encode_answers(talking, TALK)
    assert [~each if each < 0 else each for each in found] == encode(talking, TALK)
    assert talking.decode([each for each in found if each >= 0]).strip() == (
        "A sequence of values.<end>\nOne that does not change.<end>"
    )


def test_a_template_that_forgets_is_refused(tokenizer):
    with pytest.raises(TextError, match="writes earlier messages in another way"):
        encode_answers(chatting(tokenizer, FORGETFUL), TALK)


def test_a_template_that_wants_other_roles_says_so(tokenizer):
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    with pytest.raises(TextError, match=r"roles: system, user.*no system role"):
        encode(chatting(tokenizer, strict), TALK)


def test_windows_have_the_same_tokens_with_and_without_marks(tokenizer, tmp_path):
    talking, source = chatting(tokenizer), rows_file(tmp_path)
    plain, only = training_text(talking, source), training_text(talking, source, answers_only=True)
    assert torch.equal(plain.validation, only.validation)
    batch = only.batch(8)
    assert torch.equal(plain.batch(8), token_ids(batch))
    assert 0.1 < counted(batch).float().mean() < 0.6
    state, buffer = only.state()
    other = training_text(talking, source, answers_only=True)
    other.load(json.loads(json.dumps(state)), buffer)
    assert torch.equal(only.batch(50), other.batch(50))


def test_text_without_conversations_is_refused(tokenizer):
    with pytest.raises(TextError, match="no conversations"):
        training_text(tokenizer, "python-docs", answers_only=True)


def test_only_answers_have_a_loss(tiny, tokenizer, tmp_path):
    """The loss and the gradients are those of a plain model on the tokens of answers alone."""
    talking = chatting(tokenizer)
    batch = training_text(talking, rows_file(tmp_path), answers_only=True).batch(2)
    wanted = settings(network="none", train_blocks="all", loss="lm", answers_only=True)
    objective = Objective(make_graft(Blocks(tiny), (5,), wanted), wanted, first=0)
    loss, _ = objective(batch)
    loss.backward()

    ids = token_ids(batch)
    with objective.graft.in_place():
        logits = tiny(input_ids=ids).logits[:, :-1]
    plain = torch.nn.functional.cross_entropy(logits[counted(batch)], ids[:, 1:][counted(batch)])
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    weight = objective.graft.networks[3].mlp.down_proj.weight
    (expected,) = torch.autograd.grad(plain, weight)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-3, atol=1e-6)
    everything, _ = Objective(objective.graft, settings(loss="lm"), first=0)(ids)
    assert everything.item() != pytest.approx(loss.item(), rel=1e-3)


def test_streams_are_not_compared_on_answers_alone():
    with pytest.raises(HealingError, match="for the losses lm and kd"):
        settings(answers_only=True)
