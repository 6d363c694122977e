"""Devices: where the parts of a model are, weights that are loaded when needed, the precision that is fast here."""

import errno
import gc
import os
import re
import shutil
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamliner.errors import NotEnoughMemoryError, first_line, is_out_of_memory
from streamliner.format import human_bytes
from streamliner.model.compat import offload_hook

HALVES = (torch.bfloat16, torch.float16)
WORTH_IT = 1.5
"""How many times as fast another precision must be to be spoken of."""
MEMORY_BUDGET, LEAST_BUDGET = 2_000_000_000, 1 << 26
"""Bytes that streams, a block at work and logits may take next to a model, by default and at least."""


def best_device() -> torch.device:
    """The accelerator that torch finds here (cuda, mps, xpu), otherwise cpu."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device(found.type if found else "cpu")


def is_slow(device: str | None) -> bool:
    """Whether a model there takes the defaults of minutes rather than hours: on a CPU or on a Mac."""
    kind = best_device() if device in (None, "auto") else torch.device(device)
    return kind.type in ("cpu", "mps")


def is_spread(model: nn.Module) -> bool:
    """Whether accelerate placed the parts of the model on several devices."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its work; for an accelerator, until all of its kind have."""
    if device.type != "cpu":
        for number in range(torch.accelerator.device_count()):
            torch.accelerator.synchronize(number)


@contextmanager
def enough_memory(doing: str, help: str) -> Iterator[None]:
    """While open, a lack of memory becomes an error that says while doing what, and what would `help`."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        found = f"Out of memory while {doing}: {first_line(error).rstrip('.')}. {_free_memory()}"
        raise NotEnoughMemoryError(found, f"What would help: {help}.") from error


def _free_memory() -> str:
    device = best_device()
    known = free_and_total(device)
    what = "The machine" if device.type == "cpu" else "The GPU"
    if known is None or known[0] is None:
        return ""
    return f"{what} has {human_bytes(known[1])}, of which {human_bytes(known[0])} are free now."


def free_and_total(device: torch.device) -> tuple[int | None, int] | None:
    """Bytes that are free now, and all bytes, of a device or of the machine; None for what it does not say."""
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return max(0, total - torch.mps.driver_allocated_memory()), total
    if device.type != "cpu":
        ask = getattr(torch.get_device_module(device), "mem_get_info", None)
        return ask(device) if ask else None
    try:
        return _available(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, AttributeError):  # Windows does not say
        return None


def _available() -> int | None:
    """Bytes that Linux could give to this process, files that it only keeps for later included; None elsewhere."""
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
        with suppress(OSError, ValueError):  # a container may be given less than the machine has
            group = Path("/sys/fs/cgroup")
            most, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
            kept = re.search(
                r"^inactive_file (\d+)$", (group / "memory.stat").read_text(encoding="ascii"), re.MULTILINE
            )
            found = min(found, most - used + int(kept[1] if kept else 0))
        return max(0, found)
    return None


def share_of_free_memory(model: nn.Module) -> int:
    """Bytes for the work next to a loaded model: half of what its accelerator has free, the least of several.

    On a CPU MEMORY_BUDGET, as more brings little, or a quarter of what is free if that is less. A power of two, so that
    it seldom changes from run to run: sums over batches of another size round differently. MEMORY_BUDGET where the
    device does not say. Processes of one machine share its memory.
    """
    return min(map(_share, {p.device for p in model.parameters() if not p.is_meta}), default=MEMORY_BUDGET)


def _share(device: torch.device) -> int:
    free, _ = free_and_total(device) or (None, None)
    if free is None:
        return MEMORY_BUDGET
    on_cpu = device.type == "cpu"
    share = free // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if on_cpu else free // 2
    rounded = max(LEAST_BUDGET, 1 << max(0, share.bit_length() - 1))
    return min(MEMORY_BUDGET, rounded) if on_cpu else rounded


def can_be_in_float32(model: nn.Module) -> bool:
    """Whether a model has weights of 16 bits alone, and they and a copy in float32 take less than half of the memory.

    Of all memory, not of what is free now: a run that continues must decide as it did before.
    """
    parameters = list(model.parameters())
    kinds, devices = {p.dtype for p in parameters}, {p.device for p in parameters}
    if not kinds & set(HALVES) or kinds - {*HALVES, torch.float32} or len(devices) != 1:
        return False
    device, needed = devices.pop(), 6 * sum(p.numel() for p in parameters)
    known = free_and_total(device)
    return known is not None and needed < known[1] / 2


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """While open, the weights of a model, and its buffers, are in float32; the given ones wait next to them."""
    given = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in HALVES]
    try:
        for tensor, data in given:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in given:
            tensor.data = data


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in float64: on the tensor's device, or on the CPU if that has no float64, as GPUs of Macs."""
    try:
        torch.zeros(1, dtype=torch.float64, device=tensor.device)
    except (TypeError, RuntimeError):
        tensor = tensor.cpu()
    return tensor.double()


