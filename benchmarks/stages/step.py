"""The projected step: what the projection adds to a step of SGD, against what its operations say it must add.

A step with b samples and p positions per sample costs 6 b p d d_out operations per layer (forward, gradient in the
input, gradient in the weight); its projection costs 4 k d d_out, k the smaller of rank and d - rank. So it should take
(sum 6 b p d d_out + 4 k d d_out) / (sum 6 b p d d_out) of the plain step's time.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.stages.findings import Finding, compared
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes, images, net
from benchmarks.stages.timing import interleaved
from zspag.config import SubspaceConfig, UpdateConfig
from zspag.influence import soft_cross_entropy
from zspag.projected_sgd import projected_sgd
from zspag.runtime import generator_for
from zspag.subspaces import Moments, Projector, projector, second_moments

STAGE = "projected step"
BATCH = 64


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield what one epoch of steps takes with the projection and without it."""
    for arch, width in sizes.nets:
        yield _of_net(arch, width, sizes, device)


def _of_net(arch: str, width: int, sizes: Sizes, device: torch.device) -> Finding:
    model, x = net(arch, width, sizes, device=device), images(sizes.forget, sizes, device=device)
    moments = second_moments(model, images(sizes.per_class, sizes, device=device))
    keep_out = projector([moments], config=SubspaceConfig())
    names = list(keep_out.factors)
    # Judging is no step: it gets as few images as can be.
    run = partial(epoch, model, x, classes=sizes.classes, names=names, held_out=0.01)
    timings = interleaved(
        {"plain": partial(run, project=None), "projected": partial(run, project=keep_out)}, repeats=2 * sizes.repeats
    )
    counted = _counted(model, moments, keep_out, batch=min(BATCH, len(x)))
    case, what = f"{arch} of width {width}, batches of {min(BATCH, len(x))}", "time over its counted cost"
    note = f"counted: {counted:.3f} of a plain step; an epoch of steps, the copy of the net included"
    return compared(STAGE, case, what, timings, "projected", "plain", factor=1 / counted, at_most=1.3, note=note)


def epoch(
    model: nn.Module, x: Tensor, *, classes: int, names: Sequence[str], project: Projector | None, held_out: float
) -> None:
    """Fit images to the uniform distribution for one epoch, at a rate at which nothing happens.

    Args:
        model: Not changed.
        x: Shape (n, C, H, W).
        classes: Number of classes K.
        names: Weights that move.
        project: Projects their gradients; None leaves them.
        held_out: Share of the images that is judged and not fitted; 0 judges all of them.
    """
    labels = torch.full((len(x), classes), 1 / classes, device=x.device)
    update = UpdateConfig(lr=1e-6, epochs=1, settle=0, batch_size=BATCH, min_steps=1, held_out=held_out)

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        return soft_cross_entropy(current(x[batch]), labels[batch])

    projected_sgd(
        model,
        x,
        torch.zeros(len(x), dtype=torch.long, device=x.device),
        loss=loss,
        names=names,
        project=project,
        update=update,
        generator=generator_for("bench"),
    )


def _counted(model: nn.Module, moments: Moments, keep_out: Projector, *, batch: int) -> float:
    parameters = dict(model.named_parameters())
    plain = added = 0.0
    for name, (_, matrix) in keep_out.factors.items():
        plain += 6 * batch * moments.rows_per_sample[name] * parameters[name].numel()
        added += 4 * matrix.shape[-1] * parameters[name].numel()
    return 1 + added / plain
