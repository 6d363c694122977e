"""Real results of the tiny fixture: two searches, one of them healed, an evaluation and a benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from places import TINY
from streamliner.report.render import write_report


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")

    def streamliner(*arguments):
        command = [sys.executable, "-m", "streamliner", *map(str, arguments), "--quiet"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(path / "cache")}
        subprocess.run(command, check=True, capture_output=True, env=environment)

    short = ["--num-samples", "2", "--sequence-length", "64"]
    healing = ["--heal", "--tokens", "2k", "--global-batch-size", "2", "--validation-windows", "2"]
    streamliner("prune", TINY, "--method", "streamline", "--remove", "2", *short, *healing, "-o", path / "out")
    streamliner("search", TINY, "--remove", "2", *short, "-o", path / "sleb")
    texts = ["--perplexity", "python-docs:test", "--sequence-length", "64", "--num-samples", "3"]
    drafts = ["--as-draft-for", TINY, "--draft-prompts", "1", "--draft-tokens", "4", "--samples", "2"]
    streamliner("evaluate", path / "out", "--dense", TINY, *texts, *drafts, "-o", path / "evaluation.json")
    small = ["--prompt-tokens", "16", "--new-tokens", "2", "--repeats", "1"]
    streamliner("benchmark", path / "out", "--dense", TINY, *small, "-o", path / "benchmark.json")
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
