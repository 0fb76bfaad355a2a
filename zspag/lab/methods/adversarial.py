"""Adversarial examples of the forget samples as training data: L2UL, and AMUN without retain data.

Radii here are plain L2 norms of the change of an image in [0, 1].

Invariant: every attack is made on the original, once, before the first update, and no label is a forget class.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import ProxyConfig, UnlearnConfig
from zspag.influence import loss_gradient
from zspag.lab.methods.method import FORGET, Method, Problem, RunMethod, sgd_at_every_rate
from zspag.projected_sgd import BatchLoss, RateSearch
from zspag.proxies import attack
from zspag.pseudo_labels import masked_log_probabilities, random_labels
from zspag.runtime import chunks, frozen, generator_for, logits_of, sent

# L2UL. Published for single samples: radius 4, 100 iterations, 20 copies (200 of 100 classes), penalty 1.
COPIES = 5
TARGETED_RADIUS = 0.4
TARGETED_STEP = 0.1  # as published
TARGETED_ITERATIONS = 10
PENALTY = 0.1

# AMUN. CHOICE: the first radius lies far inside what flips a label of an ordinarily trained net.
FIRST_RADIUS = 0.1
NEAREST_ITERATIONS = 20
NEAREST_STEP_SHARE = 0.1  # of the radius


def _l2ul(*, penalize: bool) -> RunMethod:
    """L2UL with adversarial examples ("ADV"), and with the penalty on unimportant weights as well ("ADV+IMP")."""

    def run(problem: Problem, config: UnlearnConfig) -> RateSearch:
        """Climb the forget loss, and hold on to what the original saw in targeted copies of the forget samples.

        Reference: Cha, Cho, Hwang, Lee, Moon and Lee, "Learning to Unlearn", AAAI 2024.

        Note:
            DIFFERS: ported from single samples to a class. Targets are retained classes (published code sends every
            clash with the true label to class K/2). A smaller attack and fewer copies, of which each sample of a batch
            brings one, so that both losses weigh the same. A sample whose loss passes log K is forgotten and stops
            counting; the rule that ends a run is that of all methods (published: forget accuracy 0). No weight decay,
            and all passes in eval mode: training mode would fit the norm statistics to adversarial examples.
        """
        model, images, labels = problem.model, problem.forget_images, problem.forget_labels
        forget, pushing = problem.forget_classes, generator_for(problem.seed, "copies")
        copies, targets = targeted_copies(
            model, images, num_classes=problem.num_classes, forget=forget, generator=pushing
        )
        held = Anchor.of(model, images) if penalize else None

        def make_loss(drawing: torch.Generator) -> BatchLoss:
            def loss(current: nn.Module, batch: Tensor) -> Tensor:
                drawn = sent(torch.randint(COPIES, (len(batch),), generator=drawing), batch.device)
                value = opposed(current, images[batch], labels[batch], copies[drawn, batch], targets[drawn, batch])
                return value if held is None else value + PENALTY * held.penalty(current)

            return loss

        return sgd_at_every_rate(problem, config, make_loss)

    return run


def targeted_copies(
    model: nn.Module, images: Tensor, *, num_classes: int, forget: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Push ``COPIES`` copies of every image towards uniformly random retained classes.

    Returns:
        Attacked images (COPIES, n, C, H, W) and their targets (COPIES, n), whether or not they arrived.
    """
    count = COPIES * len(images)
    drawn = random_labels(count, num_classes=num_classes, forget=forget, generator=generator)
    targets = drawn.argmax(1).to(images.device)
    settings = ProxyConfig(norm="l2", steps=TARGETED_ITERATIONS, step_share=TARGETED_STEP / TARGETED_RADIUS)
    per_pixel = TARGETED_RADIUS / math.sqrt(images[0].numel())
    sources = images.repeat(COPIES, *[1] * (images.dim() - 1))
    moved = attack(model, sources, targets, eps=per_pixel, config=settings, generator=generator).images
    return moved.unflatten(0, (COPIES, -1)), targets.unflatten(0, (COPIES, -1))


def opposed(current: nn.Module, images: Tensor, labels: Tensor, copies: Tensor, targets: Tensor) -> Tensor:
    """Return -a CE(images, labels) + (1 - a) CE(copies, targets), a the share of images among both."""
    share = len(images) / (len(images) + len(copies))
    logits = current(torch.cat([images, copies]))
    each = F.cross_entropy(logits[: len(images)], labels, reduction="none")
    kept = F.cross_entropy(logits[len(images) :], targets)
    return -share * each.clamp_max(math.log(logits.shape[1])).mean() + (1 - share) * kept


@dataclass(frozen=True)
class Anchor:
    """The original's weights, and how freely each may leave.

    Attributes:
        weights: The original's parameters, by name.
        importance: Of each parameter for the size of the logits of the forget set, scaled to [0, 1] tensor by tensor.
    """

    weights: dict[str, Tensor]
    importance: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, images: Tensor) -> "Anchor":
        """Measure the importance of every parameter of ``model`` for ``images``."""
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        return cls(weights, {name: _scaled(part) for name, part in sensitivity(model, images).items()})

    def penalty(self, current: nn.Module) -> Tensor:
        """Return the sum of (1 - importance) (theta - theta_0)^2."""
        parts = [
            ((1 - self.importance[name]) * (weight - self.weights[name]).square()).sum()
            for name, weight in current.named_parameters()
        ]
        return torch.stack(parts).sum()


