"""Membership inference finds what was memorized, nothing where nothing is, and never peeks at what it judges."""

import math

import pytest
import torch
from torch import nn

from zspag.lab.audit.membership_inference import area, best_threshold, membership_inference, scores, true_positive_rate
from zspag.lab.evaluation import masked

K, FOLDS = 5, 3
SCORES = {"loss", "confidence", "entropy", "modified_entropy", "regression"}
N, M = 23, 17


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def inferred(members, others, *, label=1, folds=FOLDS, seed=0):
    return membership_inference(
        members, others, label=label, folds=folds, generator=torch.Generator().manual_seed(seed)
    )


def certain(count, *, nats, label=1):
    """Logits that name the label, more or less surely."""
    return nats * nn.functional.one_hot(torch.full((count,), label), K) + 0.1 * randn(count, K)


# ROC curves


def _slow_area(members, others):
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
    assert (auc, tied) == pytest.approx(_slow_area(members, others))
    assert (tied > 0.1) == (decimals == 0)
    assert area(others, members)[0] == pytest.approx(1 - auc)


def test_only_the_order_counts_one_number_for_all_is_worth_one_half_and_two_apart_are_worth_one():
    members, others = randn(N) + 0.5, randn(M)
    assert area(members.exp(), others.exp()) == area(members, others)
    assert area(members.square(), others.square()) != area(members, others)
    assert area(torch.full((N,), 2.0), torch.full((M,), 2.0)) == (0.5, 0, 1)
    assert area(randn(N).abs() + 1, -randn(M).abs()) == (1, 0, 0)


@pytest.mark.parametrize(("shift", "decimals"), [(0.0, 9), (1.0, 9), (0.7, 0)])
def test_the_standard_error_is_the_deviation_of_repeated_draws(shift, decimals):
    drawn = [area((randn(N) + shift).round(decimals=decimals), randn(M).round(decimals=decimals)) for _ in range(400)]
    aucs, errors, _ = torch.tensor(drawn, dtype=torch.float64).unbind(1)
    assert errors.square().mean().sqrt().item() == pytest.approx(aucs.std().item(), rel=0.12)  # 400 draws: 4 % each


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
    assert true_positive_rate(torch.ones(N), torch.ones(M), one_in=one_in) == 0  # a tie lets nobody through


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


# Scores


def _slow_scores(p, label):
    """Confidences and entropies of one sample by their formulas, one class after another."""
    modified = -(1 - p[label]) * math.log(p[label])
    modified -= sum(p[k] * math.log(1 - p[k]) for k in range(len(p)) if k != label)
    entropy = -sum(x * math.log(x) for x in p)
    return {"loss": p[label], "confidence": max(p), "entropy": entropy, "modified_entropy": modified}


def test_scores_are_the_formulas_of_a_plain_loop():
    logits, labels = 3 * randn(40, K), torch.randint(K, (40,))
    slow = [_slow_scores(p, y) for p, y in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True)]
    found = scores(logits, labels)
    plain = {name: found[name].sigmoid() for name in ("loss", "confidence")}
    plain |= {name: (-found[name]).exp() for name in ("entropy", "modified_entropy")}
    assert plain.keys() == found.keys() == slow[0].keys()
    for name, values in plain.items():
        expected = torch.tensor([sample[name] for sample in slow], dtype=torch.float64)
        torch.testing.assert_close(values, expected, rtol=1e-7, atol=0)
    assert not torch.equal(found["loss"], found["confidence"])


def test_a_score_does_not_depend_on_the_batch_or_on_what_is_added_to_all_logits():
    logits, labels = 3 * randn(40, K), torch.randint(K, (40,))
    order = torch.randperm(40)[:13]
    for name, score in scores(logits, labels).items():
        alone = torch.cat([scores(z[None], y[None])[name] for z, y in zip(logits, labels, strict=True)])
        assert torch.equal(alone, score)
        assert torch.equal(scores(logits[order], labels[order])[name], score[order])
        torch.testing.assert_close(scores(logits.log_softmax(1), labels)[name], score)
        assert not torch.equal(scores(logits + randn(40, K), labels)[name], score)


def test_very_sure_answers_are_told_apart_where_probabilities_are_not():
    logits, labels = torch.zeros(2, K, dtype=torch.float64), torch.tensor([2, 2])
    logits[:, 2] = torch.tensor([50.0, 60.0])
    assert logits.softmax(1)[:, 2].tolist() == [1, 1]
    assert all(score[0] < score[1] for score in scores(logits, labels).values())
    far = scores(torch.tensor([[0.0, 5000.0]]), torch.tensor([0]))
    assert all(torch.isfinite(score).all() for score in far.values())


# What is found


