"""Membership inference: can one tell from a model's answers which samples of a class it was trained on?

Members are forget training samples, non-members as many forget test samples of the class. A network retrained without
the class has seen neither, so its figures are the measure. An AUC below one half gives members away as well.

Invariant: a sample's score depends on its own logits and label alone, and thresholds and weights are fitted on other
samples than those they judge. Only the order of scores counts, and equal scores are never told apart.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

DECIMALS = 9  # to which scores are compared: those of the masked original differ by rounding alone
ENOUGH_FOR_ONE_PERCENT = 1000  # non-members: ten of them are then false positives


@dataclass(frozen=True)
class Inference:
    """How well members are told from non-members by one score. Blind guessing has AUC 1/2."""

    auc: float  # probability that a member scores above a non-member, a tie counted half
    auc_error: float  # its standard error (DeLong)
    accuracy: float  # share of right guesses, by thresholds that were chosen without the samples they judge
    tpr_at_10: float  # largest true positive rate with a false positive rate of at most 10 %
    tpr_at_1: float | None  # the same at 1 %; None with fewer than 1000 non-members
    tied: float  # share of pairs with equal scores; where it is 1, there was nothing to see
    count: int  # members; there are as many non-members


def area(members: Tensor, others: Tensor) -> tuple[float, float, float]:
    """Return the area under the ROC curve, its standard error (DeLong et al., Biometrics 1988), and the share of ties.

    Scores of members have shape (n,), of others (m,), n and m above 1. The area is the share of pairs in which the
    member scores higher, ties half.

    Example:
        >>> [round(x, 3) for x in area(Tensor([1.0, 2.0, 3.0]), Tensor([0.0, 2.0]))]
        [0.75, 0.289, 0.167]
    """
    tied = (members[:, None] == others).double()  # (n, m)
    won = (members[:, None] > others).double() + tied / 2
    error = (won.mean(1).var() / len(members) + (1 - won).mean(0).var() / len(others)).sqrt()
    return won.mean(1).mean().item(), error.item(), tied.mean().item()


def true_positive_rate(members: Tensor, others: Tensor, *, one_in: int) -> float:
    """Return the largest share of members above a threshold that at most every ``one_in``-th non-member is above.

    Example:
        >>> true_positive_rate(Tensor([1.0, 2.0, 3.0]), Tensor([0.0, 2.0]), one_in=2)
        1.0
    """
    highest = others.sort(descending=True).values
    return (members > highest[len(others) // one_in]).double().mean().item()


def best_threshold(members: Tensor, others: Tensor) -> float:
    """Return the lowest of the thresholds above which most members (n,) and fewest others (m,) lie, shares of each.

    It lies halfway between two neighbours, so that both groups keep the same distance, or below all.

    Example:
        >>> best_threshold(Tensor([1.0, 4.0, 5.0]), Tensor([0.0, 2.0]))
        3.0
    """
    values = torch.cat([members, others]).unique()
    between = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2])
    missed, spared = (torch.searchsorted(side.sort().values, between, right=True) for side in (members, others))
    return between[(spared * len(members) - missed * len(others)).argmax()].item()


def scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return four scores per sample, higher for what looks like a member, in float64 on the CPU.

    With p the softmax of the logits and y the label:

    * ``loss``: log p_y / (1 - p_y), which falls as the cross-entropy rises and resolves both of its ends
      (Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022);
    * ``confidence``: the same of the most probable class, whatever the label;
    * ``entropy``: -log H, H = -sum_k p_k log p_k;
    * ``modified_entropy``: -log M, M = -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k)
      (Song and Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX Security 2021).

    These forms keep the order of the plain ones, and on their scale confident samples still differ. Logits (n, K) are
    finite, K > 1; each score has shape (n,).
    """
    z, own = logits.detach().cpu().double(), functional.one_hot(labels.cpu(), logits.shape[1]).bool()
    same = torch.eye(z.shape[1], dtype=torch.bool)
    odds = z - z[:, None, :].masked_fill(same, -math.inf).logsumexp(2)  # (n, K): log p_k / (1 - p_k)
    log_p, log_rest = functional.logsigmoid(odds), functional.logsigmoid(-odds)
    p, rest = log_p.exp(), log_rest.exp()
    entropy = -(p * log_p).sum(1)
    modified = -torch.where(own, rest * log_p, p * log_rest).sum(1)
    tiny = torch.finfo(z.dtype).tiny
    found = {
        "loss": odds[own],
        "confidence": odds.amax(1),
        "entropy": -entropy.clamp_min(tiny).log(),
        "modified_entropy": -modified.clamp_min(tiny).log(),
    }
    return {name: score.round(decimals=DECIMALS) for name, score in found.items()}


