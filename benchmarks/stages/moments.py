"""Second moments: against patches and a tall SVD, as public null-space code does it, and against the machine.

R rows of width d need 2 R d^2 operations as one product; symmetry saves up to half, which the rate does not count.
Cutting patches in two copies moves 16 bytes per number of a row, 8 / d bytes per operation. The way with an SVD cuts
the same rows with ``F.unfold`` and decomposes R x d: a QR, about 4 R d^2 operations with its factor, then a product of
2 R d^2 beside the decomposition of d x d; in float32, as the rows are and public code has it, and in float64.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.stages.findings import Finding, spread
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes, images, net, pooled_bases
from benchmarks.stages.timing import interleaved
from zspag.activations import watching
from zspag.runtime import frozen
from zspag.subspaces import MomentAccumulator, second_moments

STAGE = "second moments"
WIDE_ROWS = 256  # layers from this width on are held to the machine's rate


def measure(sizes: Sizes, machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield what every net takes on the images of one class."""
    for arch, width in (*sizes.nets, sizes.wide):
        model, x = net(arch, width, sizes, device=device), images(sizes.per_class, sizes, device=device)
        repeats = 1 if (arch, width) == sizes.wide else max(2, sizes.repeats // 2)
        case = f"{arch} of width {width}, {len(x)} images of a class"
        yield from _against_svd(model, x, case, classes=sizes.classes - 1, repeats=repeats)
        yield from _against_machine(model, x, case, machine, repeats=sizes.repeats)
    model, x = net(*sizes.nets[0], sizes, device=device), images(2, sizes, device=device)
    yield _against_loops(model, x, f"{sizes.nets[0][0]} of width {sizes.nets[0][1]}, {len(x)} images")


def _against_svd(model: nn.Module, x: Tensor, case: str, *, classes: int, repeats: int) -> Iterator[Finding]:
    """Yield what moments take beside a tall SVD in both precisions, without the bases and with them."""

    def svd(precision: torch.dtype) -> None:
        for one in _inputs(model, x):
            torch.linalg.svd(_unfolded(*one).to(precision), full_matrices=False)

    ways = {
        "moments": lambda: second_moments(model, x),
        "SVD in float64": lambda: svd(torch.float64),
        "SVD in float32": lambda: svd(torch.float32),
        f"moments of {classes} classes and their bases": lambda: pooled_bases(model, x, classes=classes),
    }
    timings = interleaved(ways, repeats=repeats)
    own, double, single, whole = timings.values()
    for precision, other in (("float32, the precision of the rows", single), ("float64", double)):
        yield Finding(
            STAGE,
            case,
            f"times faster than unfold and SVD in {precision}",
            other.over(own),
            at_least=5,
            seconds=spread(timings),
        )
    yield Finding(
        STAGE,
        case,
        f"the same in float32 for {classes} classes, the bases of all layers on our side too",
        classes * single.over(whole),
        seconds=spread(timings),
        note=f"{classes} times the SVDs of one class",
    )


def _against_machine(model: nn.Module, x: Tensor, case: str, machine: Machine, *, repeats: int) -> Iterator[Finding]:
    """Yield the slowest layer that is wide enough, as a share of the machine's rate of products in float32."""
    shares = {}
    for layer, given in _inputs(model, x):
        rows, d = _unfolded(layer, given).shape
        if d >= WIDE_ROWS and rows >= d:
            (timing,) = interleaved({"rows": partial(_alone, layer, given)}, repeats=repeats).values()
            shares[f"d = {d}, {rows} rows"] = 2 * rows * d * d / timing.median / machine.products["float32"]
    if shares:
        worst = min(shares, key=lambda name: shares[name])
        yield Finding(
            STAGE,
            f"{case}, {worst}",
            "share of the machine's matrix-product rate, slowest layer",
            shares[worst],
            at_least=0.5,
            note="; ".join(f"{name}: {share:.2f}" for name, share in shares.items()),
        )


def _against_loops(model: nn.Module, x: Tensor, case: str) -> Finding:
    layer, given = next(one for one in _inputs(model, x) if isinstance(one[0], nn.Conv2d))
    timings = interleaved({"ours": lambda: _alone(layer, given), "loops": lambda: _by_loops(layer, given)}, repeats=3)
    return Finding(
        STAGE,
        f"{case}, first layer",
        "times faster than patches cut by loops (for the record)",
        timings["loops"].over(timings["ours"]),
        seconds=spread(timings),
    )


@torch.no_grad()
def _alone(layer: nn.Module, given: Tensor) -> None:
    """Take the moments of one layer: its forward pass comes along."""
    with watching(layer, MomentAccumulator().add):
        layer(given)


def _inputs(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Return the convolution and linear layers with what enters them."""
    found: list[tuple[nn.Module, Tensor]] = []
    layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(lambda part, given: found.append((part, given[0]))) for layer in layers]
    try:
        with frozen(model), torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _unfolded(layer: nn.Module, given: Tensor) -> Tensor:
    """Return the rows (R, d) that enter a layer, as one call of ``F.unfold`` cuts them."""
    if not isinstance(layer, nn.Conv2d):
        return given.reshape(-1, given.shape[-1])
    cut = F.unfold(given, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # type: ignore[arg-type]
    return cut.transpose(1, 2).reshape(-1, cut.shape[1])


def _by_loops(layer: nn.Module, given: Tensor) -> Tensor:
    """Return the second moment (d, d), every patch cut by hand: what anybody understands."""
    assert isinstance(layer, nn.Conv2d)
    pad, size, step = int(layer.padding[0]), layer.kernel_size[0], layer.stride[0]
    padded = F.pad(given, (pad, pad, pad, pad))
    total = torch.zeros(layer.weight[0].numel(), layer.weight[0].numel(), dtype=torch.float64)
    for image in padded:
        for top in range(0, padded.shape[2] - size + 1, step):
            for left in range(0, padded.shape[3] - size + 1, step):
                patch = image[:, top : top + size, left : left + size].reshape(-1).double().cpu()
                total += torch.outer(patch, patch)
    return total
