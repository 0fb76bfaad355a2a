"""Adversarial examples of the forget samples as training data or labels: boundary shrink, L2UL, AMUN, ARU.

Radii are L2 norms of the change of an image in [0, 1], but of boundary shrink and ARU the largest change of a pixel.

Invariant: every attack is made on the original, once, before the first update, and no label is a forget class.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import ProxyConfig, UnlearnConfig
from zspag.influence import Direction, loss_gradient, weights_of
from zspag.lab.methods.method import FORGET, Method, Problem, sgd_at_every_rate
from zspag.projected_sgd import RateSearch
from zspag.proxies import attack
from zspag.pseudo_labels import masked_log_probabilities, random_labels
from zspag.runtime import chunks, frozen, generator_for, logits_of, sent

ATTACK_RADIUS = 0.1  # boundary shrink: of the one-step attack, in pixels, as published

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

# ARU
STAND_IN_RADIUS = 0.05  # largest change of a pixel, as published
STAND_IN_ITERATIONS = 20  # published: 50, cut for time
STAND_IN_STEP = 0.005  # in pixels: the radius is crossed twice
STAND_IN_COPIES = 2  # noisy copies whose gradients a step averages
STAND_IN_SIGMA = 0.01  # standard deviation of their noise, in pixels
STAND_IN_MARGIN = 1.0  # how much nearer, in logits, a sample must be to its stand-in than to the original's answer


def boundary_shrink(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit every forget sample to the class across its nearest decision boundary.

    Reference: Chen, Gao, Liu, Peng and Wang, "Boundary Unlearning", CVPR 2023 (boundary shrink).

    DIFFERS: published code takes whatever class the attacked sample has, and so trains the forget class again where the
    attack fails; here the forget classes are masked. Rates, epochs and batches are those of all methods (published:
    1e-5, momentum .9, 10 epochs, batches of 64).
    """
    images, labels = problem.forget_images, problem.forget_labels
    targets = boundary_labels(problem.model, images, labels, forget=problem.forget_classes)
    return _fitted(problem, config, images, targets)


def _fitted(problem: Problem, config: UnlearnConfig, images: Tensor, labels: Tensor) -> RateSearch:
    """Fit images, one for every forget sample, to their labels."""

    def loss(current: nn.Module, batch: Tensor, _drawing: torch.Generator) -> Tensor:
        return F.cross_entropy(current(images[batch]), labels[batch])

    return sgd_at_every_rate(problem, config, loss)


def boundary_labels(model: nn.Module, images: Tensor, labels: Tensor, *, forget: Sequence[int]) -> Tensor:
    """Return the class (n,) that the model gives the attacked images once the forget classes are masked."""
    attacked = one_step_attack(model, images, labels, eps=ATTACK_RADIUS)
    return masked_log_probabilities(logits_of(model, attacked), forget=forget).argmax(1)


def one_step_attack(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float) -> Tensor:
    """Move images (n, C, H, W) by ``eps`` per pixel against their labels, within [0, 1] (FGSM)."""
    moved = []
    with frozen(model):
        for part, own in chunks(images, labels):
            x = part.detach().requires_grad_(True)
            logits = model(x)
            (gradient,) = torch.autograd.grad(odds_against(logits, own[:, None]).sum(), x)
            moved.append((part + eps * gradient.sign()).clamp(0, 1))
    return torch.cat(moved)


