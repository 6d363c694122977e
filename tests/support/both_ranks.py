"""What two processes check together, each of them in memory: see `kill.start_both`."""

from __future__ import annotations

import copy

import torch
from torch.distributed.tensor import DTensor

from healing import REMOVED, settings
from places import TINY
from streamliner.heal.graft import make_graft
from streamliner.heal.objective import Objective
from streamliner.heal.sharded import sharded
from streamliner.model.blocks import Blocks
from streamliner.model.session import open_model
from streamliner.runs.reporter import Reporter
from streamliner.settings import ModelSettings

TRAINED = (
    {"loss": {"mse": 1, "lm": 1}},
    {"loss": {"lm": 1, "normalized-mse": 0.1}, "network_input": "cut", "train_blocks": 1},
    {"loss": "kd", "network": "none", "lora": 2},
    {"loss": "kd", "lora": 2, "gradient_checkpointing": True},
)


def losses_and_gradients(objective):
    """Of two forwards, with the gradients of the first: the second finds what the first left behind."""
    objective.zero_grad()
    first, _ = objective(torch.arange(64).view(2, 32))
    first.backward()
    with torch.no_grad():
        second, _ = objective(torch.arange(64, 128).view(2, 32))
    return [first.detach(), second, *(each.grad for each in objective.trainable().values())]


def divided_blocks_compute_the_same():
    session = open_model(TINY, ModelSettings(device="cpu"))
    first = session.ranks.rank == 0
    model = session.load().model
    before = model.state_dict()
    for changes in TRAINED:
        chosen = settings(**changes)
        whole, divided = (make_graft(Blocks(copy.deepcopy(model)), REMOVED, chosen) for _ in range(2))
        expected = losses_and_gradients(Objective(whole, chosen, first=0))
        with sharded(divided, torch.device("cpu"), Reporter(quiet=True), keep=first):
            weights = list(divided.blocks.modules.parameters())
            assert all(isinstance(each, DTensor) for each in weights)
            assert 2 * sum(each.to_local().nbytes for each in weights) == sum(each.nbytes for each in weights)
            found = losses_and_gradients(Objective(divided, chosen, first=0))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        if first:  # it has the whole model again, and can change and save it
            if divided.adapters:
                divided.adapters.merge()  # they still add zero
            after = divided.blocks.model.state_dict()
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
            divided.blocks.model.load_state_dict(before)
            divided.blocks.forward(torch.arange(8)[None])
        session.ranks.wait()
