"""New targets for the forget samples, and plain SGD: ascent, relabeling, distillation, rehearsal, another output.

Invariant: no norm statistic moves and no weight decays, whatever the published code does.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import UnlearnConfig
from zspag.influence import soft_cross_entropy
from zspag.lab.methods.method import FORGET, PROXIES, Method, Problem, sgd_at_every_rate
from zspag.projected_sgd import RateSearch
from zspag.pseudo_labels import masked_log_probabilities, random_labels
from zspag.runtime import generator_for, logits_of, sent


def gradient_ascent(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Maximize the cross-entropy of the forget samples.

    DIFFERS: a sample stops counting once its loss passes log K, that of a uniform guess. In published code the loss
    becomes infinite within a few steps.
    """

    def loss(current: nn.Module, batch: Tensor, _drawing: torch.Generator) -> Tensor:
        logits = current(problem.forget_images[batch])
        each = F.cross_entropy(logits, problem.forget_labels[batch], reduction="none")
        return -each.clamp_max(math.log(problem.num_classes)).mean()

    return sgd_at_every_rate(problem, config, loss)


def random_relabeling(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit all parameters to uniformly random retained labels, drawn again for every batch."""
    images, classes, forget = problem.forget_images, problem.num_classes, problem.forget_classes

    def loss(current: nn.Module, batch: Tensor, drawing: torch.Generator) -> Tensor:
        labels = random_labels(len(batch), num_classes=classes, forget=forget, generator=drawing)
        return soft_cross_entropy(current(images[batch]), sent(labels, images.device))

    return sgd_at_every_rate(problem, config, loss)


def delete(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit all parameters to the original's softmax with the forget classes masked (DELETE; beta = 0, no projection)."""
    return distilled_from_masked(problem, config, names=None)


def head_only(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """DELETE on the last layer alone: how far does an edit of the head go?"""
    return distilled_from_masked(problem, config, names=problem.head_names)


def distilled_from_masked(problem: Problem, config: UnlearnConfig, *, names: Sequence[str] | None) -> RateSearch:
    """Run DELETE on the named parameters; None means all."""
    images = problem.forget_images
    teacher = masked_log_probabilities(logits_of(problem.model, images), forget=problem.forget_classes).exp()

    def loss(current: nn.Module, batch: Tensor, _drawing: torch.Generator) -> Tensor:
        return soft_cross_entropy(current(images[batch]), teacher[batch])

    return sgd_at_every_rate(problem, config, loss, names=names)


def rehearsal(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """DELETE plus cross-entropy to the masked original on the proxies, no projection: are proxies alone enough?"""
    images, proxies = problem.forget_images, problem.statistics.proxies.images
    teacher, kept = (
        masked_log_probabilities(logits_of(problem.model, seen), forget=problem.forget_classes).exp()
        for seen in (images, proxies)
    )

    def loss(current: nn.Module, batch: Tensor, drawing: torch.Generator) -> Tensor:
        beside = sent(torch.randint(len(proxies), (len(batch),), generator=drawing), proxies.device)
        logits = current(torch.cat([images[batch], proxies[beside]]))
        return 2 * soft_cross_entropy(logits, torch.cat([teacher[batch], kept[beside]]))

    return sgd_at_every_rate(problem, config, loss, names=problem.statistics.names)


def boundary_expanding(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Train the forget samples onto one more output, then drop it.

    Once the new output is sure, nothing lowers the old one. So some samples may still be recognized at the end.

    Reference: Chen, Gao, Liu, Peng and Wang, "Boundary Unlearning", CVPR 2023 (boundary expanding).

    DIFFERS: a run stops by the forget accuracy without the new output, with which the set looks forgotten long before.
    Rates, epochs and batches are those of all methods (published: 1e-5, momentum .9, 10 epochs, batches of 64).

    Raises:
        ValueError: If the last layer is not a linear layer or a convolution with one output per class.
    """
    images, new = problem.forget_images, problem.num_classes  # the outputs of the original are 0 to K - 1
    generator = generator_for(problem.seed, "output")
    widened = Expanded(problem.model, head=problem.head, num_classes=new, generator=generator)

    def loss(current: nn.Module, batch: Tensor, _drawing: torch.Generator) -> Tensor:
        assert isinstance(current, Expanded)  # the loop works on a copy of ``widened``
        return F.cross_entropy(current.all_logits(images[batch]), torch.full_like(batch, new))

    ladder = sgd_at_every_rate(problem, config, loss, start=widened)
    return replace(ladder, runs=tuple(replace(run, model=run.model.get_submodule("model")) for run in ladder.runs))


class Expanded(nn.Module):
    """A copy of a model with one more output, which only ``all_logits`` shows.

    The last layer is called ``head`` ("" is the model itself) and has ``num_classes`` outputs. The weights of the new
    output are uniform, as those of a fresh layer.

    Raises:
        ValueError: If that layer cannot be widened.
    """

    def __init__(self, model: nn.Module, *, head: str, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.model, self.head = copy.deepcopy(model), head
        layer = self.model.get_submodule(head)
        grouped = getattr(layer, "groups", 1) > 1
        if grouped or not isinstance(layer, nn.Linear | nn.Conv2d) or len(layer.weight) != num_classes:
            raise ValueError(
                f"boundary expanding needs a linear layer or an ungrouped convolution with {num_classes} outputs as the"
                f" last layer, got {layer} at {head!r}"
            )
        self.extra = copy.deepcopy(layer)
        bound = layer.weight[0].numel() ** -0.5
        for name, parameter in layer.named_parameters(recurse=False):
            drawn = torch.rand((1, *parameter.shape[1:]), generator=generator, dtype=parameter.dtype)
            setattr(self.extra, name, nn.Parameter(((2 * drawn - 1) * bound).to(parameter.device)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, K) of the model without the new output."""
        logits: Tensor = self.model(images)
        return logits

    def all_logits(self, images: Tensor) -> Tensor:
        """Return all logits, shape (n, K + 1), the new one last."""
        axis = -1 if isinstance(self.extra, nn.Linear) else -3

        def widen(_layer: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
            return torch.cat([outputs, self.extra(inputs[0])], dim=axis)

        handle = self.model.get_submodule(self.head).register_forward_hook(widen)
        try:
            return self.forward(images)
        finally:
            handle.remove()


METHODS: dict[str, Method] = {
    "gradient_ascent": Method("gradient ascent", gradient_ascent, FORGET, "NegGrad", "low"),
    "random_relabeling": Method("random relabeling", random_relabeling, FORGET, "Golatkar et al., CVPR 2020", "low"),
    "delete": Method("DELETE", delete, FORGET, "Zhou et al., CVPR 2025", "low"),
    "rehearsal": Method("rehearsal on proxies", rehearsal, PROXIES, "control", "low"),
    "head_only": Method("head only", head_only, FORGET, "control", "middle"),
    "boundary_expanding": Method("boundary expanding", boundary_expanding, FORGET, "Chen et al., CVPR 2023", "low"),
}
