"""A fake GPU: tensors that say they are elsewhere, hold their values on the CPU and keep a GPU's rules.

Where no GPU is at hand, three things can still be found out about code that is meant for one, with real values:

* whether it mixes tensors of two devices, or hands a device another one's random generator (refused here as by CUDA);
* whether it asks for what exists on the CPU alone (``numpy`` of a tensor that is elsewhere);
* where the host waits for the device: every read of a value, every shape that depends on values and every blocking copy
  is counted, under the line that asks for it.

What a GPU computes, and how fast, it can't tell. The device is called "meta", the one that torch needs no driver for.
"""

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

import zspag

HOME, AWAY = torch.device("cpu"), torch.device("meta")
_PACKAGE = Path(zspag.__file__).parent
_AUTOCAST = torch.autocast

aten = torch.ops.aten
READS = (aten._local_scalar_dense, aten.equal, aten.is_nonzero)
SHAPED_BY_VALUES = (
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount,
    aten.repeat_interleave,
)  # fmt: skip
INDEXING = (aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_)


class Elsewhere(Tensor):
    """A tensor of the fake GPU; ``held`` has its values."""

    held: Tensor
    is_meta = False  # torch takes no values from tensors of "meta", and prints none
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=AWAY
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise RuntimeError(f"{operation} on the fake GPU, which is there inside `fake_gpu()` only")

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        Tensor.data.__set__(self, other)
        self.held = other.held

    def data_ptr(self):
        return self.held.data_ptr()

    def tolist(self):
        return self.cpu().tolist()

    def __getitem__(self, index):
        return super().__getitem__(_sent(index))

    def __setitem__(self, index, value):
        super().__setitem__(_sent(index), value)

    def __format__(self, specification):
        return format(self.item(), specification) if self.dim() == 0 else repr(self)

    def __repr__(self):
        return f"Elsewhere({self.held})"


def _sent(index):
    """Return an index with its lists of numbers copied to the device, as CUDA has them."""
    if isinstance(index, tuple):
        return tuple(_sent(part) for part in index)
    return torch.tensor(index).to(AWAY) if isinstance(index, list) else index


class Gpu(TorchDispatchMode):
    """Does on the CPU what is asked of the fake GPU.

    Attributes:
        waits: How often the host waited for the device, by the line of the package that asked and what for.
    """

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat, shape = tree_flatten((args, kwargs))
        tensors = [one for one in flat if isinstance(one, Tensor)]
        asked = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if AWAY not in (asked, *(one.device for one in tensors)):
            return operation(*args, **kwargs)
        if operation.overloadpacket in (aten.copy_, aten._to_copy):
            return self._copied(operation, *args, **kwargs)
        _refuse_mixture(operation, args, tensors)
        if any(isinstance(one, torch.Generator) for one in flat):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        self._count(operation, args)
        args_held, kwargs_held = tree_unflatten(
            [one.held if isinstance(one, Elsewhere) else one for one in flat], shape
        )
        if asked is not None:
            kwargs_held["device"] = HOME
        if operation is aten._efficientzerotensor.default:  # it has no values that could be held
            operation = aten.zeros.default
        found = operation(*args_held, **kwargs_held)
        if asked == HOME:  # like a tensor that is elsewhere, but here
            return found
        found = tree_map_only(Tensor, Elsewhere, found)
        return found if not tensors else return_and_correct_aliasing(operation, args, kwargs, found)

    def _copied(self, operation, target, *rest, device=None, non_blocking=False, pin_memory=None, **options):
        """Copy within a device or from one to the other; one from the host need not wait."""
        if operation is aten.copy_.default:
            source, non_blocking = rest[0], any(rest[1:]) or non_blocking
            into, result = target.device, target
            held(target).copy_(held(source))
        else:
            source, into = target, torch.device(device or target.device)
            values = aten._to_copy.default(held(source), **options)
            result = Elsewhere(values) if into == AWAY else values
        if source.device != into and (into == HOME or not non_blocking):
            self._waited(f"copy to {'the host' if into == HOME else 'the device'}")
        return result

    def _count(self, operation, args):
        packet = operation.overloadpacket
        if packet in READS or packet in SHAPED_BY_VALUES:
            self._waited(packet.__name__)
        elif packet in INDEXING:
            for index in args[1]:
                if index is not None and (index.dtype in (torch.bool, torch.uint8) or index.device == HOME):
                    self._waited(packet.__name__)

    def _waited(self, why):
        lines = [one for one in traceback.extract_stack() if _PACKAGE in Path(one.filename).parents]
        where = (
            f"{Path(lines[-1].filename).stem}.{lines[-1].name}: {lines[-1].line}" if lines else "outside the package"
        )
        self.waits[f"{where} ({why})"] += 1


def held(tensor):
    """Return a tensor's values, wherever it is."""
    return tensor.held if isinstance(tensor, Elsewhere) else tensor


def _refuse_mixture(operation, args, tensors):
    """Refuse operands of two devices but for what CUDA takes: single numbers, and indices on the host."""
    assert all(isinstance(one, Elsewhere) for one in tensors if one.device == AWAY), f"{operation} lost its values"
    strangers = [one for one in tensors if one.device == HOME and one.dim()]
    if operation.overloadpacket in INDEXING and args[0].device == AWAY:
        strangers = [one for one in strangers if not any(one is index for index in args[1])]
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            f" ({operation}, on the CPU: {[tuple(one.shape) for one in strangers]})"
        )


class _FromNumbers(TorchFunctionMode):
    """Makes tensors of Python's numbers on the CPU and copies them, as torch does for a GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if function in (torch.tensor, torch.as_tensor) and device is not None:
            return function(*args, **kwargs | {"device": HOME}).to(device)
        return function(*args, **kwargs)


def _autocast(device_type, *args, **kwargs):
    """There is no half precision on the fake GPU."""
    return nullcontext() if device_type == AWAY.type else _AUTOCAST(device_type, *args, **kwargs)


@contextmanager
def fake_gpu() -> Iterator[Gpu]:
    """Pretend that there is a GPU called ``AWAY``, and that it is the one to pick.

    Yields:
        What does its work and counts the waits.
    """
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == "zspag" and hasattr(module, "pick_device"):
                stack.enter_context(
                    mock.patch.object(module, "pick_device", lambda name=None: torch.device(name or AWAY))
                )
        stack.enter_context(mock.patch.object(torch, "autocast", _autocast))
        gpu = stack.enter_context(Gpu())
        stack.enter_context(_FromNumbers())
        yield gpu