def sensitivity(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the mean over images of the absolute gradient of the L2 norm of the logits, per parameter.

    Note:
        DIFFERS: sample by sample, as the formula says. Published code takes the absolute value of a batch's mean, in
        which samples cancel, and does so in training mode.
    """
    names = [name for name, _ in model.named_parameters()]
    total: dict[str, Tensor] = {}
    for image in images:
        one = loss_gradient(
            model, image[None], image[None], names=names, loss=lambda logits, _: logits.norm(dim=1).sum()
        )
        total = {name: part.abs() + total.get(name, 0) for name, part in one.items()}
    return {name: part / len(images) for name, part in total.items()}


def _scaled(part: Tensor) -> Tensor:
    """Map the smallest entry to 0 and the largest to 1; entries that are all alike, to 0."""
    low, high = part.min(), part.max()
    return (part - low) / (high - low) if high > low else torch.zeros_like(part)


def amun(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit the nearest adversarial example of every forget sample to the label the original gives it.

    Reference: Ebrahimpour-Boroojeny, Sundaram and Chandrasekaran, "AMUN", ICML 2025, trained on adversarial examples
    alone.

    Note:
        DIFFERS: the forget samples with their own labels, which the published method keeps beside the examples, stay
        out: there single samples shall look unseen, here a class shall go. A change into another forget class is no
        flip. Rates, epochs and batches are those of all methods (published: .01, momentum .9).
    """
    found = nearest_adversarial(problem.model, problem.forget_images, forget=problem.forget_classes)

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(current(found.images[batch]), found.labels[batch])

    return sgd_at_every_rate(problem, config, lambda _drawing: loss)


@dataclass(frozen=True)
class Nearest:
    """The nearest adversarial example of every image.

    Attributes:
        images: Shape (n, C, H, W).
        labels: Class of each, a forget class masked, shape (n,).
        radii: Radius of the attack that flipped it, infinite where none did, shape (n,).
    """

    images: Tensor
    labels: Tensor
    radii: Tensor


def nearest_adversarial(model: nn.Module, images: Tensor, *, forget: Sequence[int]) -> Nearest:
    """Attack every image at doubling radii until the model sees a retained class.

    Note:
        An image that withstands even the radius that holds all of [0, 1] keeps its last example and is labelled with
        the most likely retained class.
    """
    classes = torch.tensor(forget, device=images.device)
    nearest, radii = images.clone(), torch.full((len(images),), torch.inf, device=images.device)
    labels = torch.empty(len(images), dtype=torch.long, device=images.device)
    radius, standing = FIRST_RADIUS, torch.arange(len(images), device=images.device)
    while len(standing):
        moved = _away(model, images[standing], classes, radius=radius)
        logits = logits_of(model, moved)
        flipped = ~torch.isin(logits.argmax(1), classes)
        nearest[standing] = moved
        labels[standing] = masked_log_probabilities(logits, forget=forget).argmax(1)
        radii[standing[flipped]] = radius
        standing = standing[~flipped]
        if radius >= math.sqrt(images[0].numel()):
            break
        radius *= 2
    return Nearest(nearest, labels, radii)


def _away(model: nn.Module, images: Tensor, classes: Tensor, *, radius: float) -> Tensor:
    """Raise the odds against ``classes`` by L2-PGD of fixed step length, within the radius and [0, 1].

    Cross-entropy is the softplus of these odds, so the directions are the same, but a confident model does not round
    them to zero.
    """
    parts = []
    with frozen(model):
        for (origin,) in chunks(images):
            moved = origin
            for _ in range(NEAREST_ITERATIONS):
                x = moved.detach().requires_grad_(True)
                logits = model(x)
                others = logits.index_fill(1, classes, -torch.inf).logsumexp(1)
                (gradient,) = torch.autograd.grad((others - logits[:, classes].logsumexp(1)).sum(), x)
                step = NEAREST_STEP_SHARE * radius * gradient / _lengths(gradient)
                delta = x.detach() + step - origin
                moved = (origin + delta * (radius / _lengths(delta)).clamp_max(1)).clamp(0, 1)
            parts.append(moved)
    return torch.cat(parts)


def _lengths(changes: Tensor) -> Tensor:
    """Return the L2 norm of each change (n, C, H, W), never zero, in a shape that divides it."""
    return changes.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, *[1] * (changes.dim() - 1))


METHODS: dict[str, Method] = {
    "l2ul_adv": Method("L2UL, adversarial", _l2ul(penalize=False), FORGET, "Cha et al., AAAI 2024", "low"),
    "l2ul_imp": Method(
        "L2UL, adversarial and importance", _l2ul(penalize=True), FORGET, "Cha et al., AAAI 2024", "low"
    ),
    "amun": Method("AMUN, adversarial only", amun, FORGET, "Ebrahimpour-Boroojeny et al., ICML 2025", "middle"),
}