def membership_inference(
    member_logits: Tensor, other_logits: Tensor, *, label: int, folds: int, generator: torch.Generator
) -> dict[str, Inference]:
    """Tell members from non-members of one class by each score of ``scores`` and by a regression on all of them.

    Args:
        member_logits: Logits of the members, shape (n, K), finite.
        other_logits: Logits of the non-members, shape (m, K), finite. Of the larger side min(n, m) are drawn.
        label: The class.
        folds: Parts that are held out in turn, for thresholds and for the logistic regression.
        generator: CPU generator of the draws and the folds.

    Returns:
        An ``Inference`` per score, and one called "regression".

    Raises:
        ValueError: If there are too few samples or folds, or logits are not finite.

    Note:
        The regression's AUC compares within folds: across folds, each fit knows the other's held-out samples, and the
        AUC lies below one half where there is nothing to find. Its rates at a fixed false positive rate are across
        folds, for want of samples, and a little low. Its standard error is widened, as folds share training samples
        (Nadeau and Bengio, Machine Learning 2003): a fifth to a half too wide in simulations of 15 to 150 members.
    """
    for logits in (member_logits, other_logits):
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(f"need logits (n, K > 1), got {tuple(logits.shape)}")
        broken = int((~logits.isfinite()).any(1).sum())
        if broken:
            raise ValueError(
                f"the logits of {broken} of {len(logits)} samples are not finite and have no rank: "
                "mask a class with evaluation.masked instead of -inf, and report a ruined model as such"
            )
    sides = (member_logits.cpu(), other_logits.cpu())
    count = min(map(len, sides))
    if folds < 2 or count < 2 * folds:
        raise ValueError(f"need 2 folds or more, each of 2 samples of a side or more, got {folds} folds of {count}")
    kept = [side[torch.randperm(len(side), generator=generator)[:count].sort().values] for side in sides]
    # dealt out apart, so that every fold is balanced as well
    fold = torch.stack([torch.randperm(count, generator=generator) % folds for _ in sides])
    found = [scores(side, torch.full((count,), label)) for side in kept]
    seen = {name: torch.stack([side[name] for side in found]) for name in found[0]}  # (2, n) each, members first
    together = torch.zeros_like(fold)
    inferred = {name: _judged(score, _held_out_guesses(score, fold), together) for name, score in seen.items()}
    fitted = _held_out_regression(torch.stack(list(seen.values()), 2), fold)
    return inferred | {"regression": _judged(fitted, fitted > 0, fold)}


def _held_out_guesses(score: Tensor, fold: Tensor) -> Tensor:
    """Guess each sample's membership by the best threshold of the samples outside its own fold, shape (2, n)."""
    guess = torch.empty_like(score, dtype=torch.bool)
    for number in fold.unique():
        known = fold != number
        guess[~known] = score[~known] > best_threshold(score[0, known[0]], score[1, known[1]])
    return guess


def _held_out_regression(features: Tensor, fold: Tensor) -> Tensor:
    """Return each sample's log odds of membership by a regression fitted outside its own fold: (2, n, 4) -> (2, n)."""
    from sklearn.linear_model import LogisticRegression  # a second of import that most of the package does not need
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    member = torch.tensor([[True], [False]]).expand_as(fold)
    odds = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        features.flatten(0, 1).numpy(),
        member.flatten().numpy(),
        cv=PredefinedSplit(fold.flatten().numpy()),
        method="decision_function",
    )
    return torch.from_numpy(odds).view_as(fold).round(decimals=DECIMALS)


def _judged(score: Tensor, guess: Tensor, part: Tensor) -> Inference:
    """Judge one score. All arguments are (2, n), members first; only pairs in one part are compared."""
    areas = [area(*(side[own == number] for side, own in zip(score, part, strict=True))) for number in part.unique()]
    aucs, errors, tied = (list(column) for column in zip(*areas, strict=True))
    shared = 1 + len(areas) / (len(areas) - 1) if len(areas) > 1 else 1  # parts share training samples
    enough = score.shape[1] >= ENOUGH_FOR_ONE_PERCENT
    right = guess[0].double().mean() - guess[1].double().mean()
    return Inference(
        auc=sum(aucs) / len(areas),
        auc_error=math.hypot(*errors) / len(areas) * math.sqrt(shared),
        accuracy=(1 + right.item()) / 2,
        tpr_at_10=true_positive_rate(score[0], score[1], one_in=10),
        tpr_at_1=true_positive_rate(score[0], score[1], one_in=100) if enough else None,
        tied=sum(tied) / len(areas),
        count=score.shape[1],
    )
