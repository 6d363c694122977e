"""Real results of the tiny fixture in bfloat16: two searches, one of them healed, an evaluation and a benchmark."""

from __future__ import annotations

import json

import pytest

from kill import finish
from places import BFLOAT16
from streamliner.report.render import write_report


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")

    def streamliner(*arguments):
        finish(*arguments, "--quiet", XDG_CACHE_HOME=str(path / "cache"))

    short = ["--num-samples", "2", "--sequence-length", "64"]
    healing = ["--heal", "--tokens", "2k", "--global-batch-size", "2", "--validation-windows", "2"]
    streamliner("prune", BFLOAT16, "--method", "streamline", "--remove", "2", *short, *healing, "-o", path / "out")
    streamliner("search", BFLOAT16, "--remove", "2", *short, "-o", path / "sleb")
    texts = ["--perplexity", "python-docs:test", "--sequence-length", "64", "--num-samples", "3"]
    drafts = ["--as-draft-for", BFLOAT16, "--draft-prompts", "1", "--draft-tokens", "4", "--samples", "2"]
    streamliner("evaluate", path / "out", "--dense", BFLOAT16, *texts, *drafts, "-o", path / "evaluation.json")
    small = ["--prompt-tokens", "16", "--new-tokens", "2", "--repeats", "1"]
    streamliner("benchmark", path / "out", "--dense", BFLOAT16, *small, "-o", path / "benchmark.json")
    return path


@pytest.fixture(scope="package")
def page(folder):
    """The HTML and the Markdown of all results."""
    sources = [folder / name for name in ("out.run", "sleb", "evaluation.json", "benchmark.json")]
    html, markdown, _ = write_report([str(source) for source in sources], folder / "report.html")
    return html, markdown


@pytest.fixture
def evaluation(folder):
    return json.loads((folder / "evaluation.json").read_text())


@pytest.fixture
def benchmark(folder):
    return json.loads((folder / "benchmark.json").read_text())