def release_memory(model: weakref.ref[nn.Module]) -> None:
    """Free a model that is needed no more, even in a circle, as accelerate makes them, and what torch keeps."""
    if model() is not None:
        gc.collect()
    device = best_device()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def reserve(file: int, name: str, size: int) -> None:
    """Make sure that the open `file` has room for `size` bytes: a full disk is an error here, later a crash."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    elif shutil.disk_usage(Path(name).parent).free < size:  # macOS and Windows
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)


def offload_map(shell: nn.Module, stack_path: str, offload: str, device: str | None) -> dict[str, str]:
    """A `device_map` that keeps blocks on `offload`, "disk" or "cpu", and the rest of the model on `device`."""
    main, parts = str(device or best_device()), stack_path.split(".")
    places = {f"{stack_path}.{name}": offload for name, _ in shell.get_submodule(stack_path).named_children()}
    for depth in range(len(parts)):  # what is next to the stack, and next to each module around it
        around, prefix = shell.get_submodule(".".join(parts[:depth])), "".join(f"{part}." for part in parts[:depth])
        tensors = (*around.named_parameters(recurse=False), *around.named_buffers(recurse=False))
        names = [prefix + name for name, _ in (*tensors, *around.named_children())]
        places |= {name: main for name in names if not f"{stack_path}.".startswith(f"{name}.")}
    return places


def offloaded_bytes(block: nn.Module) -> int:
    """Bytes of a block's weights that are loaded for each call."""
    return sum(p.nbytes for module, _ in _offloaded_parts(block) for p in module.parameters(recurse=False))


@contextmanager
def present(block: nn.Module) -> Iterator[None]:
    """While open, a block's offloaded weights stay loaded, so that several calls load them once."""
    parts = _offloaded_parts(block)
    try:
        for module, hook in parts:
            hook.pre_forward(module)
            hook.offload = False  # calls neither load the weights nor drop them
        yield
    finally:
        for module, hook in parts:
            if not hook.offload:
                hook.offload = True
                hook.post_forward(module, None)


def keep_present(block: nn.Module) -> None:
    """Load a block's offloaded weights for good: they are its own from now on."""
    from accelerate.hooks import remove_hook_from_submodules

    parts = _offloaded_parts(block)
    for module, hook in parts:
        hook.pre_forward(module)
        hook.offload = False  # removing it would drop them
    if parts:
        remove_hook_from_submodules(block)


def _offloaded_parts(block: nn.Module) -> list[tuple[nn.Module, Any]]:
    """The modules in a block whose weights a hook of accelerate loads for each call, with the hook."""
    hooks = ((module, offload_hook(module)) for module in block.modules())
    return [(module, hook) for module, hook in hooks if hook is not None]


def spread_as(cut: nn.Module, dense: nn.Module, stack_path: str, kept: Sequence[int]) -> nn.Module:
    """Give a cut model, whose blocks are those `kept` of `dense`, the hooks that move streams between its devices."""
    from accelerate import dispatch_model

    renamed = {f"{stack_path}.{old}": f"{stack_path}.{new}" for new, old in enumerate(kept)}
    places = {}
    for name, device in dense.hf_device_map.items():  # type: ignore[union-attr, operator]
        block = ".".join(name.split(".")[: stack_path.count(".") + 2])
        if not name.startswith(f"{stack_path}."):
            places[name] = device
        elif block in renamed:
            places[renamed[block] + name.removeprefix(block)] = device
    return dispatch_model(cut, places)  # type: ignore[no-any-return]


def loaded_tensor(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The values of the parameter or buffer `name`: `tensor` itself, or read from where it is offloaded."""
    if not tensor.is_meta:
        return tensor
    owner, _, own_name = name.rpartition(".")
    return offload_hook(model.get_submodule(owner)).weights_map[own_name]  # type: ignore[no-any-return]


LONG_ENOUGH = 0.1
"""Seconds of products after which no more are timed: some processors take a second for one in bfloat16."""


def faster_precision(dtype: torch.dtype, device: torch.device) -> tuple[torch.dtype, float] | None:
    """The precision, float32 or bfloat16, in which this device multiplies matrices much faster, and how many times.

    Measured on matrices of a megabyte or less, in a fraction of a second. None if it is not worth a message.
    """
    other = torch.float32 if dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    try:
        ratio = product_seconds(dtype, device) / product_seconds(other, device)
    except RuntimeError:  # the device does not have one of them
        return None
    return (other, ratio) if ratio >= WORTH_IT else None


def product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The least of five times of a matrix product; of fewer where they take long."""
    left, right = (torch.ones(rows, 512, dtype=dtype, device=device) for rows in (128, 512))
    times: list[float] = []
    while len(times) < 5 and sum(times) < LONG_ENOUGH:
        start = time.perf_counter()
        (left @ right)[0, 0].item()  # `item` waits for the device
        times.append(time.perf_counter() - start)
    return min(times)
