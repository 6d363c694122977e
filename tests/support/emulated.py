"""An accelerator that exists only in the tests: CPU memory under another device's name, which refuses to be mixed.

torch lets Python register a backend of its own ("PrivateUse1"). Its tensors wrap CPU tensors, so they have real values
and whole runs work on them, while everything above sees tensors of `emulated:0` and `emulated:1`. What a GPU refuses is
refused here: an operation on tensors of two devices, except numbers of the CPU and index lists, and float64 where there
is none. What makes a GPU wait is counted in `DEVICE.waits`, with the line of streamliner that caused it.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import library
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import streamliner

NAME, GIGABYTE = "emulated", 10**9
PACKAGE = f"{Path(streamliner.__file__).parent}/"  # a clone is often called streamliner too
ATEN = torch.ops.aten
COPIES = (ATEN.copy_, ATEN._to_copy, ATEN.to)
INDEXED = (ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._unsafe_index)
WAITING = (ATEN.is_nonzero, ATEN.item)  # in inference mode torch does not take them apart
LACKING = {ATEN.histc: lambda values, *more: ATEN.histc(values.float(), *more).to(values.dtype)}
"""What a GPU does with integers and the CPU only with floats."""
IN_HALF = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
IN_FLOAT32 = ("softmax.int", "log_softmax.int", "layer_norm", "mse_loss", "cross_entropy_loss")
"""What autocast runs in half precision, and what in float32: the beginning of the lists of CUDA."""


class EmulatedTensor(torch.Tensor):
    """A tensor on an emulated device; its values are in `held`, on the CPU."""

    @staticmethod
    def __new__(cls, held, device):
        options = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), **options, device=device)
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return DEVICE.run(func, *args, **(kwargs or {}))

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    def __repr__(self):
        return f"{NAME}({self.held})"

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        DATA.__set__(self, other)
        self.held = other.held

    def tolist(self):
        return self.cpu().tolist()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def data_ptr(self):
        return self.held.data_ptr()


class Device:
    """What torch asks the module of a device, `torch.cuda` for GPUs; and what the tests ask the emulation."""

    def __init__(self):
        self.count, self.has_float64, self.free = 0, True, GIGABYTE  # no devices: `emulated` makes some
        self.waits: Counter[tuple[str, str]] = Counter()  # (operation, line of streamliner) -> how often

    def run(self, func, *args, **kwargs):
        """An operation on emulated tensors, or one that makes one."""
        tensors, devices = [], []
        kwargs.pop("pin_memory", None)
        plain = _plain(args, tensors, devices), _plain(kwargs, tensors, devices)
        ours = [tensor for tensor in tensors if isinstance(tensor, EmulatedTensor)]
        packet, tags = func.overloadpacket, func.tags
        device = devices[0] if devices else args[0].device if packet is ATEN.copy_ else ours[0].device
        if device.type == NAME and device.index is None:
            device = torch.device(NAME, 0)
        if packet in COPIES:
            if {device.type, *(each.device.type for each in tensors)} == {"cpu", NAME}:
                self._note("upload" if device.type == NAME else "download")
        elif any(each.device != device for each in tensors):
            self._refuse_mixing(func, tensors)
        if packet in INDEXED:
            lists = [each for each in args[1] if each is not None]
            if any(each.ndim and each.device.type == "cpu" for each in lists):
                self._note("upload of indices")
            if any(each.dtype in (torch.bool, torch.uint8) for each in lists):
                self._note("index by a mask")
        elif packet in WAITING or torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
            self._note(packet.__name__.strip("_"))
        made = LACKING.get(packet, func)(*plain[0], **plain[1])
        return _mapped(lambda value: self._wrapped(value, device, ours), made)

    def _wrapped(self, made, device, ours):
        if not isinstance(made, torch.Tensor):
            return made
        same = next((tensor for tensor in ours if tensor.held is made), None)
        if device.type != NAME:
            return made if same is None else made.clone()
        if made.dtype == torch.float64 and not self.has_float64:
            raise TypeError(f"Cannot convert a tensor of {NAME} to float64, which it does not support.")
        return same if same is not None and same.device == device else EmulatedTensor(made, device)

    def _refuse_mixing(self, func, tensors):
        found, index_lists = {str(each.device) for each in tensors}, func.overloadpacket in INDEXED
        for each in tensors[1:] if index_lists else tensors:
            number = each.ndim == 0 and (torch.Tag.pointwise in func.tags or index_lists)
            if each.device.type == "cpu" and (number or (index_lists and each.dtype in (torch.int64, torch.bool))):
                found.discard("cpu")
        if len(found) > 1:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, not on {' and '.join(sorted(found))}: {func}"
            )

    def _note(self, what):
        frame = sys._getframe(2)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        where = frame and f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"
        self.waits[what, where or ""] += 1

    # What torch and we ask of the module of a device.
    def is_available(self):
        return self.count > 0

    def device_count(self):
        return self.count

    def synchronize(self, device=None):
        self._note("synchronize")

    def mem_get_info(self, device=None):
        return self.free, 2 * self.free

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def is_initialized(self):
        return True

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        """Random numbers are those of the CPU's generator."""

    def empty_cache(self):
        """Nothing is kept."""


