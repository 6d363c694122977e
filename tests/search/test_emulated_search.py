"""Searches on an accelerator and on a model spread over two, which exist only in the tests (`emulated.py`)."""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model

from emulated import emulated
from families import make_model
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.search.registry import make_method, method_names
from streamliner.search.run_method import run_method
from streamliner.text.calibration import CalibrationSet

WAYS = {name: (name, {}) for name in method_names()} | {
    "sleb, adaptive": ("sleb", {"effort": "adaptive"}),
    "sleb, kl": ("sleb", {}),
}


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(1)
    return CalibrationSet(torch.randint(0, 128, (2, 12)), "random tokens")


@pytest.fixture(scope="module")
def on_cpu(text):
    """The frontier of each way to search a model on the CPU, by its family and the way."""
    found = {}

    def frontier(family, way):
        if (family, way) not in found:
            found[family, way] = search(make_model(family), text, way)[0]
        return found[family, way]

    return frontier


def search(model, text, way, **settings):
    name, more = WAYS[way]
    probe = Probe(Blocks(model), text, objective="kl" if "kl" in way else "loss", **settings)
    return run_method(probe, make_method(name, more), name, 2), probe


def spread(model):
    """As `--device auto` has it on two GPUs: the first blocks with the embeddings, the others with norm and head."""
    model.tie_weights()
    places = {"model.embed_tokens": "emulated:0", "model.norm": "emulated:1", "lm_head": "emulated:1"}
    places |= {"model.rotary_emb": "emulated:0"}
    places |= {f"model.layers.{i}": f"emulated:{int(i > 2)}" for i in range(6)}
    return dispatch_model(model, places, main_device="emulated:0")


@pytest.mark.parametrize("way", ["sleb", "streamline"])
def test_an_accelerator_finds_what_the_cpu_finds(way, text, on_cpu):
    with emulated():
        assert search(make_model("llama").to("emulated:0"), text, way)[0] == on_cpu("llama", way)


@pytest.mark.parametrize("way", WAYS)
def test_two_accelerators_find_what_the_cpu_finds(way, text, on_cpu):
    with emulated(2):
        assert search(spread(make_model("llama")), text, way)[0] == on_cpu("llama", way)
