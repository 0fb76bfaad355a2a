"""What the caller's process may have switched on, switched to one fixed setting while the method works.

Autocast, inference mode, default dtype and device, deterministic kernels, matmul precision, flushed denormals and the
state of the global random generators all change bits, or fail halfway. None of them is an argument of the method.

Invariant: the same call gives the same bits in any surroundings, and the surroundings are left as they were found, also
after an exception.
"""

import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

_PLAIN_LAYOUT: ContextVar[bool] = ContextVar("plain_layout", default=False)


@contextmanager
def plain_layout(needed: bool = True) -> Generator[None, None, None]:
    """Keep images and weights in plain (contiguous) order: ``runtime.channels_last`` and ``runtime.copied`` obey.

    Some models rely on the order of memory: ``x.view(len(x), -1)`` behind a convolution fails with channels innermost.

    Args:
        needed: False leaves everything as it is, so that the context can be entered whatever ``Preflight.layout`` says.
    """
    token = _PLAIN_LAYOUT.set(needed or _PLAIN_LAYOUT.get())
    try:
        yield
    finally:
        _PLAIN_LAYOUT.reset(token)


def layout_is_plain() -> bool:
    """Tell whether ``plain_layout`` is in force."""
    return _PLAIN_LAYOUT.get()


@contextmanager
def surroundings(model: nn.Module) -> Generator[None, None, None]:
    """Pin every ambient setting of torch that changes results or makes the method fail; restore all of them.

    Args:
        model: Its devices tell which random generators and which kinds of autocast there are.

    Note:
        The number of threads is not pinned: it belongs to the promise "same seed, same threads, same result". Copy the
        model inside: parameters that were made under ``torch.inference_mode`` cannot be trained, their copies can.
    """
    devices = {torch.device("cpu")}
    if isinstance(model, nn.Module):  # anything else is refused later
        devices |= {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    cuda = sorted({device.index for device in devices if device.type == "cuda" and device.index is not None})
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in sorted({device.type for device in devices}):
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        if torch.get_default_device().type != "cpu":  # the context costs a little at every call of a torch function
            stack.enter_context(torch.device("cpu"))
        for read, write, value in SETTINGS:
            before = read()
            if before != value:
                write(value)
                stack.callback(write, before)
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        torch.manual_seed(0)  # noise inside the user's model repeats; the method itself has generators of its own
        yield


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _flushes_denormals() -> bool:
    """Torch can set this mode of the processor, but not tell it."""
    return math.isclose(torch.full((), 1e-310, dtype=torch.float64, device="cpu").mul(0.5).item(), 0.0)


def _attribute(place: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(place, name), lambda value: setattr(place, name, value)


def _precision(place: Any, operation: str = "") -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Read "none", which stands for full precision where nothing above says otherwise, as what it means."""
    read, write = _attribute(getattr(place, operation) if operation else place, "fp32_precision")
    return lambda: read().replace("none", "ieee"), write


# How to read a global setting, how to write it, and the value that holds meanwhile: torch's default but for one.
SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any], Any], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (_deterministic, _set_deterministic, (False, False)),
    (_flushes_denormals, torch.set_flush_denormal, False),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (*_precision(torch.backends), "ieee"),  # before those that inherit from it
    (*_precision(torch.backends.mkldnn, "matmul"), "ieee"),
    (*_precision(torch.backends.mkldnn, "conv"), "ieee"),
    (*_precision(torch.backends.mkldnn, "rnn"), "ieee"),
    (*_precision(torch.backends.cuda, "matmul"), "ieee"),
    (*_precision(torch.backends.cudnn, "conv"), "tf32"),
    (*_attribute(torch.backends.mkldnn, "enabled"), True),
    (*_attribute(torch.backends.mkldnn, "deterministic"), False),
    (*_attribute(torch.backends.cudnn, "benchmark"), False),
    (*_attribute(torch.backends.cudnn, "deterministic"), False),
    (*_attribute(torch.backends.cudnn, "enabled"), True),
    # Off: torch leaves this path where a function mode is active, and ``with torch.device(...)`` is one. With the path
    # on, the caller's default device would change bits.
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, False),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp, True),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp, True),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp, True),
)
