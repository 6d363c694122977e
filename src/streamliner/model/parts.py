"""The parts of a block, its linear maps, gated parts and norms; and parameters: shared ones, and their size."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

GATED = ("gate_proj", "up_proj", "down_proj")
"""Linear maps of a gated feed-forward part, as in SwiGLU: down(act(gate(x)) * up(x))."""


def find_part(module: nn.Module, path: str) -> nn.Module:
    """The module at `path` inside `module`."""
    return module.get_submodule(path)


@contextmanager
def watched(module: nn.Module, path: str, note: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """While open, each call of the part at `path` gives its first argument and its output to `note`."""
    handle = find_part(module, path).register_forward_hook(lambda _, args, made: note(args[0], made))
    try:
        yield
    finally:
        handle.remove()


def linear_names(module: nn.Module) -> list[str]:
    """Paths of the linear maps in a module; GPT-2's `Conv1D` is one too."""
    from transformers.pytorch_utils import Conv1D

    return [name for name, part in module.named_modules() if isinstance(part, (nn.Linear, Conv1D))]


def gated_parts(block: nn.Module) -> list[str]:
    """Paths of the feed-forward parts of a block that have a gate."""
    return [path for path, part in block.named_modules() if all(hasattr(part, name) for name in GATED)]


def linears_outside(block: nn.Module, paths: Iterable[str]) -> list[nn.Linear]:
    """The linear maps of a block that are in none of the parts at `paths`."""
    inside = {id(part) for path in paths for part in find_part(block, path).modules()}
    return [part for part in block.modules() if isinstance(part, nn.Linear) and id(part) not in inside]


def weighted_children(block: nn.Module, shape: Sequence[int]) -> list[str]:
    """Names of a block's direct children whose `weight` has this shape: with the stream's width, its norms."""
    weights = ((name, getattr(child, "weight", None)) for name, child in block.named_children())
    return [name for name, weight in weights if isinstance(weight, Tensor) and weight.shape == torch.Size(shape)]


def plain_attributes(module: nn.Module) -> dict[str, bool | int | float | str]:
    """Public attributes of a module that are numbers or strings, such as the `attention_type` of Gemma's blocks.

    A model's forward may ask a block for these, so what takes a block's place needs them too.
    """
    attributes = vars(module).items()
    return {name: v for name, v in attributes if isinstance(v, (bool, int, float, str)) and not name.startswith("_")}


def shared_parameters(blocks: Iterable[nn.Module]) -> list[list[tuple[int, str]]]:
    """For each parameter that is in several places these: index of the block, and name within it."""
    places: dict[int, list[tuple[int, str]]] = {}
    for index, block in enumerate(blocks):
        for name, parameter in block.named_parameters(remove_duplicate=False):
            places.setdefault(id(parameter), []).append((index, name))
    return [each for each in places.values() if len(each) > 1]


def modules_with_parameters(module: nn.Module) -> list[str]:
    """Paths of the modules in `module` that have parameters of their own."""
    return [path for path, part in module.named_modules() if path and any(True for _ in part.parameters(recurse=False))]


def tied_head(model: nn.Module) -> tuple[str, str] | None:
    """Names of the weights of the output head and of the embeddings where these are one parameter; otherwise None."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    weight = getattr(head, "weight", None)
    if weight is None or weight is not getattr(embeddings, "weight", None):
        return None
    paths = {id(module): f"{path}.weight" for path, module in model.named_modules()}
    return paths[id(head)], paths[id(embeddings)]


def count_parameters(module: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    return sum(tensor.nbytes for tensor in {*model.parameters(), *model.buffers()})
