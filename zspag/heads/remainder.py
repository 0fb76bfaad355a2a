"""What is left of the forget classes in the features, measured without a single retained image.

A model can stop answering a class and still carry it to the last layer. Two questions show that. Can a ridge probe on
what enters the head tell held-out forget samples from held-out proxies? And how many forget samples does the original's
head recognize, when it reads the new model's features?

A proxy is a forget image plus a perturbation, and a probe would recognize the perturbation itself. So every forget
sample gets the perturbation of another image's proxy, and counts only if the original still sees its class in it.

Views and proxies of one image resemble one another, whatever the features carry of the class. So sources are held out
whole, perturbations are exchanged among sources that are held out together, and labels are permuted source by source.

Invariant: a probe is judged on sources that it was not fitted to, and no model is changed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zspag.heads.head import find_head, head_inputs, logits_under_head
from zspag.outcome import Remainder
from zspag.runtime import device_of, generator_for, logits_of

FEWEST = 8  # sources; with fewer, the permuted values cover half of the range
FOLDS = 5  # groups of sources that are held out together, each of two or more
MOST = 400  # proxies that are looked at
PERMUTATIONS = 100
CLEARLY = 3.0  # standard deviations of the permuted values


@dataclass(frozen=True)
class Contrast:
    """What a probe has to tell apart: forget samples (first) and proxies, perturbed alike.

    Attributes:
        images: Shape (n, C, H, W).
        first: Which of them are forget samples, booleans of shape (n,).
        sources: Number of the image that each is made of, shape (n,).
        folds: Which sources are held out together, shape (n,).
    """

    images: Tensor
    first: Tensor
    sources: Tensor
    folds: Tensor


@dataclass(frozen=True)
class Probe:
    """How well a ridge probe tells two kinds of samples, on sources that it has not seen.

    Attributes:
        accuracy: Balanced accuracy, every source weighing the same.
        chance: Mean balanced accuracy under permuted labels.
        deviation: Standard deviation of the latter.
    """

    accuracy: float
    chance: float
    deviation: float

    @property
    def clear(self) -> bool:
        """Whether the accuracy clearly exceeds what permuted labels give."""
        return self.accuracy > self.chance + CLEARLY * self.deviation


def measure_remainder(
    original: nn.Module,
    open_model: nn.Module,
    *,
    forget_images: Tensor,
    forget_labels: Tensor,
    forget_sources: Tensor,
    proxy_images: Tensor,
    proxy_sources: Tensor,
    seed: int,
) -> Remainder:
    """Measure what an unlearned model still carries of the forget classes to its last layer.

    Args:
        original: The model before the request. Not changed.
        open_model: The unlearned model, its rows open, of the same architecture. Not changed.
        forget_images: Held-out forget samples, their views included, shape (n, C, H, W), values in [0, 1]. What a proxy
            was made from must be among them.
        forget_labels: Their classes, shape (n,).
        forget_sources: Number of the image that each is a view of, shape (n,).
        proxy_images: Held-out proxies of the retained classes, shape (m, C, H, W); those that barely hit leave most
            forget samples what they are when perturbations are exchanged.
        proxy_sources: Number of the image that each was made from, shape (m,); the same numbers as above.
        seed: Same seed, same answer.

    Returns:
        The probe on both models and the share of the forget samples, as they are, that the original's head recognizes.
        Not measurable is what the probe cannot clearly tell on the original either, and what has fewer than 8 sources.

    Note:
        Only the difference to the original's value means something: a model that never knew the class does not fall to
        chance. On digits (three nets, two classes, 50 images, proxies that barely hit) originals have .82 to .88,
        retrained models .64 to .78, untrained ones .62 to .68. Without exchanged perturbations they have .92 to .99,
        .76 to .95, .87 to .95. A low value shows that this probe finds nothing, not that nothing is there.

    Reference:
        Permuting groups whole: Winkler et al., "Multi-level block permutation", NeuroImage 2015.
    """
    labels = forget_labels.to(device_of(original))
    try:
        head = find_head(original, forget_images)
        read = logits_under_head(original, open_model, forget_images, head)
        head_inputs(original, forget_images[:FEWEST], head)  # asked now whether they can be read
    except (ValueError, RuntimeError) as error:
        return Remainder(False, None, None, None, None, f"the features cannot be read: {error}")
    back = ((read.argmax(1) == labels) & read.isfinite().all(1)).double().mean().item()
    given = (forget_images, forget_labels, forget_sources, proxy_images, proxy_sources)
    pairs = contrast(original, *given, generator=generator_for(seed, "contrast"))
    count = len(set(pairs.sources[pairs.first].tolist()) & set(pairs.sources[~pairs.first].tolist()))
    if count < FEWEST:
        note = f"{count} forget images stay what they are under another's perturbation: a probe needs {FEWEST}"
        return Remainder(False, None, None, None, back, note)
    features = [head_inputs(model, pairs.images, head) for model in (original, open_model)]
    if not all(bool(part.isfinite().all()) for part in features):
        return Remainder(False, None, None, None, back, "the features are not finite")
    known, left = (source_probe(part, pairs.first, pairs.sources, pairs.folds, seed=seed) for part in features)
    note = f"{count} sources; permuted labels give {left.chance:.2f} +- {left.deviation:.2f}"
    if not known.clear:
        note += f"; the original's own {known.accuracy:.2f} does not stand out"
    return Remainder(known.clear, known.accuracy, left.accuracy, left.chance, back, note)


def contrast(
    original: nn.Module,
    forget_images: Tensor,
    forget_labels: Tensor,
    forget_sources: Tensor,
    proxy_images: Tensor,
    proxy_sources: Tensor,
    *,
    generator: torch.Generator,
) -> Contrast:
    """Add the perturbations of other images' proxies to forget samples; keep those that the original still recognizes.

    Arguments are those of ``measure_remainder``; of many proxies a random 400 are taken. A perturbation is what a proxy
    differs by from the nearest forget image of its source. It is added to an image of another source of the same fold.
    """
    few = torch.randperm(len(proxy_images), generator=generator)[:MOST]
    owners, makers = forget_sources.cpu(), proxy_sources.cpu()[few]
    images, proxies = (part.to(device_of(original)) for part in (forget_images, proxy_images.cpu()[few]))
    folds = source_folds(torch.cat([owners, makers]), generator=generator)
    own_folds, their_folds = folds[: len(owners)], folds[len(owners) :]
    made, bearers = [images[:0]], [torch.arange(0)]
    for source in makers.unique():
        mine, same = makers == source, owners == source
        others = (~same & (own_folds == their_folds[mine][0])).nonzero()[:, 0]
        if not bool(same.any()) or not len(others):
            continue
        nearest = torch.cdist(proxies[mine].flatten(1).double(), images[same].flatten(1).double()).argmin(1)
        bearers.append(others[torch.randint(len(others), (int(mine.sum()),), generator=generator)])
        made.append((images[bearers[-1]] + proxies[mine] - images[same][nearest]).clamp(0, 1))
    perturbed, bearer = torch.cat(made), torch.cat(bearers)
    if len(perturbed):
        stay = logits_of(original, perturbed).argmax(1).cpu() == forget_labels.cpu()[bearer]
        perturbed, bearer = perturbed[stay], bearer[stay]
    return Contrast(
        images=torch.cat([perturbed, proxies]),
        first=torch.arange(len(perturbed) + len(proxies)) < len(perturbed),
        sources=torch.cat([owners[bearer], makers]),
        folds=torch.cat([own_folds[bearer], their_folds]),
    )


def source_folds(sources: Tensor, *, generator: torch.Generator) -> Tensor:
    """Deal sources to folds of two or more, at random; returns the fold of each sample, shape (n,)."""
    _, own = sources.unique(return_inverse=True)
    count = int(own.max()) + 1
    return torch.randperm(count, generator=generator)[own] % max(1, min(FOLDS, count // 2))


def source_probe(features: Tensor, labels: Tensor, sources: Tensor, folds: Tensor, *, seed: int) -> Probe:
    """Fit ridge probes that tell two kinds of samples, each judged on a fold that it was not fitted to.

    With standardized features X, targets y of +-1 and weights w that sum to 1, alike for every source and both kinds,
    the probe is beta = (X^T W X + (d / s) I)^-1 X^T W y, d features and s fitted sources.

    Args:
        features: Shape (n, d).
        labels: Which of them are of the first kind, booleans of shape (n,).
        sources: Number of each one's source, shape (n,).
        folds: Number of each one's fold, shape (n,).
        seed: Same seed, same permutations.

    Returns:
        Balanced accuracy over all samples, beside its value where the two kinds are swapped in half of the sources,
        drawn at random.

    Raises:
        ValueError: If one of the kinds is missing, or there is only one fold.

    Note:
        CHOICE: the penalty d / s is what ridge regression needs where signal and noise are of one size; no label is
        looked at.
    """
    if not 0 < int(labels.sum()) < len(labels) or len(folds.unique()) < 2:
        raise ValueError(f"a probe needs two kinds and two folds, got {int(labels.sum())} of {len(labels)} samples")
    _, own = sources.unique(return_inverse=True)
    swaps = torch.randint(2, (int(own.max()) + 1, PERMUTATIONS), generator=generator_for(seed, "swaps")) * 2 - 1
    swaps = torch.cat([torch.ones(len(swaps), 1), swaps], 1).double()  # first: as they are
    truth = torch.where(labels, 1.0, -1.0)[:, None] * swaps[own]
    weights = torch.zeros(len(labels), dtype=torch.float64)  # both kinds sum to 1/2, every source of a kind alike
    for kind in (labels, ~labels):
        counts = own[kind].bincount()
        weights[kind] = 0.5 / (int((counts > 0).sum()) * counts[own[kind]].double())
    guess = torch.zeros_like(truth)
    for fold in folds.unique():
        held, fitted = folds == fold, folds != fold
        groups = len(own[fitted].unique())
        guess[held] = _ridge(features[fitted], truth[fitted], weights[fitted], features[held], sources=groups)
    right = ((guess > 0) == (truth > 0)).double()
    kinds = torch.stack([truth > 0, truth < 0]) * weights[:, None]  # (2, n, 1 + permutations)
    shares = (kinds * right).sum(1) / kinds.sum(1)
    each = shares.nan_to_num(0.5).mean(0)  # a kind may be missing among permuted labels
    return Probe(each[0].item(), each[1:].mean().item(), each[1:].std().item())


def _ridge(rows: Tensor, targets: Tensor, weights: Tensor, held: Tensor, *, sources: int) -> Tensor:
    """Fit by weighted ridge regression and predict the held-out rows, shape (held, columns of targets)."""
    weights = (weights / weights.sum())[:, None]
    mean = (weights * rows).sum(0)
    deviation = (weights * (rows - mean).square()).sum(0).sqrt()
    alive = deviation > torch.finfo(torch.float32).eps * rows.abs().amax(0)  # a unit that never moved says nothing
    rows, held = ((part[:, alive] - mean[alive]) / deviation[alive] for part in (rows, held))
    level, root = (weights * targets).sum(0), weights.sqrt()
    design, wanted = root * rows, root * (targets - level)
    penalty = max(1, design.shape[1]) / sources
    if design.shape[1] <= len(design):
        second = design.T @ design + penalty * torch.eye(design.shape[1], dtype=design.dtype)
        return level + held @ torch.linalg.solve(second, design.T @ wanted)
    kernel = design @ design.T + penalty * torch.eye(len(design), dtype=design.dtype)
    return level + held @ (design.T @ torch.linalg.solve(kernel, wanted))
