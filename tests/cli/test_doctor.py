"""`streamliner doctor`, and how many threads are worth using."""

from __future__ import annotations

import json
import tomllib
from types import SimpleNamespace

import pytest
import torch

from command import run
from packages import install
from places import ROOT
from streamliner import errors
from streamliner.model import threads
from streamliner.model.threads import best_number, best_threads, thread_rates
from streamliner.verbs import doctor as examine
from streamliner.verbs.doctor import EXTRAS


def test_it_describes_this_machine(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "SECONDS", 0.05)
    monkeypatch.setattr(examine, "product_seconds", lambda dtype, device: 1.0 if dtype == torch.float32 else 0.25)
    install(tmp_path / "p", monkeypatch, "acme", {"streamliner.methods": {"thing": "nowhere:Thing"}})
    old = ["torch>=99", "rich", "acme>=1", "gguf>=0.1; extra == 'gguf'", "never-made; extra == 'hub'"]
    monkeypatch.setattr(examine, "requires", lambda name: old)
    direct = {"url": f"file:///home/{'long-name/' * 20}clone", "dir_info": {"editable": True}}
    monkeypatch.setattr(errors, "distribution", lambda name: SimpleNamespace(read_text=lambda file: json.dumps(direct)))
    found = json.loads(run(capsys, "doctor", "--json")[0])
    assert found["versions"]["torch"] == torch.__version__
    assert found["devices"][0]["total_bytes"] > found["devices"][0]["free_bytes"] > 0
    assert [each["fits"] for each in found["dependencies"]] == [False, True, True]
    state = {each["name"]: each["installed"] for each in found["extras"]}
    assert not state["hub"]
    assert {each["use"] for each in found["disks"]} >= {"current folder", "models from the hub"}
    assert all(each["free_bytes"] > 0 for each in found["disks"])
    assert found["precisions"][0]["fastest"] == "bfloat16"
    assert found["threads"]["best"] in map(int, found["threads"]["rates"])
    wrong, plugin = found["problems"]
    assert wrong == f"torch is {torch.__version__}; torch>=99 is needed."
    assert "thing of the package acme 1.0 cannot be loaded" in plugin
    out, _ = run(capsys, "doctor")
    command = next(each["command"] for each in found["extras"] if each["name"] == "hub")
    assert command.startswith("pip install ")
    assert f"\nFor hub: {command}\n" in out  # in one line, to be copied
    assert "Problem: torch is" in out
    assert "Speed: float32 1.00, bfloat16 4.00" in out
    assert "Plug-in: method thing of acme 1.0" in out


def test_every_extra_is_explained():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"demo", "dev", "docs"}, "those are for this repository"


def test_the_fewest_threads_that_do_as_well():
    assert best_number({1: 100.0, 2: 5.0}) == 1
    assert best_number({1: 100.0, 2: 190.0, 4: 200.0, 8: 120.0}) == 2
    assert best_number({1: 100.0, 2: 150.0, 4: 200.0}) == 4


def test_threads_are_measured_and_put_back(monkeypatch):
    monkeypatch.setattr(threads, "SECONDS", 0.02)
    before = torch.get_num_threads()
    rates = thread_rates(3)
    assert list(rates) == [1, 2, 3]
    assert min(rates.values()) > 0
    assert torch.get_num_threads() == before
    assert best_threads() <= before


@pytest.mark.parametrize(
    ("rates", "used", "advice"),
    [({1: 100.0, 2: 10.0}, 2, "with 1 thread this machine is 10.0 times as fast as with 2"), ({1: 1.0, 2: 1.2}, 1, "")],
)
def test_advice_on_threads(rates, used, advice):
    found = examine.thread_advice(rates, used)
    assert advice in found
    assert bool(found) == bool(advice)
