"""The ROC kernels against counting every pair and trying every threshold, and the standard error against repetition."""

import pytest
import torch

from zspag.lab.audit.roc import area, best_threshold, interval, true_positive_rate

N, M = 23, 17


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def _counted(members, others):
    """The area and the share of ties, pair by pair."""
    pairs = [(a, b) for a in members.tolist() for b in others.tolist()]
    won, tied = sum(a > b for a, b in pairs), sum(a == b for a, b in pairs)
    return (won + tied / 2) / len(pairs), tied / len(pairs)


def _thresholds(members, others):
    return [-99.0, *torch.cat([members, others]).tolist()]


@pytest.mark.parametrize("decimals", [0, 12])  # about a quarter of the pairs are tied, or none
def test_the_area_is_that_of_counting_every_pair(decimals):
    members, others = (randn(N) + 0.5).round(decimals=decimals), randn(M).round(decimals=decimals)
    auc, _, tied = area(members, others)
    assert (auc, tied) == pytest.approx(_counted(members, others))
    assert (tied > 0.1) == (decimals == 0)
    assert area(others, members)[0] == pytest.approx(1 - auc)


def test_only_the_order_counts():
    members, others = randn(N) + 0.5, randn(M)
    assert area(members.exp(), others.exp()) == area(members, others)
    assert area(members.square(), others.square()) != area(members, others)


def test_one_number_for_all_is_worth_one_half_and_two_apart_are_worth_one():
    assert area(torch.full((N,), 2.0), torch.full((M,), 2.0)) == (0.5, 0, 1)
    assert area(randn(N).abs() + 1, -randn(M).abs()) == (1, 0, 0)


@pytest.mark.parametrize(("shift", "decimals"), [(0.0, 9), (1.0, 9), (0.7, 0)])
def test_the_error_is_the_deviation_of_repeated_draws_and_the_interval_holds_what_they_scatter_around(shift, decimals):
    drawn = [area((randn(N) + shift).round(decimals=decimals), randn(M).round(decimals=decimals)) for _ in range(400)]
    aucs, errors, _ = torch.tensor(drawn, dtype=torch.float64).unbind(1)
    assert errors.square().mean().sqrt().item() == pytest.approx(aucs.std().item(), rel=0.12)  # 400 draws: 4 % each
    ends = [interval(auc, error) for auc, error, _ in drawn]
    assert 0.92 < sum(low <= aucs.mean() <= high for low, high in ends) / 400 < 0.99
    assert sum(low <= aucs.mean() + 0.25 <= high for low, high in ends) / 400 < 0.4


def test_the_interval_stays_between_nought_and_one_and_turns_with_the_sides():
    low, high = interval(0.97, 0.03)
    assert 0 < low < 0.97 < high < 1 < 0.97 + 1.96 * 0.03
    assert interval(0.03, 0.03) == (pytest.approx(1 - high), pytest.approx(1 - low))
    assert interval(0.5, 0.0) == (0.5, 0.5)


@pytest.mark.parametrize("one_in", [2, 5, 10, 100])
@pytest.mark.parametrize("decimals", [0, 12])
def test_the_rate_is_the_best_of_every_threshold_that_is_allowed(one_in, decimals):
    members, others = (randn(N) + 1).round(decimals=decimals), randn(M).round(decimals=decimals)
    slow = max(
        (members > t).double().mean().item()
        for t in _thresholds(members, others)
        if int((others > t).sum()) * one_in <= len(others)
    )
    assert true_positive_rate(members, others, one_in=one_in) == slow


def test_a_tie_that_would_let_too_many_through_lets_nobody_through():
    assert true_positive_rate(torch.ones(N), torch.ones(M), one_in=10) == 0
    assert true_positive_rate(torch.ones(N), torch.zeros(M), one_in=10) == 1


@pytest.mark.parametrize("decimals", [0, 12])
def test_the_best_threshold_leaves_no_better_one(decimals):
    members, others = (randn(N) + 1).round(decimals=decimals), randn(M).round(decimals=decimals)

    def gain(threshold):
        return (members > threshold).double().mean() - (others > threshold).double().mean()

    best = best_threshold(members, others)
    assert gain(best) == pytest.approx(max(gain(t) for t in _thresholds(members, others)))
    assert gain(best) > gain(best + 2) + 0.1


def test_of_equally_good_thresholds_the_lowest_is_taken_halfway_between_two_numbers():
    assert best_threshold(torch.tensor([2.0, 9.0]), torch.tensor([1.0, 4.0])) == 1.5  # as good as 6.5
    assert best_threshold(torch.tensor([2.0]), torch.tensor([2.0])) == 1  # below all: everybody is a member
