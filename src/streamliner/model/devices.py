"""Where the parts of a model are kept, and in which precision this machine computes fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
import time

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def best_device() -> torch.device:
    """Cuda, else mps, else cpu."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def offloading(block: nn.Module) -> list[tuple[nn.Module, Any]]:
    """The parts of a block whose weights a hook of accelerate loads for each call, with the hook."""
    hooks = ((module, getattr(module, "_hf_hook", None)) for module in block.modules())
    return [(module, hook) for module, hook in hooks if getattr(hook, "offload", False)]


MUCH_FASTER = 1.5
"""Ratio of times from which another precision is worth a word."""


def offload_map(shell: PreTrainedModel, stack: str, offload: str, device: str | None) -> dict[str, str]:
    """Where each part of a model goes if its blocks are loaded one at a time from `offload`: "disk", or "cpu"."""
    main = str(device or best_device())
    places: dict[str, str] = {}

    def place(name: str, module: Any) -> None:
        if name == stack:
            places.update({f"{stack}.{index}": offload for index in range(len(module))})
        elif name and not stack.startswith(f"{name}."):
            places[name] = main
        else:
            prefix = f"{name}." if name else ""
            for own, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                places[f"{prefix}{own}"] = main
            for child, part in module.named_children():
                place(f"{prefix}{child}", part)

    place("", shell)
    return places


def faster_precision(dtype: torch.dtype, device: torch.device) -> tuple[torch.dtype, float] | None:
    """The precision, float32 or bfloat16, in which this device multiplies matrices much faster than in `dtype`.

    Measured on matrices of a few megabytes, in some hundredths of a second. None if it is not worth a word.
    """
    other = torch.float32 if dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    try:
        ratio = _seconds(dtype, device) / _seconds(other, device)
    except RuntimeError:  # the device lacks one of them
        return None
    return (other, ratio) if ratio >= MUCH_FASTER else None


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The least of five times of a product of matrices."""
    left = torch.ones(256, 1024, dtype=dtype, device=device)
    right = torch.ones(1024, 1024, dtype=dtype, device=device)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times)
