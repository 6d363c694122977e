"""Training text in the model's own words."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from command import run
from places import TINY
from streamliner.heal import answers
from streamliner.model.load import load_model

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NAMES = ("append", "pop", "sort")
QUICK = ("--max-new-tokens", "6", "--batch-size", "2", "--temperature", "0")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The fixture with a chat template, and as its end a token that some greedy answers reach."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(TINY), load_model(TINY)
    tokenizer.chat_template = CHATML
    model.generation_config.eos_token_id = None
    reached = []
    for name in NAMES:
        text = f"<user>{question(name)}\n<assistant>"
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        reached.append(set(out[0, ids.shape[1] :].tolist()))
    some = set.union(*reached) - set.intersection(*reached)
    model.generation_config.eos_token_id = [min(some)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def question(name):
    return f"The method {name} of a list"


def questions(folder):
    rows = [{"messages": [{"role": "user", "content": question(name)}]} for name in NAMES]
    rows[0]["messages"].append({"role": "assistant", "content": "an old answer"})
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_plain_texts_are_continued_greedily(capsys, model, tmp_path):
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": f"The {each} of"}) for each in ("list", "if")))
    out, _ = run(capsys, "answer", model, tmp_path / "texts.jsonl", "-o", tmp_path / "own.jsonl", *QUICK)
    assert "2 rows" in out
    tokenizer, plain = AutoTokenizer.from_pretrained(model), load_model(model)
    for row, text in zip(rows_of(tmp_path / "own.jsonl"), ("The list of", "The if of"), strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        expected = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)[0]
        ends = (expected == plain.generation_config.eos_token_id[0]).nonzero().flatten()
        ends = ends[ends >= ids.shape[1]]
        assert row["text"] == tokenizer.decode(expected[: ends[0]] if len(ends) else expected, skip_special_tokens=True)


def test_the_last_question_is_answered_and_what_does_not_end_is_left_out(capsys, model, tmp_path, monkeypatch):
    found = []
    real = answers._row

    def row(tokenizer, question, new, ends):
        found.append(bool(set(new) & set(ends)))
        return real(tokenizer, question, new, ends)

    monkeypatch.setattr(answers, "_row", row)
    arguments = ("answer", model, questions(tmp_path), "-o", tmp_path / "own.jsonl", *QUICK, "--json")
    result = json.loads(run(capsys, *arguments)[0])
    assert 0 < sum(found) < 3
    assert (result["rows"], result["left_out"]) == (sum(found), 3 - sum(found))
    for each in rows_of(tmp_path / "own.jsonl"):
        assert [message["role"] for message in each["messages"]] == ["user", "assistant"]
        assert each["messages"][1]["content"] != "an old answer"


def test_a_killed_run_continues_with_the_same_words(capsys, model, tmp_path, monkeypatch):
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": f"Number {n} is"}) for n in range(5)))
    arguments = ("answer", model, tmp_path / "texts.jsonl", "--max-new-tokens", "6", "--batch-size", "2")
    run(capsys, *arguments, "-o", tmp_path / "whole.jsonl")
    real, calls = answers._answers, []

    def dying(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(answers, "_answers", dying)
    run(capsys, *arguments, "-o", tmp_path / "own.jsonl", status=130)
    assert not (tmp_path / "own.jsonl").exists()
    run(capsys, *arguments, "-o", tmp_path / "own.jsonl", "--seed", "1", status=2)
    with (tmp_path / ".own.jsonl.part").open("a") as file:
        file.write('[{"row": {"te')  # a kill within a line
    run(capsys, *arguments, "-o", tmp_path / "own.jsonl", "-q")
    assert len(calls) == 4
    assert (tmp_path / "own.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert not list(tmp_path.glob(".*.part"))


def test_mistakes(capsys, model, tmp_path):
    (tmp_path / "there.jsonl").write_text("{}")
    _, err = run(capsys, "answer", model, "python-docs", "-o", tmp_path / "there.jsonl", status=2)
    assert "exists" in err
    _, err = run(capsys, "answer", TINY, questions(tmp_path), "-o", tmp_path / "own.jsonl", status=2)
    assert "no chat template" in err
    assert (tmp_path / "there.jsonl").read_text() == "{}"


def test_questions_that_do_not_fit_the_context_are_left_out(capsys, model, tmp_path):
    """Models with a table of positions would fail on them, others answer nonsense."""
    rows = [{"messages": [{"role": "user", "content": text}]} for text in (question("pop"), question("pop") * 500)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, err = run(capsys, "answer", model, tmp_path / "long.jsonl", "-o", tmp_path / "out.jsonl", *QUICK)
    assert "Left out: 1 question too long" in " ".join(err.split())
