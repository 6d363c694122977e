"""Calibration on answers: questions with right answers and conversations, of which only the answers have a loss."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional

from chats import chatting, rows_file
from streamliner.errors import TextError
from streamliner.measure.probe import Probe
from streamliner.text import large
from streamliner.text.chat import counted, encode, encode_answers, token_ids
from streamliner.text.sources import read_text
from streamliner.text.stream import TrainingText
from streamliner.text.windows import calibration_set, mixed_set


def questions(folder, count=60, name="questions.jsonl", answer="A thing of kind {}."):
    rows = [{"prompt": f"What is number {n}? ", "completion": answer.format(n)} for n in range(count)]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder / name)


def answers_set(source, tokenizer, **options):
    return calibration_set(source, tokenizer, **{"num_samples": 6, "sequence_length": 32} | options, answers_only=True)


def test_a_question_and_its_answer_are_one_text_without_a_template(tokenizer, tmp_path):
    document = read_text(questions(tmp_path)).documents[3]
    assert encode(tokenizer, document) == encode(tokenizer, "What is number 3? A thing of kind 3.")
    found = encode_answers(tokenizer, document)
    assert [~each if each < 0 else each for each in found] == encode(tokenizer, document)
    assert tokenizer.decode([each for each in found if each >= 0]).strip() == "A thing of kind 3."


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_rows_with_prompt_and_completion_are_read_from_every_kind_of_file(tmp_path, suffix):
    rows = [{"prompt": "1 + 1 =", "completion": " 2"}, {"prompt": "2 + 2 =", "completion": " 4"}]
    path = tmp_path / f"sums.{suffix}"
    if suffix == "parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        texts = {
            "jsonl": "\n".join(map(json.dumps, rows)),
            "json": json.dumps(rows),
            "csv": "prompt,completion\n1 + 1 =, 2\n2 + 2 =, 4\n",
        }
        path.write_text(texts[suffix])
    found = read_text(str(path)).documents
    assert [[each["content"] for each in document] for document in found] == [["1 + 1 =", " 2"], ["2 + 2 =", " 4"]]
    assert read_text(f"{path}:completion").documents == (" 2", " 4")


def test_prompts_of_messages_become_a_conversation(tmp_path):
    row = {"prompt": [{"role": "user", "content": "Why?"}], "completion": [{"role": "assistant", "content": "So."}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert read_text(str(tmp_path / "a.jsonl")).documents == (row["prompt"] + row["completion"],)
    (tmp_path / "b.jsonl").write_text(json.dumps(row | {"completion": "So."}))
    with pytest.raises(TextError, match="is not a list of messages"):
        read_text(str(tmp_path / "b.jsonl"))


def test_a_row_with_text_is_its_text(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "Both.", "prompt": "a", "completion": "b"}))
    assert read_text(str(tmp_path / "a.jsonl")).documents == ("Both.",)


@pytest.mark.parametrize("kind", ["questions", "conversations"])
def test_the_loss_is_that_of_the_answers_alone(blocks, tokenizer, tmp_path, kind):
    """That of transformers with labels of -100, on each window."""
    talking = chatting(tokenizer)
    text = answers_set(questions(tmp_path) if kind == "questions" else rows_file(tmp_path), talking)
    ids = token_ids(text.windows)
    labels = torch.where(text.windows < 0, -100, text.windows)
    assert 0 < (labels[:, 1:] == -100).sum() < labels.numel()
    for removed in ((), (3, 5)):
        with blocks.bypass(removed), torch.no_grad():
            expected = [
                blocks.model(input_ids=row[None], labels=label[None], use_cache=False).loss.item()
                for row, label in zip(ids, labels, strict=True)
            ]
        assert Probe(blocks, text).loss(removed).per_window == pytest.approx(expected, rel=1e-5)
        forked = Probe(blocks, text, memory_budget=100_000).losses([removed, (7,)])[removed]
        assert forked.per_window == pytest.approx(expected, rel=1e-5)


def test_streams_are_compared_on_all_tokens(blocks, tokenizer, tmp_path):
    text = answers_set(questions(tmp_path), tokenizer)
    whole = calibration_set(questions(tmp_path), tokenizer, num_samples=6, sequence_length=32)
    assert torch.equal(token_ids(text.windows), whole.windows)
    found, expected = (Probe(blocks, each).similarity() for each in (text, whole))
    assert torch.equal(found.cosine, expected.cosine)
    assert text.provenance["sha256"] != whole.provenance["sha256"]
    assert text.provenance["counted_tokens"] == int(counted(text.windows).sum())
    assert "of them in answers" in str(text)


def long_prompts(folder, answers):
    """Rows whose prompts are as long as several windows; the first `answers` of them have an answer."""
    rows = [
        {"prompt": "Some words of a question. " * 40, "completion": "Yes." if n < answers else ""} for n in range(9)
    ]
    (folder / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "long.jsonl")


@pytest.mark.parametrize("limit", [None, 1])
def test_windows_without_an_answer_are_not_chosen(tokenizer, tmp_path, monkeypatch, limit):
    """Also in a text that is too large to tokenise."""
    if limit:
        monkeypatch.setattr(large, "LARGE_BYTES", limit)
    found = answers_set(long_prompts(tmp_path, 9), tokenizer, num_samples=5)
    assert counted(found.windows).any(1).all()
    with pytest.raises(TextError, match="a token of an answer"):
        answers_set(long_prompts(tmp_path, 0), tokenizer, num_samples=5)


@pytest.mark.parametrize("limit", [None, 1])
def test_a_text_without_conversations_is_refused(tokenizer, tmp_path, monkeypatch, limit):
    if limit:
        monkeypatch.setattr(large, "LARGE_BYTES", limit)
    (tmp_path / "plain.txt").write_text("Only words here. " * 400)
    with pytest.raises(TextError, match="no conversations"):
        answers_set(str(tmp_path / "plain.txt"), tokenizer)
    with pytest.raises(TextError, match="no conversations"):
        mixed_set({str(tmp_path / "plain.txt"): 1.0}, tokenizer, sequence_length=32, answers_only=True)


def test_long_answers_may_fill_whole_windows(tokenizer, tmp_path):
    source = questions(tmp_path, count=4, answer="A very long answer of many words. " * 60)
    assert answers_set(source, tokenizer, num_samples=1, sequence_length=16).num_tokens == 16


def test_in_a_mix_plain_text_counts_whole(tokenizer, tmp_path):
    (tmp_path / "plain.txt").write_text("Only words here. " * 400)
    names = {questions(tmp_path): 1.0, str(tmp_path / "plain.txt"): 1.0}
    found = mixed_set(names, tokenizer, num_samples=4, sequence_length=32, answers_only=True)
    shares = sorted(counted(found.windows).float().mean(1).tolist())
    assert shares[1] < 0.9 < shares[2] == shares[3] == 1


def test_healing_reads_the_same_rows(tokenizer, tmp_path):
    sources = ((questions(tmp_path, 400), 1.0),)
    options = {"sequence_length": 32, "validation_windows": 2, "seed": 0}
    batch = TrainingText(sources, tokenizer, **options, answers_only=True).batch(4)
    assert 0.2 < counted(batch).float().mean() < 0.8


def test_the_loss_of_a_question_is_the_likelihood_of_its_answer(blocks, tokenizer, tmp_path):
    """One question in a window: the mean negative log-likelihood of the answer's tokens after the question."""
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "The for statement", "completion": " is a loop."}))
    length = 1 + len(encode(tokenizer, "The for statement is a loop."))
    text = answers_set(str(tmp_path / "one.jsonl"), tokenizer, num_samples=1, sequence_length=length)
    question = tokenizer("The for statement", return_tensors="pt").input_ids
    answer = torch.tensor([encode(tokenizer, " is a loop.")])
    with torch.no_grad():
        logits = blocks.model(input_ids=torch.cat([question, answer], 1)).logits[:, question.shape[1] - 1 : -1]
    expected = functional.cross_entropy(logits[0], answer[0]).item()
    assert Probe(blocks, text).loss().mean == pytest.approx(expected, rel=1e-5)
