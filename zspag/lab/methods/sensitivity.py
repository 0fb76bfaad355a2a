"""Forgetting by sensitivity: how strongly the logits of a forget sample answer to a change of its pixels.

Invariant: only forget samples and noise around them pass through the net.
"""

import torch
from torch import Tensor, nn

from zspag.config import UnlearnConfig
from zspag.lab.methods.method import FORGET, Method, Problem, sgd_at_every_rate
from zspag.projected_sgd import BatchLoss, RateSearch
from zspag.pseudo_labels import retained_classes
from zspag.runtime import logits_of, plain_attention, sent

COPIES = 25  # JiT: noisy copies of every sample
SIGMA = 0.5  # JiT: standard deviation of their noise; the paper's for convolutional nets
IRRELEVANT = 1.0  # MU-Mis: lambda, the weight of the other class; CHOICE: both count the same


def jit(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Flatten the net around the forget samples: bring its answer to a sample close to those to noisy copies of it.

    The loss is the mean over copies of ||f(x) - f(x + e)|| / ||e||, without a gradient through f(x + e).

    Reference:
        Foster et al., "An Information Theoretic Approach to Machine Unlearning", 2024 (JiT).

    Note:
        The published code never zeroes its gradients, so that each step repeats those of all batches before it. Here a
        step sees its own batch alone. A step that brings f(x) closer to where f(x + e) was moves f(x + e) too, so that
        the loss may grow without end: the rates between too little and ruin are few. DIFFERS: sigma counts pixels in
        [0, 1], not normalized ones, and copies may leave that range; as many epochs as every method instead of one.
    """

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            images = problem.forget_images[batch]
            noise = sent(torch.randn((COPIES, *images.shape), generator=drawing, dtype=images.dtype), images.device)
            noise *= SIGMA
            around = logits_of(current, (images + noise).flatten(0, 1)).unflatten(0, (COPIES, len(images)))
            return lipschitz_quotient(current(images), around, noise)

        return loss

    return sgd_at_every_rate(problem, config, make_loss)


def lipschitz_quotient(logits: Tensor, around: Tensor, noise: Tensor) -> Tensor:
    """Return the mean of ||logits - around|| / ||noise|| over copies and samples.

    Args:
        logits: Answers to the samples, shape (n, K).
        around: Answers to the noisy copies, shape (copies, n, K).
        noise: What was added to the samples, shape (copies, n, C, H, W).
    """
    lengths = torch.linalg.vector_norm(noise.flatten(2), dim=2)
    return (torch.linalg.vector_norm(logits - around, dim=2) / lengths).mean()


def mu_mis(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Make the logit of a sample's own class insensitive to its pixels, and that of another class sensitive.

    The loss is ||grad_x f_y||^2 - lambda ||grad_x f_c||^2, with c a retained class drawn for every sample and batch.

    Reference:
        Cheng et al., "Remaining-data-free Machine Unlearning by Suppressing Sample Contribution", 2024 (MU-Mis).

    Note:
        The loss has no lower bound. DIFFERS: a sample that the net no longer gives its own class stops counting, a rule
        that sees the forget set alone; the published runs stop by hand. Biases do not move in a net of ReLUs, since
        the gradient in the pixels does not depend on them.
    """
    images, labels = problem.forget_images, problem.forget_labels
    retained = retained_classes(problem.num_classes, problem.forget_classes)

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            drawn = torch.randint(len(retained), (len(batch),), generator=drawing)
            others = sent(retained[drawn], labels.device)
            return contribution(current, images[batch], labels[batch], others, weight=IRRELEVANT)

        return loss

    return sgd_at_every_rate(problem, config, make_loss)


def contribution(model: nn.Module, images: Tensor, labels: Tensor, others: Tensor, *, weight: float) -> Tensor:
    """Return the mean of ||grad_x f_label||^2 - weight ||grad_x f_other||^2, ready for another backward pass.

    Samples that are not classified as their label count zero.
    """
    pixels = images.detach().clone().requires_grad_(True)
    with plain_attention():  # fused attention has no double backward
        logits = model(pixels)
        squares = []
        for classes in (labels, others):
            chosen = logits.gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, pixels, create_graph=True)
            squares.append(gradient.flatten(1).square().sum(1))
    recognized = (logits.argmax(1) == labels).to(logits)
    return ((squares[0] - weight * squares[1]) * recognized).mean()


METHODS: dict[str, Method] = {
    "jit": Method("JiT", jit, FORGET, "Foster et al., 2024", "low"),
    "mu_mis": Method("MU-Mis", mu_mis, FORGET, "Cheng et al., 2024", "low"),
}
