"""Oracles, which read retain data: what a method could do that had them.

Fine-tuning, UNSC and SCRUB train. Fisher forgetting and selective dampening edit the weights once, by their importance
for the retain data: the rate is the strength of the edit, and the run is one epoch long.

Invariant: steps and epochs of the three are those of every other method; a step may look at retain samples in place of
forget ones. Importances are means of squared gradients of single samples, never squares of a batch's mean gradient.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from zspag.config import UnlearnConfig, UpdateConfig
from zspag.influence import Direction, weights_of
from zspag.lab.methods.method import ORACLE, Method, Problem, fit, sgd_at_every_rate
from zspag.outcome import Epoch
from zspag.projected_sgd import RateSearch, Run, batch_size, rate_search
from zspag.pseudo_labels import masked_log_probabilities, second_best_labels
from zspag.runtime import chunks, frozen, generator_for, logits_of, plain_attention, sent
from zspag.subspaces import Subspace, hard_projector, merged, second_moments

# Most retain samples of one epoch: a pass over all of CIFAR-10 for every epoch and rate would cost more than training.
RETAIN_PER_EPOCH = 5000

# Shares of the trace, of a class's moment and of the sum of all projectors: the lower end of the paper's .97 to .99. A
# small net has few directions, and a union over nine classes at .99 leaves none of them to the update.
UNSC_ENERGY = 0.97
UNSC_MERGE_ENERGY = 0.97

SCRUB_DIVERGENCE = 0.001  # weights on the retain set, as published for whole classes
SCRUB_CROSS_ENTROPY = 0.99
SCRUB_MAX_SHARE = 2 / 3  # share of the epochs that begin with max steps, as published (2 of 3 epochs)

# Most samples whose gradients are taken one by one. Fisher information takes one per label and hardly changes with
# more samples; a true label's gradient is large on few samples only, and what SSD leaves rests on those.
FISHER_SAMPLES = 1000
SSD_SAMPLES = 5000
FISHER_LABELS = 10  # likeliest labels that Fisher information is summed over; the rest has next to no probability
FISHER_INVERSE_MAX = 1e3  # as published: weights that nothing depends on would get endless noise
SSD_DAMPENING = 1.0  # weights shrink to this multiple of full-data over forget importance (the paper's lambda)
_HELD = 2**28  # numbers that gradients of single samples hold at once (1 GB as float32); changes no result


def fine_tune(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Train further on the retain set alone, with cross-entropy; nothing asks for forgetting.

    Reference: the weakest baseline of Golatkar et al., CVPR 2020, and of most papers since.

    DIFFERS: an epoch has as many steps as the forget set has batches and reads at most ``RETAIN_PER_EPOCH`` samples; no
    weight decay, no augmentation, frozen norm statistics. As with every method, a run is given up that has not begun to
    forget by half the epochs.
    """
    images, labels = problem.oracle_data
    size = _retain_batch(len(images), _steps(len(problem.forget_images), config.update))

    def loss(current: nn.Module, _forget: Tensor, batches: Iterator[Tensor]) -> Tensor:
        batch = sent(next(batches), images.device)
        return F.cross_entropy(current(images[batch]), labels[batch])

    return sgd_at_every_rate(problem, config, loss, stream=partial(_passes, len(images), size))


def _steps(count: int, update: UpdateConfig) -> int:
    """Return how many steps ``projected_sgd`` makes of an epoch over ``count`` forget samples."""
    return math.ceil(count / batch_size(count, update))


def _retain_batch(count: int, steps: int) -> int:
    return math.ceil(min(count, RETAIN_PER_EPOCH) / steps)


