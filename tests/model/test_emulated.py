"""The emulated accelerator itself, and how often work waits for it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from emulated import EmulatedTensor, emulated
from families import make_model
from streamliner.measure import loss
from streamliner.measure.counters import Counters
from streamliner.measure.plain import PlainPath
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.devices import best_device, free_and_total
from streamliner.text.calibration import CalibrationSet


@pytest.fixture
def device():
    with emulated(2) as found:
        yield found


MIXED = {
    "addition": lambda a, b: a + b,
    "product": lambda a, b: a @ b,
    "stack": lambda a, b: torch.stack([a, b]),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "indices of another device": lambda a, b: a[b.long().abs().clamp(max=1)],
    "embedding": lambda a, b: functional.embedding(b.long().abs(), a),
    "linear": functional.linear,
    "attention": lambda a, b: functional.scaled_dot_product_attention(a[None], b[None], b[None]),
    "loss": functional.mse_loss,
}


@pytest.mark.parametrize("operation", MIXED)
def test_devices_do_not_mix(operation, device):
    run, value = MIXED[operation], torch.tensor([[0.5, 1.0], [1.0, 0.25]])
    expected = run(value, value)
    for place in ("emulated:0", "emulated:1"):
        found = run(value.to(place), value.to(place))
        assert isinstance(found, EmulatedTensor)
        assert str(found.device) == place
        torch.testing.assert_close(found.cpu(), expected)
    others = ["emulated:1"] if "indices" in operation else ["emulated:1", "cpu"]
    for other in others:
        with pytest.raises(RuntimeError, match="same device"):
            run(value.to("emulated:0"), value.to(other))


def test_what_a_gpu_takes_from_the_cpu(device):
    """Numbers, and lists of indices, which it must be sent."""
    value = torch.arange(4.0, device="emulated:0")
    assert (value * torch.tensor(2.0)).tolist() == [0, 2, 4, 6]
    assert value[torch.tensor([3, 1])].tolist() == [3, 1]
    assert device.waits["upload of indices", ""] == 1


def test_waits_and_uploads_are_counted(device):
    value = torch.arange(4.0).to("emulated:0")
    device.waits.clear()
    assert value[1].item() == 1
    assert bool((value > 2).any())
    assert value.nonzero().tolist() == [[1], [2], [3]]
    assert value[value > 2].tolist() == [3]
    value.copy_(torch.ones(4))
    expected = {"local_scalar_dense": 2, "nonzero": 1, "download": 2, "index by a mask": 1, "upload": 1}
    assert {what: count for (what, _), count in device.waits.items()} == expected
    device.waits.clear()
    with torch.inference_mode():
        value = torch.ones(1, device="emulated:0")
        assert value.item() == 1
        assert (value == 1).all()
    assert device.waits.total() == 2


def test_a_module_learns_as_on_the_cpu(device):
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 1)), torch.randn(5, 3)
    losses = []
    for place in ("cpu", "emulated:1"):
        own, found = copy.deepcopy(model).to(place), []
        optimiser = torch.optim.AdamW(own.parameters(), lr=0.1)
        for _ in range(3):
            value = own(x.to(place)).square().mean()
            value.backward()
            optimiser.step()
            optimiser.zero_grad()
            found.append(value.item())
        losses.append(found)
    assert losses[0] == losses[1]
    assert losses[0][2] < losses[0][0]


def test_it_is_the_best_device_while_it_is_there():
    with emulated(free=1000):
        assert best_device() == torch.device("emulated")
        assert free_and_total(best_device()) == (1000, 2000)
    assert best_device().type == "cpu"


def random_text(windows, tokens):
    torch.manual_seed(1)
    return CalibrationSet(torch.randint(0, 128, (windows, tokens)), {"source": "random tokens"})


def waits(device):
    """How often the CPU waited: in a model's own forward, and outside.

    Uploads are no waits. transformers looks once in each forward whether sequences are packed into windows.
    """
    found = {where: count for (what, where), count in device.waits.items() if not what.startswith("upload")}
    inside = sum(count for where, count in found.items() if where.startswith("model/blocks.py"))
    return inside, sum(found.values()) - inside


def uploads(device):
    return sum(count for (what, _), count in device.waits.items() if what.startswith("upload"))


@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_a_window_of_a_search_waits_once(objective, device, monkeypatch):
    """However many removals, positions and pieces there are. A few lists go to the device, none for each piece."""
    monkeypatch.setattr(loss, "POSITIONS_AT_ONCE", 4)
    blocks = Blocks(make_model("llama", num_hidden_layers=4).to("emulated:0"))
    probe = Probe(blocks, random_text(3, 16), objective=objective)
    probe.losses([(1,), (2,)], range(1))  # checks the forked path
    device.waits.clear()
    probe.losses([(0,), (3,), (1, 2), (0, 2)], range(1, 3))
    assert waits(device) == (2 * 2 if objective == "loss" else 2 * 4, 2)
    assert uploads(device) <= 2 * 6
    assert device.waits["upload of indices", ""] == 0


def test_a_window_of_a_text_waits_once(device):
    blocks = Blocks(make_model("llama", num_hidden_layers=4).to("emulated:0"))
    windows = random_text(3, 16).windows
    loss.text_loss(blocks, windows[:1])
    device.waits.clear()
    loss.text_loss(blocks, windows)
    assert waits(device) == (3 * 2, 3)
    plain = PlainPath(blocks, Counters())
    device.waits.clear()
    plain.losses(windows, (1,))
    assert waits(device) == (1, 1)
