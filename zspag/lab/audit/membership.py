"""Membership inference: can one tell from a model's answers which samples of a class it was trained on?

Members are forget training samples, non-members forget test samples, in equal numbers; each class is attacked on its
own and the classes are averaged. A network retrained without them has seen neither, so its figures are the measure.
An AUC below one half gives members away as well: unlearning overshot on just the samples it was shown.

Invariant: a sample's score depends on its own logits and label alone, and whoever guesses about a sample has fitted
thresholds and weights on other samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from zspag.lab.audit.roc import area, best_threshold, interval, true_positive_rate

# Scores that agree to so many decimals are tied: the masked original gives every forget sample the same probability,
# and what its scores differ by is rounding.
DECIMALS = 9
ENOUGH_FOR_ONE_PERCENT = 1000  # non-members per class: ten of them are then false positives


@dataclass(frozen=True)
class Attack:
    """How well one attack tells members from non-members; means over the classes. A blind attack has an AUC of 1/2.

    Attributes:
        auc: Probability that a member scores above a non-member, a tie counted half.
        auc_error: Standard error of ``auc`` (DeLong).
        accuracy: Share of right guesses, by thresholds that were chosen without the samples they judge.
        tpr_at_10: True positive rate at the point of the curve with a false positive rate of at most 10 %.
        tpr_at_1: The same at 1 %; None where a class has fewer than 1000 non-members.
        tied: Share of pairs with equal scores; where it is 1, the attack was given nothing to see.
        count: Members, of all classes; there are as many non-members.
    """

    auc: float
    auc_error: float
    accuracy: float
    tpr_at_10: float
    tpr_at_1: float | None
    tied: float
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of ``auc``."""
        return interval(self.auc, self.auc_error)


@dataclass(frozen=True)
class _Answers:
    """One attack on one class. All three are (2, n), members in the first row; only pairs in one part are compared."""

    score: Tensor
    guess: Tensor
    part: Tensor

    def area(self) -> tuple[float, float, float]:
        """Average ``roc.area`` over the parts; folds share training samples, so that their error shrinks less."""
        rows = list(zip(self.score, self.part, strict=True))
        areas = [area(*(score[part == number] for score, part in rows)) for number in self.part.unique()]
        aucs, errors, tied = (list(column) for column in zip(*areas, strict=True))
        shared = 1 + len(areas) / (len(areas) - 1) if len(areas) > 1 else 1
        return _mean(aucs), math.hypot(*errors) / len(areas) * math.sqrt(shared), _mean(tied)


def scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return four scores per sample, higher for what looks like a member, in float64 on the CPU.

    With p the softmax of the logits and y the label:

    * ``loss``: log p_y / (1 - p_y), which falls as the cross-entropy rises and resolves both of its ends
      (Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022);
    * ``confidence``: the same of the most probable class, whatever the label;
    * ``entropy``: -log H, H = -sum_k p_k log p_k;
    * ``modified_entropy``: -log M, M = -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k)
      (Song and Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX Security 2021).

    An attack by threshold sees only the order, which these forms share with the plain ones; the regression gets a scale
    on which confident samples still differ.

    Args:
        logits: Finite logits or log-probabilities, shape (n, K), K > 1.
        labels: Labels, shape (n,).

    Returns:
        A tensor (n,) per score.
    """
    z, own = logits.detach().cpu().double(), functional.one_hot(labels.cpu(), logits.shape[1]).bool()
    same = torch.eye(z.shape[1], dtype=torch.bool)
    odds = z - z[:, None, :].masked_fill(same, -math.inf).logsumexp(2)  # (n, K): log p_k / (1 - p_k)
    log_p, log_rest = functional.logsigmoid(odds), functional.logsigmoid(-odds)
    p, rest = log_p.exp(), log_rest.exp()
    found = {
        "loss": odds[own],
        "confidence": odds.amax(1),
        "entropy": -_log(-(p * log_p).sum(1)),
        "modified_entropy": -_log(-torch.where(own, rest * log_p, p * log_rest).sum(1)),
    }
    return {name: score.round(decimals=DECIMALS) for name, score in found.items()}


def _log(entropy: Tensor) -> Tensor:
    return entropy.clamp_min(torch.finfo(entropy.dtype).tiny).log()


def balanced(member_labels: Tensor, other_labels: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose as many members as non-members of every class: all of the smaller side, a random draw from the larger.

    Args:
        member_labels: Labels of the members, shape (n,).
        other_labels: Labels of the non-members, shape (m,).
        generator: CPU generator of the draws.

    Returns:
        Indices of members and of non-members, each ascending, on the CPU.
    """
    chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for label in _classes(member_labels, other_labels):
        sides = [(labels.cpu() == label).nonzero()[:, 0] for labels in (member_labels, other_labels)]
        count = min(map(len, sides))
        for found, side in zip(chosen, sides, strict=True):
            found.append(side[torch.randperm(len(side), generator=generator)[:count]])
    members, others = (torch.cat(found).sort().values for found in chosen)
    return members, others


