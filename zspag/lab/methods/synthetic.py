"""Synthetic inputs in place of retain data: optimized noise images, and Gaussian features in front of the head.

Invariant: images are optimized from uniform noise; features follow those of forget samples and proxies alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.activations import watching
from zspag.config import UnlearnConfig
from zspag.influence import soft_cross_entropy
from zspag.lab.methods.method import FORGET, PROXIES, Method, Problem, head_names, sgd_at_every_rate
from zspag.projected_sgd import BatchLoss, RateSearch
from zspag.pseudo_labels import masked_log_probabilities, retained_classes
from zspag.runtime import chunks, frozen, generator_for, sent

NOISE_PER_CLASS = 20  # noise images of every class
NOISE_STEPS = 40  # steps of Adam they are optimized by
NOISE_RATE = 0.1  # its rate, as published, in pixels here


def min_max_noise(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fine-tune on noise images alone: of a forget class such as maximize its loss, of a retained class minimize it.

    To fit the class to images that look nothing like it overwrites what the net knows of it.

    Reference:
        Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023 (error-minimizing and error-maximizing noise);
        Tarun et al., TNNLS 2023, for the maximizing half.

    Note:
        DIFFERS: noise is kept in [0, 1] instead of being penalized for its size; 20 images a class instead of 20
        batches; a step sees one noise image per forget sample of its batch, all classes alike.
    """
    like = problem.forget_images
    labels = torch.arange(problem.num_classes, device=like.device).repeat_interleave(NOISE_PER_CLASS)
    start = torch.rand((len(labels), *like.shape[1:]), generator=generator_for(problem.seed, "noise"))
    images = optimized_noise(problem.model, start.to(like), labels, forget=problem.forget_classes)

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            drawn = sent(torch.randint(len(labels), (len(batch),), generator=drawing), labels.device)
            return F.cross_entropy(current(images[drawn]), labels[drawn])

        return loss

    return sgd_at_every_rate(problem, config, make_loss)


def optimized_noise(model: nn.Module, start: Tensor, labels: Tensor, *, forget: Sequence[int]) -> Tensor:
    """Return images in [0, 1] whose cross-entropy with their label is high for forget classes and low for others.

    Args:
        model: The original.
        start: Where the search starts, shape (n, C, H, W).
        labels: Class of every image, shape (n,).
        forget: Classes whose images maximize the loss.
    """
    signs = 1 - 2 * torch.isin(labels, torch.tensor(forget, device=labels.device)).to(start)
    with frozen(model):
        return torch.cat([_optimize(model, *part) for part in chunks(start, labels, signs)])


def _optimize(model: nn.Module, start: Tensor, labels: Tensor, signs: Tensor) -> Tensor:
    images = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=NOISE_RATE)
    for _ in range(NOISE_STEPS):
        loss = (signs * F.cross_entropy(model(images), labels, reduction="none")).sum()
        (images.grad,) = torch.autograd.grad(loss, images)
        optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach()


def head_sampling(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Train the head alone on Gaussian features, labelled by the original head with the forget classes masked.

    A class's features have the mean of its proxies (of its forget samples, for a forget class) and the covariance of
    all of these around their means. A step sees a sample of its own class for every forget sample of the batch, and
    one of a random retained class beside it.

    Reference:
        Head-only sampling, 2026, from a description of the method.

    Note:
        DIFFERS: mean and covariance come from forget samples and proxies, where the method may take them from training
        data; labels are soft, as in DELETE. A head that averages over positions is fed the average, which is the
        same thing, for it is linear.

    Raises:
        ValueError: If the last layer of the model does not give the logits.
    """
    model, head, forget, width = (
        problem.model,
        problem.statistics.names[-1],
        problem.forget_classes,
        problem.num_classes,
    )
    original = dict(model.named_parameters())[head]
    if original.shape[0] != width:
        raise ValueError(f"the last layer, {head}, has {original.shape[0]} outputs instead of {width} logits")
    images = torch.cat([problem.forget_images, problem.statistics.proxies.images])
    labels = torch.cat([problem.forget_labels, problem.statistics.proxies.labels])
    means, residuals = class_statistics(features_of(model, images, head=head), labels, num_classes=width)
    retained = retained_classes(width, forget)

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            beside = sent(retained[torch.randint(len(retained), (len(batch),), generator=drawing)], labels.device)
            classes = torch.cat([problem.forget_labels[batch], beside])
            features = sampled_features(means, residuals, classes, generator=drawing)
            teacher = masked_log_probabilities(head_logits(model, features, head=head).detach(), forget=forget).exp()
            return soft_cross_entropy(head_logits(current, features, head=head), teacher)

        return loss

    return sgd_at_every_rate(problem, config, make_loss, names=head_names(problem))


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


METHODS: dict[str, Method] = {
    "min_max_noise": Method("error-min-max noise", min_max_noise, FORGET, "Chundawat et al., TIFS 2023", "low"),
    "head_sampling": Method("head-only sampling", head_sampling, PROXIES, "head-only sampling, 2026", "middle"),
}
