"""Oracles that edit weights in one go, by how much the retain data minds: Fisher forgetting, selective dampening.

Both rest on squared gradients of log-probabilities, one number per weight, averaged over samples. They have no loop: a
rate of the ladder is the strength of the edit, and its run is one epoch long.

Invariant: importances are means of squared gradients of single samples, never squares of a batch's mean gradient.
"""

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from zspag.config import UnlearnConfig
from zspag.influence import Direction, weights_of
from zspag.lab.methods.method import ORACLE, Method, Problem
from zspag.outcome import Epoch
from zspag.projected_sgd import RateSearch, Run, rate_search
from zspag.runtime import chunks, frozen, generator_for, logits_of, plain_attention

# Most samples whose gradients are taken one by one. Fisher information takes one per label and hardly changes with
# more samples; a true label's gradient is large on few samples only, and what SSD leaves rests on those.
FISHER_SAMPLES = 1000
SSD_SAMPLES = 5000
# Numbers that the gradients of single samples may hold at once (1 GB as float32); bounds memory, changes no result.
_HELD = 2**28
# Labels of a sample that its Fisher information is summed over, likeliest first; the rest has next to no probability.
FISHER_LABELS = 10
# Largest inverse Fisher information, as in the published code: weights that nothing depends on would get endless noise.
FISHER_INVERSE_MAX = 1e3
# Weights shrink to this multiple of full-data over forget importance (the paper's lambda).
SSD_DAMPENING = 1.0


def fisher_forgetting(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Add Gaussian noise to every weight, of variance rate^2 / F with F its Fisher information on the retain set.

    The rate is the standard deviation of the noise on a weight of Fisher information 1; its square is the published
    code's alpha, whose 1e-9 to 1e-6 are rates of 3e-5 to 1e-3.

    Reference: Golatkar et al., CVPR 2020.

    Note:
        DIFFERS: the paper derives a covariance of F^(-1/2), its code draws with 1/F, as here. The code also erases the
        class's row of the head and draws more noise for the head and the biases; that masks a logit rather than forgets
        by noise, and is left out, as is the averaging of the variance over a unit's inputs. F is summed over the
        ``FISHER_LABELS`` likeliest labels of at most ``FISHER_SAMPLES`` samples.
    """
    started, drawing = time.perf_counter(), generator_for(problem.seed, "sample")
    images, _ = _sample(problem.retain_images, problem.retain_labels, FISHER_SAMPLES, drawing)
    fisher = fisher_information(problem.model, images)
    spread = {name: part.reciprocal().clamp_max(FISHER_INVERSE_MAX).sqrt() for name, part in fisher.items()}
    seconds = time.perf_counter() - started

    def at(rate: float) -> Run:
        drawing = generator_for(problem.seed, "noise")  # the same noise at every rate, only its size differs

        def noisy(name: str, weight: Tensor) -> Tensor:
            return weight + rate * spread[name] * torch.randn(weight.shape, generator=drawing).to(weight)

        return _edited(problem, noisy, rate=rate, seconds=seconds)

    return rate_search(at, update=config.update)


def selective_dampening(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Shrink the weights that matter far more to the forget set than to all data, by how much more they do.

    The paper selects weights whose forget importance exceeds alpha times their full-data importance, alpha = 10 for
    whole classes. That holds the forget set too, with its share s of the samples: the ratio cannot exceed 1 / s, and
    among ten equal classes 10 selects nothing. So the rate of the ladder sets alpha = 1 / (s + (1 - s) rate), which is
    to select where forget importance exceeds 1 / rate times *retain* importance. A higher rate edits more, every rate
    can select, and where s is small the paper's 10 is the rate .1. Above the rate 1 nothing more is shrunk.

    Reference: Foster et al. (SSD), AAAI 2024.

    Note:
        DIFFERS: the published code squares the mean gradient of each batch, so that its importances depend on the batch
        size; here they are what the paper defines. The full-data importance weighs forget and retain set by their sizes
        and looks at no more than ``SSD_SAMPLES`` of each. The paper's second constant is fixed at its 1
        (``SSD_DAMPENING``); the ladder moves the first.
    """
    started, drawing = time.perf_counter(), generator_for(problem.seed, "sample")
    images, others = problem.forget_images, problem.retain_images
    forget = importances(problem.model, *_sample(images, problem.forget_labels, SSD_SAMPLES, drawing))
    retain = importances(problem.model, *_sample(others, problem.retain_labels, SSD_SAMPLES, drawing))
    share = len(images) / (len(images) + len(others))
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
    """Return the diagonal of the Fisher matrix: E_x E_{y ~ p(. | x)} (d log p(y | x) / d theta)^2 of every parameter.

    Args:
        model: The classifier.
        images: Shape (m, C, H, W).
    """
    p = logits_of(model, images).softmax(1)
    likely = p.topk(min(FISHER_LABELS, p.shape[1]), dim=1)
    parts = [
        _squared_gradients(model, images, labels, share)
        for labels, share in zip(likely.indices.unbind(1), likely.values.unbind(1), strict=True)
    ]
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def importances(model: nn.Module, images: Tensor, labels: Tensor) -> Direction:
    """Return the mean over samples of (d log p(label | x) / d theta)^2 of every parameter.

    Args:
        model: The classifier.
        images: Shape (m, C, H, W).
        labels: Their true classes, shape (m,).
    """
    return _squared_gradients(model, images, labels, torch.ones(len(images), device=images.device))


def _squared_gradients(model: nn.Module, images: Tensor, labels: Tensor, shares: Tensor) -> Direction:
    """Return the mean over samples of share * (d log p(label | x) / d theta)^2."""
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
    """Return a copy with every parameter edited, as a run of one epoch; ``seconds`` were spent on what it rests on."""
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


METHODS: dict[str, Method] = {
    "fisher_forgetting": Method(
        "Fisher forgetting", fisher_forgetting, ORACLE, "Golatkar et al., CVPR 2020", "low", oracle=True
    ),
    "selective_dampening": Method(
        "SSD", selective_dampening, ORACLE, "Foster et al., AAAI 2024", "middle", oracle=True
    ),
}
