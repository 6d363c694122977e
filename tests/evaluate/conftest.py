"""What the tests of evaluate share: a text, a task, and a cache of their own."""

from __future__ import annotations

import json

import pytest

from streamliner.text.sources import read_text


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(read_text("python-docs:test").documents)[:6000])
    return path


@pytest.fixture
def tasks(tmp_path):
    """A task of our own: which topic of Python is meant; two options, one much longer."""
    questions = [
        {"question": f"The {word} statement", "choices": [f" is used to {word} things.", " 1 2 3."], "gold": number % 2}
        for number, word in enumerate(("with", "for", "import", "class", "return", "raise", "while", "del"))
    ]
    (tmp_path / "tasks").mkdir()
    file = tmp_path / "tasks" / "topics.jsonl"
    file.write_text("\n".join(map(json.dumps, questions)))
    (tmp_path / "tasks" / "topics.yaml").write_text(
        f"task: topics\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {file}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    return tmp_path / "tasks"
