"""Trials: fit one half of the forget samples, and judge by the other half and by proxies made from it.

A good run forgets what it has not fitted, and leaves the *barely hit* proxies of the other half where they were.
Proxies that lie well inside their class, or that helped to make the basis, stay where they are long after retained
images have moved; barely hit ones of other sources show the damage first.

Invariant: what judges a trial was neither fitted nor used for its basis.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from zspag.config import SubspaceConfig, UpdateConfig
from zspag.outcome import Trial
from zspag.projected_sgd import fit_labels
from zspag.proxy_statistics import ProxyStatistics
from zspag.pseudo_labels import PseudoLabeler, masked_log_probabilities
from zspag.runtime import channels_last, generator_for, logits_of, spread_evenly
from zspag.subspaces import Moments, Projector, projector

FITTED = 128  # views of a fold that a trial fits at most; the final run fits all
JUDGED = 200  # images of the other half that judge a trial at most, evenly spaced
HURRY = 4  # part of the epochs within which a trial must forget; CHOICE: gentler rates do no less damage
FLOOR = -30.0  # log-probability below which a difference is none
SPREAD = 5.0  # standard deviation of logits over retained classes at which damages of several models are compared


@dataclass(frozen=True, eq=False)
class Fold:
    """One half of the forget samples fits, the other half judges.

    Attributes:
        fitted: Indices of the views that are fitted.
        unseen: At most ``JUDGED`` images of the other half, shape (n, C, H, W).
        unseen_labels: Their classes, shape (n,).
        moments: What this half's proxies feed into each layer.
        barely: Barely hit proxies of the other half, shape (m, C, H, W).
        before: The original's logits on them, shape (m, K).
        subspace: Which directions are protected.
    """

    fitted: Tensor
    unseen: Tensor
    unseen_labels: Tensor
    moments: Moments
    barely: Tensor
    before: Tensor
    subspace: SubspaceConfig = SubspaceConfig()

    @cached_property
    def project(self) -> Projector:
        """Keeps updates out of what this half's proxies use; made at the first use, for removal has none."""
        return projector(self.moments, config=self.subspace)


def make_folds(
    model: nn.Module, statistics: ProxyStatistics, forget_labels: Tensor, *, subspace: SubspaceConfig
) -> tuple[Fold, Fold]:
    """Return the two folds: either half of the forget samples fits, and the other judges."""
    folds = []
    images, proxies = statistics.views.images, statistics.proxies
    plain = torch.arange(len(images)) < len(forget_labels)  # the images themselves come before their views
    made_from = statistics.half_of[proxies.sources.cpu()]
    for half in (0, 1):
        # A single image lies in one half only, and without views the other half is empty: then everything serves.
        fitted = _some(statistics.half_of == half, torch.ones_like(plain)).nonzero()[:, 0]
        unseen = spread_evenly(_some((statistics.half_of != half) & plain, plain).nonzero()[:, 0], JUDGED)
        judging = _some(made_from != half, torch.ones_like(made_from, dtype=torch.bool)).nonzero()[:, 0]
        barely = channels_last(proxies.barely[judging.to(proxies.labels.device)])
        folds.append(
            Fold(
                fitted=fitted,
                unseen=channels_last(images[unseen.to(images.device)]),
                unseen_labels=forget_labels[unseen.to(forget_labels.device)],
                moments=statistics.halves[half],
                barely=barely,
                before=logits_of(model, barely),
                subspace=subspace,
            )
        )
    return folds[0], folds[1]


def _some(chosen: Tensor, otherwise: Tensor) -> Tensor:
    """Return a mask, or another one where it chooses nothing."""
    return chosen if bool(chosen.any()) else otherwise


def held_out_damage(before: Tensor, after: Tensor, *, forget: Sequence[int]) -> float:
    """Return how far answers on retained classes moved, in nats per sample.

    Args:
        before: The original's logits on held-out proxies, shape (m, K).
        after: The current model's.
        forget: Classes that are forgotten.

    Returns:
        Mean KL divergence from the masked original's to the masked model's probabilities, plus the mean rise of
        -log(1 - p_forget). The first is drift among retained classes, the second what was pushed into a forgotten one.
        That a proxy *loses* probability of a forgotten class is wanted, and costs nothing. Infinite if the logits are.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> held_out_damage(logits, logits - torch.tensor([5.0, 0.0, 0.0]), forget=[0])
        0.0
    """
    if not bool(after.isfinite().all()):
        return float("inf")
    before, after = before.double(), after.double()
    p, q = (masked_log_probabilities(logits, forget=forget).clamp_min(FLOOR) for logits in (before, after))
    moved = (p.exp() * (p - q)).sum(1).mean()

    def pushed(logits: Tensor) -> Tensor:
        retained = logits.log_softmax(1).clone()
        for label in forget:  # a list as an index would be copied to the device, and waited for
            retained[:, label] = -torch.inf
        return -retained.logsumexp(1)

    return max(0.0, (moved + (pushed(after) - pushed(before)).clamp_min(0).mean()).item())


