"""Make the lightweight networks of a plan's gaps: the choice by name."""

from collections.abc import Sequence

import torch
from torch import nn

from streamliner.errors import HealingError
from streamliner.heal.gaps import Gap
from streamliner.heal.networks.block import make_block
from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.heal.networks.ffn import FFN
from streamliner.heal.networks.plugin_network import network_of_plugin
from streamliner.heal.networks.swiglu import SwiGLU
from streamliner.heal_settings import NETWORKS, HealSettings
from streamliner.model.blocks import Blocks
from streamliner.model.parts import plain_attributes
from streamliner.plugins import find_plugin

FEED_FORWARDS: dict[str, type[FeedForward]] = {"swiglu": SwiGLU, "ffn": FFN}
"""Networks without attention by name; plug-ins are others."""


def network_class(name: str) -> type[FeedForward]:
    """The network without attention of that name, one that settings allow; a PluginError if it is a broken plug-in."""
    plugin = find_plugin("network", name, NETWORKS)
    return FEED_FORWARDS[name] if plugin is None else network_of_plugin(plugin)


def make_networks(blocks: Blocks, gaps: Sequence[Gap], settings: HealSettings) -> dict[int, nn.Module]:
    """A module for each place of each gap, in float32 and trainable, by the block whose place it takes.

    Raises HealingError if blocks of a gap have other shapes, or the config has no width of the residual stream, and
    PluginError if the network is a plug-in and broken.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    networks: dict[int, nn.Module] = {}
    for gap in gaps:
        for number, place in enumerate(gap.places):
            if settings.network == "block":
                network = make_block(blocks, gap, number, settings.init, generator)
            else:
                network = _make_feed_forward(blocks, place, settings, generator)
            networks[place] = network.to(blocks.device).float().requires_grad_(True)
    return networks


def _make_feed_forward(blocks: Blocks, place: int, settings: HealSettings, generator: torch.Generator) -> FeedForward:
    """Uniform as `nn.Linear`, biases zero; with `residual` the last map is zero too, so the network is a bypass."""
    hidden, mlp = blocks.stack.hidden_size, getattr(blocks.config, "intermediate_size", None)
    if not isinstance(hidden, int):
        raise HealingError(
            f"The config of this model does not name the width of its residual stream, which {settings.network} needs.",
            "Choose --network block.",
        )
    cls = network_class(settings.network)
    size = mlp if cls.like_mlp and isinstance(mlp, int) else 4 * hidden
    network = cls(hidden, size, settings.residual, getattr(blocks.config, "rms_norm_eps", None) or 1e-6)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            bound = parameter.shape[1] ** -0.5
            parameter.data.uniform_(-bound, bound, generator=generator)
        if name.endswith("bias") or (settings.residual and name == "down_proj.weight"):
            parameter.data.zero_()
    # The model's own forward may ask a block for them, such as Gemma for its attention_type.
    for name, value in plain_attributes(blocks.modules[place]).items():
        if not hasattr(network, name):
            setattr(network, name, value)
    return network
