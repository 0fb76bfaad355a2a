"""What one unlearning costs for nets that nobody here can run: counted on paper, from the real architectures.

A net is built on torch's meta device: shapes, no numbers. Its operations, the activations that an attack keeps and the
rows that enter each weight are counted there for one image, and multiplied by what the defaults of the method ask for.
Seconds follow from the rates of a machine that was measured. ``python -m benchmarks.stages.on_paper cpu.json`` prints
the page; the file is what ``python -m benchmarks --record`` wrote.

Invariant: nothing is computed but counts; the same file gives the same page.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stages.machine import Machine
from zspag.activations import watching
from zspag.calibration.trials import FITTED, HURRY
from zspag.config import UnlearnConfig
from zspag.proxies import HALVINGS, MOST_PROBES
from zspag.report import files
from zspag.runtime import CHUNK, frozen
from zspag.subspaces import STRIP

# Shares of the rate of a large matrix product, measured on ResNet-18 at 32 pixels (tests/test_growth.py holds them
# within a factor of 2): what a net's passes reach, and what the products of moments reach.
NET, MOMENTS = 0.4, 0.3
EIGH = 9  # operations of a decomposition of d x d, over d^3; it reaches about a third of a product's rate
DECOMPOSED = 0.35
# Blocks of all attacked images that live at once: sources, noise, start, and best iterates in pieces and together.
COPIES = 6
# Sets of moments (d x d, float64, every layer) that live at once: two means of all, two of the halves, and one class.
HELD = 8
TRIALS = 6  # rates that a search tries, typically
EPOCHS = 6  # of the final run: two until it forgets, and ``settle`` times as many more
RADII = 2  # that a search for a radius tries, typically


@dataclass(frozen=True)
class Layer:
    """A weight: blocks of (d_out / blocks) x d, and the rows that one image brings to each block."""

    blocks: int
    rows: int
    d: int
    out: int


@dataclass(frozen=True)
class Counted:
    """Counts of one image.

    Attributes:
        forward: Operations of a forward pass.
        input_gradient: Operations of the gradient in the image that follows it.
        weight_gradient: Operations of the gradient in all weights that follows it.
        saved: Bytes of activations that a pass keeps for the gradient in the image.
        pixels: Bytes of the image in float32.
        layers: What enters each weight.
    """

    forward: float
    input_gradient: float
    weight_gradient: float
    saved: float
    pixels: float
    layers: tuple[Layer, ...]

    @property
    def square(self) -> float:
        """Bytes of one d x d matrix in float64 for every layer."""
        return sum(8.0 * layer.blocks * layer.d**2 for layer in self.layers)


@dataclass(frozen=True)
class Stage:
    """Operations in passes of a net, in products of moments and in decompositions; bytes that live at the peak."""

    name: str
    passes: float = 0.0
    products: float = 0.0
    decompositions: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)

    def seconds(self, machine: Machine) -> float:
        """Return what the stage takes at the rates of a machine."""
        single, double = machine.products["float32"], machine.products["float64"]
        return (
            self.passes / (NET * single)
            + self.products / (MOMENTS * single)
            + self.decompositions / (DECOMPOSED * double)
        )


def products_of(layers: Sequence[Layer], *, images: int) -> float:
    """Return the operations of the moments of some images; rows that are fewer than their dimensions are kept."""
    return sum(
        images * layer.blocks * layer.rows * layer.d**2 * (1 + min(1, STRIP / layer.d))
        for layer in layers
        if images * layer.rows >= layer.d
    )


def decompositions_of(layers: Sequence[Layer], *, images: int) -> float:
    """Return the operations of the bases of all layers, once; few rows R are decomposed as R x R and half are kept."""

    def one(layer: Layer) -> float:
        rows = images * layer.rows
        return EIGH * layer.d**3 if rows >= layer.d else EIGH * rows**3 + 4.0 * rows**2 * layer.d

    return sum(layer.blocks * one(layer) for layer in layers)


def count(build: Callable[[], nn.Module], *, side: int, channels: int = 3) -> Counted:
    """Count what one image costs.

    Args:
        build: Makes the net; it is called on the meta device.
        side: Height and width of the image.
        channels: Its channels.
    """
    with torch.device("meta"):
        model, x = build().eval(), torch.empty(1, channels, side, side)
    found: dict[str, list[int]] = {}

    def visit(name: str, rows: Tensor, _outputs: Any) -> None:
        blocks, more, d = rows.shape
        entry = found.setdefault(name, [blocks, 0, d])
        entry[1] += more

    with watching(model, visit), torch.no_grad():
        model(x)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(x)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    own = {parameter.untyped_storage()._cdata for parameter in (*model.parameters(), *model.buffers())}
    with frozen(model):
        image = x.clone().requires_grad_(True)
        with FlopCounterMode(display=False) as attacked:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                logits = model(image)
            logits.sum().backward()
    with FlopCounterMode(display=False) as fitted:
        model(x).sum().backward()
    weights = dict(model.named_parameters())
    return Counted(
        forward=forward.get_total_flops(),
        input_gradient=attacked.get_total_flops() - forward.get_total_flops(),
        weight_gradient=fitted.get_total_flops() - forward.get_total_flops(),
        saved=sum(size for place, size in kept.items() if place not in own),
        pixels=4 * x.numel(),
        layers=tuple(Layer(blocks, rows, d, weights[name].shape[0]) for name, (blocks, rows, d) in found.items()),
    )


def stages(one: Counted, *, classes: int, forget: int, config: UnlearnConfig | None = None) -> tuple[Stage, ...]:
    """Return the stages of one unlearning of a single class.

    Args:
        one: Counts of one image.
        classes: Number of classes K.
        forget: Forget images and views of them, n.
        config: Options of the method; None takes the defaults.
    """
    config = config or UnlearnConfig()
    attack, retained = config.proxies, classes - 1
    attacked = math.ceil(attack.per_class * attack.oversample) * retained
    proxies = attack.per_class * retained
    steps = (attack.steps + 1) * one.forward + attack.steps * one.input_gradient
    probes = min(MOST_PROBES, forget, max(1, math.ceil(attack.per_class * attack.oversample) // 7)) * retained
    short = attack.steps // 2
    search = RADII * probes * ((short + 1) * one.forward + short * one.input_gradient)
    activations = {f"activations of a pass of {CHUNK}": CHUNK * one.saved}
    fit = one.forward + one.weight_gradient
    projection = sum(4 * (layer.d / 4) * layer.d * layer.out for layer in one.layers)  # k is d / 2 at most
    fitted = max(1, config.update.epochs // HURRY) * 2 * min(FITTED, forget / 2)
    trial = fitted * fit + (proxies + forget) * one.forward
    trial_steps = max(1, config.update.epochs // HURRY) * 2 * 10
    final = EPOCHS * forget * (fit + one.forward) + proxies * one.forward
    final_steps = EPOCHS * max(10, forget / config.update.batch_size)
    held = {"images of all classes at once": COPIES * attacked * one.pixels}
    return (
        Stage("attack", attacked * steps + search + HALVINGS * proxies * one.forward, memory=held | activations),
        Stage(
            "moments",
            proxies * one.forward,
            products_of(one.layers, images=proxies),
            memory={"moments, d x d in float64": HELD * one.square, "proxies": 2 * proxies * one.pixels},
        ),
        Stage(
            "bases",
            decompositions=3 * decompositions_of(one.layers, images=proxies),
            memory={"bases of all and of both halves": 4 * one.square},
        ),
        Stage(
            "labels",
            forget * one.forward,
            memory={"n x K labels": 8.0 * forget * classes},
        ),
        Stage(
            "trials and update",
            TRIALS * (trial + trial_steps * projection) + final + final_steps * projection,
            memory={"barely hit proxies and their folds": 3 * proxies * one.pixels},
        ),
    )


def influence(one: Counted, *, classes: int, forget: int) -> dict[str, float]:
    """Return operations of what is no default: scores of all classes, and K-FAC's K backward passes per proxy."""
    proxies = UnlearnConfig().proxies.per_class * (classes - 1)
    return {
        "scores of all labels (n x K at once)": 3 * forget * one.forward + proxies * 3 * one.forward,
        "K-FAC's output factors (K backward passes)": proxies * (one.forward + classes * one.input_gradient),
    }


