"""Defaults suit the device: the papers' sizes where there is a GPU, sizes of minutes elsewhere."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from command import run
from places import TINY
from streamliner.fields import flags_of
from streamliner.heal.healing import prepare_healing
from streamliner.heal_settings import BATCH, FEW_TOKENS, SMALL_BATCH, TOKENS, HealSettings
from streamliner.model.session import Session, open_model
from streamliner.runs.reporter import Reporter
from streamliner.runs.yaml_config import read_recipe
from streamliner.settings import SearchSettings
from streamliner.text.calibration import FEW_SAMPLES, NUM_SAMPLES, SEQUENCE_LENGTH, SHORT_LENGTH
from streamliner.verbs.search import with_windows


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(Session, "is_slow", False)


def sizes(**given):
    found = with_windows(open_model(TINY), SearchSettings(remove=1, quiet=True, **given))
    return found.num_samples, found.sequence_length


def test_a_search_without_a_gpu_reads_little_and_says_what_the_paper_reads(capsys):
    assert sizes() == (FEW_SAMPLES, SHORT_LENGTH)
    assert sizes(num_samples=3) == (3, SHORT_LENGTH)
    assert sizes(sequence_length=64) == (FEW_SAMPLES, 64)
    assert sizes(time_limit="1m") == (NUM_SAMPLES, SHORT_LENGTH)  # as many as there is time for
    capsys.readouterr()
    with_windows(open_model(TINY), SearchSettings(remove=1))
    said = "Without a GPU the default is 16 windows of 256 tokens; the paper's is 128 of 2048 (--recipe paper)."
    assert said in " ".join(capsys.readouterr().err.split())
    with_windows(open_model(TINY), SearchSettings(remove=1, num_samples=128))
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("on_gpu")
def test_on_a_gpu_the_defaults_are_those_of_the_papers():
    limit = open_model(TINY).config.max_position_embeddings
    assert sizes() == (NUM_SAMPLES, min(SEQUENCE_LENGTH, limit))
    settings = HealSettings(data="python-docs", sequence_length=64)
    prepared = prepare_healing(open_model(TINY), settings, Reporter(quiet=True))
    assert prepared.steps == TOKENS // (64 * BATCH)


def test_healing_without_a_gpu_takes_smaller_steps_and_fewer_of_them():
    def prepared(**given):
        settings = HealSettings(data="python-docs", validation_windows=2, **given)
        return prepare_healing(open_model(TINY), settings, Reporter(quiet=True))

    usual = prepared()
    assert usual.text.sequence_length == SHORT_LENGTH
    assert usual.steps == FEW_TOKENS // (SHORT_LENGTH * SMALL_BATCH)
    assert prepared(micro_batch=3).settings.batch_windows == 6  # a multiple of what runs together
    assert prepared(steps=7).steps == 7
    assert prepared(tokens="50k", global_batch_size=8, sequence_length=64).steps == 50_000 // (64 * 8)


def test_the_recipe_of_the_papers_has_their_sizes(capsys, tmp_path):
    searching = SearchSettings(remove=1, **read_recipe("paper", flags_of(SearchSettings), {}))
    assert (searching.num_samples, searching.sequence_length) == (NUM_SAMPLES, SEQUENCE_LENGTH)
    healing = HealSettings(**read_recipe("paper", flags_of(HealSettings), {}))
    assert (healing.num_tokens, healing.batch_windows, healing.sequence_length) == (TOKENS, BATCH, SEQUENCE_LENGTH)
    for verb in ("search", "prune"):  # its settings of training disturb neither
        small = ("--remove", "1", "--num-samples", "2", "--sequence-length", "64")
        run(capsys, verb, TINY, "-o", tmp_path / verb, "--recipe", "paper", *small)
    assert searching.method_settings == {"effort": "exact"}
    for given, kept in (({"method": "sleb"}, True), ({"method": "refine"}, False), ({"set": ["effort=auto"]}, False)):
        assert ("search_effort" in read_recipe("paper", flags_of(SearchSettings), given)) is kept


def test_a_run_that_continues_on_another_device_keeps_its_windows(capsys, tmp_path, monkeypatch):
    arguments = ("search", TINY, "-o", tmp_path / "run", "--remove", "1", "--method", "streamline")
    run(capsys, *arguments)
    monkeypatch.setattr(Session, "is_slow", False)
    found = json.loads(run(capsys, *arguments, "--json")[0])
    assert found["plan"]["calibration"]["windows"] == FEW_SAMPLES
    assert found["cost"]["window_losses"] == 0  # all known
    settings = SearchSettings(remove=1, run=tmp_path / "run")
    assert with_windows(open_model(TINY), dataclasses.replace(settings, overwrite=True)).num_samples == NUM_SAMPLES


def test_a_healing_that_continues_on_another_device_keeps_its_sizes(capsys, tmp_path, monkeypatch):
    run(capsys, "cut", TINY, "--blocks", "5,6", "-o", tmp_path / "cut", "--no-verify", "-q")
    arguments = ("heal", tmp_path / "cut", "--dense", TINY, "-o", tmp_path / "out", "--data", "python-docs")
    given = ("--validation-windows", "2", "--tokens", "2k")
    run(capsys, *arguments, *given)
    monkeypatch.setattr(Session, "is_slow", False)
    settings = HealSettings(run=tmp_path / "out.run", data="python-docs", validation_windows=2)
    prepared = prepare_healing(open_model(TINY), settings, Reporter(quiet=True))
    assert (prepared.text.sequence_length, prepared.settings.batch_windows) == (SHORT_LENGTH, SMALL_BATCH)
    assert prepared.settings.num_tokens == 2000
    shutil.rmtree(tmp_path / "out")
    run(capsys, *arguments, *given)  # is not of another run
    other = dataclasses.replace(settings, overwrite=True)
    assert prepare_healing(open_model(TINY), other, Reporter(quiet=True)).settings.batch_windows == BATCH
