"""A search measures in the precision that is fast, unless `--dtype` says which; a run continues in its own."""

from __future__ import annotations

import json

import pytest
import torch

import streamliner as sl
from command import run
from families import make_model
from gguf_files import write_gguf
from places import TINY
from streamliner.model.session import open_model
from streamliner.runs.reporter import Reporter
from streamliner.settings import ModelSettings

SEARCH = ("--remove", "1", "--method", "block-influence", "--num-samples", "1", "--sequence-length", "16")


@pytest.fixture
def faster(monkeypatch):
    """Makes a machine on which another precision is faster."""

    def make(other, ratio=3.0):
        found = (other, ratio) if other else None
        monkeypatch.setattr("streamliner.model.session.faster_precision", lambda dtype, device: found)

    return make


@pytest.fixture
def half(tmp_path):
    make_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    return tmp_path / "half"


def chosen(model, **settings):
    session = open_model(model, ModelSettings(**settings))
    session.choose_precision(Reporter(quiet=True))
    return session.settings.dtype


def test_a_gguf_file_is_measured_in_bfloat16_where_that_is_fast(faster, tmp_path):
    file = write_gguf(TINY, tmp_path / "dense.gguf")
    faster(torch.bfloat16)
    assert chosen(file) == "bfloat16"
    assert chosen(file, dtype="float32") == "float32"
    faster(None)
    assert chosen(file) == "auto"  # float32


def test_halves_are_measured_in_float32_where_that_is_fast_and_fits(faster, half, monkeypatch):
    faster(torch.float32, 80.0)
    assert chosen(half) == "float32"
    assert chosen(half, offload="disk") == "auto"
    monkeypatch.setattr("streamliner.model.session.free_and_total", lambda device: (1000, 1000))
    assert chosen(half) == "auto"


def test_a_float32_checkpoint_stays_one(faster, half, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "whole")
    faster(torch.bfloat16)
    assert chosen(tmp_path / "whole") == "auto"


def test_a_run_continues_in_its_own_precision(capsys, faster, tmp_path):
    file = write_gguf(TINY, tmp_path / "dense.gguf")
    faster(torch.bfloat16)
    out = run(capsys, "search", file, *SEARCH, "-o", tmp_path / "run")
    assert "Measuring in bfloat16" in out[1]
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recorded["model"]["dtype"] == "bfloat16"
    faster(None)
    assert "known already" in run(capsys, "search", file, *SEARCH, "-o", tmp_path / "run")[1]
    assert sl.search(file, remove=1, method="block-influence", num_samples=1, sequence_length=16, run=tmp_path / "run")


def test_the_folder_made_of_a_gguf_file_is_in_float32(capsys, faster, tmp_path):
    file = write_gguf(TINY, tmp_path / "dense.gguf")
    faster(torch.bfloat16)
    run(capsys, "prune", file, *SEARCH, "-o", tmp_path / "folder", "--no-verify")
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["dtype"] == "float32"
