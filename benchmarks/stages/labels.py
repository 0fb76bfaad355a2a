"""Label influence: one forward-mode product for all classes, against as many gradients as samples times classes.

A forward pass multiplies every input once. Its derivative along a direction takes two products more (one in the first
layer), so three passes' worth of products and about twice the activations of one; the scores of all K classes come out
together. Nothing of n times the number of parameters exists on the way (growth: memory against n).
"""

from collections.abc import Iterator

import torch

from benchmarks.stages.findings import Finding, spread
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes, images, net, weight_names
from benchmarks.stages.timing import interleaved, timed
from zspag.influence import label_scores, loss_gradient, weights_of
from zspag.runtime import generator_for, logits_of

STAGE = "label influence"


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield the cost of every net."""
    for arch, width in sizes.nets:
        yield from _of_net(arch, width, sizes, device)


def _of_net(arch: str, width: int, sizes: Sizes, device: torch.device) -> Iterator[Finding]:
    model, x = net(arch, width, sizes, device=device), images(sizes.forget, sizes, device=device)
    names = weight_names(model)
    draw = generator_for("bench")
    direction = {
        name: torch.randn(weight.shape, generator=draw).to(device) for name, weight in weights_of(model, names).items()
    }
    timings = interleaved(
        {
            "forward pass": lambda: logits_of(model, x),
            "scores of all classes": lambda: label_scores(model, x, direction),
        },
        repeats=4 * sizes.repeats,
    )
    case = f"{arch} of width {width}, {len(x)} images, {sizes.classes} classes"
    passes = timings["scores of all classes"].over(timings["forward pass"])
    yield Finding(
        STAGE, case, "forward passes' time for the scores of all classes", passes, at_most=3, seconds=spread(timings)
    )
    labels = torch.eye(sizes.classes, device=device)
    single = timed(lambda: [loss_gradient(model, x[:1], labels[k : k + 1], names=names) for k in range(len(labels))])
    yield Finding(
        STAGE,
        case,
        "times faster than one gradient per sample and class",
        single * len(x) / timings["scores of all classes"].median,
        note="gradients of one image, times the number of images",
    )
