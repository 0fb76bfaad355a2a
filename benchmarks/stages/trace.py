"""Where the time goes: a profile of one attack, of the moments of a class and of an epoch of the update.

Useful is what the counted operations are: convolutions and matrix products, with what their kernels do to the layout of
their operands. The rest reads and writes activations: norms, activations, pooling, patches, conversions, copies.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.stages.findings import Finding
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes, images, net, weight_names
from benchmarks.stages.step import epoch
from zspag.config import ProxyConfig
from zspag.proxies import attack
from zspag.runtime import generator_for
from zspag.subspaces import second_moments

STAGE = "trace"
USEFUL = ("conv1d", "conv2d", "conv3d", "convol", "mm")
NAMED = 5  # kernels that a note names


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield the share of useful kernels in every stage, for every net."""
    for arch, width in sizes.nets:
        model, x = net(arch, width, sizes, device=device), images(sizes.forget, sizes, device=device)
        for name, work in _stages(model, x, sizes).items():
            work()
            yield _finding(f"{arch} of width {width}, {name}", traced(work))


def _stages(model: nn.Module, x: Tensor, sizes: Sizes) -> dict[str, Callable[[], object]]:
    targets, names = torch.arange(len(x), device=x.device) % sizes.classes, weight_names(model)
    config = ProxyConfig(steps=sizes.steps)
    return {
        "attack": lambda: attack(model, x, targets, eps=0.03, config=config, generator=generator_for("bench")),
        "moments": lambda: second_moments(model, x[: sizes.per_class]),
        "update": lambda: epoch(model, x, classes=sizes.classes, names=names, project=None, held_out=0.0),
    }


def traced(work: Callable[[], object]) -> dict[str, float]:
    """Return the seconds that each kernel took itself, those of the device where there is one."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as seen:
        work()
    events = seen.key_averages()
    on_device = {event.key: event.self_device_time_total / 1e6 for event in events}
    if any(on_device.values()):
        return on_device
    return {event.key: event.self_cpu_time_total / 1e6 for event in events}


def _finding(case: str, seconds: Mapping[str, float]) -> Finding:
    total = sum(seconds.values())
    useful = sum(spent for name, spent in seconds.items() if is_useful(name))
    longest = sorted(seconds, key=lambda name: -seconds[name])[:NAMED]
    return Finding(
        STAGE,
        case,
        "share of time in convolutions and matrix products",
        useful / total,
        note="; ".join(f"{name.removeprefix('aten::')} {100 * seconds[name] / total:.0f} %" for name in longest),
    )


def is_useful(kernel: str) -> bool:
    """Tell whether a kernel's name is that of a convolution or a matrix product.

    Example:
        >>> is_useful("aten::mkldnn_convolution"), is_useful("aten::native_batch_norm"), is_useful("aten::addmm")
        (True, False, True)
    """
    return any(part in kernel.lower() for part in USEFUL)
