"""A tensor of the CPU in a hot place is caught on the emulated accelerator: it is refused, or seen to cross over."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from emulated import EmulatedTensor, emulated
from families import make_model
from healing import objective_of
from streamliner.heal import losses
from streamliner.heal.graft import Graft
from streamliner.measure import loss
from streamliner.measure.prefixes import Prefixes
from streamliner.measure.probe import Probe
from streamliner.model import blocks, fork
from streamliner.model.blocks import Blocks
from streamliner.model.fork import Fork
from streamliner.model.generate import greedy
from streamliner.model.handoff import Handoff
from streamliner.text.calibration import CalibrationSet

REFUSED, CROSSES = "refused", "crosses"


def model():
    return make_model("llama", num_hidden_layers=4).to("emulated:0")


def ids():
    return torch.arange(2, 10)[None]


def search():
    probe = Probe(Blocks(model()), CalibrationSet(ids(), {"source": "numbers"}))
    probe.losses([(1,), (2,)])
    probe.losses([(1, 2), (1, 3)])  # begins where the first two differed
    return probe


def divergences():
    Probe(Blocks(model()), CalibrationSet(ids(), {"source": "numbers"}), objective="kl").losses([(1,), (2,)])


def similarity():
    Probe(Blocks(model()), CalibrationSet(ids(), {"source": "numbers"})).similarity()


def training():
    objective = objective_of(model(), (2,), loss={"mse": 1.0, "lm": 1.0, "kd": 1.0})
    objective(ids().to("emulated:0"))[0].backward()


def generation():
    greedy(Blocks(model()), ids(), 2)


PLACES = {
    "token ids": (blocks, "text_inputs", search, REFUSED),
    "positions of a block": (LlamaRotaryEmbedding, "forward", search, REFUSED),
    "what a bypassed block returns": (Handoff, "bypassed", search, REFUSED),
    "what a block returns": (fork, "stream_out", search, CROSSES),
    "places of rows": (Fork, "_all_places", search, CROSSES),
    "a stream that was kept": (Prefixes, "find", search, CROSSES),
    "positions of the head": (loss, "_pieces", search, CROSSES),
    "logits": (Blocks, "logits", search, CROSSES),
    "log-probabilities": (functional, "log_softmax", divergences, CROSSES),
    "streams that are compared": (functional, "normalize", similarity, CROSSES),
    "a gradient by logits": (losses, "_row_losses", training, CROSSES),
    "a divergence in training": (losses, "distillation_loss", training, REFUSED),
    "streams in training": (Graft, "dense_streams", training, REFUSED),
    "tokens that are generated": (torch.Tensor, "argmax", generation, REFUSED),
}


def on_cpu(value):
    """The same without the emulation's notice."""
    if isinstance(value, EmulatedTensor):
        return value.held.detach().clone()
    if isinstance(value, (tuple, list)):
        return type(value)([on_cpu(each) for each in value])
    return {key: on_cpu(each) for key, each in value.items()} if isinstance(value, dict) else value


@cache
def transfers(work):
    with emulated() as device:
        work()
        return dict(device.waits)


@pytest.mark.parametrize("place", PLACES)
def test_a_planted_tensor_of_the_cpu_is_caught(place, monkeypatch):
    owner, name, work, how = PLACES[place]
    expected, original = transfers(work), getattr(owner, name)
    planted = []

    def run(*args, **kwargs):
        planted.append(place)
        return on_cpu(original(*args, **kwargs))

    with emulated() as device:
        monkeypatch.setattr(owner, name, run)
        if how == REFUSED:
            with pytest.raises(RuntimeError, match="same device"):
                work()
        else:
            work()
            assert device.waits != expected
    assert planted
