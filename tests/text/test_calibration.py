"""Text sources and windows."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch

from streamliner.errors import TextError
from streamliner.text.sources import Text, default_text, read_text
from streamliner.text.windows import calibration_set, mixed_set


def test_windows_begin_with_bos_and_hold_the_text(tokenizer, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    found = calibration_set(str(file), tokenizer, num_samples=1000, sequence_length=16)
    stream = tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]
    assert (found.windows[:, 0] == tokenizer.bos_token_id).all()
    bodies = {tuple(row) for row in found.windows[:, 1:].tolist()}
    assert bodies == {tuple(stream[i : i + 15]) for i in range(0, len(stream) // 15 * 15, 15)}
    assert found.provenance["windows"] == len(found.windows) == len(stream) // 15 < 1000
    assert found.provenance["tokens"] == found.num_tokens


def test_documents_in_memory_are_a_text_too(tokenizer, tmp_path):
    documents = ["The quick brown fox. " * 20, " ", "Jumps over the lazy dog. " * 20]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": each}) for each in documents))
    expected = calibration_set(str(file), tokenizer, num_samples=3, sequence_length=16)
    for text in (documents, iter(documents), Text("mine", (documents[0], documents[2]), {})):
        found = calibration_set(text, tokenizer, num_samples=3, sequence_length=16)
        assert torch.equal(found.windows, expected.windows)
        assert found.provenance["documents"] == 2


@pytest.mark.parametrize(
    ("text", "message"), [([], "is empty"), ([" "], "is empty"), (["a", {"text": "b"}], "Document 1 .* type dict")]
)
def test_unusable_documents_are_refused(tokenizer, text, message):
    with pytest.raises(TextError, match=message):
        calibration_set(text, tokenizer)


def test_a_tokenizer_without_bos_gets_none(tokenizer, tmp_path):
    class Bare:
        bos_token_id = None

        def __call__(self, text, **arguments):
            return tokenizer(text, add_special_tokens=False)

    found = calibration_set("python-docs", Bare(), num_samples=3, sequence_length=32)
    assert not found.provenance["bos"]
    assert (found.windows[:, 0] != tokenizer.bos_token_id).all()


def test_the_choice_of_windows_follows_the_seed(tokenizer):
    def windows(seed):
        return calibration_set("python-docs", tokenizer, num_samples=4, sequence_length=64, seed=seed).windows

    assert torch.equal(windows(1), windows(1))
    assert not torch.equal(windows(1), windows(2))


def test_several_texts_by_their_weights(tokenizer, tmp_path):
    """Windows are those of each text alone, by share, and alternate."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"{name} word of its own kind. " * 400)
    names = {str(tmp_path / "b"): 1.0, str(tmp_path / "a"): 3.0}
    mixed = mixed_set(names, tokenizer, num_samples=8, sequence_length=32)
    alone = {
        name: calibration_set(str(tmp_path / name), tokenizer, num_samples=count, sequence_length=32).windows
        for name, count in (("a", 6), ("b", 2))
    }
    order = ["a" if any(torch.equal(window, each) for each in alone["a"]) else "b" for window in mixed.windows]
    assert order.count("a") == 6
    assert "b" in order[:4]
    assert mixed.provenance["windows"] == 8
    again = mixed_set(dict(reversed(names.items())), tokenizer, num_samples=8, sequence_length=32)
    assert again.provenance["sha256"] == mixed.provenance["sha256"]
    single = mixed_set({str(tmp_path / "a"): 2.0}, tokenizer, num_samples=6, sequence_length=32)
    assert torch.equal(single.windows, alone["a"])


def test_python_docs_splits_share_no_document():
    train, test = read_text("python-docs"), read_text("python-docs:test")
    assert not set(train.documents) & set(test.documents)
    assert train.origin["sha256"] != test.origin["sha256"]
    assert sum(map(len, train.documents)) > 300_000


def test_jsonl_field_and_folder(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "one"}) + "\n\n" + json.dumps({"body": "two"}) + "\n")
    assert read_text(f"{tmp_path / 'a.jsonl'}:body").documents == ("one", "two")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "three"}))
    (tmp_path / "c.txt").write_text("four")
    (tmp_path / "a.jsonl").unlink()
    assert read_text(str(tmp_path)).documents == ("three", "four")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n", "is empty"),
        ("a.jsonl", "{", "Line 1 of .* is not JSON"),
        ("a.jsonl", '{"body": "x"}', "no text field 'text'; it has: body"),
        ("a.txt", "short", "too few for one window of 64"),
    ],
)
def test_unusable_text_is_refused(tokenizer, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(TextError, match=message):
        calibration_set(str(tmp_path / name), tokenizer, sequence_length=64)


def test_without_the_hub_the_default_text_is_python_docs(monkeypatch):
    """Also for a model from the hub, where the `hub` extra is missing; a message says so."""
    said = []
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert default_text(True, said.append).name == "python-docs"
    assert "[hub]'" in said[0]
    assert "python-docs instead" in said[0]
    assert default_text(False, said.append).name == "python-docs"
    assert "needs no network" in said[1]


def test_wikitext_rows_become_one_text(monkeypatch):
    """The dataset's rows are lines; perplexities in the literature join them by blank lines."""
    fake = types.ModuleType("datasets")
    calls = []

    def load_dataset(*arguments, **keywords):
        calls.append((arguments, keywords))
        return [{"text": ""}, {"text": " = A = "}, {"text": "b"}]

    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert read_text("wikitext2").documents == ("\n\n = A = \n\nb",)
    assert calls[0] == (("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "train", "streaming": False})
    assert read_text("hf:me/set/config:valid:text").documents == (" = A = ", "b")
    assert calls[1] == (("me/set", "config"), {"split": "valid", "streaming": True})