def _plain(value, tensors, devices):
    """Arguments of an operation as the CPU's; the tensors and devices in them are added to the lists."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return value.held if isinstance(value, EmulatedTensor) else value
    if isinstance(value, (tuple, list)):
        return type(value)([_plain(each, tensors, devices) for each in value])
    if isinstance(value, dict):
        return {key: _plain(each, tensors, devices) for key, each in value.items()}
    if isinstance(value, torch.device):
        devices.append(value)
        return CPU
    return value


def _mapped(function, value):
    if isinstance(value, dict):
        return {key: _mapped(function, each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(function, each) for each in value])
    return function(value)


def _set_data(tensor, other):
    """torch lets a tensor of the CPU become one of a GPU; here it must also become one of another class."""
    if isinstance(other, EmulatedTensor):
        torch.utils.swap_tensors(tensor, EmulatedTensor(other.held, other.device))
    else:
        DATA.__set__(tensor, other)


CPU, DATA, DEVICE = torch.device("cpu"), torch.Tensor.data, Device()
_registered = []


def register():
    """Tell torch of the backend, once in a process; without a device it changes nothing for other tests."""
    if _registered:
        return
    _setup_privateuseone_for_python_backend(NAME, DEVICE)
    make = vars(library)["Library"]
    everything, aten = (make(name, "IMPL") for name in ("_", "aten"))
    _registered.extend((everything, aten))
    for name in ("empty.memory_format", "empty_strided"):
        aten.impl(name, partial(DEVICE.run, _op(name)), "PrivateUse1")
    aten.impl("_copy_from", lambda source, target, *_: DEVICE.run(ATEN.copy_.default, target, source), "PrivateUse1")
    everything.fallback(library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, half in ((IN_HALF, True), (IN_FLOAT32, False)):
        for name in names:
            aten.impl(name, _autocast(name, half=half), "AutocastPrivateUse1")


def _op(name):
    packet, _, overload = name.partition(".")
    return getattr(getattr(ATEN, packet), overload or "default")


def _autocast(name, *, half):
    op = _op(name)

    def cast(value):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.device.type != NAME:
            return value
        return value.to(torch.get_autocast_dtype(NAME) if half else torch.float32)

    def run(*args, **kwargs):
        with torch.autocast(NAME, enabled=False):
            return op(*_mapped(cast, args), **_mapped(cast, kwargs))

    return run


@contextmanager
def emulated(devices=1, *, has_float64=True, free=GIGABYTE):
    """While open, there are that many emulated devices, and they are the best there are. Yields `DEVICE`."""
    register()
    DEVICE.count, DEVICE.has_float64, DEVICE.free = devices, has_float64, free
    DEVICE.waits.clear()
    with ExitStack() as stack:
        # Otherwise moving a module would make new parameters, as for no device of torch's own.
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.enter_context(
            torch.autograd.set_multithreading_enabled(False)
        )  # torch would start a thread for one device
        for name in ("synchronize", "device_count"):
            stack.enter_context(patch.object(torch.accelerator, name, getattr(DEVICE, name)))
        stack.enter_context(patch.object(torch.Tensor, "data", property(DATA.__get__, _set_data), create=True))
        stack.callback(setattr, DEVICE, "count", 0)
        yield DEVICE
