"""Placement, and the precision that is fast."""

from __future__ import annotations

import pytest
import torch

from places import TINY
from streamliner.model.devices import faster_precision, is_spread, offload_map, product_seconds
from streamliner.model.session import open_model


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
