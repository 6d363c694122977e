"""Placement, and the precision that is fast."""

from __future__ import annotations

import weakref

import pytest
import torch

from emulated import emulated
from places import TINY
from streamliner.model import devices
from streamliner.model.devices import (
    faster_precision,
    free_and_total,
    is_spread,
    offload_map,
    product_seconds,
    reserve,
    share_of_free_memory,
)
from streamliner.model.load import load_model
from streamliner.model.session import open_model

GIB = 1 << 30


@pytest.mark.parametrize(("dtype", "other"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_precision_that_is_much_faster_is_found(monkeypatch, dtype, other):
    seconds = {getattr(torch, dtype): 3.0, getattr(torch, other): 1.5}
    monkeypatch.setattr("streamliner.model.devices.product_seconds", lambda dtype, device: seconds[dtype])
    assert faster_precision(getattr(torch, dtype), torch.device("cpu")) == (getattr(torch, other), 2.0)
    seconds[getattr(torch, other)] = 2.5
    assert faster_precision(getattr(torch, dtype), torch.device("cpu")) is None


def test_a_product_takes_time():
    assert product_seconds(torch.float32, torch.device("cpu")) > 0


def test_all_but_the_blocks_stay_on_the_device():
    session = open_model(TINY)
    places = offload_map(session.shell, session.stack.path, "disk", "cpu")
    blocks = {f"model.layers.{index}" for index in range(12)}
    assert {name for name, place in places.items() if place == "disk"} == blocks
    assert {place for name, place in places.items() if name not in blocks} == {"cpu"}
    names = [name for name, _ in session.shell.named_parameters()]
    assert all(any(name == place or name.startswith(f"{place}.") for place in places) for name in names)


def test_one_device_is_not_spread(tiny):
    assert not is_spread(tiny)
    tiny.hf_device_map = {"": 0}
    assert not is_spread(tiny)
    tiny.hf_device_map = {"model": 0, "lm_head": 1}
    assert is_spread(tiny)


@pytest.mark.parametrize(
    ("free", "on_cpu", "on_gpu"),
    [(100 * GIB, 2_000_000_000, 32 * GIB), (7 * GIB, GIB, 2 * GIB), (1000, 1 << 26, 1 << 26), (None, *2 * [2 * 10**9])],
)
def test_the_budget_of_memory_is_a_share_of_what_is_free(free, on_cpu, on_gpu, monkeypatch):
    module = torch.nn.Linear(2, 2)
    monkeypatch.setattr(devices, "free_and_total", lambda device: (free, 10**12))
    assert share_of_free_memory(module) == on_cpu
    with emulated(2):
        both = torch.nn.ModuleList([module.to("emulated:0"), torch.nn.Linear(2, 2, device="emulated:1")])
        known = {"emulated:0": 10**12, "emulated:1": free}
        monkeypatch.setattr(devices, "free_and_total", lambda device: (known[str(device)], 10**12))
        assert share_of_free_memory(both) == on_gpu


def test_free_memory_of_this_machine():
    free, total = free_and_total(torch.device("cpu"))
    assert 0 < free < total


def test_room_is_reserved_also_where_files_cannot_be_allocated(tmp_path, monkeypatch):
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    with (tmp_path / "file").open("wb") as file:
        reserve(file.fileno(), file.name, 1000)
        with pytest.raises(OSError, match="No space left"):
            reserve(file.fileno(), file.name, 1 << 60)


def test_a_released_model_is_gone_though_something_makes_a_circle():
    session = open_model(TINY)
    model = session.load().model
    model.circle, gone = [model], weakref.ref(model)
    del model
    session.release()
    assert gone() is None


@pytest.mark.parametrize("device", [None, "emulated:1"])
def test_weights_go_straight_to_their_device(device, monkeypatch):
    """Several ranks of a large model would not fit in the machine's memory one after the other's loading."""
    monkeypatch.setattr(torch.nn.Module, "to", lambda *_: pytest.fail("moved after loading"))
    with emulated(2):
        model = load_model(TINY, device=device)
        assert {str(each.device) for each in (*model.parameters(), *model.buffers())} == {device or "emulated:0"}
        assert not is_spread(model)
        assert model(torch.arange(4, device=device or "emulated:0")[None]).logits.isfinite().all()