def answers_changed(before: Tensor, after: Tensor, *, forget: Sequence[int]) -> float:
    """Return the share of samples with another answer among the retained classes; all of them if a logit is infinite.

    Args:
        before: The original's logits, shape (m, K).
        after: The current model's.
        forget: Classes that are forgotten.

    Example:
        >>> answers_changed(torch.tensor([[9.0, 1.0, 0.0]]), torch.tensor([[9.0, 0.0, 1.0]]), forget=[0])
        1.0
    """
    if not bool(after.isfinite().all()):
        return 1.0
    first, second = (masked_log_probabilities(logits, forget=forget).argmax(1) for logits in (before, after))
    return (first != second).double().mean().item()


def at_common_scale(before: Tensor, after: Tensor, *, forget: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return both logits divided by the original's spread over retained classes: nats then compare between models.

    A model that is trained long, or whose logits are divided by a temperature, makes the same answers with other nats.

    Args:
        before: The original's logits, shape (m, K).
        after: The current model's.
        forget: Classes that are forgotten.

    Returns:
        Logits with a mean standard deviation of ``SPREAD`` over the retained classes of a sample of the original; as
        they were where all of these are the same.
    """
    gone = {*forget}
    kept = [label for label in range(before.shape[1]) if label not in gone]
    spread = before[:, kept].double().std(1, correction=0).mean()
    factor = SPREAD / spread if bool(spread > 0) else torch.ones_like(spread)
    return before * factor.to(before.dtype), after * factor.to(after.dtype)


def attempt(
    model: nn.Module,
    views: Tensor,
    labels: Tensor,
    *,
    folds: Sequence[Fold],
    relabel: PseudoLabeler,
    forget: Sequence[int],
    layers: str,
    names: Sequence[str],
    update: UpdateConfig,
    seed: int,
) -> Trial:
    """Fit every fold at ``update.lr`` and let the samples and proxies of the other one judge.

    Args:
        model: The original.
        views: Forget samples and their views, shape (v, C, H, W).
        labels: Their classes, shape (v,).
        folds: Two folds.
        relabel: Gives pseudo-labels (v, K) before every epoch.
        forget: Classes that are forgotten, earlier ones included.
        layers: Name of the choice of layers, for the trial.
        names: Weights that move.
        update: Rate, batches and stopping rule. A trial must forget within a quarter of ``update.epochs``, so that the
            final run, which differs a little, forgets within all of them.
        seed: Seed of the order of the batches.
    """
    started = time.perf_counter()
    hurried = replace(update, epochs=max(1, update.epochs // HURRY), held_out=0.0)
    damages, mistakes, judged, forgot = [], [], [], True
    for fold in folds:
        chosen = fold.fitted[:FITTED].to(views.device)

        def labels_of(current: nn.Module, chosen: Tensor = chosen) -> Tensor:
            return relabel(current)[chosen]

        run = fit_labels(
            model,
            views[chosen],
            labels[chosen],
            relabel=labels_of,
            project=fold.project,
            names=names,
            update=hurried,
            generator=generator_for(seed, "fold"),
        )
        if run.diverged:
            damages.append(float("inf"))
            forgot = False
            break
        forgot = forgot and run.reached(update.forget_accuracy)
        damages.append(held_out_damage(fold.before, logits_of(run.model, fold.barely), forget=forget))
        mistakes.append((logits_of(run.model, fold.unseen).argmax(1) == fold.unseen_labels).cpu())
        judged.append(fold.unseen_labels.cpu())
        if not forgot:
            break  # the other fold cannot change it
    ruined = not all(damage < float("inf") for damage in damages)
    return Trial(
        layers=layers,
        lr=update.lr or 0.0,
        forget_accuracy=None if ruined else torch.cat(mistakes).double().mean().item(),
        drift=None if ruined else sum(damages) / len(damages),
        forgot=forgot and not ruined,
        seconds=time.perf_counter() - started,
        unseen={} if ruined else recognized_of_each(torch.cat(mistakes), torch.cat(judged)),
    )


def recognized_of_each(recognized: Tensor, labels: Tensor) -> dict[int, tuple[int, int]]:
    """Count, per class, the samples that were recognized, and all.

    Example:
        >>> recognized_of_each(torch.tensor([True, False, True]), torch.tensor([3, 3, 8]))
        {3: (1, 2), 8: (1, 1)}
    """
    return {
        label: (int(recognized[labels == label].sum()), int((labels == label).sum()))
        for label in labels.unique().tolist()
    }