def attack(
    member_logits: Tensor,
    member_labels: Tensor,
    other_logits: Tensor,
    other_labels: Tensor,
    *,
    folds: int,
    generator: torch.Generator,
) -> dict[str, Attack]:
    """Attack with each score of ``scores`` and with a logistic regression on all of them.

    Args:
        member_logits: Logits of the members, shape (n, K), finite.
        member_labels: Their labels, shape (n,).
        other_logits: Logits of the non-members, shape (n, K).
        other_labels: Their labels, each class as often as among the members; see ``balanced``.
        folds: Parts of a class that are held out in turn, for thresholds and for the regression.
        generator: CPU generator of the folds.

    Returns:
        An ``Attack`` per score, and one called "regression".

    Raises:
        ValueError: If a class is unbalanced or too small, or logits are not finite.

    Note:
        The regression's AUC compares within folds: across folds, each of two fits knows the other's held-out samples,
        and together they read below one half where there is nothing to find. Its rates at a fixed false positive rate
        are across folds, for want of samples, and a little low. Its standard error is widened, as folds share training
        samples (Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 2003): rather too wide,
        by a fifth to a half in simulations of 15 to 150 members, than too narrow.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, so that something is held out, got {folds}")
    sides = [(member_logits.cpu(), member_labels.cpu()), (other_logits.cpu(), other_labels.cpu())]
    for logits, labels in sides:
        _require_logits(logits, labels)
    answers = []
    for label in _classes(member_labels, other_labels):
        own = [logits[labels == label] for logits, labels in sides]
        _require_balance(label, *map(len, own), folds=folds)
        # dealt out apart, so that every fold is balanced as well
        fold = torch.stack([torch.randperm(len(side), generator=generator) % folds for side in own])
        found = [scores(side, torch.full((len(side),), label)) for side in own]
        answers.append(_attack_class({name: torch.stack([side[name] for side in found]) for name in found[0]}, fold))
    return {name: _summary([each[name] for each in answers]) for name in answers[0]}


def _attack_class(found: dict[str, Tensor], fold: Tensor) -> dict[str, _Answers]:
    """Attack one class, given its scores and its folds, each (2, n)."""
    answers = {
        name: _Answers(score, score > _held_out_thresholds(score, fold), torch.zeros_like(fold))
        for name, score in found.items()
    }
    fitted = _held_out_regression(torch.stack(list(found.values()), 2), fold)
    return answers | {"regression": _Answers(fitted, fitted > 0, fold)}


def _held_out_thresholds(score: Tensor, fold: Tensor) -> Tensor:
    """Return for each sample the best threshold of the samples outside its own fold, shape (2, n)."""
    chosen = torch.empty_like(score)
    for number in fold.unique():
        known = fold != number
        chosen[~known] = best_threshold(score[0, known[0]], score[1, known[1]])
    return chosen


def _held_out_regression(features: Tensor, fold: Tensor) -> Tensor:
    """Return each sample's log odds of membership by a regression fitted outside its own fold: (2, n, 4) -> (2, n)."""
    from sklearn.linear_model import LogisticRegression  # a second of import that most of the package does not need
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    member = torch.tensor([[True], [False]]).expand_as(fold)
    fitted = torch.empty(fold.shape, dtype=torch.float64)
    for number in fold.unique():
        known = fold != number
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(features[known].numpy(), member[known].numpy())
        fitted[~known] = torch.from_numpy(model.decision_function(features[~known].numpy()))
    return fitted.round(decimals=DECIMALS)


def _summary(classes: Sequence[_Answers]) -> Attack:
    """Average one attack over classes, which were attacked independently."""
    aucs, errors, tied = (list(column) for column in zip(*(one.area() for one in classes), strict=True))
    sides = [(one.score[0], one.score[1]) for one in classes]
    at_10, at_1 = (
        [true_positive_rate(members, others, one_in=one_in) for members, others in sides] for one_in in (10, 100)
    )
    enough = all(len(others) >= ENOUGH_FOR_ONE_PERCENT for _, others in sides)
    right = [(one.guess[0].double().mean() - one.guess[1].double().mean()).item() for one in classes]
    return Attack(
        auc=_mean(aucs),
        auc_error=math.hypot(*errors) / len(errors),
        accuracy=(1 + _mean(right)) / 2,
        tpr_at_10=_mean(at_10),
        tpr_at_1=_mean(at_1) if enough else None,
        tied=_mean(tied),
        count=sum(len(members) for members, _ in sides),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _classes(member_labels: Tensor, other_labels: Tensor) -> list[int]:
    classes, others = (sorted(labels.unique().tolist()) for labels in (member_labels, other_labels))
    if not classes or classes != others:
        raise ValueError(f"members and non-members must be of the same classes, got {classes} and {others}")
    return classes


def _require_logits(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"need logits (n, K > 1) and labels (n,), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    broken = int((~logits.isfinite()).any(1).sum())
    if broken:
        raise ValueError(
            f"the logits of {broken} of {len(logits)} samples are not finite and have no rank: "
            "mask a class with evaluation.masked instead of -inf, and report a ruined model as such"
        )


def _require_balance(label: int, members: int, others: int, *, folds: int) -> None:
    if members != others:
        raise ValueError(f"class {label} has {members} members and {others} non-members; cut them with balanced()")
    if members < 2 * folds:
        raise ValueError(
            f"class {label} has {members} members, of which {folds} folds need at least {2 * folds}; use fewer folds"
        )