def _torchvision(name: str, classes: int) -> Callable[[], nn.Module]:
    from torchvision import models

    return lambda: getattr(models, name)(num_classes=classes)  # type: ignore[no-any-return]


NETS = (("ResNet-50", "resnet50", 224, 1000), ("ViT-B/16", "vit_b_16", 224, 1000))
FORGET = 500


def page(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the page: growth as it was measured, and the large nets on paper.

    Args:
        content: A result file of the benchmarks.
    """
    machine = Machine(**content["data"]["machine"])
    yield "# Growth"
    yield ""
    yield (
        f"Written by `python -m benchmarks.stages.on_paper results/bench/cpu.json`: {machine.name}, {machine.threads}"
        f" threads, commit {(content['provenance']['commit'] or 'unknown')[:7]} (`make bench RECORD=1`)."
    )
    yield ""
    yield from _measured([row for row in content["data"]["found"] if row["stage"] == "growth"])
    yield "## ImageNet on paper"
    yield ""
    yield (
        f"One class of 1,000 is forgotten with {FORGET} images and the defaults. Operations are counted on torch's meta"
        f" device; seconds are for {machine.name} with {machine.threads} threads"
        f" ({machine.products['float32'] / 1e9:.0f} GF/s in products of float32), where a net reaches {100 * NET:.0f} %"
        " of a product's rate. Nothing in this part was measured on such a net."
    )
    for title, name, side, classes in NETS:
        one = count(_torchvision(name, classes), side=side)
        yield from ("", f"### {title}, {side} pixels, K = {classes}", "")
        yield from _table(one, machine, classes=classes)


def _measured(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield "Every point is a process of its own; an exponent of 1 is linear growth."
    yield ""
    yield "| what grows | number | found | wanted | points |"
    yield "| --- | --- | --- | --- | --- |"
    for row in rows:
        yield f"| {row['case']} | {row['what']} | {row['value']:.3g} | {row['wanted']} | {row['note']} |"
    yield ""


def _table(one: Counted, machine: Machine, *, classes: int) -> Iterator[str]:
    counted = stages(one, classes=classes, forget=FORGET)
    yield "| stage | operations | hours here | memory at the peak |"
    yield "| --- | --- | --- | --- |"
    for stage in counted:
        operations = stage.passes + stage.products + stage.decompositions
        memory = "; ".join(f"{size / 2**30:.3g} GiB {what}" for what, size in stage.memory.items())
        yield f"| {stage.name} | {operations:.2g} | {stage.seconds(machine) / 3600:.2g} | {memory} |"
    hours = sum(stage.seconds(machine) for stage in counted) / 3600
    yield f"| all | {sum(s.passes + s.products + s.decompositions for s in counted):.2g} | {hours:.2g} | |"
    for what, operations in influence(one, classes=classes, forget=FORGET).items():
        hours = Stage(what, operations).seconds(machine) / 3600
        yield f"| (option) {what} | {operations:.2g} | {hours:.2g} | |"
    yield ""
    sizes = {what: size for stage in counted for what, size in stage.memory.items()}
    first = max(sizes, key=lambda what: sizes[what])
    slowest = max(counted, key=lambda stage: stage.seconds(machine))
    largest = max(layer.d for layer in one.layers)
    yield (
        f"Breaks first: {sizes[first] / 2**30:.0f} GiB for {first}. {MENDS[first]} Most of the time goes to:"
        f" {slowest.name}. The widest layer has d = {largest}; one set of moments takes {one.square / 2**30:.2g} GiB."
    )


MENDS = {
    "images of all classes at once": (
        "Mend: attack some classes at a time, take their moments at once, and keep what judges trials (some hundred"
        " barely hit proxies) instead of all; 50 classes at a time need a twentieth."
    ),
    "moments, d x d in float64": "Mend: float32 means, or a sketch of each layer's leading directions.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page of a result file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages.on_paper", description=__doc__)
    parser.add_argument("file", type=Path, help="what `python -m benchmarks` wrote: runs/bench/cpu.json")
    for line in page(files.read_json(parser.parse_args(arguments).file)):
        sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
