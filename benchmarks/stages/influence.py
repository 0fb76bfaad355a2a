"""Influence of labels: one forward-mode product for all classes, and products with the Gauss-Newton matrix.

A forward pass multiplies every input once. Its derivative along a direction takes two products more (one in the first
layer), so three passes' worth of products and about twice the activations of one; the scores of all K classes come out
together. Per-sample gradients take n K backward passes, and n K times the number of weights in memory. A Gauss-Newton
product is such a forward-mode product and one backward pass.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.stages.findings import Finding, compared
from benchmarks.stages.machine import Machine
from benchmarks.stages.peers import curvlinops_product, scores_by_gradients, scores_by_jvp
from benchmarks.stages.settings import Sizes, images, net, weight_names
from benchmarks.stages.timing import interleaved
from zspag.influence import Direction, gauss_newton_product, label_scores, weights_of
from zspag.runtime import CHUNK, generator_for, logits_of

STAGE = "influence"
FEW = 16  # images of the way by gradients; its time is linear in them


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield the cost of every net."""
    for arch, width in sizes.nets:
        model, x = net(arch, width, sizes, device=device), images(min(CHUNK, sizes.forget), sizes, device=device)
        draw = generator_for("bench")
        weights = weights_of(model, weight_names(model))
        direction = {name: torch.randn(weight.shape, generator=draw).to(device) for name, weight in weights.items()}
        case = f"{arch} of width {width}, {len(x)} images, {sizes.classes} classes"
        yield from _of_scores(model, x, direction, case, repeats=sizes.repeats)
        yield from _of_products(model, x, direction, case, repeats=sizes.repeats)


def _of_scores(model: nn.Module, x: Tensor, direction: Direction, case: str, *, repeats: int) -> Iterator[Finding]:
    few = x[:FEW]
    ways = {
        "forward pass": lambda: logits_of(model, x),
        "scores": lambda: label_scores(model, x, direction),
        "torch.func.jvp": lambda: scores_by_jvp(model, x, direction),
        "gradients of a few images": lambda: scores_by_gradients(model, few, direction),
    }
    timings = interleaved(ways, repeats=repeats)
    what = "forward passes' time for the scores of all classes"
    yield compared(STAGE, case, what, timings, "scores", "forward pass", at_most=3)
    what = "time of the scores over that of torch.func.jvp"
    yield compared(STAGE, case, what, timings, "scores", "torch.func.jvp", at_most=1)
    what, note = "times faster than one gradient per sample and class", f"gradients of {len(few)} images, scaled up"
    many = len(x) / len(few)
    yield compared(STAGE, case, what, timings, "gradients of a few images", "scores", factor=many, note=note)


def _of_products(model: nn.Module, x: Tensor, direction: Direction, case: str, *, repeats: int) -> Iterator[Finding]:
    ways = {"ours": lambda: gauss_newton_product(model, x, direction, damping=0.0)}
    peer, note = curvlinops_product(model, x, list(direction)), ""
    if peer is not None:
        ways["curvlinops"] = lambda: peer(direction)
        one, other = ways["ours"](), peer(direction)
        apart = max(float((one[name] - other[name]).norm() / other[name].norm()) for name in direction)
        note = f"the products differ by {apart:.1g} of their norm at most"
    what = "time of a Gauss-Newton product over that of curvlinops"
    yield compared(STAGE, case, what, interleaved(ways, repeats=repeats), "ours", "curvlinops", at_most=1, note=note)
