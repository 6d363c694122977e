"""Models in memory are evaluated as models in folders are."""

from __future__ import annotations

import pytest
import torch

import streamliner as sl
from places import TINY
from streamliner.cut.memory import cut_model
from streamliner.errors import EvaluationError, ModelError
from streamliner.model.session import Session, open_model, open_models
from streamliner.runs.reporter import Reporter
from streamliner.settings import EvaluateSettings, ModelSettings
from streamliner.verbs.evaluate import evaluate_models


@pytest.fixture
def cut(tiny):
    return cut_model(tiny, (4, 5))


def in_memory(tiny, cut, tokenizer):
    return [Session.of(tiny, name="dense", tokenizer=tokenizer), Session.of(cut, name="cut")]


def test_perplexities_are_those_of_folders(tiny, cut, tokenizer, text, tmp_path):
    cut.save_pretrained(tmp_path / "cut")
    tokenizer.save_pretrained(tmp_path / "cut")
    folders = [open_model(folder, ModelSettings(dtype="float32")) for folder in (TINY, tmp_path / "cut")]
    settings = EvaluateSettings(dense=TINY, perplexity=str(text), sequence_length=64, num_samples=3, cache=False)
    expected = evaluate_models(folders, settings, Reporter(quiet=True))
    found = evaluate_models(in_memory(tiny, cut, tokenizer), settings, Reporter(quiet=True))
    assert [model.name for model in found.models] == ["dense", "cut"]
    assert [model.model["blocks"] for model in found.models] == [12, 10]
    for ours, theirs in zip(found.models, expected.models, strict=True):
        assert ours.weights == theirs.weights
        assert ours.perplexity[0].loss.per_window == pytest.approx(theirs.perplexity[0].loss.per_window, rel=1e-5)
    increase, of_folders = (each.compared[0].loss_increase[str(text)] for each in (found, expected))
    assert increase.mean == pytest.approx(of_folders.mean, rel=1e-4)


def test_models_stay_where_they_are(tiny, cut, tokenizer, text):
    sessions = in_memory(tiny, cut, tokenizer)
    before = tiny(torch.arange(8)[None]).logits
    settings = EvaluateSettings(perplexity=str(text), sequence_length=64, num_samples=1)
    evaluate_models(sessions, settings, Reporter(quiet=True))
    assert [session.load().model for session in sessions] == [tiny, cut]
    assert torch.equal(tiny(torch.arange(8)[None]).logits, before)


def test_drafts_samples_and_tasks(tiny, cut, tokenizer, tasks):
    """The dense model is the parent, under another name; it is no draft for itself."""
    pytest.importorskip("lm_eval")
    settings = EvaluateSettings(
        dense=tiny, as_draft_for=tiny, draft_prompts=2, draft_tokens=8, samples=1, tasks="topics", tasks_path=str(tasks)
    )
    parent = Session.of(tiny, name="parent", tokenizer=tokenizer)
    found = evaluate_models(in_memory(tiny, cut, tokenizer), settings, Reporter(quiet=True), parent=parent)
    (draft,) = found.drafts
    assert (draft.model, draft.parent) == ("cut", "parent")
    assert len(found.samples[0].continuations) == 2
    assert len(found.models[1].tasks["topics"].answers) == 8
    assert 0 <= found.compared[0].tasks["topics"].stability <= 1


def test_a_model_cut_in_memory_knows_its_plan(tiny):
    small = sl.cut(tiny, (4, 5))
    described = Session.of(small).describe()
    assert (described["method"], described["removed"]) == ("manual", [4, 5])
    assert described["parent"] == tiny.config.name_or_path


def test_models_of_one_name_are_numbered(tiny, cut, tmp_path):
    """A model cut in memory has its parent's name; names of files stay as they are."""
    name = tiny.config.name_or_path
    cut_again = cut_model(tiny, (6,))
    found = open_models([cut, tiny, cut_again], tiny, None, None)
    assert [(each.source.name, each.num_blocks) for each in found] == [
        (name, 12),
        (f"{name} (2)", 10),
        (f"{name} (3)", 11),
    ]
    cut.config.name_or_path = str(TINY)
    assert [each.source.name for each in open_models({"a": TINY}, cut, None, None)] == [f"{TINY} (2)", str(TINY)]


def test_a_tokenizer_is_needed(tiny, text):
    settings = EvaluateSettings(perplexity=str(text), sequence_length=64)
    with pytest.raises(ModelError, match="tokenizer"):
        evaluate_models([Session.of(tiny, name="dense")], settings, Reporter(quiet=True))


def test_the_first_tokenizer_is_not_used_for_a_model_with_another(tiny, cut, tokenizer, text, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    other = type(tokenizer).from_pretrained(tmp_path)
    other.add_tokens(["streamliner"])
    sessions = [Session.of(tiny, name="dense", tokenizer=tokenizer), Session.of(cut, name="cut", tokenizer=other)]
    settings = EvaluateSettings(perplexity=str(text), sequence_length=64)
    with pytest.raises(EvaluationError, match="cut has another tokenizer"):
        evaluate_models(sessions, settings, Reporter(quiet=True))
