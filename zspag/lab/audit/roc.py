"""How well one number tells two groups apart: the ROC curve's area with its error, one of its points, a threshold.

Invariant: only the order of the numbers counts, and equal numbers are never told apart.
"""

import math

import torch
from torch import Tensor


def area(members: Tensor, others: Tensor) -> tuple[float, float, float]:
    """Return the area under the ROC curve, its standard error, and the share of tied pairs.

    Args:
        members: Scores of members, shape (n,), n > 1.
        others: Scores of non-members, shape (m,), m > 1.

    Returns:
        The share of pairs in which the member scores higher, ties half (exact, by ranks); the standard error of DeLong
        et al., "Comparing the Areas Under Two or More Correlated ROC Curves", Biometrics 1988; the share of ties.

    Example:
        >>> [round(x, 3) for x in area(Tensor([1.0, 2.0, 3.0]), Tensor([0.0, 2.0]))]
        [0.75, 0.289, 0.167]
    """
    below, upto = _ranks(members, others)
    wins = (below + upto) / (2 * len(others))  # of each member
    losses = torch.stack(_ranks(others, members)).mean(0) / len(members)  # of each non-member
    error = (wins.var() / len(members) + losses.var() / len(others)).sqrt()
    return wins.mean().item(), error.item(), ((upto - below).mean() / len(others)).item()


def interval(auc: float, error: float) -> tuple[float, float]:
    """Return the 95 % interval of an area, normal in its log odds: it stays in [0, 1] and is lopsided near their ends.

    Note:
        A perfect separation and a constant have no error and an interval of one point, whatever the next sample says.

    Example:
        >>> [round(end, 3) for end in interval(0.9, 0.05)], interval(1.0, 0.0)
        ([0.752, 0.964], (1.0, 1.0))
    """
    if auc in (0, 1):
        return auc, auc
    odds, margin = auc / (1 - auc), math.exp(1.96 * error / (auc * (1 - auc)))
    return odds / (odds + margin), odds * margin / (odds * margin + 1)


def _ranks(own: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many of ``sample`` are below each of ``own``, and how many are not above it."""
    ordered = sample.sort().values
    return torch.searchsorted(ordered, own).double(), torch.searchsorted(ordered, own, right=True).double()


def true_positive_rate(members: Tensor, others: Tensor, *, one_in: int) -> float:
    """Return the largest share of members above a threshold that at most every ``one_in``-th non-member is above.

    Example:
        >>> true_positive_rate(Tensor([1.0, 2.0, 3.0]), Tensor([0.0, 2.0]), one_in=2)
        1.0
    """
    highest = others.sort(descending=True).values
    return (members > highest[len(others) // one_in]).double().mean().item()


def best_threshold(members: Tensor, others: Tensor) -> float:
    """Return the threshold above which most members and fewest others lie, shares of each; the lowest such one.

    Args:
        members: Numbers that should lie above, shape (n,).
        others: Numbers that should not, shape (m,).

    Returns:
        A number halfway between two neighbours, so that both groups keep the same distance, or one below all.

    Example:
        >>> best_threshold(Tensor([1.0, 4.0, 5.0]), Tensor([0.0, 2.0]))
        3.0
    """
    values = torch.cat([members, others]).unique()
    between = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2])
    missed, spared = (torch.searchsorted(side.sort().values, between, right=True) for side in (members, others))
    return between[(spared * len(members) - missed * len(others)).argmax()].item()