def test_perfect_separation_is_found_in_either_direction_and_a_constant_score_finds_nothing():
    same, sure, unsure = torch.ones(N, K), certain(N, nats=9), certain(N, nats=2)
    for found in inferred(same, same).values():
        assert (found.auc, found.auc_error, found.accuracy, found.tpr_at_10, found.tied) == (0.5, 0, 0.5, 0, 1)
    for found in inferred(sure, unsure).values():
        assert (found.auc, found.auc_error, found.accuracy, found.tpr_at_10, found.tied) == (1, 0, 1, 1, 0)
    reverse = inferred(unsure, sure)
    assert {reverse[name].auc for name in SCORES - {"regression"}} == {0}
    assert reverse["regression"].auc == 1


def test_identical_distributions_give_one_half_within_the_error():
    runs = 40
    drawn = [inferred(3 * randn(12, K), 3 * randn(12, K), seed=seed) for seed in range(runs)]
    for name in SCORES:
        found = [one[name] for one in drawn]
        for figure in ("auc", "accuracy"):
            values = torch.tensor([getattr(one, figure) for one in found])
            assert abs(values.mean() - 0.5) < 3 * values.std() / math.sqrt(runs), (name, figure)
        assert sum(abs(one.auc - 0.5) <= 2 * one.auc_error for one in found) >= 0.85 * runs, name


def test_a_threshold_that_was_chosen_by_peeking_would_find_something_in_nothing():
    peeked = []
    for _ in range(40):
        members, others = randn(12), randn(12)
        best = best_threshold(members, others)
        peeked.append(((members > best).double().mean() + (others <= best).double().mean()).item() / 2)
    assert sum(peeked) / 40 > 0.6


def test_what_the_masked_original_gives_no_probability_is_named_as_tied():
    logits, other = certain(N, nats=30), certain(N, nats=40)
    before = inferred(logits, other)
    after = inferred(masked(logits, forget=(1,)), masked(other, forget=(1,)))
    assert (before["loss"].tied, before["loss"].auc) == (0, 0)
    assert (after["loss"].tied, after["loss"].auc) == (1, 0.5)
    assert after["entropy"].tied == 0  # the other classes still say something


@pytest.mark.parametrize(("count", "rate"), [(1000, 1), (999, None)])
def test_the_rate_at_one_percent_needs_a_thousand_non_members(count, rate):
    assert inferred(certain(1000, nats=9), certain(count, nats=2))["loss"].tpr_at_1 == rate


def test_of_the_larger_side_a_draw_is_judged_and_all_of_the_smaller():
    few, many = certain(7, nats=3), torch.cat([certain(30, nats=1), certain(30, nats=5)])
    areas = {inferred(few, many, seed=seed)["loss"].auc for seed in range(6)}
    assert len(areas) > 2
    assert inferred(few, many)["loss"].count == inferred(many, few)["loss"].count == 7
    assert {inferred(few, few + 1, seed=seed)["loss"].auc for seed in range(3)} == {inferred(few, few + 1)["loss"].auc}


def test_the_same_generator_gives_the_same_answer_and_the_arguments_are_left_alone():
    members, others = 3 * randn(40, K), 3 * randn(40, K)
    before = members.clone(), others.clone()
    assert inferred(members, others) == inferred(members, others)
    assert inferred(members, others)["regression"] != inferred(members, others, seed=1)["regression"]
    assert torch.equal(before[0], members)
    assert torch.equal(before[1], others)


def test_a_net_that_memorized_random_labels_is_caught_and_a_fresh_one_is_not():
    images, labels = torch.randn(160, 12), torch.randint(2, (160,))
    (seen,) = (labels[:80] == 1).nonzero(as_tuple=True)
    (unseen,) = (labels[80:] == 1).nonzero(as_tuple=True)

    def found(net):
        with torch.no_grad():
            return inferred(net(images[seen]), net(images[80 + unseen]))

    net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 2))
    fresh = found(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[:80]), labels[:80]).backward()
        optimizer.step()
    overfit = found(net)
    for name in SCORES:
        assert abs(fresh[name].auc - 0.5) < 3 * fresh[name].auc_error, name
        assert overfit[name].auc - 2 * overfit[name].auc_error > 0.5, name
    assert overfit["loss"].accuracy > 0.7 > fresh["loss"].accuracy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_without_a_rank_are_refused(value):
    logits = randn(40, K)
    logits[[3, 7], 2] = value
    with pytest.raises(ValueError, match=r"2 of 40 samples are not finite.*evaluation\.masked"):
        inferred(randn(40, K), logits)


@pytest.mark.parametrize(
    ("shape", "folds", "message"),
    [
        ((17, K), 9, "9 folds of 17"),
        ((17, K), 1, "1 folds of 17"),
        ((0, K), 2, "2 folds of 0"),
        ((17, 1), 3, r"\(17, 1\)"),
        ((17,), 3, r"\(17,\)"),
    ],
)
def test_too_few_samples_or_folds_and_odd_shapes_are_refused(shape, folds, message):
    with pytest.raises(ValueError, match=f"got {message}"):
        inferred(randn(40, K), randn(*shape), folds=folds)
