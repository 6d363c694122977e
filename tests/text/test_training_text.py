"""Training text: shares of sources, held-out windows, and continuing where a killed run was."""

from __future__ import annotations

import json

import pytest
import torch

from streamliner.errors import TextError
from streamliner.text.sources import PIECE, stream_documents
from streamliner.text.stream import TrainingText


def text_of(tokenizer, *sources, validation_windows=4):
    return TrainingText(sources, tokenizer, sequence_length=64, validation_windows=validation_windows, seed=0)


def test_a_stream_continues_where_it_was(tokenizer, tmp_path):
    for name, count in (("a", 300), ("b", 40)):
        rows = [json.dumps({"text": f"{name} {number} " * 20}) for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    sources = (str(tmp_path / "a.jsonl"), 3.0), (str(tmp_path / "b.jsonl"), 1.0)
    text, other = text_of(tokenizer, *sources), text_of(tokenizer, *sources)
    text.batch(700)
    state, buffer = text.state()
    other.load(json.loads(json.dumps(state)), buffer)
    assert torch.equal(text.batch(100), other.batch(100))
    assert text.passes == other.passes
    assert text.passes[str(tmp_path / "b.jsonl")] > 0


def test_sources_have_their_shares_also_of_held_out_windows(tokenizer, tmp_path):
    for name in ("aaaa", "bbbb"):
        (tmp_path / f"{name}.txt").write_text((f"{name} " * 30 + "\n") * 400)
    sources = (str(tmp_path / "aaaa.txt"), 3.0), (str(tmp_path / "bbbb.txt"), 1.0)
    text = text_of(tokenizer, *sources, validation_windows=8)
    batch = tokenizer.batch_decode(text.batch(800))
    assert sum("aaaa" in window for window in batch) / 800 == pytest.approx(0.75, abs=0.05)
    held = tokenizer.batch_decode(text.validation)
    assert ["aaaa" in window for window in held] == [True] * 6 + [False] * 2


def test_held_out_windows_are_never_trained_on(tokenizer):
    text = text_of(tokenizer, ("python-docs", 1.0), validation_windows=20)
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
        text_of(tokenizer, (str(tmp_path / "x.txt"), 1.0))


def test_a_large_text_file_comes_in_pieces_that_end_with_a_line(tmp_path):
    path = tmp_path / "large.txt"
    whole = "".join(f"line {number} of a text\n" for number in range(200_000))
    path.write_text(whole)
    pieces = list(stream_documents(str(path)))
    assert len(pieces) > 3
    assert all(len(piece) < PIECE + 100 and piece.endswith("\n") for piece in pieces)
    assert "".join(pieces) == whole
    assert next(stream_documents(str(path), skip=2)) == pieces[2]
