"""Whole commands on an accelerator that exists only in the tests (`emulated.py`): results are those of the CPU."""

from __future__ import annotations

import json

import pytest

import streamliner as sl
from command import run
from emulated import emulated
from families import make_model
from spread import spread

WINDOWS = ("--num-samples", "2", "--sequence-length", "16")
SEARCH = ("--remove", "1", *WINDOWS)
HEAL = ("--steps", "1", "--global-batch-size", "1", "--sequence-length", "16", "--validation-windows", "1")
EVALUATE = (*WINDOWS, "--draft-prompts", "1", "--draft-tokens", "4", "--no-cache")
TIME = ("--prompt-tokens", "8", "--context-tokens", "4", "--new-tokens", "2", "--batch-size", "2", "--repeats", "1")


def small(tokenizer):
    return make_model("llama", vocab_size=len(tokenizer), num_hidden_layers=4)


@pytest.fixture(scope="module")
def places(tokenizer, tmp_path_factory):
    """A folder with a small model and a text."""
    folder = tmp_path_factory.mktemp("places")
    small(tokenizer).save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return folder


def results(capsys, places, device):
    """What each verb says of the model that is pruned, healed, evaluated and timed there."""
    text, name, on = places / "text.txt", device.replace(":", ""), ("--json", "--device", device)
    dense, cut, healed = places / "dense", places / f"cut-{name}", places / f"healed-{name}"

    def found(*arguments):
        return json.loads(run(capsys, *arguments, *on)[0])

    pruned = found("prune", dense, "-o", cut, "--calibration", text, *SEARCH)
    mended = found("heal", cut, "-o", healed, "--data", text, *HEAL, "--no-verify")
    known = found("evaluate", healed, "--dense", dense, "--perplexity", text, "--as-draft-for", dense, *EVALUATE)
    timed = found("benchmark", healed, "--dense", dense, *TIME)
    losses = [each["perplexity"][0]["window_losses"] for each in known["models"]]
    drafts = [known["drafts"][0][kind]["acceptance_rate"] for kind in ("greedy", "sampled")]
    return (pruned["plan"], pruned["frontier"]), (mended["validation_perplexity"], *losses, drafts), timed


def test_a_model_is_pruned_healed_evaluated_and_timed(places, capsys):
    """The search to the bit. All else within rounding: with autograd, or with a cache, torch takes other kernels."""
    found, measured, _ = results(capsys, places, "cpu")
    with emulated():
        other, there, timed = results(capsys, places, "emulated:0")
    assert other == found
    assert there == tuple(pytest.approx(each, rel=1e-5) for each in measured)
    assert (timed["device"], [each["blocks"] for each in timed["models"]]) == ("emulated:0", [4, 3])


def test_a_model_on_two_accelerators_is_cut_verified_and_evaluated(places, tokenizer):
    """As `--device auto` places it. That evaluates as on one device, the draft with its parent too."""
    text, how = str(places / "text.txt"), {"num_samples": 2, "sequence_length": 16, "cache": False, "quiet": True}
    how |= {"perplexity": [text], "draft_prompts": 1, "draft_tokens": 4, "tokenizer": tokenizer}

    def found(dense):
        small = sl.cut(dense, (2,))
        sl.verify(small, dense=dense)
        result = sl.evaluate({"cut": small}, dense=dense, as_draft_for=dense, **how)
        losses = [each.perplexity[0].loss.per_window for each in result.models]
        return [*losses, [result.drafts[0].sampled.acceptance_rate]]

    expected = found(small(tokenizer))
    with emulated(2):
        assert found(spread(small(tokenizer))) == [pytest.approx(each, rel=1e-5) for each in expected]
