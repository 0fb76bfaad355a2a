"""Bases: one decomposition per layer whatever the number of classes, and a small one where there are few rows.

An eigendecomposition of d x d, vectors included, is about 9 d^3 operations. Where R rows are fewer than d, it gives way
to F F^T (R x R), its decomposition and a QR of d x k: 2 R^2 d + 9 R^3 + 2 R d k + 4 d k^2.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.stages.findings import Finding, spread
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes, images, net, pooled_bases
from benchmarks.stages.timing import interleaved, timed
from zspag.config import SubspaceConfig
from zspag.subspaces import Moments, accumulate, by_energy, combine, second_moments

STAGE = "bases"


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield pooling over many classes, the few rows of wide layers, and all layers of the widest net."""
    arch, width = sizes.nets[0]
    model, x = net(arch, width, sizes, device=device), images(sizes.per_class, sizes, device=device)
    one = second_moments(model, x)
    few, many = sizes.classes, 10 * sizes.classes
    yield _per_class(one, f"{arch} of width {width}", few, sizes)
    timings = interleaved(
        {f"K = {count}": partial(_pooled, [one] * count) for count in (few, many)}, repeats=sizes.repeats
    )
    yield Finding(
        STAGE,
        f"{arch} of width {width}",
        f"cost of K = {many} over that of K = {few}, pooled",
        timings[f"K = {many}"].over(timings[f"K = {few}"]),
        at_most=3,
        seconds=spread(timings),
    )
    yield from _widest(sizes, device)


def _pooled(parts: list[Moments]) -> object:
    return combine(accumulate(iter(parts), classes=len(parts)), config=SubspaceConfig())


def _per_class(one: Moments, case: str, classes: int, sizes: Sizes) -> Finding:
    ways = {
        "pooled": lambda: _pooled([one] * classes),
        "per class": lambda: [by_energy(one, energy=SubspaceConfig().energy) for _ in range(classes)],
    }
    timings = interleaved(ways, repeats=sizes.repeats)
    return Finding(
        STAGE,
        case,
        f"times faster than one decomposition per layer and class ({classes} classes)",
        timings["per class"].over(timings["pooled"]),
        seconds=spread(timings),
    )


def _widest(sizes: Sizes, device: torch.device) -> Iterator[Finding]:
    """Yield what the widest net takes in all, and its widest layer of few rows, with and without them."""
    arch, width = sizes.wide
    model, x = net(arch, width, sizes, device=device), images(sizes.per_class, sizes, device=device)
    classes = sizes.classes - 1
    kept: list[Moments] = []
    seconds = timed(lambda: kept.append(pooled_bases(model, x, classes=classes).pooled))
    (pool,) = kept
    largest = max(second.shape[-1] for second in pool.second.values())
    yield Finding(
        STAGE,
        f"{arch} of width {width}, {classes} classes of {len(x)}, widest d = {largest}",
        "seconds for moments and bases of all layers",
        seconds,
        at_most=120,
    )
    name = max(pool.factors, key=lambda one: pool.second[one].shape[-1], default=None)
    if name is None:
        return
    factor, d = pool.factors[name], pool.second[name].shape[-1]
    layer = Moments({name: pool.second[name]}, {name: 1.0}, {}, {name: factor})
    timings = interleaved(
        {
            "rows": lambda: by_energy(layer, energy=SubspaceConfig().energy),
            "d x d": lambda: by_energy(replace(layer, factors={}), energy=SubspaceConfig().energy),
        },
        repeats=1,
        warm=False,
    )
    yield Finding(
        STAGE,
        f"{arch} of width {width}, one layer, d = {d}, {factor.shape[1]} rows",
        "times faster than a decomposition of d x d",
        timings["d x d"].over(timings["rows"]),
        seconds=spread(timings),
    )
