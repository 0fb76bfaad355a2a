"""Synthetic inputs in place of retain data: optimized noise images, Gaussian features, images made by a net.

Invariant: no image but forget samples and proxies is used. GKT trains on made images alone; there the forget set only
tells how much of it the student recognizes.
"""

import copy
import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.activations import watching
from zspag.config import UnlearnConfig
from zspag.influence import soft_cross_entropy
from zspag.lab.methods.method import FORGET, PROXIES, Method, Problem, sgd_at_every_rate
from zspag.outcome import Epoch
from zspag.projected_sgd import RateSearch, Run, rate_search
from zspag.pseudo_labels import masked_log_probabilities, retained_classes
from zspag.runtime import chunks, derive_seed, evaluating, frozen, generator_for, logits_of, sent

NOISE_PER_CLASS = 20  # noise images of every class
NOISE_STEPS = 40  # steps of Adam they are optimized by
NOISE_RATE = 0.1  # its rate, as published, in pixels here

# GKT
GATE = 0.01  # most softmax mass of the forget classes that an image may have
STUDENT_STEPS = 10  # steps of the student for each of the maker of images
ATTENTION = 250.0  # weight of the distance between attention maps
MAKER_RATE = 1e-3  # rate of Adam for the maker of images
CLIP = 5.0  # longest gradient
ROUNDS = 2  # rounds per epoch: 20 student steps, as other methods take; published: 4000 batches in all
IMAGES = 32  # images per step; published: 256
LATENT, CHANNELS = 64, 32  # size of the maker of images


