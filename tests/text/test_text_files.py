"""Files as people have them: encodings, containers, rows, conversations, and sizes."""

from __future__ import annotations

import gzip
import json
import random
import re

import pytest
import torch

from streamliner.errors import TextError
from streamliner.fields import weights
from streamliner.text import large
from streamliner.text.chat import encode
from streamliner.text.sources import large_text, read_text, stream_documents
from streamliner.text.stream import TrainingText
from streamliner.text.windows import calibration_set, prefix_tokens, text_windows

LINE = "The quick brown fox jumps over the lazy dog. "
ROWS = [{"text": LINE}, {"text": "Füße, 你好"}]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": LINE}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
READ = {  # name of the file, its bytes, what is read; own unless a report is named
    "plain": ("a.txt", LINE.encode(), [LINE]),
    "no suffix": ("corpus", LINE.encode(), [LINE]),
    "another suffix": ("a.log", LINE.encode(), [LINE]),
    "promptflow 4172: BOM": ("a.txt", b"\xef\xbb\xbf" + LINE.encode(), [LINE]),
    "BOM before rows": ("a.jsonl", b"\xef\xbb\xbf" + JSONL.encode(), [row["text"] for row in ROWS]),
    "UTF-16, little": ("a.txt", LINE.encode("utf-16"), [LINE]),
    "UTF-16, big": ("a.txt", b"\xfe\xff" + LINE.encode("utf-16-be"), [LINE]),
    "UTF-16 rows": ("a.jsonl", JSONL.encode("utf-16"), [row["text"] for row in ROWS]),
    "CRLF": ("a.txt", b"one\r\ntwo\r\n", ["one\ntwo\n"]),
    "CRLF rows": ("a.jsonl", JSONL.replace("\n", "\r\n").encode(), [row["text"] for row in ROWS]),
    "jsonlines 68: .JSONL": ("A.JSONL", JSONL.encode(), [row["text"] for row in ROWS]),
    ".ndjson": ("a.ndjson", JSONL.encode(), [row["text"] for row in ROWS]),
    "gzip of rows": ("a.jsonl.gz", gzip.compress(JSONL.encode()), [row["text"] for row in ROWS]),
    "gzip of text": ("a.txt.GZ", gzip.compress(LINE.encode()), [LINE]),
    "llm-compressor 46: a list of records": ("a.json", json.dumps(ROWS).encode(), [row["text"] for row in ROWS]),
    "a list of texts": ("a.json", json.dumps([LINE, "b"]).encode(), [LINE, "b"]),
    "one record": ("a.json", json.dumps(ROWS[0]).encode(), [LINE]),
    "csv": ("a.csv", b'id,text\n1,"a, ""b""\nc"\n2,d\n', ['a, "b"\nc', "d"]),
    "tsv": ("a.tsv", b"id\ttext\n1\ta b\n", ["a b"]),
    "gzip of csv": ("a.csv.gz", gzip.compress(b"text\nab\n"), ["ab"]),
    "empty lines and rows": ("a.jsonl", b'\n{"text": " "}\n\n{"text": "a"}\n', ["a"]),
    "mlx-examples 630: messages": ("a.jsonl", json.dumps({"messages": CHAT}).encode(), [CHAT]),
    "conversations": (
        "a.jsonl",
        json.dumps({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": LINE}]}).encode(),
        [CHAT],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read(name, tmp_path):
    file, content, expected = READ[name]
    path = tmp_path / file
    path.write_bytes(content)
    assert list(read_text(str(path)).documents) == expected
    assert [each for each in stream_documents(str(path)) if each] == expected


REFUSED = {
    "auto-round 2099: null": ("a.jsonl", b'{"text": null}\n', "'text' of Line 1 of .* is null"),
    "a number": ("a.jsonl", b'{"text": 3}\n', "'text' of Line 1 of .* is int"),
    "another field": ("a.jsonl", b'{"body": "a"}\n', "it has: body"),
    "a list": ("a.jsonl", b"[1]\n", "type list"),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{"text"\n', "Line 2 .*is not JSON"),
    "lines in .json": ("a.json", JSONL.encode(), "is not JSON"),
    "deep JSON": ("a.json", b"[" * 100_000, "is not JSON"),
    "Latin-1": ("a.txt", "Füße".encode("latin-1"), "byte 0xfc at position 1"),
    "cut gzip": ("a.txt.gz", gzip.compress(LINE.encode() * 9)[:-12], "cannot be read"),
    "no gzip": ("a.txt.gz", LINE.encode(), "cannot be read"),
    "zip": ("a.zip", b"PK\x03\x04", "is not text that can be read"),
    "zstd": ("a.jsonl.zst", b"(\xb5/\xfd", "is not text that can be read"),
    "pdf": ("a.pdf", b"%PDF", "is not text that can be read"),
    "csv without the field": ("a.csv", b"id,body\n1,a\n", "it has: id, body"),
    "messages without content": ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "not a list of messages"),
    "no messages": ("a.jsonl", b'{"messages": []}\n', "not a list of messages"),
    "not Parquet": ("a.parquet", b"PAR1", "cannot be read|needs an optional library"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name, tmp_path):
    file, content, message = REFUSED[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        read_text(str(path))


def test_parquet_is_read(tmp_path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [LINE, "b"], "body": ["x", "y"]}), path)
    assert read_text(str(path)).documents == (LINE, "b")
    assert read_text(f"{path}:body").documents == ("x", "y")
    parquet.write_table(pyarrow.table({"n": [1]}), path)
    with pytest.raises(TextError, match="it has: n"):
        read_text(str(path))


def test_a_field_is_named_and_a_folder_is_searched(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.csv.gz").write_bytes(gzip.compress(b"text,body\nc,d\n"))
    (tmp_path / "a.TXT").write_text("a")
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    assert read_text(str(tmp_path)).documents == ("a", "c")
    assert read_text(f"{tmp_path / 'b' / 'x.csv.gz'}:body").documents == ("d",)


def test_a_path_with_an_equals_sign_is_a_path(tmp_path):
    folder = tmp_path / "year=2024"
    folder.mkdir()
    (folder / "part.jsonl").write_text(JSONL)
    for text, expected in (
        (folder, 1.0),
        (folder / "part.jsonl", 1.0),
        (f"{folder / 'part.jsonl'}:text", 1.0),
        (f"{folder}=0.5", 0.5),
    ):
        ((name, weight),) = weights(str(text), "--data")
        assert weight == expected
        assert str(text).startswith(name)
    assert weights("mse=2", "--loss") == (("mse", 2.0),)


class Tokenizer:
    """Wraps the fixture's tokenizer: puts other tokens around a text."""

    def __init__(self, inner, before=(), after=()):
        self._inner, self._before, self._after, self.bos_token_id = inner, list(before), list(after), None
        self.chat_template = None

    def __call__(self, text, add_special_tokens=True, **_):
        ids = list(self._inner(text, add_special_tokens=False)["input_ids"])
        return {"input_ids": [*self._before, *ids, *self._after] if add_special_tokens else ids}


@pytest.mark.parametrize(
    ("before", "after"), [((), ()), ((7,), ()), ((7, 9), ()), ((), (3,)), ((7, 9), (3,)), ((5, 6, 7), (3, 4))]
)
def test_what_a_tokenizer_puts_before_a_text_begins_each_window(tokenizer, before, after, tmp_path):
    """GLM puts two tokens there and has no BOS (colibri 194, lm-eval 1455); T5 and others put one at the end."""
    wrapped = Tokenizer(tokenizer, before, after)
    assert prefix_tokens(wrapped) == list(before)
    found = calibration_set([LINE * 40], wrapped, num_samples=4, sequence_length=16)
    assert found.windows[:, : len(before)].tolist() == [list(before)] * len(found.windows)
    assert found.provenance["bos"] == bool(before)
    assert found.provenance.get("prefix") == (list(before) if len(before) > 1 else None)
    bodies = found.windows[:, len(before) :].flatten().tolist()
    assert not set(bodies) & set(after) - set(wrapped(LINE * 40, add_special_tokens=False)["input_ids"])
    windows = text_windows([LINE * 40], wrapped, 16)
    assert windows.windows[0, : len(before)].tolist() == list(before)
    file = tmp_path / "a.txt"
    file.write_text(LINE * 200)
    training = TrainingText([(str(file), 1.0)], wrapped, sequence_length=16, validation_windows=2, seed=0)
    assert training.batch(3)[:, : len(before)].tolist() == [list(before)] * 3


def test_conversations_become_text_by_the_chat_template(tokenizer, tmp_path):
    import copy

    templated = copy.deepcopy(tokenizer)
    templated.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert encode(templated, CHAT) == encode(tokenizer, f"<user>Hi<assistant>{LINE}")
    file = tmp_path / "a.jsonl"
    file.write_text((json.dumps({"messages": CHAT}) + "\n") * 20)
    found = calibration_set(str(file), templated, num_samples=2, sequence_length=16)
    assert tokenizer.decode(found.windows[0]).count("<") >= 1
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(TextError, match="no chat template"):
        calibration_set(str(file), bare, num_samples=2, sequence_length=16)


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(large, "LARGE_BYTES", 20_000)
    monkeypatch.setattr(large, "CHUNK", 256)


def write_large(path, kind):
    random.seed(0)
    words = [" ".join(random.choices(LINE.split(), k=8)) for _ in range(2000)]
    if kind == "long rows without a last line end":
        path = path / "a.jsonl"
        path.write_text("\n".join(json.dumps({"text": " ".join(words[n::4])}) for n in range(4)))
    elif kind == "rows":
        path = path / "a.jsonl"
        path.write_text("".join(json.dumps({"text": f"{n} {w} ü"}) + "\n" for n, w in enumerate(words)))
    elif kind == "one line":
        path = path / "a.txt"
        path.write_text(" ".join(f"{n} {w} ü" for n, w in enumerate(words)))
    elif kind == "folder":
        for number in range(4):
            (path / f"{number}.txt").write_text("\n".join(words[number::4]))
    else:
        path = path / "a.txt"
        path.write_text("\n".join(f"{n} {w} ü" for n, w in enumerate(words)) + "\n")
    return str(path)


@pytest.mark.parametrize("kind", ["lines", "rows", "one line", "folder", "long rows without a last line end"])
def test_a_large_text_is_sampled_all_over(kind, tmp_path, tokenizer, small_limit):
    source = write_large(tmp_path, kind)
    text = large_text(source)
    assert text is not None
    found = calibration_set(source, tokenizer, num_samples=6, sequence_length=32)
    assert found.windows.shape == (6, 32)
    assert (found.windows[:, 0] == tokenizer.bos_token_id).all()
    assert len({tuple(row) for row in found.windows.tolist()}) == (4 if kind.startswith("long rows") else 6)
    if kind in ("lines", "rows", "one line"):  # each line has its number: windows are in random order, as races need
        numbers = [int(re.findall(r"\d+", tokenizer.decode(row))[0]) for row in found.windows]
        assert numbers != sorted(numbers)
    again = calibration_set(source, tokenizer, num_samples=6, sequence_length=32)
    assert torch.equal(found.windows, again.windows)
    other = calibration_set(source, tokenizer, num_samples=6, sequence_length=32, seed=1)
    assert not torch.equal(found.windows, other.windows)
    whole = tokenizer.decode(encode(tokenizer, "\n\n".join(map(str, read_text(source).documents))))
    if kind == "one line":  # every window's text is in the text
        assert all(tokenizer.decode(row[3:]).strip(" \ufffd") in whole for row in found.windows)
    first = text_windows(source, tokenizer, 32, limit=3)
    assert len(first.windows) == 3
    assert (first.provenance["text_tokens"], first.provenance["left_out"]) == (None, None)
    start = tokenizer.decode(first.windows[0, 1:])
    assert whole.replace("\n", "").startswith(start.replace("\n", "")[:20])


def test_a_large_text_that_is_short_of_tokens_is_refused(tmp_path, tokenizer, small_limit):
    file = tmp_path / "a.jsonl"
    file.write_text((json.dumps({"text": " "}) + "\n") * 3000 + json.dumps({"text": "a b c"}))
    with pytest.raises(TextError, match="too short"):
        calibration_set(str(file), tokenizer, num_samples=2, sequence_length=64)
