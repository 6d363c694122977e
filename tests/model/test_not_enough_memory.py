"""Out of memory is said as what it is, wherever it happens."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

import streamliner as sl
from command import run
from places import TINY
from streamliner.cut.verification import reference_outputs, sample_tokens
from streamliner.errors import NotEnoughMemoryError, is_out_of_memory
from streamliner.model.blocks import Blocks
from streamliner.model.devices import enough_memory

CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
ERRORS = {
    "python": MemoryError(),
    "cpu": RuntimeError(f"{CPU} 9 bytes. Error code 12 (Cannot allocate memory)"),
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "system": OSError(12, "Cannot allocate memory"),
}
OTHERS = [
    RuntimeError("size mismatch"),
    ValueError("out of memory"),
    OSError(28, "No space left on device"),
    KeyError(1),
]


@pytest.mark.parametrize("name", ERRORS)
def test_it_is_known(name):
    assert is_out_of_memory(ERRORS[name])
    said = r"Out of memory while baking.*are free now"
    with pytest.raises(NotEnoughMemoryError, match=said) as caught, enough_memory("baking", "--oven large"):
        raise ERRORS[name]
    assert "--oven large" in caught.value.hint


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_errors_stay_what_they_are(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), enough_memory("baking", ""):
        raise error


def fail(error):
    def call(*_, **__):
        raise error

    return call


@pytest.mark.parametrize("name", ERRORS)
def test_generation_that_runs_out_of_memory_is_not_a_fault_of_the_model(tiny, monkeypatch, name):
    monkeypatch.setattr(type(tiny), "generate", fail(ERRORS[name]))
    with pytest.raises(type(ERRORS[name])):
        reference_outputs(Blocks(tiny), (3,), sample_tokens(tiny.config))


@pytest.mark.parametrize("name", ["cpu", "gpu", "python"])
@pytest.mark.parametrize(
    ("place", "arguments", "doing"),
    [
        ("model.session:load_model", ("search", "--remove", "2", "-o", "OUT"), "loading"),
        ("measure.plain:PlainPath.logits", ("search", "--remove", "2", "-o", "OUT"), "measuring losses"),
        (
            "cut.verification:greedy_scores",
            ("cut", "--blocks", "3", "-o", "OUT"),
            "computing the logits to verify with",
        ),
        (
            "evaluate.model_evaluation:perplexity",
            ("evaluate", "--perplexity", "python-docs", "--no-cache"),
            "evaluating",
        ),
    ],
)
def test_the_command_says_while_doing_what(capsys, tmp_path, monkeypatch, name, place, arguments, doing):
    module, _, attribute = place.partition(":")
    owner, _, attribute = attribute.rpartition(".")
    target = importlib.import_module(f"streamliner.{module}")
    monkeypatch.setattr(getattr(target, owner) if owner else target, attribute, fail(ERRORS[name]))
    arguments = [tmp_path / "out" if each == "OUT" else each for each in arguments]
    short = () if arguments[0] == "cut" else ("--num-samples", "2", "--sequence-length", "32")
    _, err = run(capsys, arguments[0], TINY, *arguments[1:], *short, status=1)
    assert f"Out of memory while {doing}" in err
    assert "What would help" in err
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_shell_that_runs_out_of_memory_is_not_a_refused_block(tiny, monkeypatch):
    from streamliner.cut.structure import Structure

    structure = Structure.of(tiny)
    module = sys.modules[Structure.__module__]
    monkeypatch.setattr(module, "_outlines", {})  # those of other tests
    monkeypatch.setattr(module, "make_shell", fail(MemoryError()))
    with pytest.raises(MemoryError):
        structure.refusal((3,))
    assert structure._refusals == {}


def test_a_search_in_python_says_it_too(tiny, tokenizer, monkeypatch):
    text = sl.calibration_set("python-docs", tokenizer, num_samples=2, sequence_length=32)
    monkeypatch.setattr("streamliner.measure.plain.PlainPath.logits", fail(ERRORS["cpu"]))
    with pytest.raises(NotEnoughMemoryError, match="measuring losses"):
        sl.search(tiny, text, remove=2, quiet=True)
