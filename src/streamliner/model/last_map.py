"""The last map of a block, whose output enters the residual stream unchanged, and what runs after the last block.

Both are found by trying, not by name.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.model.blocks import Blocks
from streamliner.model.handoff import stream_out
from streamliner.model.parts import find_part, watched

TOLERANCE = 1e-3
"""Largest part of a change, in float32, that may not be in proportion to the module's own."""


@dataclass(frozen=True)
class LastMap:
    """A module in a block; what it writes, times `scale`, is added to all else that the block returns.

    Attributes:
        path: in the block.
        scale: 1, or a model's factor for what blocks write.
        is_linear: whether it is a linear map; otherwise a norm with a weight for each channel.
        has_bias: whether it adds a bias.
        input_first: whether a linear map's weight is (inputs, outputs), as in GPT-2's `Conv1D`.
        adds_one: whether a norm multiplies by 1 + its weight, as Gemma's do.
        linear: the linear map whose output a norm gets, if there is one.
        norm: the norm that gets what a linear map writes, if one does.
    """

    path: str
    scale: float
    is_linear: bool
    has_bias: bool = False
    input_first: bool = False
    adds_one: bool = False
    linear: "LastMap | None" = None
    norm: "LastMap | None" = None

    def watched(self, block: nn.Module, note: Callable[[Tensor, Tensor], None]) -> AbstractContextManager[None]:
        """While open, each call of the module in `block` gives its input and its output to `note`."""
        return watched(block, self.path, note)

    def weights(self, block: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Copies in float32: of a linear map (outputs, inputs) and its bias, of a norm its factors and their bias."""
        part: Any = find_part(block, self.path)
        weight, bias = part.weight.detach().to(torch.float32, copy=True), getattr(part, "bias", None)
        weight = weight.T if self.input_first else weight + 1 if self.adds_one else weight
        return weight, None if bias is None else bias.detach().to(torch.float32, copy=True)

    def set_weights(self, block: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        """Give the module other `weights`, rounded to its precision."""
        part: Any = find_part(block, self.path)
        part.weight.data.copy_(weight.T if self.input_first else weight - 1 if self.adds_one else weight)
        if bias is not None:
            part.bias.data.copy_(bias)


@torch.no_grad()
def find_last_map(blocks: Blocks, index: int, input_ids: Tensor) -> LastMap | None:
    """The last map of a block, tried in float32 on token ids of shape (1, tokens); None if there is none.

    None for quantised weights, and where experts write into the stream and no map of all tokens does.
    """
    block = copy.deepcopy(blocks.modules[index]).float()
    call = blocks.called_with(index, input_ids).float()
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    with _noted(block, calls):
        before = stream_out(call.run(block))
    generator = torch.Generator().manual_seed(0)
    for path, (given, made) in reversed(calls.items()):
        if made.shape[-1] != before.shape[-1] or made.numel() != before.numel():
            continue  # OPT's feed-forward part sees (tokens, hidden)
        change = (torch.randn(before.shape, generator=generator) * before.std().cpu()).to(before)
        with changed(block, path, change.view(made.shape)):
            difference = stream_out(call.run(block)) - before
        scale = ((difference * change).sum() / change.square().sum()).item()
        if (difference - scale * change).norm() <= TOLERANCE * difference.norm() and abs(scale) > TOLERANCE:
            found = _kind(find_part(block, path), path, scale, given, made)
            return found if found is None or found.is_linear else replace(found, linear=_before(block, found, calls))
    return None


def _before(block: nn.Module, norm: LastMap, calls: dict[str, tuple[Tensor, Tensor]]) -> LastMap | None:
    """The linear map whose output `norm` gets, from the calls of the modules of a block."""
    path = _writer(calls, calls[norm.path][0], norm.path)
    found = _kind(find_part(block, path), path, norm.scale, *calls[path]) if path else None
    return replace(found, norm=norm) if found and found.is_linear else None


def find_norm_before(block: nn.Module, path: str, run: Callable[[], Any]) -> tuple[LastMap, Tensor] | None:
    """The norm in a block in float32 whose output the module at `path` gets, and the norm's input, as `run` runs it.

    None if that module gets something else.
    """
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    wanted: list[Tensor] = []
    with _noted(block, calls), watched(block, path, lambda given, _: wanted.append(given)):
        run()
    writer = _writer(calls, wanted[0])
    found = _kind(find_part(block, writer), writer, 1.0, *calls[writer]) if writer else None
    return (found, calls[writer][0]) if found and not found.is_linear else None


@contextmanager
def _noted(block: nn.Module, calls: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """While open, inputs and outputs of modules with weights go into `calls`, by path, in their order."""
    with ExitStack() as hooks:
        for path in _with_weight(block):
            hooks.callback(find_part(block, path).register_forward_hook(partial(_note, calls, path)).remove)
        yield


def _writer(calls: dict[str, tuple[Tensor, Tensor]], wanted: Tensor, but: str = "") -> str:
    """The path of the first module, except one, whose output is this very tensor; "" for none."""
    same = (
        (path, made.data_ptr() == wanted.data_ptr() and made.shape == wanted.shape) for path, (_, made) in calls.items()
    )
    return next((path for path, is_same in same if is_same and path != but), "")


@contextmanager
def changed(block: nn.Module, path: str, change: Tensor) -> Iterator[None]:
    """While open, the module at `path` in a block writes `change` more."""
    handle = find_part(block, path).register_forward_hook(lambda _, __, made: made + change)
    try:
        yield
    finally:
        handle.remove()


def _with_weight(block: nn.Module) -> list[str]:
    """Paths of the modules with a floating-point weight of their own."""
    weights = ((path, getattr(part, "weight", None)) for path, part in block.named_modules())
    return [path for path, weight in weights if isinstance(weight, Tensor) and weight.is_floating_point()]


def _note(calls: dict[str, tuple[Tensor, Tensor]], path: str, _: nn.Module, args: Any, made: Any) -> None:
    if args and isinstance(args[0], Tensor) and isinstance(made, Tensor):
        calls[path] = args[0], made


def _kind(part: Any, path: str, scale: float, given: Tensor, made: Tensor) -> LastMap | None:
    """What kind of map it is, by computing it; None if it is of neither kind."""
    weight, has_bias = part.weight, getattr(part, "bias", None) is not None
    bias = part.bias if has_bias else 0
    close = partial(torch.allclose, rtol=1e-3, atol=1e-3 * made.abs().max().item())
    if weight.ndim == 2:
        for input_first in (False, True):
            matrix = weight.T if input_first else weight
            fits = matrix.shape == (made.shape[-1], given.shape[-1])
            if fits and close(given @ matrix.T + bias, made):
                return LastMap(path, scale, is_linear=True, has_bias=has_bias, input_first=input_first)
        return None
    if weight.shape != made.shape[-1:]:
        return None
    for adds_one in (False, True):
        doubled = copy.deepcopy(part)
        doubled.weight.data = 2 * weight + (1 if adds_one else 0)
        if close(doubled(given) - bias, 2 * (made - bias)):
            return LastMap(path, scale, is_linear=False, has_bias=has_bias, adds_one=adds_one)
    return None


def modules_after_stack(blocks: Blocks) -> list[str]:
    """Paths of the modules with parameters of their own that run after the last block, in that order."""
    called: list[str] = []
    with ExitStack() as hooks, torch.no_grad():
        hooks.callback(blocks.modules[-1].register_forward_hook(lambda *_: called.clear()).remove)
        for path, module in blocks.model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                hooks.callback(module.register_forward_hook(partial(_add, called, path)).remove)
        blocks.forward(torch.arange(4)[None] % blocks.config.vocab_size)
    return [path for path in dict.fromkeys(called) if not path.startswith(f"{blocks.path}.")]


def _add(called: list[str], path: str, *_: object) -> None:
    called.append(path)
