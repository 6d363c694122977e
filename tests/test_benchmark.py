"""`streamliner benchmark`: what it reports fits together. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import TINY
from families import make_model
from streamliner.benchmark import BenchmarkSettings, _generate, cache_bytes
from streamliner.blocks import Blocks
from test_cli import run


def test_report(capsys, tmp_path):
    run(capsys, "cut", TINY, "--blocks", "4,5,6", "-o", tmp_path / "cut", "--quiet")
    arguments = ["--prompt-tokens", "64", "--context-tokens", "8", "--new-tokens", "4", "--repeats", "3"]
    file = tmp_path / "benchmark.json"
    out, _ = run(
        capsys, "benchmark", tmp_path / "cut", "--dense", TINY, *arguments, "--dtype", "float32", "--json", "-o", file
    )
    result = json.loads(out)
    dense, cut = result["models"]
    assert (dense["blocks"], cut["blocks"]) == (12, 9)
    assert dense["cache_bytes_per_token"] / cut["cache_bytes_per_token"] == pytest.approx(12 / 9)
    assert len(dense["prompt"]["seconds"]) == 3
    middle = sorted(dense["prompt"]["seconds"])[1]
    assert dense["prompt"]["tokens_per_second"] == pytest.approx(64 / middle)
    (compared,) = result["compared"]
    assert compared["blocks_ratio"] == pytest.approx(12 / 9)
    assert compared["parameters_ratio"] == pytest.approx(dense["parameters"] / cut["parameters"])
    ratios = [a / b for a, b in zip(dense["prompt"]["seconds"], cut["prompt"]["seconds"], strict=True)]
    assert compared["prompt"]["speed_up"] == pytest.approx(sorted(ratios)[1])
    assert json.loads(file.read_text())["models"] == result["models"]
    out, _ = run(capsys, "benchmark", tmp_path / "cut", "--dense", TINY, *arguments)
    assert "prompt of 64 tokens" in out
    assert "1.33 times fewer blocks" in " ".join(out.split())


def test_defaults_are_slebs_on_a_gpu():
    assert BenchmarkSettings.usual(torch.device("cuda")) == BenchmarkSettings(2048, 64, 64, 128)
    assert BenchmarkSettings.usual(torch.device("cpu"), new_tokens=5, repeats=None).new_tokens == 5


def test_cache_bytes_by_hand():
    """6 blocks x keys and values x 2 heads x 8 wide x 4 bytes."""
    blocks = Blocks(make_model("llama"))
    assert cache_bytes(blocks, torch.arange(2, 10)[None]) == 6 * 2 * 2 * 8 * 4


def test_generation_is_greedy_generation():
    model = make_model("llama")
    ids = torch.arange(2, 10)[None]
    expected = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert _generate(Blocks(model), ids, 6).item() == expected[0, -1].item()
