"""A checkpoint with networks that no stock class has: code of its own, by the `auto_map` of `transformers`.

Its model type is new, so that nothing loads it as the stock architecture by mistake: without trust in its code
`transformers` refuses it, and so do engines that do not know the type.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from streamliner.errors import HealingError
from streamliner.heal.networks import feed_forward
from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.model.blocks import Blocks
from streamliner.model.load import auto_class

FILE = "modeling_streamliner.py"


PREFIX = "streamliner_"


CODE = '''

class HealedConfig({config}):
    """`{config}` whose `streamliner` names the networks."""

    model_type = "{model_type}"


class HealedModel({model}):
    """`{model}` with lightweight networks in the places of blocks; see `config.streamliner`."""

    config_class = HealedConfig

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        blocks = self.get_submodule(config.streamliner["stack"])
        for network in config.streamliner["networks"]:
            place = network["place"]
            made = InPlaceOfBlock(network, place)
            for name, value in vars(blocks[place]).items():
                if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name != "training":
                    setattr(made, name, value)
            blocks[place] = made


class InPlaceOfBlock(nn.Module):
    """A network that is called as a block is, and returns what a block returns."""

    def __init__(self, network, place):
        super().__init__()
        self.network = NETWORKS[network["kind"]](*network["size"], network["residual"], network["eps"])
        self.place, self.further = place, network["further_outputs"]

    def forward(self, hidden_states, *args, **kwargs):
        # Releases of transformers before 5.24 have the longer name.
        cache = kwargs.get("past_key_values") if kwargs.get("cache") is None else kwargs["cache"]
        if cache is not None:
            # Models ask a block's part of the cache how long the text is. An entry of one number a token tells it.
            empty = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(empty, empty, self.place)
        out = self.network(hidden_states)
        return out if self.further is None else (out, *(None for _ in range(self.further)))
'''


def write_code(model: nn.Module, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The code of a healed model and its config.

    Args:
        model: the cut model; its class is the one that the code extends.
        config: the cut checkpoint's config.json.

    Returns:
        Content of FILE, and the config with `model_type`, `architectures` and `auto_map`; `streamliner` is added by
        `describe`.

    Raises:
        HealingError: the model's class is not one of transformers.
    """
    classes = (type(model.config), type(model))
    for cls in classes:
        if not (cls.__module__.startswith("transformers.models.") and cls.__name__.isidentifier()):
            raise HealingError(
                f"{cls.__name__} is code of the checkpoint's own, which a network's code cannot extend.",
                "Choose --network block.",
            )
    # Of the class, never of the file: it becomes part of the code.
    model_type = PREFIX + str(getattr(classes[0], "model_type"))  # noqa: B009
    names = {"config": classes[0].__name__, "model": classes[1].__name__, "model_type": model_type}
    code = inspect.getsource(feed_forward)
    imports = "".join(f"from {cls.__module__} import {cls.__name__}\n" for cls in classes)
    code = code.replace("from torch.nn import functional\n", f"from torch.nn import functional\n{imports}")
    auto_map = {
        "AutoConfig": f"{FILE.removesuffix('.py')}.HealedConfig",
        auto_class(model.config).__name__: f"{FILE.removesuffix('.py')}.HealedModel",
    }
    changed = {"model_type": model_type, "architectures": ["HealedModel"], "auto_map": auto_map}
    return code + CODE.format(**names), config | changed


def describe(blocks: Blocks, networks: dict[int, FeedForward], numbers: dict[int, int]) -> dict[str, Any]:
    """What the code builds: the stack's path, and each network by its place among the blocks that stay."""
    kinds = {cls: kind for kind, cls in feed_forward.NETWORKS.items()}
    return {
        "stack": blocks.path,
        "networks": [
            {
                "place": numbers[place],
                "kind": kinds[type(network)],
                "size": [network.up_proj.in_features, network.up_proj.out_features],  # type: ignore[union-attr]
                "residual": network.residual,
                "eps": getattr(network.norm, "eps", None) or 1e-6,
                "further_outputs": blocks.further_outputs(place),
            }
            for place, network in sorted(networks.items())
        ],
    }
