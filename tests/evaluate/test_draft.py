"""A cut model as a draft for its parent."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from command import run
from places import TINY
from streamliner.cut.memory import cut_model
from streamliner.errors import Interrupted
from streamliner.evaluate.draft import measure_draft, tokens_per_verification, write_texts
from streamliner.evaluate.samples import PROMPT_TOKENS, spread_prompts
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter
from streamliner.text.windows import text_windows
from streamliner.verbs import evaluate as verb


def measured(parent, draft, prompts, new_tokens):
    """A model measured as a draft, and what its parent wrote."""
    sessions = [Session.of(parent, name="parent"), Session.of(draft, name="draft")]
    texts = write_texts(sessions[0], prompts, new_tokens, Reporter(quiet=True))
    return measure_draft(*sessions, texts, "a text", new_tokens, Reporter(quiet=True)), texts


def test_a_model_is_its_own_perfect_draft(tiny, calibration):
    draft, _ = measured(tiny, tiny, calibration.windows[:2, :16], 12)
    for found in (draft.greedy, draft.sampled):
        assert found.acceptance_rate == pytest.approx(1, abs=1e-5)
        assert found.tokens_per_verification["4"] == pytest.approx(5, abs=1e-4)
        assert found.positions == 24


def test_a_padded_vocabulary_is_the_same_vocabulary(tiny, calibration):
    """Models of a family pad one vocabulary to different widths; tokens beyond the other's are no proposals."""
    padded = copy.deepcopy(tiny)
    padded.resize_token_embeddings(tiny.config.vocab_size + 64, mean_resizing=False)
    draft, _ = measured(tiny, padded, calibration.windows[:2, :16], 8)
    assert draft.sampled.acceptance_rate == pytest.approx(1, abs=1e-5)
    assert draft.sampled.standard_error == pytest.approx(0, abs=1e-5)


def test_prompts_lie_evenly_over_the_text(tokenizer, text):
    windows = text_windows(str(text), tokenizer, PROMPT_TOKENS).windows
    found = spread_prompts(str(text), tokenizer, 3, Reporter(quiet=True))
    assert torch.equal(found, windows[[0, (len(windows) - 1) // 2, len(windows) - 1]])
    assert len(spread_prompts(str(text), tokenizer, 10_000, Reporter(quiet=True))) == len(windows)


def test_a_parent_writes_freely(tiny, calibration):
    """Whatever its generation config says of ends, penalties and temperatures."""
    prompt = calibration.windows[:1, :16]
    plain = prompt
    for _ in range(12):
        plain = torch.cat([plain, tiny(plain).logits[:, -1:].argmax(-1)], 1)
    own = tiny.generation_config
    own.eos_token_id, own.repetition_penalty, own.temperature = plain[0, 18].item(), 5.0, 0.1
    texts = write_texts(Session.of(tiny), prompt.repeat(2, 1), 12, Reporter(quiet=True))
    assert torch.equal(texts["greedy"], plain.repeat(2, 1))
    sampled = texts["sampled"]
    assert sampled.shape == (2, 28)
    assert not torch.equal(sampled[0], sampled[1])  # another seed for each
    assert tiny.generation_config is own


def test_acceptance_equals_a_plain_count(tiny, calibration):
    """Greedy: both models are run on each beginning of the parent's text, one at a time."""
    smaller = cut_model(tiny, (4,))
    prompt = calibration.windows[:1, :32]
    found = measured(tiny, smaller, prompt, 40)[0].greedy
    plain = tiny.generate(prompt, max_new_tokens=40, min_new_tokens=40, do_sample=False)
    accepted = torch.tensor(
        [[smaller(plain[:, :end]).logits[0, -1].argmax().item() == plain[0, end].item() for end in range(32, 72)]]
    ).double()
    assert found.acceptance_rate == pytest.approx(accepted.mean().item())
    row, places = accepted[0].tolist(), range(40 - 8 + 1)
    in_a_row = [next((n for n in range(4) if not row[place + n]), 4) for place in places]
    assert found.tokens_per_verification["4"] == pytest.approx(1 + sum(in_a_row) / len(places))
    assert 0 < found.acceptance_rate < 1


def test_tokens_per_verification_by_hand():
    """Accepted or not: 1 1 0. Two proposed: from the first place both are (3 tokens), from the second one (2)."""
    assert tokens_per_verification(torch.tensor([[1.0, 1.0, 0.0]]), 2, 2) == 2.5
    table = torch.rand(3, 12).double()
    found = [tokens_per_verification(table, proposed, 8) for proposed in (1, 2, 4, 8)]
    assert found == sorted(found)
    assert tokens_per_verification(torch.tensor([[0.5, 0.5]]), 2, 2) == 1 + 0.5 + 0.25


def test_draft_on_the_command_line(capsys, tmp_path):
    run(capsys, "cut", TINY, "--blocks", "4", "-o", tmp_path / "cut", "--quiet")
    size = ["--draft-prompts", "2", "--draft-tokens", "8", "--dtype", "float32"]
    arguments = ["--dense", TINY, "--as-draft-for", TINY, *size, "--json"]
    out, _ = run(capsys, "evaluate", tmp_path / "cut", *arguments)
    (draft,) = json.loads(out)["drafts"]  # not of the dense model, which is its own parent
    assert draft["model"] == str(tmp_path / "cut")
    assert 0 < draft["greedy"]["acceptance_rate"] <= 1
    assert 1 < draft["sampled"]["tokens_per_verification"]["4"] <= 5


@pytest.mark.parametrize(("stops_at", "drafts", "samples"), [("a draft", 1, 2), ("samples", 1, 1), ("the first", 0, 0)])
def test_ctrl_c_keeps_what_was_measured(capsys, tmp_path, monkeypatch, stops_at, drafts, samples):
    """In the draft of the third of three models, in the samples of the second, and before anything was measured."""
    calls = []

    def stopping(name, call):
        original = getattr(verb, name)

        def replaced(*arguments, **keywords):
            calls.append(name)
            if calls.count(name) == call:
                raise Interrupted("Stopped.")
            return original(*arguments, **keywords)

        monkeypatch.setattr(verb, name, replaced)

    stopping(
        *{"a draft": ("measure_draft", 2), "samples": ("continuations", 2), "the first": ("evaluate_model", 1)}[
            stops_at
        ]
    )
    for block in ("4", "5"):
        run(capsys, "cut", TINY, "--blocks", block, "-o", tmp_path / block, "--no-verify", "-q")
    size = ["--draft-prompts", "2", "--draft-tokens", "8", "--samples", "1", "--perplexity", "python-docs:test"]
    size += ["--num-samples", "1", "--sequence-length", "32", "-o", tmp_path / "result.json"]
    arguments = ["evaluate", tmp_path / "4", tmp_path / "5", "--dense", TINY, "--as-draft-for", TINY, *size]
    out, err = run(capsys, *arguments, status=130)
    if stops_at == "the first":
        assert "the same command continues" in err
        assert not (tmp_path / "result.json").exists()
        return
    assert "Stopped before all was measured." in err
    assert f"The results so far are above and in {tmp_path / 'result.json'}." in err
    assert "perplexity" in out
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["stopped"]
    assert len(found["drafts"]) == drafts
    assert [len(sample["continuations"]) for sample in found["samples"]] == [samples]