def odds_against(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the log-odds (n,) against the classes (n, c) of each row of logits (n, K).

    Cross-entropy is the softplus of these odds. Its gradient has the same direction, but rounds to 0 where the model
    is confident.
    """
    others = logits.scatter(1, classes, -torch.inf).logsumexp(1)
    return others - logits.gather(1, classes).logsumexp(1)


def l2ul_adv(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Maximize the forget loss, and fit adversarial copies of the forget samples to their retained target classes.

    Reference: Cha, Cho, Hwang, Lee, Moon and Lee, "Learning to Unlearn", AAAI 2024 ("ADV").

    DIFFERS: ported from single samples to a class. Targets are retained classes (published code sends every clash with
    the true label to class K/2). A smaller attack and fewer copies, of which each sample of a batch brings one. A
    sample whose loss passes log K stops counting; a run ends by the rule of all methods (published: forget accuracy
    0). No weight decay, and all passes in eval mode: training mode would fit norm statistics to adversarial examples.
    """
    return _l2ul(problem, config, penalty=0.0)


def l2ul_imp(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Run "l2ul_adv" with a penalty on changes of the weights that matter little to the forget set ("ADV+IMP")."""
    return _l2ul(problem, config, penalty=PENALTY)


def _l2ul(problem: Problem, config: UnlearnConfig, *, penalty: float) -> RateSearch:
    model, images, labels = problem.model, problem.forget_images, problem.forget_labels
    classes, forget, generator = problem.num_classes, problem.forget_classes, generator_for(problem.seed, "copies")
    copies, targets = targeted_copies(model, images, num_classes=classes, forget=forget, generator=generator)
    original = weights_of(model, (name for name, _ in model.named_parameters()))
    importance = sensitivity(model, images) if penalty else {}

    def loss(current: nn.Module, batch: Tensor, drawing: torch.Generator) -> Tensor:
        drawn = sent(torch.randint(COPIES, (len(batch),), generator=drawing), batch.device)
        value = opposed(current, images[batch], labels[batch], copies[drawn, batch], targets[drawn, batch])
        return value + penalty * departure(current, original, importance) if penalty else value

    return sgd_at_every_rate(problem, config, loss)


def targeted_copies(
    model: nn.Module, images: Tensor, *, num_classes: int, forget: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Push copies of every image towards uniformly random retained classes.

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


def sensitivity(model: nn.Module, images: Tensor) -> Direction:
    """Return the mean over images of the absolute gradient of the L2 norm of the logits in every parameter.

    It is scaled from 0 to 1 in every tensor; entries that are all alike become 0.

    DIFFERS: sample by sample, as the formula says. Published code takes the absolute value of a batch's mean, in which
    samples cancel, and does so in training mode.
    """
    names = [name for name, _ in model.named_parameters()]
    total: Direction = {}
    for image in images:
        one = loss_gradient(
            model, image[None], image[None], names=names, loss=lambda logits, _: logits.norm(dim=1).sum()
        )
        total = {name: part.abs() + total.get(name, 0) for name, part in one.items()}
    scaled = {}
    for name, part in total.items():
        mean = part / len(images)
        low, high = mean.min(), mean.max()
        scaled[name] = (mean - low) / (high - low) if high > low else torch.zeros_like(mean)
    return scaled


def departure(current: nn.Module, original: Direction, importance: Direction) -> Tensor:
    """Return the sum of (1 - importance) (theta - theta_0)^2 over all parameters."""
    changes = ((name, weight - original[name]) for name, weight in current.named_parameters())
    return torch.stack([((1 - importance[name]) * change.square()).sum() for name, change in changes]).sum()


def amun(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit the nearest adversarial example of every forget sample to the label the original gives it.

    Reference: Ebrahimpour-Boroojeny, Sundaram and Chandrasekaran, "AMUN", ICML 2025, adversarial examples alone.

    DIFFERS: the published method also keeps the forget samples with their own labels: there, single samples are to look
    unseen; here, a class is to be forgotten. A change into another forget class is no flip. Rates, epochs and batches
    are those of all methods (published: .01, momentum .9).
    """
    examples = nearest_adversarial(problem.model, problem.forget_images, forget=problem.forget_classes)
    return _fitted(problem, config, *examples)


def nearest_adversarial(model: nn.Module, images: Tensor, *, forget: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Attack every image at doubling radii until the model sees a retained class.

    Returns:
        The examples (n, C, H, W), and the class (n,) of each with the forget classes masked. An image that withstands
        even the radius that holds all of [0, 1] keeps its last example.
    """
    classes = torch.tensor(forget, device=images.device)
    nearest, labels = images.clone(), torch.empty(len(images), dtype=torch.long, device=images.device)
    radius, standing = FIRST_RADIUS, torch.arange(len(images), device=images.device)
    while len(standing):
        with frozen(model):
            parts = [_pushed_away(model, origin, classes, radius=radius) for (origin,) in chunks(images[standing])]
        moved = torch.cat(parts)
        logits = logits_of(model, moved)
        nearest[standing] = moved
        labels[standing] = masked_log_probabilities(logits, forget=forget).argmax(1)
        standing = standing[torch.isin(logits.argmax(1), classes)]
        if radius >= math.sqrt(images[0].numel()):
            break
        radius *= 2
    return nearest, labels


def _pushed_away(model: nn.Module, origin: Tensor, classes: Tensor, *, radius: float) -> Tensor:
    """Raise the odds against ``classes`` by L2-PGD of fixed step length, within the radius and [0, 1]."""

    def lengths(changes: Tensor) -> Tensor:
        return changes.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, *[1] * (changes.dim() - 1))

    moved = origin
    for _ in range(NEAREST_ITERATIONS):
        x = moved.detach().requires_grad_(True)
        odds = odds_against(model(x), classes.expand(len(x), -1))
        (gradient,) = torch.autograd.grad(odds.sum(), x)
        delta = x.detach() + NEAREST_STEP_SHARE * radius * gradient / lengths(gradient) - origin
        moved = (origin + delta * (radius / lengths(delta)).clamp_max(1)).clamp(0, 1)
    return moved


def aru(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Move forget samples away from the original's answer, towards adversarial stand-ins with a retained label.

    The nearest relative of proxies, without a projection. A stand-in is the forget sample pushed towards the retained
    class that the original finds most likely. The loss is a triplet on logits (anchor: the forget sample, positive: its
    stand-in, negative: the original's answer to the sample) plus cross-entropy on the stand-ins.

    Reference: ARU, 2026, from a description of the method.

    DIFFERS: 20 attack steps instead of 50, made once for all rates; plain SGD on every batch of the forget set. The
    description leaves open what "smoothing" averages (here: gradients at two slightly noisy copies), the margin and
    the weights (here: 1).
    """
    model, images = problem.model, problem.forget_images
    original = logits_of(model, images)
    labels = masked_log_probabilities(original, forget=problem.forget_classes).argmax(1)
    stand_ins = smoothed_attack(model, images, labels, generator=generator_for(problem.seed, "attack"))

    def loss(current: nn.Module, batch: Tensor, _drawing: torch.Generator) -> Tensor:
        anchors, positives = current(torch.cat([images[batch], stand_ins[batch]])).chunk(2)
        apart = triplet(anchors, positives, original[batch], margin=STAND_IN_MARGIN)
        return apart + F.cross_entropy(positives, labels[batch])

    return sgd_at_every_rate(problem, config, loss)


def triplet(anchors: Tensor, positives: Tensor, negatives: Tensor, *, margin: float) -> Tensor:
    """Return the mean of max(0, ||a - p|| - ||a - n|| + margin), all of shape (n, K).

    Unlike torch's own, the distance of a point to itself is 0 with gradient 0: at the start, anchors are negatives.
    """
    near, far = (torch.linalg.vector_norm(anchors - other, dim=1) for other in (positives, negatives))
    return (near - far + margin).clamp_min(0).mean()


def smoothed_attack(model: nn.Module, images: Tensor, targets: Tensor, *, generator: torch.Generator) -> Tensor:
    """Push images in [0, 1] towards targets (n,) by signed steps along the gradient averaged over noisy copies.

    No pixel moves by more than ``STAND_IN_RADIUS`` or leaves [0, 1].
    """
    parts = []
    with frozen(model):
        for origin, wanted in chunks(images, targets):
            moving, repeated = origin.clone(), wanted.repeat(STAND_IN_COPIES)
            lowest, highest = (origin - STAND_IN_RADIUS).clamp_min(0), (origin + STAND_IN_RADIUS).clamp_max(1)
            for _ in range(STAND_IN_ITERATIONS):
                drawn = torch.randn((STAND_IN_COPIES, *origin.shape), generator=generator, dtype=origin.dtype)
                noise = STAND_IN_SIGMA * sent(drawn, origin.device)
                x = moving.detach().requires_grad_(True)
                loss = F.cross_entropy(model((x + noise).flatten(0, 1)), repeated, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
                moving = torch.minimum(torch.maximum(x.detach() - STAND_IN_STEP * gradient.sign(), lowest), highest)
            parts.append(moving)
    return torch.cat(parts)


_CHA = "Cha et al., AAAI 2024"
_L2UL = ("COPIES", "TARGETED_RADIUS", "TARGETED_STEP", "TARGETED_ITERATIONS")
_AMUN = ("FIRST_RADIUS", "NEAREST_ITERATIONS", "NEAREST_STEP_SHARE")
_ARU = tuple(f"STAND_IN_{name}" for name in ("RADIUS", "ITERATIONS", "STEP", "COPIES", "SIGMA", "MARGIN"))
METHODS: dict[str, Method] = {
    "boundary_shrink": Method(
        "boundary shrink", boundary_shrink, FORGET, "Chen et al., CVPR 2023", "low", ("ATTACK_RADIUS",)
    ),
    "l2ul_adv": Method("L2UL, adversarial", l2ul_adv, FORGET, _CHA, "low", _L2UL),
    "l2ul_imp": Method("L2UL, adversarial and importance", l2ul_imp, FORGET, _CHA, "low", (*_L2UL, "PENALTY")),
    "amun": Method("AMUN, adversarial only", amun, FORGET, "Ebrahimpour-Boroojeny et al., ICML 2025", "middle", _AMUN),
    "aru": Method("ARU", aru, FORGET, "ARU, 2026", "low", _ARU),
}
