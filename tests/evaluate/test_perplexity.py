"""Perplexity against a plain loop, and against lm-eval."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from streamliner.errors import TextError
from streamliner.evaluate.perplexity import perplexity
from streamliner.model.blocks import Blocks
from streamliner.text.windows import text_windows


def plain_losses(model, tokenizer, path, window, stride):
    """As anybody would write it with transformers alone."""
    tokens = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
    body = window - 1
    losses = []
    for start in range(0, len(tokens) - body + 1, stride):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokens[start : start + body]]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        each = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        losses.append(each[-stride:].mean().item())
    return losses


@pytest.mark.parametrize("stride", [None, 40])
def test_perplexity_equals_a_plain_loop(tiny, tokenizer, text, stride):
    windows = text_windows(str(text), tokenizer, 128, stride)
    found = perplexity(Blocks(tiny), windows)
    expected = plain_losses(tiny, tokenizer, text, 128, stride or 127)
    assert list(found.per_window) == pytest.approx(expected, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-4)
    assert windows.provenance["predictions"] == len(expected) * (stride or 127)
    assert windows.provenance["bos"]


def test_perplexity_equals_lm_evals_rolling_likelihood_where_definitions_coincide(tiny, tokenizer, tmp_path):
    """A text of one window: lm-eval puts a prefix token in front of it, as the BOS here."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    path = tmp_path / "short.txt"
    path.write_text("The with statement is used to wrap the execution of a block. " * 4)
    tokens = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
    windows = text_windows(str(path), tokenizer, len(tokens) + 1)
    found = perplexity(Blocks(tiny), windows)
    lm = huggingface.HFLM(pretrained=tiny, tokenizer=tokenizer, batch_size=1, add_bos_token=False)
    assert lm.prefix_token_id == tokenizer.bos_token_id
    request = type("Request", (), {"args": (path.read_text(),)})
    (likelihood,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
    assert found.mean == pytest.approx(-likelihood / len(tokens), rel=1e-5)


def test_windows_that_make_no_sense(tokenizer, text):
    with pytest.raises(TextError, match="too few"):
        text_windows(str(text), tokenizer, 100_000)
    with pytest.raises(TextError, match="--stride must be"):
        text_windows(str(text), tokenizer, 64, 64)
