"""From images to projectors: against UNSC's subspaces, and against the machine's matrix products.

R rows of width d need 2 R d^2 operations for their second moment; symmetry saves up to half, which the rate does not
count. The bases of all K classes take one eigendecomposition per layer, about 9 d^3 operations, whatever K is; where
the R rows are fewer than d, F F^T (R x R) is decomposed instead, and a QR of d x k makes the basis.

UNSC decomposes R x d once per class and layer, about 6 R d^2 operations, and then the union of the bases.
"""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.stages.findings import Finding, compared
from benchmarks.stages.machine import Machine
from benchmarks.stages.peers import entering, rows_of, unsc_projectors
from benchmarks.stages.settings import Sizes, images, net
from benchmarks.stages.timing import interleaved
from zspag.activations import watching
from zspag.config import SubspaceConfig
from zspag.runtime import generator_for
from zspag.subspaces import MomentAccumulator, Moments, accumulate, by_energy, projector, second_moments

STAGE = "subspaces"
WIDE_ROWS = 256  # layers from this width on are held to the machine's rate


def measure(sizes: Sizes, machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield what every net takes beside UNSC and beside the machine, then what few rows save."""
    for arch, width in (*sizes.nets, sizes.wide):
        model, x = net(arch, width, sizes, device=device), images(sizes.per_class, sizes, device=device)
        case = f"{arch} of width {width}, {len(x)} images of a class"
        if (arch, width) != sizes.wide:
            yield _against_unsc(model, x, case, classes=sizes.classes - 1, repeats=max(2, sizes.repeats // 2))
        yield from _against_machine(model, x, case, machine, repeats=sizes.repeats)
    yield _of_few_rows(sizes, device)


def _against_unsc(model: nn.Module, x: Tensor, case: str, *, classes: int, repeats: int) -> Finding:
    def ours() -> None:
        moments = accumulate((second_moments(model, x) for _ in range(classes)), classes=classes)
        projector(moments, config=SubspaceConfig())

    ways = {"ours": ours, "UNSC": lambda: unsc_projectors(model, [x] * classes)}
    timings = interleaved(ways, repeats=repeats, warm=False)
    what = "times faster than UNSC's subspaces, images to projectors"
    return compared(STAGE, f"{case}, {classes} classes", what, timings, "UNSC", "ours", at_least=5)


def _against_machine(model: nn.Module, x: Tensor, case: str, machine: Machine, *, repeats: int) -> Iterator[Finding]:
    """Yield the slowest layer that is wide enough, as a share of the machine's rate of products in float32."""
    found = []
    for layer, given in entering(model, x):
        rows, d = rows_of(layer, given).shape
        if d >= WIDE_ROWS and rows >= d:
            limit = 2 * rows * d * d / machine.products["float32"]
            timings = interleaved({"moments": partial(_alone, layer, given)}, repeats=repeats)
            shares = tuple(limit / seconds for seconds in timings["moments"].seconds)
            found.append((statistics.median(shares), shares, f"d = {d}, {rows} rows"))
    if found:
        share, rounds, worst = min(found)
        what = "share of the machine's matrix-product rate, slowest layer"
        note = "; ".join(f"{name}: {one:.2f}" for one, _, name in found)
        yield Finding(STAGE, f"{case}, {worst}", what, share, at_least=0.5, rounds=rounds, note=note)


@torch.no_grad()
def _alone(layer: nn.Module, given: Tensor) -> None:
    """Take the moments of one layer: its forward pass comes along."""
    with watching(layer, MomentAccumulator().add):
        layer(given)


def _of_few_rows(sizes: Sizes, device: torch.device) -> Finding:
    """Return what the rows save where they are fewer than the widest layer's dimension (4,608 in a VGG-16)."""
    d = 9 * 8 * sizes.wide[1]
    rows = (sizes.classes - 1) * sizes.per_class * 4
    factor = torch.randn(1, min(rows, d // 2), d, generator=generator_for("bench"), dtype=torch.float64).to(device)
    few = Moments({"w": factor.transpose(1, 2) @ factor}, {"w": 1.0}, {}, {"w": factor})
    ways = {
        "rows": lambda: by_energy(few, energy=SubspaceConfig().energy),
        "d x d": lambda: by_energy(replace(few, factors={}), energy=SubspaceConfig().energy),
    }
    case = f"one layer, d = {d}, {factor.shape[1]} rows"
    what = "times faster than a decomposition of d x d"
    return compared(STAGE, case, what, interleaved(ways, repeats=1, warm=False), "d x d", "rows")