def min_max_noise(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fine-tune on noise images alone: those of a forget class maximize its loss, the others minimize theirs.

    Images that look nothing like the forget class get its label, which overwrites what the net knows of the class.

    Reference: Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023; the maximizing half: Tarun et al.,
    TNNLS 2023.

    DIFFERS: noise is kept in [0, 1] instead of being penalized for its size; 20 images a class instead of 20 batches; a
    step sees one noise image per forget sample of its batch, all classes alike.
    """
    like = problem.forget_images
    labels = torch.arange(problem.num_classes, device=like.device).repeat_interleave(NOISE_PER_CLASS)
    start = torch.rand((len(labels), *like.shape[1:]), generator=generator_for(problem.seed, "noise"))
    images = optimized_noise(problem.model, start.to(like), labels, forget=problem.forget_classes)

    def loss(current: nn.Module, batch: Tensor, drawing: torch.Generator) -> Tensor:
        drawn = sent(torch.randint(len(labels), (len(batch),), generator=drawing), labels.device)
        return F.cross_entropy(current(images[drawn]), labels[drawn])

    return sgd_at_every_rate(problem, config, loss)


def optimized_noise(model: nn.Module, start: Tensor, labels: Tensor, *, forget: Sequence[int]) -> Tensor:
    """Return images in [0, 1] whose cross-entropy with their label is high for forget classes and low for others."""
    signs = 1 - 2 * torch.isin(labels, torch.tensor(forget, device=labels.device)).to(start)
    parts = []
    with frozen(model):
        for first, own, sign in chunks(start, labels, signs):
            images = first.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([images], lr=NOISE_RATE)
            for _ in range(NOISE_STEPS):
                loss = (sign * F.cross_entropy(model(images), own, reduction="none")).sum()
                (images.grad,) = torch.autograd.grad(loss, images)
                optimizer.step()
                with torch.no_grad():
                    images.clamp_(0, 1)
            parts.append(images.detach())
    return torch.cat(parts)


def head_sampling(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Train the head alone on Gaussian features, labelled by the original head with the forget classes masked.

    A class's features have the mean of its proxies (of its forget samples, for a forget class) and the covariance of
    all of these around their means. A step sees a sample of its own class for every forget sample of the batch, and
    one of a random retained class beside it. A head that averages over positions is fed the average: it is linear.

    Reference: Head-only sampling, 2026, from a description of the method.

    DIFFERS: mean and covariance come from forget samples and proxies, where the method may take them from training
    data; labels are soft, as in DELETE.

    Raises:
        ValueError: If the last layer of the model does not give the logits.
    """
    model, forget, width = problem.model, problem.forget_classes, problem.num_classes
    head = problem.statistics.names[-1]
    outputs = len(model.get_parameter(head))
    if outputs != width:
        raise ValueError(f"the last layer, {head}, has {outputs} outputs instead of {width} logits")
    images = torch.cat([problem.forget_images, problem.statistics.proxies.images])
    labels = torch.cat([problem.forget_labels, problem.statistics.proxies.labels])
    means, residuals = class_statistics(features_of(model, images, head=head), labels, num_classes=width)
    retained = retained_classes(width, forget)

    def loss(current: nn.Module, batch: Tensor, drawing: torch.Generator) -> Tensor:
        beside = sent(retained[torch.randint(len(retained), (len(batch),), generator=drawing)], labels.device)
        classes = torch.cat([problem.forget_labels[batch], beside])
        features = sampled_features(means, residuals, classes, generator=drawing)
        teacher = masked_log_probabilities(head_logits(model, features, head=head).detach(), forget=forget).exp()
        return soft_cross_entropy(head_logits(current, features, head=head), teacher)

    return sgd_at_every_rate(problem, config, loss, names=problem.head_names)


def features_of(model: nn.Module, images: Tensor, *, head: str) -> Tensor:
    """Return what enters the layer whose weight is called ``head``, averaged over positions, shape (n, d)."""
    parts: list[Tensor] = []

    def visit(name: str, rows: Tensor, _outputs: object) -> None:
        if name == head:
            parts.append(rows[0])

    with torch.no_grad(), watching(model, visit):
        for (x,) in chunks(images):
            model(x)
            parts[-1] = parts[-1].reshape(len(x), -1, parts[-1].shape[1]).mean(1)
    return torch.cat(parts)


def head_logits(model: nn.Module, features: Tensor, *, head: str) -> Tensor:
    """Return the logits (n, K) that the head gives features (n, d)."""
    parameters = dict(model.named_parameters())
    bias = parameters.get(".".join((*head.split(".")[:-1], "bias")))
    return F.linear(features, parameters[head].flatten(1), bias)


def class_statistics(features: Tensor, labels: Tensor, *, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean of each class, shape (K, d), and all features less the mean of theirs, shape (n, d)."""
    means = torch.stack([features[labels == label].mean(0) for label in range(num_classes)])
    return means, features - means[labels]


def sampled_features(means: Tensor, residuals: Tensor, classes: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw Gaussian features with the means of ``classes`` and the covariance of ``residuals``, shape (b, d).

    A normal mixture R^T w / sqrt(n) of the residuals has covariance R^T R / n, which is never formed or factored.
    """
    mixture = torch.randn((len(classes), len(residuals)), generator=generator, dtype=means.dtype)
    return means[classes] + sent(mixture, means.device) @ residuals / len(residuals) ** 0.5


def gkt(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Train a fresh student on generated images, without those that the original gives to a forget class.

    A maker of images takes one step towards images on which student and original disagree (KL), then the student takes
    ten to agree on new ones (KL and the distance of attention maps). Both are trained by Adam; the ladder's rates are
    the student's.

    A fresh student recognizes nothing. So no run stops early, and the smallest rate counts as having forgotten, however
    little it has learned. A class that the maker hardly shows is not learned, with or without the gate.

    Reference: Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023 (GKT).

    DIFFERS: some hundred student steps instead of thousands, so that a ladder takes seconds. The student's weights are
    drawn with mean and deviation of the original's tensors, since a trained model does not tell how it was initialized;
    norm statistics are the original's and stay. Attention maps are those of convolutions.
    """
    return rate_search(lambda lr: _transfer(problem, lr=lr, epochs=config.update.epochs), update=config.update)


def _transfer(problem: Problem, *, lr: float, epochs: int) -> Run:
    """Train a student at one rate."""
    model, images, forget, seed = problem.model, problem.forget_images, problem.forget_classes, problem.seed
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    student = fresh_student(model, generator=generator_for(seed, "student"))
    maker = image_maker(images.shape[1:], seed=derive_seed(seed, "maker")).to(images)
    student_adam = torch.optim.Adam(student.parameters(), lr=lr)
    maker_adam = torch.optim.Adam(maker.parameters(), lr=MAKER_RATE)
    drawing, history, diverged = generator_for(seed, "latent"), list[Epoch](), False

    def made() -> Tensor:
        drawn: Tensor = maker(torch.randn(IMAGES, LATENT, generator=drawing).to(images))
        return drawn

    with evaluating(student):
        student.requires_grad_(True)
        while not diverged and len(history) < epochs:
            started, losses = time.perf_counter(), list[float]()
            for _ in range(ROUNDS):
                step_(maker_adam, disagreement(teacher, student, made(), forget=forget))
                for _ in range(STUDENT_STEPS):
                    losses += step_(student_adam, transfer_loss(teacher, student, made().detach(), forget=forget))
            logits = logits_of(student, images)
            diverged = not (math.isfinite(sum(losses)) and bool(torch.isfinite(logits).all()))
            remaining = (logits.argmax(1) == problem.forget_labels).double().mean().item()
            history.append(Epoch(sum(losses) / max(1, len(losses)), remaining, time.perf_counter() - started))
        student.zero_grad(set_to_none=True)
    for parameter, own in zip(student.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(own.requires_grad)
    return Run(student, lr, tuple(history), diverged)


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
        layers = [
            nn.Linear(LATENT, CHANNELS * small[0] * small[1]),
            nn.Unflatten(1, (CHANNELS, *small)),
            nn.BatchNorm2d(CHANNELS),
        ]
        for entering, leaving, size in ((CHANNELS, CHANNELS, middle), (CHANNELS, CHANNELS // 2, [height, width])):
            conv = nn.Conv2d(entering, leaving, 3, padding=1)
            layers += [nn.Upsample(size=tuple(size)), conv, nn.BatchNorm2d(leaving), nn.LeakyReLU(0.2)]
        return nn.Sequential(
            *layers,
            nn.Conv2d(CHANNELS // 2, channels, 3, padding=1),
            nn.BatchNorm2d(channels, affine=False),  # without it, images begin as a flat gray
            nn.Sigmoid(),
        )


def gate(logits: Tensor, *, forget: Sequence[int]) -> Tensor:
    """Tell which images pass, shape (b,): their softmax mass on the forget classes is at most ``GATE``."""
    return logits.softmax(1)[:, list(forget)].sum(1) <= GATE


def disagreement(teacher: nn.Module, student: nn.Module, images: Tensor, *, forget: Sequence[int]) -> Tensor | None:
    """Return what the maker of images minimizes: minus the KL on the images that pass the gate; None if none does."""
    taught = teacher(images)
    passing = gate(taught.detach(), forget=forget)
    return -divergence(taught[passing], student(images[passing])) if bool(passing.any()) else None


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


def step_(optimizer: torch.optim.Optimizer, loss: Tensor | None) -> list[float]:
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


_TIFS = "Chundawat et al., TIFS 2023"
_NOISE = ("NOISE_PER_CLASS", "NOISE_STEPS", "NOISE_RATE")
_GKT = ("GATE", "STUDENT_STEPS", "ATTENTION", "MAKER_RATE", "CLIP", "ROUNDS", "IMAGES", "LATENT", "CHANNELS")
METHODS: dict[str, Method] = {
    "min_max_noise": Method("error-min-max noise", min_max_noise, FORGET, _TIFS, "low", _NOISE),
    "head_sampling": Method("head-only sampling", head_sampling, PROXIES, "head-only sampling, 2026", "middle"),
    "gkt": Method("GKT", gkt, "nothing; the forget set only judges", _TIFS, "low", _GKT),
}
