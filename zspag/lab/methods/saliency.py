"""Saliency unlearning: random labels, fitted by the weights that the forget loss depends on most.

Invariant: a weight outside the mask keeps every bit, whatever the momentum.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from zspag.config import UnlearnConfig
from zspag.influence import loss_gradient, soft_cross_entropy
from zspag.lab.methods.method import FORGET, Method, Problem, sgd_at_every_rate
from zspag.projected_sgd import BatchLoss, RateSearch
from zspag.pseudo_labels import random_labels
from zspag.runtime import sent

SALIENT_SHARE = 0.5  # of all weights; published runs keep 50 to 80 %


def salun(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit the most salient weights to uniformly random retained labels, drawn again for every batch.

    Reference: Fan, Liu, Zhang, Wong, Wei and Liu, "SalUn", ICLR 2024.

    Note:
        DIFFERS: the published method goes on with the retain set, which nobody has here. Its code multiplies gradients
        by the mask and leaves the rest to an optimizer with weight decay, which moves masked weights after all, and it
        may draw a sample's own class; neither is copied. Rates, epochs and batches are those of all methods.
    """
    images, classes, forget = problem.forget_images, problem.num_classes, problem.forget_classes
    mask = saliency_mask(problem.model, images, problem.forget_labels, share=SALIENT_SHARE)

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            labels = random_labels(len(batch), num_classes=classes, forget=forget, generator=drawing)
            logits = functional_call(current, held(current, mask), (images[batch],))
            return soft_cross_entropy(logits, sent(labels, images.device))

        return loss

    return sgd_at_every_rate(problem, config, make_loss)


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


def held(current: nn.Module, mask: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters as they are, detached where the mask is False.

    A loss in them has a gradient of exactly zero there, so momentum has nothing to keep and nothing must be restored
    after a step.
    """
    return {name: torch.where(mask[name], weight, weight.detach()) for name, weight in current.named_parameters()}


METHODS: dict[str, Method] = {
    "salun": Method("SalUn", salun, FORGET, "Fan et al., ICLR 2024", "low"),
}
