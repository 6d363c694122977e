"""`streamliner evaluate`: what it measures, compares and refuses."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from command import run
from places import TINY
from streamliner.text.windows import text_windows


def test_each_model_once_and_something_to_compare(capsys, text, tmp_path):
    for name in ("a", "b"):
        run(capsys, "cut", TINY, "--blocks", "4,5", "-o", tmp_path / name / "m", "--quiet")
    arguments = ["--perplexity", text, "--sequence-length", "64", "--num-samples", "2", "--dtype", "float32"]
    a, b = (tmp_path / name / "m" for name in "ab")
    out, _ = run(capsys, "evaluate", a, f"{a}/", b, "--dense", TINY, *arguments)
    names = next(line for line in out.splitlines() if "a/m" in line)
    assert (names.count("a/m"), names.count("b/m")) == (1, 1)
    assert next(line for line in out.splitlines() if "loss increase" in line).count("±") == 2
    for verb in ("evaluate", "benchmark"):
        _, err = run(capsys, verb, TINY, "--dense", TINY, *(arguments if verb == "evaluate" else []), status=2)
        assert "nothing to compare" in err


def test_the_table_compares(capsys, text, tmp_path):
    run(capsys, "cut", TINY, "--blocks", "4,5", "-o", tmp_path / "cut", "--quiet")
    arguments = ["--perplexity", text, "--sequence-length", "64", "--num-samples", "3", "--dtype", "float32"]
    out, _ = run(capsys, "evaluate", tmp_path / "cut", "--dense", TINY, *arguments)
    assert "loss increase (nats)" in out
    out, _ = run(capsys, "evaluate", tmp_path / "cut", TINY, *arguments)
    assert "loss increase" not in out  # nobody said which is dense


def unframed(text):
    """Text without spaces and frames: a table wraps its cells."""
    return re.sub(r"[\s│┃]", "", text)


def test_samples(capsys, tiny, tokenizer, text):
    arguments = ["--perplexity", text, "--sequence-length", "64", "--num-samples", "1", "--samples", "1"]
    arguments += ["--dtype", "float32"]
    (sample,) = json.loads(run(capsys, "evaluate", TINY, *arguments, "--json")[0])["samples"]
    ids = text_windows(str(text), tokenizer, 32, limit=1).windows
    out = tiny.generate(ids, max_new_tokens=40, do_sample=False)
    assert sample["continuations"] == [tokenizer.decode(out[0, 32:], skip_special_tokens=True)]
    assert sample["prompt"] == tokenizer.decode(ids[0], skip_special_tokens=True)
    printed = unframed(run(capsys, "evaluate", TINY, *arguments)[0])
    assert unframed(sample["prompt"]) in printed
    assert unframed(sample["continuations"][0]) in printed


def test_where_the_result_cannot_go_is_refused_before_anything_is_measured(capsys, text, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "old.json").write_text('{"schema_version": 1}')
    for verb in ("evaluate", "benchmark"):
        for place, message in (
            (tmp_path / "notes.txt", "did not write it"),
            (tmp_path / "old.json", "--overwrite"),
            (tmp_path, "is a folder"),
            (tmp_path / "no" / "x.json", "does not exist"),
        ):
            _, err = run(capsys, verb, TINY, "-o", place, status=2)
            assert message in err
            assert "Loading" not in err
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_another_tokenizer_is_refused(capsys, text, tmp_path):
    """Its model would be measured on tokens that mean something else to it."""
    other = shutil.copytree(TINY, tmp_path / "other")
    file = other / "tokenizer.json"
    value = json.loads(file.read_text())
    first, second = list(value["model"]["vocab"])[300:302]
    vocab = value["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(value))
    arguments = ["--perplexity", text, "--sequence-length", "64", "--num-samples", "1"]
    assert "has another tokenizer" in run(capsys, "evaluate", other, "--dense", TINY, *arguments, status=2)[1]


@pytest.mark.parametrize(
    ("flag", "needs"),
    [
        ("--num-samples", "--perplexity"),
        ("--stride", "--perplexity"),
        ("--limit", "--tasks"),
        ("--num-fewshot", "--tasks"),
        ("--draft-tokens", "--as-draft-for"),
    ],
)
def test_a_flag_without_effect_is_refused(capsys, flag, needs):
    """It was meant for something that is not measured."""
    arguments = ["--samples", "1", flag, "5"]
    _, err = run(capsys, "evaluate", TINY, *arguments, status=2)
    assert f"{flag} has no effect without {needs}" in err
