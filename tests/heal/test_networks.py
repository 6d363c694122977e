"""Lightweight networks as they start."""

from __future__ import annotations

import pytest
import torch

from healing import objective_of
from streamliner.heal.networks.make import FEED_FORWARDS
from streamliner.heal_settings import NETWORKS


@pytest.mark.parametrize("init", ["first", "last", "mean", "random"])
def test_init(tiny, init):
    objective = objective_of(tiny, (4, 5), init=init, network_depth=2)
    gap = range(2, 6)
    assert sorted(objective.networks) == ["2", "3"]
    for number, place in enumerate(("2", "3")):
        own = objective.networks[place].mlp.up_proj.weight
        weights = [tiny.model.layers[index].mlp.up_proj.weight for index in gap]
        expected = {"first": weights[number], "last": weights[2 + number], "mean": torch.stack(weights).mean(0)}
        if init == "random":
            assert own.std().item() == pytest.approx(tiny.config.initializer_range, rel=0.1)
        else:
            torch.testing.assert_close(own, expected[init])
        assert own.requires_grad


def test_settings_name_every_network():
    assert set(NETWORKS) == {"block", *FEED_FORWARDS, "none"}


@pytest.mark.parametrize("kind", FEED_FORWARDS)
def test_a_network_without_attention_starts_as_a_bypass(tiny, kind):
    (network,) = objective_of(tiny, (4, 5), network=kind).networks.values()
    stream = torch.randn(1, 3, tiny.config.hidden_size)
    torch.testing.assert_close(network(stream), stream)
    (alone,) = objective_of(tiny, (4, 5), network=kind, residual=False).networks.values()
    assert alone(stream).shape == stream.shape
    assert alone(stream).abs().max() > 0
