"""How time and memory grow with forget samples n, proxies per class m, classes K and width d.

Every point is a process of its own: its peak memory is that of the stage, beyond what its inputs and a first small call
took. Expected: time linear in n, m and K, d^2 for moments and d^3 for the one decomposition of a layer; memory that
holds one pass and one d x d per layer, whatever n and m. In K it is linear as long as single classes are kept, up to
``subspaces.KEPT_BYTES``, and constant beyond.
"""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.stages.findings import Finding
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes, images, net, pooled_bases, weight_names
from benchmarks.stages.step import epoch
from benchmarks.stages.timing import alone, exponent, timed
from zspag.config import ProxyConfig
from zspag.influence import label_scores, weights_of
from zspag.process.allocator import peak_bytes
from zspag.proxies import attack
from zspag.runtime import CHUNK, generator_for
from zspag.subspaces import second_moments

STAGE = "growth"
LINEAR = 1.15  # a fitted exponent of linear growth, with its noise
FLOOR = 2**20  # bytes: a peak that does not move says nothing finer
CPU = torch.device("cpu")

# Axis, what grows, stages, and the largest exponent of time that was promised.
AXES: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("n", "forget samples n", {"labels": LINEAR, "update": LINEAR}),
    ("m", "proxies per class m", {"proxies": LINEAR, "moments": LINEAR}),
    ("K", "classes K", {"pooled bases": LINEAR}),
    ("d", "width d", {"wide moments": 2.2, "one decomposition": 3.3}),
)


def measure(sizes: Sizes, machine: Machine, _device: torch.device) -> Iterator[Finding]:
    """Yield every stage along its axis, time and memory."""
    for axis, long, stages in AXES:
        counts = sizes.widths if axis == "d" else tuple(_base(axis, sizes) * factor for factor in sizes.grown)
        for stage, most in stages.items():
            call = _here if sizes.tiny else partial(alone, threads=machine.threads)
            points = [call(_point, stage, count, sizes) for count in counts]
            seconds, peaks = ([float(point[part]) for point in points] for part in (0, 1))
            x = [float(count) for count in counts]
            note = "; ".join(
                f"{count}: {spent:.3g} s, {peak / 2**20:.0f} MiB"
                for count, spent, peak in zip(counts, seconds, peaks, strict=True)
            )
            case, curve = f"{stage}, {long} from {counts[0]} to {counts[-1]}", {"axis": long, "name": stage, "x": x}
            yield Finding(
                STAGE,
                case,
                "exponent of time",
                exponent(x, seconds),
                at_most=most,
                note=note,
                curve=curve | {"y": seconds},
            )
            yield Finding(
                STAGE,
                case,
                "exponent of peak memory",
                exponent(x, peaks),
                at_most=2.2 if axis == "d" else LINEAR,
                curve=curve | {"y": [peak / 2**20 for peak in peaks]},
            )


def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function where we are: a process of its own costs seconds, and tiny sizes measure nothing."""
    return function(*arguments)


def _base(axis: str, sizes: Sizes) -> int:
    return {"n": sizes.forget // 2, "m": CHUNK if not sizes.tiny else 4, "K": sizes.classes}[axis]


def _point(stage: str, count: int, sizes: Sizes) -> tuple[float, int]:
    """Return median seconds and peak bytes of one stage at one size; runs in a process of its own."""
    work = STAGES[stage](count, sizes)
    work(True)
    before = peak_bytes(anew=True)
    spent = [timed(partial(work, False)) for _ in range(min(3, sizes.repeats))]
    return statistics.median(spent), max(FLOOR, peak_bytes() - before)


Work = Callable[[bool], Any]  # called with True for a first small call


def _labels(count: int, sizes: Sizes) -> Work:
    model, x = net(*sizes.nets[0], sizes, device=CPU), images(count, sizes, device=CPU)
    direction = weights_of(model, weight_names(model))
    return lambda small: label_scores(model, x[:2] if small else x, direction)


def _update(count: int, sizes: Sizes) -> Work:
    model, x = net(*sizes.nets[0], sizes, device=CPU), images(count, sizes, device=CPU)
    run = partial(epoch, model, classes=sizes.classes, names=weight_names(model), project=None, held_out=0.0)
    return lambda small: run(x[:2] if small else x)


def _proxies(count: int, sizes: Sizes) -> Work:
    model, x = net(*sizes.nets[0], sizes, device=CPU), images(count, sizes, device=CPU)
    config, targets = ProxyConfig(steps=sizes.steps), torch.zeros(count, dtype=torch.long)

    def work(small: bool) -> Tensor:
        part = slice(2 if small else None)
        return attack(model, x[part], targets[part], eps=0.03, config=config, generator=generator_for("bench")).images

    return work


def _moments(count: int, sizes: Sizes) -> Work:
    model, x = net(*sizes.nets[0], sizes, device=CPU), images(count, sizes, device=CPU)
    return lambda small: second_moments(model, x[:2] if small else x)


def _pooled_bases(count: int, sizes: Sizes) -> Work:
    model = net(*sizes.nets[0], sizes, device=CPU)
    x = images(sizes.per_class, sizes, device=CPU)
    return lambda small: pooled_bases(model, x, classes=2 if small else count)


def _wide(count: int, sizes: Sizes, *, decompose: bool) -> Work:
    model = nn.Linear(count, 2)
    x = torch.randn(2 if decompose else 2 * max(sizes.widths), count, generator=generator_for("bench"))
    if not decompose:
        return lambda small: second_moments(model, x[:2] if small else x)
    full = torch.randn(count, count, generator=generator_for("bench"), dtype=torch.float64)
    symmetric = full @ full.T
    return lambda small: torch.linalg.eigh(symmetric[:2, :2] if small else symmetric)


STAGES: dict[str, Callable[[int, Sizes], Work]] = {
    "labels": _labels,
    "update": _update,
    "proxies": _proxies,
    "moments": _moments,
    "pooled bases": _pooled_bases,
    "wide moments": partial(_wide, decompose=False),
    "one decomposition": partial(_wide, decompose=True),
}