def _passes(count: int, size: int, drawing: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of indices below ``count``, pass after pass, every pass in a new order."""
    while True:
        yield from torch.randperm(count, generator=drawing).split(size)


def unsc(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit forget samples to their second-best label, in the null space of what the true retain classes use.

    Reference: Chen et al. (UNSC), IJCAI 2024.

    DIFFERS: patches are those that the convolution sees, every layer is constrained, and a run stops by the forget set.
    The published code ignores padding and stride, leaves two layers of its VGG free, reads its projections by the
    wrong index on CIFAR-10 and picks the epoch on test accuracy. What has no rows (biases, norms) stays frozen.
    """
    model, images = problem.model, problem.forget_images
    project = hard_projector(merged_retain_subspace(model, *problem.oracle_data))
    labels = second_best_labels(masked_log_probabilities(logits_of(model, images), forget=problem.forget_classes))

    def at(lr: float) -> Run:
        return fit(problem, config, lambda _current: labels, lr=lr, project=project, names=tuple(project.factors))

    return rate_search(at, update=config.update)


def merged_retain_subspace(model: nn.Module, retain_images: Tensor, retain_labels: Tensor) -> Subspace:
    """Return UNSC's subspace: every retain class cut at ``UNSC_ENERGY``, their union cut at ``UNSC_MERGE_ENERGY``."""
    classes = retain_labels.unique()
    parts = (second_moments(model, retain_images[retain_labels == label]) for label in classes)
    return merged(parts, energy=UNSC_ENERGY, merge_energy=UNSC_MERGE_ENERGY)


def scrub(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Move away from the original on the forget set; stay close to it and to the labels on the retain set; in turns.

    Max steps maximize KL(original || current) on forget samples. Min steps minimize ``SCRUB_DIVERGENCE`` times the same
    on retain samples plus ``SCRUB_CROSS_ENTROPY`` times their cross-entropy. The first half of an epoch goes through
    the forget set; after ``SCRUB_MAX_SHARE`` of the epochs all steps are min steps.

    Reference: Kurmanji et al. (SCRUB), NeurIPS 2023.

    DIFFERS: an epoch has as many steps as the forget set has batches, half of them of each kind, and reads at most
    ``RETAIN_PER_EPOCH`` retain samples. The temperature is 1, as in the paper's formula (published code: 4). A sample
    past log K stops counting: the divergence has no upper bound, and without one every rate that forgot ended at
    infinity. At the original the divergence has no slope, so the first max steps change nothing; in the published code
    batch statistics and decay move the net.
    """
    forget_images, (retain_images, retain_labels) = problem.forget_images, problem.oracle_data
    steps = _steps(len(forget_images), config.update)
    turn = max(2, steps)  # where an epoch is one step, whole epochs take turns
    forget_size = math.ceil(len(forget_images) / (turn // 2))
    retain_size = _retain_batch(len(retain_images), turn - turn // 2)
    last_max = math.ceil(SCRUB_MAX_SHARE * config.update.epochs) * steps
    forget_teacher, retain_teacher = (
        logits_of(problem.model, images).softmax(1) for images in (forget_images, retain_images)
    )

    def turns(drawing: torch.Generator) -> Iterator[tuple[bool, Tensor]]:
        """Yield for every step whether it is a max step, and its batch."""
        forget_batches = _passes(len(forget_images), forget_size, drawing)
        retain_batches = _passes(len(retain_images), retain_size, drawing)
        for step in itertools.count():
            away = step < last_max and step % turn < turn // 2
            yield away, sent(next(forget_batches if away else retain_batches), forget_images.device)

    def loss(current: nn.Module, _forget: Tensor, steps_to_come: Iterator[tuple[bool, Tensor]]) -> Tensor:
        away, batch = next(steps_to_come)
        if away:
            fled = divergence(forget_teacher[batch], current(forget_images[batch]))
            return -fled.clamp_max(math.log(problem.num_classes)).mean()
        logits = current(retain_images[batch])
        kept = F.cross_entropy(logits, retain_labels[batch])
        return SCRUB_DIVERGENCE * divergence(retain_teacher[batch], logits).mean() + SCRUB_CROSS_ENTROPY * kept

    return sgd_at_every_rate(problem, config, loss, stream=turns)


def divergence(teacher: Tensor, logits: Tensor) -> Tensor:
    """Return KL(teacher || softmax(logits)) of each row of (n, K), shape (n,)."""
    return F.kl_div(logits.log_softmax(1), teacher, reduction="none").sum(1)


def fisher_forgetting(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Add Gaussian noise to every weight, of variance rate^2 / F with F its Fisher information on the retain set.

    The rate is the standard deviation of the noise on a weight of Fisher information 1; its square is the published
    code's alpha, whose 1e-9 to 1e-6 are rates of 3e-5 to 1e-3.

    Reference: Golatkar et al., CVPR 2020.

    DIFFERS: the paper derives a covariance of F^(-1/2), its code draws with 1/F, as here. The code also erases the
    class's row of the head and draws more noise for head and biases, which masks a logit rather than forgets; that is
    left out, and so is averaging the variance over a unit's inputs. F is summed over the ``FISHER_LABELS`` likeliest
    labels of at most ``FISHER_SAMPLES`` samples.
    """
    started, drawing = time.perf_counter(), generator_for(problem.seed, "sample")
    images, _ = _sample(*problem.oracle_data, FISHER_SAMPLES, drawing)
    fisher = fisher_information(problem.model, images)
    deviation = {name: part.reciprocal().clamp_max(FISHER_INVERSE_MAX).sqrt() for name, part in fisher.items()}
    seconds = time.perf_counter() - started

    def at(rate: float) -> Run:
        drawing = generator_for(problem.seed, "noise")  # the same noise at every rate, only its size differs

        def noisy(name: str, weight: Tensor) -> Tensor:
            return weight + rate * deviation[name] * torch.randn(weight.shape, generator=drawing).to(weight)

        return _edited(problem, noisy, rate=rate, seconds=seconds)

    return rate_search(at, update=config.update)


def selective_dampening(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Shrink the weights that matter far more to the forget set than to all data, by how much more they do.

    The paper selects weights whose forget importance exceeds alpha times their full-data importance, alpha = 10 for
    whole classes. The full data hold the forget set too, with its share s of the samples: the ratio cannot exceed
    1 / s, and among ten equal classes 10 selects nothing. So the rate sets alpha = 1 / (s + (1 - s) rate), which
    selects where forget importance exceeds 1 / rate times *retain* importance. Every rate can select, a higher one
    selects more, and above 1 nothing more is shrunk. Where s is small the paper's 10 is the rate .1.

    Reference: Foster et al. (SSD), AAAI 2024.

    DIFFERS: the published code squares the mean gradient of each batch; here importances are what the paper defines.
    The full-data importance weighs forget and retain set by their sizes and looks at no more than ``SSD_SAMPLES`` of
    each. The paper's second constant is fixed at its 1 (``SSD_DAMPENING``).
    """
    started, drawing = time.perf_counter(), generator_for(problem.seed, "sample")
    images, others = problem.forget_images, problem.oracle_data
    forget = importances(problem.model, *_sample(images, problem.forget_labels, SSD_SAMPLES, drawing))
    retain = importances(problem.model, *_sample(*others, SSD_SAMPLES, drawing))
    share = len(images) / (len(images) + len(others[0]))
    full = {name: share * part + (1 - share) * retain[name] for name, part in forget.items()}
    seconds = time.perf_counter() - started

    def at(rate: float) -> Run:
        def dampened(name: str, weight: Tensor) -> Tensor:
            chosen = forget[name] > full[name] / (share + (1 - share) * rate)
            shrink = (SSD_DAMPENING * full[name] / forget[name]).clamp_max(1)
            return torch.where(chosen, shrink * weight, weight)

        return _edited(problem, dampened, rate=rate, seconds=seconds)

    return rate_search(at, update=config.update)


def fisher_information(model: nn.Module, images: Tensor) -> Direction:
    """Return the diagonal of the Fisher matrix, E_x E_{y ~ p(. | x)} (d log p(y | x) / d theta)^2, by parameter."""
    p = logits_of(model, images).softmax(1)
    likely = p.topk(min(FISHER_LABELS, p.shape[1]), dim=1)
    parts = [
        importances(model, images, labels, share)
        for labels, share in zip(likely.indices.unbind(1), likely.values.unbind(1), strict=True)
    ]
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def importances(model: nn.Module, images: Tensor, labels: Tensor, shares: Tensor | None = None) -> Direction:
    """Return the mean over samples of share * (d log p(label | x) / d theta)^2 of every parameter.

    Labels and shares have shape (m,); no shares mean 1 each.
    """
    shares = torch.ones(len(images), device=images.device) if shares is None else shares
    weights = weights_of(model, (name for name, _ in model.named_parameters()))
    held = max(1, _HELD // sum(weight.numel() for weight in weights.values()))
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def loss(moving: Direction, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, moving, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    with frozen(model), plain_attention():
        for piece in chunks(images, labels, shares):
            for x, y, share in zip(*(part.split(held) for part in piece), strict=True):
                for name, part in each(weights, x, y).items():
                    total[name] += torch.einsum("n,n...->...", share.to(part), part.square())
    return {name: part / len(images) for name, part in total.items()}


def _sample(images: Tensor, labels: Tensor, most: int, drawing: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return at most ``most`` of the samples, drawn without replacement."""
    if len(images) <= most:
        return images, labels
    kept = torch.randperm(len(images), generator=drawing)[:most].to(images.device)
    return images[kept], labels[kept]


def _edited(problem: Problem, edit: Callable[[str, Tensor], Tensor], *, rate: float, seconds: float) -> Run:
    """Return a copy with every parameter edited, as a run of one epoch; ``seconds`` were spent to prepare the edit."""
    started = time.perf_counter()
    changed = copy.deepcopy(problem.model)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            parameter.copy_(edit(name, parameter))
    logits = logits_of(changed, problem.forget_images)
    accuracy = (logits.argmax(1) == problem.forget_labels).double().mean().item()
    loss = F.cross_entropy(logits, problem.forget_labels).item()
    epoch = Epoch(loss, accuracy, seconds + time.perf_counter() - started)
    return Run(changed, rate, (epoch,), not bool(torch.isfinite(logits).all()))


_GOLATKAR = "Golatkar et al., CVPR 2020"
_UNSC = ("UNSC_ENERGY", "UNSC_MERGE_ENERGY")
_SCRUB = ("RETAIN_PER_EPOCH", "SCRUB_DIVERGENCE", "SCRUB_CROSS_ENTROPY", "SCRUB_MAX_SHARE")
_FISHER = ("FISHER_SAMPLES", "FISHER_LABELS", "FISHER_INVERSE_MAX")
_SSD = ("SSD_SAMPLES", "SSD_DAMPENING")
METHODS: dict[str, Method] = {
    "fine_tune": Method("fine-tuning on retain data", fine_tune, ORACLE, _GOLATKAR, "low", ("RETAIN_PER_EPOCH",)),
    "unsc": Method("UNSC", unsc, ORACLE, "Chen et al., IJCAI 2024", "high", _UNSC),
    "scrub": Method("SCRUB", scrub, ORACLE, "Kurmanji et al., NeurIPS 2023", "low", _SCRUB),
    "fisher_forgetting": Method("Fisher forgetting", fisher_forgetting, ORACLE, _GOLATKAR, "low", _FISHER),
    "selective_dampening": Method("SSD", selective_dampening, ORACLE, "Foster et al., AAAI 2024", "middle", _SSD),
}
