"""Boundary unlearning: give a class to its nearest neighbour, or to an output of its own that is then dropped.

Invariant: no sample is ever trained towards a forget class, and what comes back has the outputs of the original.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import UnlearnConfig
from zspag.lab.methods.method import FORGET, Method, Problem, layer_of, sgd_at_every_rate
from zspag.projected_sgd import RateSearch, Run
from zspag.pseudo_labels import masked_log_probabilities
from zspag.runtime import chunks, frozen, generator_for, logits_of

ATTACK_RADIUS = 0.1  # of the one-step attack, in pixels, as published


def shrink(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit every forget sample to the class across its nearest decision boundary.

    Reference: Chen, Gao, Liu, Peng and Wang, "Boundary Unlearning", CVPR 2023 (boundary shrink).

    Note:
        DIFFERS: published code takes whatever class the attacked sample has, and so trains the forget class again where
        the attack fails; here the forget classes are masked. Rates, epochs and batches are those of all methods
        (published: 1e-5, momentum .9, 10 epochs, batches of 64).
    """
    images, labels = problem.forget_images, problem.forget_labels
    targets = boundary_labels(problem.model, images, labels, forget=problem.forget_classes)

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(current(images[batch]), targets[batch])

    return sgd_at_every_rate(problem, config, lambda _drawing: loss)


def boundary_labels(model: nn.Module, images: Tensor, labels: Tensor, *, forget: Sequence[int]) -> Tensor:
    """Return the class (n,) that the model gives the attacked images once the forget classes are masked."""
    attacked = one_step_attack(model, images, labels, eps=ATTACK_RADIUS)
    return masked_log_probabilities(logits_of(model, attacked), forget=forget).argmax(1)


def one_step_attack(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float) -> Tensor:
    """Move images (n, C, H, W) by ``eps`` per pixel against their labels, within [0, 1] (FGSM).

    Note:
        The gradient is that of the log-odds against the label: cross-entropy is their softplus, so the signs are the
        same, but a confident model does not round them to zero.
    """
    moved = []
    with frozen(model):
        for part, own in chunks(images, labels):
            x = part.detach().requires_grad_(True)
            logits = model(x)
            others = logits.scatter(1, own[:, None], -torch.inf).logsumexp(1)
            odds = others - logits.gather(1, own[:, None])[:, 0]
            (gradient,) = torch.autograd.grad(odds.sum(), x)
            moved.append((part + eps * gradient.sign()).clamp(0, 1))
    return torch.cat(moved)


def expanding(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Train the forget samples onto one more output, then drop it.

    Reference: Chen, Gao, Liu, Peng and Wang, "Boundary Unlearning", CVPR 2023 (boundary expanding).

    Note:
        DIFFERS: the forget accuracy that stops a run is that of the model without the additional output, for that is
        what comes back; with it, the set looks forgotten long before. Rates, epochs and batches are those of all
        methods (published: 1e-5, momentum .9, 10 epochs, batches of 64).
        Nothing moves the class away from its old output once the new one is sure: what is still recognized after
        dropping is a property of the method.

    Raises:
        ValueError: If the last layer is not a linear layer or a convolution with one output per class.
    """
    images, new = problem.forget_images, problem.num_classes  # the outputs of the original are 0 to K - 1
    place, drawing = layer_of(problem.statistics.names[-1]), generator_for(problem.seed, "output")
    widened = Expanded(problem.model, place=place, num_classes=problem.num_classes, generator=drawing)

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        assert isinstance(current, Expanded)  # the loop works on a copy of ``widened``
        return F.cross_entropy(current.all_logits(images[batch]), torch.full_like(batch, new))

    ladder = sgd_at_every_rate(problem, config, lambda _drawing: loss, start=widened)
    return RateSearch(tuple(map(_drop, ladder.runs)), ladder.chosen)


def _drop(run: Run) -> Run:
    assert isinstance(run.model, Expanded)  # as above
    return replace(run, model=run.model.dropped())


class Expanded(nn.Module):
    """A copy of a model with one more output, which only ``all_logits`` shows.

    Args:
        model: Not changed.
        place: Name of its last layer, "" for the model itself.
        num_classes: Outputs that layer must have.
        generator: CPU generator of the new output's weights, uniform as those of a fresh layer.

    Raises:
        ValueError: If the layer at ``place`` cannot be widened.
    """

    def __init__(self, model: nn.Module, *, place: str, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.place = ".".join(filter(None, ("model", place)))
        head = self.get_submodule(self.place)
        if (
            not isinstance(head, nn.Linear)
            and not (isinstance(head, nn.Conv2d) and head.groups == 1)
            or len(head.weight) != num_classes
        ):
            raise ValueError(
                f"boundary expanding needs a linear layer or an ungrouped convolution with {num_classes} outputs as the"
                f" last layer, got {head} at {place!r}"
            )
        self.set_submodule(self.place, _Widened(head, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, K) of the model without the new output."""
        logits: Tensor = self.model(images)
        return logits

    def all_logits(self, images: Tensor) -> Tensor:
        """Return all logits, shape (n, K + 1), the new one last."""
        widened = self.get_submodule(self.place)
        assert isinstance(widened, _Widened)  # put there above
        widened.shown = True
        try:
            logits: Tensor = self.model(images)
        finally:
            widened.shown = False
        return logits

    def dropped(self) -> nn.Module:
        """Take the new output away for good and return the model in its original architecture."""
        widened = self.get_submodule(self.place)
        assert isinstance(widened, _Widened)  # put there above
        self.set_submodule(self.place, widened.head)
        return self.model


class _Widened(nn.Module):
    """A layer and, beside it, the same layer with one fresh output, shown on demand."""

    def __init__(self, head: nn.Linear | nn.Conv2d, *, generator: torch.Generator) -> None:
        super().__init__()
        self.head, self.extra, self.shown = head, copy.deepcopy(head), False
        self.axis = -1 if isinstance(head, nn.Linear) else -3
        bound = head.weight[0].numel() ** -0.5
        for name, parameter in head.named_parameters(recurse=False):
            drawn = torch.rand((1, *parameter.shape[1:]), generator=generator, dtype=parameter.dtype)
            setattr(self.extra, name, nn.Parameter(((2 * drawn - 1) * bound).to(parameter.device)))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(x)
        return torch.cat([outputs, self.extra(x)], dim=self.axis) if self.shown else outputs


METHODS: dict[str, Method] = {
    "boundary_shrink": Method("boundary shrink", shrink, FORGET, "Chen et al., CVPR 2023", "low"),
    "boundary_expanding": Method("boundary expanding", expanding, FORGET, "Chen et al., CVPR 2023", "low"),
}
