"""Searches on an accelerator and on a model spread over two, which exist only in the tests (`emulated.py`)."""

from __future__ import annotations

import pytest
import torch

from emulated import emulated
from families import FAMILIES, make_model
from spread import spread
from streamliner.measure.loss import text_loss
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


@pytest.mark.parametrize("way", ["sleb", "streamline"])
def test_an_accelerator_finds_what_the_cpu_finds(way, text, on_cpu):
    with emulated():
        assert search(make_model("llama").to("emulated:0"), text, way)[0] == on_cpu("llama", way)


@pytest.mark.parametrize("way", WAYS)
def test_two_accelerators_find_what_the_cpu_finds(way, text, on_cpu):
    with emulated(2):
        assert search(spread(make_model("llama")), text, way)[0] == on_cpu("llama", way)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_on_two_accelerators(family, text):
    """Its loss is that of the CPU, whether its head can leave out positions or not, and shares weights or not."""
    expected = text_loss(Blocks(make_model(family)), text.windows[:1])
    with emulated(2):
        blocks = Blocks(spread(make_model(family)))
        assert {str(p.device) for p in blocks.model.parameters()} == {"emulated:0", "emulated:1"}
        assert text_loss(blocks, text.windows[:1]).mean == pytest.approx(expected.mean, rel=1e-6)
