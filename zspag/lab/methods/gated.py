"""Gated knowledge transfer: a student learns from the original on pseudo-images that do not look like the forget class.

Invariant: training sees no image of any data set. The forget set only tells how much of it the student recognizes.
"""

import copy
import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import UnlearnConfig, UpdateConfig
from zspag.lab.methods.method import Method, Problem
from zspag.outcome import Epoch
from zspag.projected_sgd import RateSearch, Run, rate_search
from zspag.runtime import derive_seed, evaluating, generator_for, logits_of

GATE = 0.01  # most softmax mass of the forget classes that an image may have
STUDENT_STEPS = 10  # steps of the student for each of the maker of images
ATTENTION = 250.0  # weight of the distance between attention maps
MAKER_RATE = 1e-3  # rate of Adam for the maker of images
CLIP = 5.0  # longest gradient
ROUNDS = 2  # rounds per epoch: 20 student steps, as other methods take; published: 4000 batches in all
IMAGES = 32  # images per step; published: 256
LATENT, CHANNELS = 64, 32  # size of the maker of images


def gkt(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Train a fresh student on pseudo-images, with those gated out that the original gives to a forget class.

    A maker of images takes one step towards images on which student and original disagree (KL), then the student takes
    ten to agree on new ones (KL and the distance of attention maps). Both are trained by Adam; the ladder's rates are
    the student's.

    Reference:
        Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023 (GKT).

    Note:
        DIFFERS: two rounds an epoch of 32 images, some hundred student steps instead of thousands, so that a ladder
        takes seconds. The student's weights are drawn with mean and deviation of the original's tensors, since nobody's
        model tells how it was initialized; norm statistics are the original's and stay. Attention maps are those of
        convolutions. A fresh student recognizes nothing, so that no run stops early; for the same reason the smallest
        rate counts as having forgotten, however little it has learned. And a class that the maker of images hardly
        shows is not learned, gated or not.
    """
    return rate_search(lambda lr: _transfer(problem, replace(config.update, lr=lr)), update=config.update)


def _transfer(problem: Problem, update: UpdateConfig) -> Run:
    """Run all rounds at the rate of ``update``."""
    assert update.lr is not None
    model, images, forget, seed = problem.model, problem.forget_images, problem.forget_classes, problem.seed
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    student = fresh_student(model, generator=generator_for(seed, "student"))
    maker = image_maker(images.shape[1:], seed=derive_seed(seed, "maker")).to(images)
    adams = torch.optim.Adam(student.parameters(), lr=update.lr), torch.optim.Adam(maker.parameters(), lr=MAKER_RATE)
    drawing, history, diverged = generator_for(seed, "latent"), list[Epoch](), False

    def drawn() -> Tensor:
        return torch.randn(IMAGES, LATENT, generator=drawing).to(images)

    with evaluating(student):
        student.requires_grad_(True)
        while not diverged and len(history) < update.epochs:
            started, losses = time.perf_counter(), list[float]()
            for _ in range(ROUNDS):
                _step_(adams[1], _disagreement(teacher, student, maker(drawn()), forget=forget))
                for _ in range(STUDENT_STEPS):
                    with torch.no_grad():
                        made = maker(drawn())
                    losses += _step_(adams[0], transfer_loss(teacher, student, made, forget=forget))
            logits = logits_of(student, images)
            diverged = not (math.isfinite(sum(losses)) and bool(torch.isfinite(logits).all()))
            remaining = (logits.argmax(1) == problem.forget_labels).double().mean().item()
            mean = sum(losses) / max(1, len(losses))
            history.append(Epoch(mean, remaining, time.perf_counter() - started))
        student.zero_grad(set_to_none=True)
    for parameter, own in zip(student.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(own.requires_grad)
    return Run(student, update.lr, tuple(history), diverged)


@torch.no_grad()
def fresh_student(model: nn.Module, *, generator: torch.Generator) -> nn.Module:
    """Return a copy whose parameters are drawn anew, with mean and deviation of the old ones; buffers stay."""
    student = copy.deepcopy(model)
    for parameter in student.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.copy_(parameter.mean() + parameter.std(correction=0) * noise)
    return student


def image_maker(shape: Sequence[int], *, seed: int) -> nn.Sequential:
    """Return a net from latent vectors (b, LATENT) to images (b, C, H, W) in [0, 1]; it doubles the size twice."""
    channels, height, width = shape
    small, middle = ([math.ceil(side / by) for side in (height, width)] for by in (4, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(LATENT, CHANNELS * small[0] * small[1]),
            nn.Unflatten(1, (CHANNELS, *small)),
            nn.BatchNorm2d(CHANNELS),
            *_doubling(CHANNELS, CHANNELS, middle),
            *_doubling(CHANNELS, CHANNELS // 2, [height, width]),
            nn.Conv2d(CHANNELS // 2, channels, 3, padding=1),
            nn.BatchNorm2d(channels, affine=False),  # without it, images begin as a flat gray
            nn.Sigmoid(),
        )


def _doubling(channels_in: int, channels_out: int, size: Sequence[int]) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    return [nn.Upsample(size=tuple(size)), conv, nn.BatchNorm2d(channels_out), nn.LeakyReLU(0.2)]


def gate(logits: Tensor, *, forget: Sequence[int]) -> Tensor:
    """Tell which images pass, shape (b,): their softmax mass on the forget classes is at most ``GATE``."""
    return logits.softmax(1)[:, list(forget)].sum(1) <= GATE


def transfer_loss(teacher: nn.Module, student: nn.Module, images: Tensor, *, forget: Sequence[int]) -> Tensor | None:
    """Return KL plus the weighted distance of attention maps on the images that pass the gate; None if none does."""
    with torch.no_grad(), attention_maps(teacher) as aims:
        taught = teacher(images)
    passing = gate(taught, forget=forget)
    if not bool(passing.any()):
        return None
    with attention_maps(student) as maps:
        learned = student(images[passing])
    apart = [(own - aim[passing]).square().mean() for own, aim in zip(maps, aims, strict=True)]
    return divergence(taught[passing], learned) + ATTENTION * sum(apart, start=learned.new_zeros(()))


def _disagreement(teacher: nn.Module, student: nn.Module, images: Tensor, *, forget: Sequence[int]) -> Tensor | None:
    """Return what the maker of images minimizes: minus the KL on the images that pass the gate; None if none does."""
    taught = teacher(images)
    passing = gate(taught.detach(), forget=forget)
    return -divergence(taught[passing], student(images[passing])) if bool(passing.any()) else None


def divergence(taught: Tensor, learned: Tensor) -> Tensor:
    """Return the mean KL(teacher || student) of logits (b, K)."""
    return F.kl_div(learned.log_softmax(1), taught.log_softmax(1), log_target=True, reduction="batchmean")


@contextmanager
def attention_maps(model: nn.Module) -> Generator[list[Tensor], None, None]:
    """Collect where convolutions answer: squares averaged over channels, each map of unit length, shape (b, H W).

    Yields:
        A list that holds one map per convolution, in order of use, after a forward pass.
    """
    maps: list[Tensor] = []

    def keep(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
        maps.append(F.normalize(output.square().mean(1).flatten(1)))

    handles = [layer.register_forward_hook(keep) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _step_(optimizer: torch.optim.Optimizer, loss: Tensor | None) -> list[float]:
    """Take a clipped step of ``optimizer`` down the loss; return the loss as a list, empty if there was none."""
    if loss is None:
        return []
    if bool(torch.isfinite(loss)):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
    return [loss.item()]


_READS = "nothing; the forget set only judges"

METHODS: dict[str, Method] = {"gkt": Method("GKT", gkt, _READS, "Chundawat et al., TIFS 2023", "low")}
