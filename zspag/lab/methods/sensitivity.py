"""Forgetting by gradients of the original: the weights that matter most, and how logits answer to pixels.

Invariant: only forget samples and noise around them pass through the net.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from zspag.config import UnlearnConfig
from zspag.influence import loss_gradient, soft_cross_entropy
from zspag.lab.methods.method import FORGET, Method, Problem, sgd_at_every_rate
from zspag.projected_sgd import RateSearch
from zspag.pseudo_labels import random_labels, retained_classes
from zspag.runtime import logits_of, plain_attention, sent

SALIENT_SHARE = 0.5  # SalUn: of all weights; published runs keep 50 to 80 %
COPIES = 25  # JiT: noisy copies of every sample
SIGMA = 0.5  # JiT: standard deviation of their noise; the paper's for convolutional nets
IRRELEVANT = 1.0  # MU-Mis: lambda, the weight of the other class; CHOICE: both count the same


def salun(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit the most salient weights to uniformly random retained labels, drawn again for every batch.

    The loss sees every other weight detached: its gradient is exactly zero, and it keeps every bit.

    Reference: Fan, Liu, Zhang, Wong, Wei and Liu, "SalUn", ICLR 2024.

    DIFFERS: the published method then trains on the retain set, which is not given here. In its code weight decay moves
    masked weights after all, and a sample may draw its own class. Rates, epochs and batches are those of all methods.
    """
    images, classes, forget = problem.forget_images, problem.num_classes, problem.forget_classes
    mask = saliency_mask(problem.model, images, problem.forget_labels, share=SALIENT_SHARE)

    def loss(current: nn.Module, batch: Tensor, drawing: torch.Generator) -> Tensor:
        labels = random_labels(len(batch), num_classes=classes, forget=forget, generator=drawing)
        held = {name: torch.where(mask[name], weight, weight.detach()) for name, weight in current.named_parameters()}
        return soft_cross_entropy(functional_call(current, held, (images[batch],)), sent(labels, images.device))

    return sgd_at_every_rate(problem, config, loss)


def saliency_mask(model: nn.Module, images: Tensor, labels: Tensor, *, share: float) -> dict[str, Tensor]:
    """Mark, with True, the ``share`` of all weights with the largest gradients of the mean forget loss.

    One threshold for the whole model: a layer may be marked nowhere or everywhere.
    """
    names = [name for name, _ in model.named_parameters()]
    gradient = loss_gradient(model, images, labels, names=names, loss=F.cross_entropy)
    sizes = torch.cat([gradient[name].flatten().abs() for name in names])
    marked = torch.zeros_like(sizes, dtype=torch.bool)
    marked[sizes.topk(round(share * len(sizes))).indices] = True
    parts = marked.split([gradient[name].numel() for name in names])
    return {name: part.view_as(gradient[name]) for name, part in zip(names, parts, strict=True)}


def jit(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Make the net's answer to a forget sample similar to its answers to noisy copies of the sample.

    The loss is the mean over copies of ||f(x) - f(x + e)|| / ||e||, without a gradient through f(x + e).

    A step that brings f(x) closer to where f(x + e) was moves f(x + e) too. So the loss may grow without end, and few
    rates lie between no effect and divergence.

    Reference: Foster et al., "An Information Theoretic Approach to Machine Unlearning", 2024 (JiT).

    DIFFERS: a step sees its own batch alone; the published code never zeroes its gradients. Sigma counts pixels in
    [0, 1], not normalized ones, and copies may leave that range; as many epochs as every method instead of one.
    """

    def loss(current: nn.Module, batch: Tensor, drawing: torch.Generator) -> Tensor:
        images = problem.forget_images[batch]
        noise = sent(torch.randn((COPIES, *images.shape), generator=drawing, dtype=images.dtype), images.device)
        noise *= SIGMA
        around = logits_of(current, (images + noise).flatten(0, 1)).unflatten(0, (COPIES, len(images)))
        distances = torch.linalg.vector_norm(current(images) - around, dim=2)  # (copies, n)
        return (distances / torch.linalg.vector_norm(noise.flatten(2), dim=2)).mean()

    return sgd_at_every_rate(problem, config, loss)


def mu_mis(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Make the logit of a sample's own class insensitive to its pixels, and that of another class sensitive.

    The loss is ||grad_x f_y||^2 - lambda ||grad_x f_c||^2, with c a retained class drawn for every sample and batch.

    Biases do not move in a net of ReLUs: the gradient in the pixels does not depend on them.

    Reference: Cheng et al., "Remaining-data-free Machine Unlearning by Suppressing Sample Contribution", 2024 (MU-Mis).

    DIFFERS: the loss has no lower bound, so a sample that the net no longer gives its own class stops counting; the
    published runs stop by hand.
    """
    images, labels = problem.forget_images, problem.forget_labels
    retained = retained_classes(problem.num_classes, problem.forget_classes)

    def loss(current: nn.Module, batch: Tensor, drawing: torch.Generator) -> Tensor:
        others = sent(retained[torch.randint(len(retained), (len(batch),), generator=drawing)], labels.device)
        return contribution(current, images[batch], labels[batch], others, weight=IRRELEVANT)

    return sgd_at_every_rate(problem, config, loss)


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
    "salun": Method("SalUn", salun, FORGET, "Fan et al., ICLR 2024", "low", ("SALIENT_SHARE",)),
    "jit": Method("JiT", jit, FORGET, "Foster et al., 2024", "low", ("COPIES", "SIGMA")),
    "mu_mis": Method("MU-Mis", mu_mis, FORGET, "Cheng et al., 2024", "low", ("IRRELEVANT",)),
}
