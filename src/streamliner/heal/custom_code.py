"""A checkpoint with networks that no stock class has: it brings code of its own, by the `auto_map` of transformers.

Its model type is new, so that nothing loads it as the stock architecture by mistake: unless its code is trusted,
transformers refuses it, and so do engines that do not know the type.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from streamliner.errors import HealingError
from streamliner.heal.graft import Graft
from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.heal.networks.plugin_network import class_source
from streamliner.model.load import auto_class

FILE, PREFIX = "modeling_streamliner.py", "streamliner_"
"""Name of the file with the code; what the model type begins with."""

HEADER = '''"""{model} with lightweight networks in the places of blocks. Written by streamliner."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from {config_module} import {config}
from {model_module} import {model}


'''
"""All that the classes of networks may import."""

CODE = '''

NETWORKS = {networks}


class InPlaceOfBlock(nn.Module):
    """A network that is called as a block is, and returns what a block returns."""

    def __init__(self, network, block):
        super().__init__()
        self.network = NETWORKS[network["kind"]](*network["size"], network["residual"], network["eps"])
        self.place, self.further = network["place"], network["further_outputs"]
        for name, value in vars(block).items():
            if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name != "training":
                setattr(self, name, value)

    def forward(self, hidden_states, *args, **kwargs):
        # Before transformers 5.24 the cache has the longer name.
        cache = kwargs.get("past_key_values") if kwargs.get("cache") is None else kwargs["cache"]
        if cache is not None:
            # Models ask a block's part of the cache for the length of the text: one number a token shows it.
            empty = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(empty, empty, self.place)
        out = self.network(hidden_states)
        return out if self.further is None else (out, *(None for _ in range(self.further)))


class HealedConfig({config}):
    """`{config}` whose `streamliner` describes the networks."""

    model_type = "{model_type}"


class HealedModel({model}):
    """`{model}` with lightweight networks in the places of blocks; see `config.streamliner`."""

    config_class = HealedConfig

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        blocks = self.get_submodule(config.streamliner["stack"])
        for network in config.streamliner["networks"]:
            blocks[network["place"]] = InPlaceOfBlock(network, blocks[network["place"]])
'''


def write_code(
    model: nn.Module, config: dict[str, Any], graft: Graft, numbers: Mapping[int, int]
) -> tuple[str, dict[str, Any]]:
    """Content of FILE, and the config with `model_type`, `architectures`, `auto_map` and the networks of `graft`.

    The code extends the class of `model`, the cut one; HealingError is raised if that is not one of transformers.
    `numbers` has the index in the cut model of each block that stays.
    """
    config_class, model_class = type(model.config), type(model)
    for cls in (config_class, model_class):
        if not (cls.__module__.startswith("transformers.models.") and cls.__name__.isidentifier()):
            raise HealingError(
                f"{cls.__name__} is not a class of transformers, so the code of a network cannot extend it.",
                "Choose --network block.",
            )
    networks = [_describe(graft, place) | {"place": numbers[place]} for place in sorted(graft.networks)]
    found = {_kind(network): type(network) for network in graft.networks.values()}
    kinds = {kind: found[kind] for kind in sorted(found)}
    # From the class, never from the file: it becomes part of the code.
    model_type = PREFIX + str(getattr(config_class, "model_type"))  # noqa: B009
    names = {"config": config_class.__name__, "config_module": config_class.__module__}
    names |= {"model": model_class.__name__, "model_module": model_class.__module__, "model_type": model_type}
    names["networks"] = "{" + ", ".join(f'"{kind}": {cls.__name__}' for kind, cls in kinds.items()) + "}"
    needed: list[type[nn.Module]] = [FeedForward, *kinds.values()]
    code = HEADER.format(**names) + "\n\n".join(map(class_source, needed)) + CODE.format(**names)
    module, auto = FILE.removesuffix(".py"), auto_class(model.config).__name__
    return code, config | {
        "model_type": model_type,
        "architectures": ["HealedModel"],
        "auto_map": {"AutoConfig": f"{module}.HealedConfig", auto: f"{module}.HealedModel"},
        "streamliner": {"stack": graft.blocks.path, "networks": networks},
    }


def _describe(graft: Graft, place: int) -> dict[str, Any]:
    """What the code needs to build a network, but for its place in the cut model."""
    network = graft.networks[place]
    assert isinstance(network, FeedForward)
    return {
        "kind": _kind(network),
        "size": [network.hidden_size, network.intermediate_size],
        "residual": network.residual,
        "eps": network.eps,
        "further_outputs": graft.blocks.handoffs[place].further_items,
    }


def _kind(network: nn.Module) -> str:
    """What the config calls a network: its class, as a plug-in's name is not for other programs."""
    return type(network).__name__.lower()
