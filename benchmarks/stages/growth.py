"""How time and memory grow with forget samples n, proxies per class m, classes K, layers and width d.

Every point is a process of its own: its peak memory is that of the stage, beyond what its inputs and a first small call
took. Expected: time linear in n, m, K and the number of layers, d^2 for moments and d^3 for the decompositions; memory
that holds one pass and a few d x d per layer, whatever n and m. In K it is linear as long as single classes are kept,
up to ``subspaces.KEPT_BYTES``, and constant beyond.

"Subspaces" is the whole stage: moments of every class and of both halves of its proxies, and the three projectors that
the method makes of them. "Scores of all labels" is the gradient of the proxies' loss and the influence of all K labels
on every forget sample.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.stages.findings import Finding
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes, images, net, weight_names
from benchmarks.stages.step import epoch
from benchmarks.stages.timing import alone, exponent, timed
from zspag.config import ProxyConfig, SubspaceConfig
from zspag.influence import label_scores, loss_gradient, weights_of
from zspag.process.allocator import peak_bytes
from zspag.proxies import attack
from zspag.proxy_statistics import class_moments
from zspag.runtime import CHUNK, generator_for
from zspag.subspaces import projector, second_moments

STAGE = "growth"
LINEAR = 1.15  # a fitted exponent of linear growth, with its noise
FLOOR = 2**20  # bytes: a peak that does not move says nothing finer
FEW = 3  # classes of the growth in width
LONG = 5  # seconds from which one call is enough
CPU = torch.device("cpu")

# Axis, what grows, stages, and the largest exponent of time that was promised.
AXES: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("n", "forget samples n", {"labels": LINEAR, "update": LINEAR}),
    ("m", "proxies per class m", {"proxies": LINEAR, "moments": LINEAR}),
    ("K", "classes K", {"subspaces": LINEAR, "scores of all labels": LINEAR}),
    ("L", "layers", {"subspaces, deep": LINEAR, "scores of all labels, deep": LINEAR}),
    ("d", "width d", {"wide moments": 2.2, "subspaces, wide": 3.3, "scores of all labels, wide": 2.2}),
)


def measure(sizes: Sizes, machine: Machine, _device: torch.device) -> Iterator[Finding]:
    """Yield every stage along its axis, time and memory."""
    for axis, long, stages in AXES:
        counts = _counts(axis, sizes)
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


def _counts(axis: str, sizes: Sizes) -> tuple[int, ...]:
    """Return the points of an axis."""
    fixed = {"K": sizes.many, "L": sizes.depths, "d": sizes.widths}
    if axis in fixed:
        return fixed[axis]
    base = sizes.forget // 2 if axis == "n" else 4 if sizes.tiny else CHUNK
    return tuple(base * factor for factor in sizes.grown)


def _point(stage: str, count: int, sizes: Sizes) -> tuple[float, int]:
    """Return median seconds and peak bytes of one stage at one size; runs in a process of its own."""
    work = STAGES[stage](count, sizes)
    work(True)
    before = peak_bytes(anew=True)
    spent = [timed(partial(work, False))]
    if spent[0] < LONG:
        spent += [timed(partial(work, False)) for _ in range(min(3, sizes.repeats) - 1)]
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


def _of_classes(classes: int, sizes: Sizes) -> nn.Module:
    return net(*sizes.nets[0], replace(sizes, classes=classes), device=CPU)


def _of_layers(layers: int, sizes: Sizes) -> nn.Module:
    width = 2 if sizes.tiny else 32
    parts: list[nn.Module] = []
    for place in range(layers - 1):
        parts += [nn.Conv2d(width if place else sizes.image[0], width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(nn.AvgPool2d(2), *parts, _head(width, sizes.classes)).eval()


def _of_width(d: int, sizes: Sizes) -> nn.Module:
    wide = nn.Conv2d(d // 9, 8, 3, padding=1)
    return nn.Sequential(
        nn.AvgPool2d(4), nn.Conv2d(sizes.image[0], d // 9, 1), nn.ReLU(), wide, nn.ReLU(), _head(8, sizes.classes)
    ).eval()


def _head(width: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def _subspaces(count: int, sizes: Sizes, *, build: Callable[[int, Sizes], nn.Module]) -> Work:
    few = min(FEW, sizes.classes)  # decompositions are what grows with the width, and one class does not change them
    model, classes = build(count, sizes), {_of_classes: count, _of_width: few}.get(build, sizes.classes)
    labels = torch.arange(classes).repeat_interleave(sizes.per_class)
    x, halves = images(len(labels), sizes, device=CPU), torch.arange(len(labels)) % 2

    def work(small: bool) -> None:
        used = net(*sizes.nets[0], sizes, device=CPU) if small else model
        part = slice(2 if small else None)
        moments, *folds = class_moments(used, x[part], labels[part], halves=halves[part], merge_at=None)
        kept = [projector(one, config=SubspaceConfig()) for one in (moments, *folds)]
        assert len(kept) == 3

    return work


def _scores(count: int, sizes: Sizes, *, build: Callable[[int, Sizes], nn.Module]) -> Work:
    model, classes = build(count, sizes), count if build is _of_classes else sizes.classes
    labels = torch.eye(classes).repeat_interleave(sizes.per_class, 0)
    x, forget = images(len(labels), sizes, device=CPU), images(sizes.forget, sizes, device=CPU)

    def work(small: bool) -> Tensor:
        part = slice(2 if small else None)
        direction = loss_gradient(model, x[part], labels[part], names=weight_names(model))
        return label_scores(model, forget[part], direction)

    return work


def _wide(count: int, sizes: Sizes) -> Work:
    model = nn.Linear(count, 2)
    x = torch.randn(2 * max(sizes.widths), count, generator=generator_for("bench"))
    return lambda small: second_moments(model, x[:2] if small else x)


STAGES: dict[str, Callable[[int, Sizes], Work]] = {
    "labels": _labels,
    "update": _update,
    "proxies": _proxies,
    "moments": _moments,
    "wide moments": _wide,
    "subspaces": partial(_subspaces, build=_of_classes),
    "subspaces, deep": partial(_subspaces, build=_of_layers),
    "subspaces, wide": partial(_subspaces, build=_of_width),
    "scores of all labels": partial(_scores, build=_of_classes),
    "scores of all labels, deep": partial(_scores, build=_of_layers),
    "scores of all labels, wide": partial(_scores, build=_of_width),
}
