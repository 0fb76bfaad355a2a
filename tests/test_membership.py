"""Membership inference finds what was memorized, nothing where nothing is, and never peeks at what it judges."""

import math

import pytest
import torch
from torch import nn

from zspag.lab.audit.membership import attack, balanced, scores
from zspag.lab.audit.roc import area, best_threshold
from zspag.lab.evaluation import masked

K, FOLDS = 5, 3
ATTACKS = {"loss", "confidence", "entropy", "modified_entropy", "regression"}
LABELS = torch.tensor([1] * 17 + [4] * 23)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def attacked(members, others, labels=LABELS, *, folds=FOLDS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return attack(members, labels, others, labels, folds=folds, generator=generator)


def certain(labels, *, nats):
    """Logits that name the label, more or less surely."""
    return nats * nn.functional.one_hot(labels, K) + 0.1 * randn(len(labels), K)


# Scores


def _slow_scores(p, label):
    """Confidences and entropies of one sample by their formulas, one class after another."""
    modified = -(1 - p[label]) * math.log(p[label])
    for k in range(len(p)):
        if k != label:
            modified -= p[k] * math.log(1 - p[k])
    return {
        "loss": p[label],
        "confidence": max(p),
        "entropy": -sum(x * math.log(x) for x in p),
        "modified_entropy": modified,
    }


def test_scores_are_the_formulas_of_a_plain_loop():
    logits, labels = 3 * randn(40, K), torch.randint(K, (40,))
    slow = [_slow_scores(p, y) for p, y in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True)]
    found = scores(logits, labels)
    plain = {name: found[name].sigmoid() for name in ("loss", "confidence")}
    plain |= {name: (-found[name]).exp() for name in ("entropy", "modified_entropy")}
    assert plain.keys() == found.keys() == slow[0].keys()
    for name, values in plain.items():
        torch.testing.assert_close(
            values, torch.tensor([s[name] for s in slow], dtype=torch.float64), rtol=1e-7, atol=0
        )
    assert not torch.equal(found["loss"], found["confidence"])


def test_a_score_does_not_depend_on_the_batch():
    logits, labels = 3 * randn(40, K), torch.randint(K, (40,))
    whole = scores(logits, labels)
    order = torch.randperm(40)[:13]
    for name, score in whole.items():
        alone = torch.cat([scores(z[None], y[None])[name] for z, y in zip(logits, labels, strict=True)])
        assert torch.equal(alone, score)
        assert torch.equal(scores(logits[order], labels[order])[name], score[order])
        assert not torch.equal(scores(logits + randn(40, K), labels)[name], score)


def test_scores_do_not_depend_on_what_is_added_to_all_logits_or_on_their_kind():
    logits, labels = (3 * randn(40, K)).float(), torch.randint(K, (40,))
    for name, score in scores(logits, labels).items():
        torch.testing.assert_close(scores(logits.double().log_softmax(1), labels)[name], score)


def test_very_sure_answers_are_told_apart_where_probabilities_are_not():
    logits, labels = torch.zeros(2, K, dtype=torch.float64), torch.tensor([2, 2])
    logits[:, 2] = torch.tensor([50.0, 60.0])
    assert logits.softmax(1)[:, 2].tolist() == [1, 1]
    assert all(score[0] < score[1] for score in scores(logits, labels).values())
    far = scores(torch.tensor([[0.0, 5000.0]]), torch.tensor([0]))
    assert all(torch.isfinite(score).all() for score in far.values())


# What an attack finds


def test_a_constant_attacker_has_no_more_than_one_half():
    same = torch.ones(len(LABELS), K)
    for found in attacked(same, same).values():
        assert (found.auc, found.auc_error, found.accuracy, found.tpr_at_10, found.tied) == (0.5, 0, 0.5, 0, 1)


def test_perfect_separation_is_found():
    for found in attacked(certain(LABELS, nats=9), certain(LABELS, nats=2)).values():
        assert (found.auc, found.accuracy, found.tpr_at_10, found.tied) == (1, 1, 1, 0)
        assert found.interval == (1, 1)


def test_members_that_score_below_the_others_are_seen_in_an_auc_of_nought_and_by_the_regression():
    found = attacked(certain(LABELS, nats=2), certain(LABELS, nats=9))
    assert {found[name].auc for name in ATTACKS - {"regression"}} == {0}
    assert found["regression"].auc == 1


def test_identical_distributions_give_one_half_and_the_interval_holds_it():
    labels, runs = torch.zeros(12, dtype=torch.long), 40
    drawn = [attacked(3 * randn(12, K), 3 * randn(12, K), labels, seed=seed) for seed in range(runs)]
    for name in ATTACKS:
        found = [one[name] for one in drawn]
        for figure in ("auc", "accuracy"):
            values = torch.tensor([getattr(one, figure) for one in found])
            assert abs(values.mean() - 0.5) < 3 * values.std() / math.sqrt(runs), (name, figure)
        assert sum(one.interval[0] <= 0.5 <= one.interval[1] for one in found) >= 0.85 * runs, name


def test_a_threshold_that_was_chosen_by_peeking_would_find_something_in_nothing():
    peeked = []
    for _ in range(40):
        members, others = randn(12), randn(12)
        best = best_threshold(members, others)
        peeked.append(((members > best).double().mean() + (others <= best).double().mean()).item() / 2)
    assert sum(peeked) / 40 > 0.6


def test_classes_are_attacked_apart_and_averaged():
    members = torch.cat([certain(LABELS[:17], nats=8), certain(LABELS[17:], nats=1)])
    others = torch.cat([certain(LABELS[:17], nats=8.5), certain(LABELS[17:], nats=0.8)])
    both, apart = attacked(members, others)["loss"], []
    for label in (1, 4):
        own = label == LABELS
        apart.append(attacked(members[own], others[own], LABELS[own])["loss"])
    assert apart[0].auc < 0.1 < 0.9 < apart[1].auc
    assert both.auc == pytest.approx((apart[0].auc + apart[1].auc) / 2)
    assert both.auc_error == pytest.approx(math.hypot(apart[0].auc_error, apart[1].auc_error) / 2)
    assert both.count == apart[0].count + apart[1].count == len(LABELS)
    pooled = area(scores(members, LABELS)["loss"], scores(others, LABELS)["loss"])[0]
    assert abs(pooled - both.auc) > 0.01


def test_what_the_masked_original_gives_no_probability_is_named_as_tied():
    logits, labels = certain(LABELS[:17], nats=30), LABELS[:17]
    other = certain(labels, nats=40)
    before = attacked(logits, other, labels)
    after = attacked(masked(logits, forget=(1,)), masked(other, forget=(1,)), labels)
    assert (before["loss"].tied, before["loss"].auc) == (0, 0)
    assert (after["loss"].tied, after["loss"].auc) == (1, 0.5)
    assert after["entropy"].tied == 0  # the other classes still say something


def test_the_rate_at_one_percent_needs_a_thousand_non_members_in_every_class():
    labels = torch.tensor([1] * 1000 + [4] * 1000)
    logits, other = certain(labels, nats=9), certain(labels, nats=2)
    keep = torch.arange(1999)
    assert attacked(logits, other, labels)["loss"].tpr_at_1 == 1
    assert attacked(logits[keep], other[keep], labels[keep])["loss"].tpr_at_1 is None


def test_the_same_generator_gives_the_same_answer_and_the_arguments_are_left_alone():
    members, others = 3 * randn(40, K), 3 * randn(40, K)
    before = members.clone(), others.clone()
    assert attacked(members, others) == attacked(members, others)
    assert attacked(members, others)["regression"] != attacked(members, others, seed=1)["regression"]
    assert attacked(members, others)["loss"].auc == attacked(members, others, seed=1)["loss"].auc
    assert torch.equal(before[0], members)
    assert torch.equal(before[1], others)


# A net that has memorized its samples


def test_a_net_that_memorized_random_labels_is_caught_and_a_fresh_one_is_not():
    images, labels = torch.randn(80, 12), torch.randint(2, (80,))
    seen, unseen = balanced(labels[:40], labels[40:], generator=torch.Generator().manual_seed(0))

    def found(net):
        with torch.no_grad():
            logits = net(images)
        return attack(
            logits[:40][seen], labels[:40][seen], logits[40:][unseen], labels[40:][unseen],
            folds=FOLDS, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 2))
    fresh = found(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[:40]), labels[:40]).backward()
        optimizer.step()
    overfit = found(net)
    for name in ATTACKS:
        assert abs(fresh[name].auc - 0.5) < 3 * fresh[name].auc_error, name
        assert overfit[name].interval[0] > 0.5, name
    assert overfit["loss"].accuracy > 0.7 > fresh["loss"].accuracy


# Balance and refusals


def test_balanced_takes_all_of_the_smaller_side_and_a_draw_of_the_larger():
    members, others = torch.tensor([4, 1, 1, 4, 1, 1, 1]), torch.tensor([1, 4, 4, 1, 4])
    generator = torch.Generator().manual_seed(0)
    draws = [balanced(members, others, generator=generator) for _ in range(20)]
    for first, second in draws:
        assert members[first].sort().values.tolist() == others[second].sort().values.tolist() == [1, 1, 4, 4]
        assert {0, 3} < set(first.tolist())
        assert {0, 3} < set(second.tolist())
        assert first.tolist() == sorted(set(first.tolist()))
    assert {tuple(first.tolist()) for first, _ in draws} > {(0, 1, 2, 3)}


def test_an_unbalanced_class_is_refused():
    logits = randn(40, K)
    other = torch.tensor([1] * 18 + [4] * 22)  # as many in all
    with pytest.raises(ValueError, match=r"class 1 has 17 members and 18 non-members; cut them with balanced\(\)"):
        attack(logits, LABELS, logits, other, folds=FOLDS, generator=torch.Generator())


@pytest.mark.parametrize("other", [[1] * 40, [1] * 20 + [4] * 19 + [0]])
def test_a_class_that_only_one_side_has_is_refused(other):
    with pytest.raises(ValueError, match=r"must be of the same classes, got \[1, 4\] and \[.*\]"):
        balanced(LABELS, torch.tensor(other), generator=torch.Generator())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_without_a_rank_are_refused(value):
    logits = randn(40, K)
    logits[[3, 7], 2] = value
    with pytest.raises(ValueError, match="the logits of 2 of 40 samples are not finite.*evaluation.masked"):
        attacked(randn(40, K), logits)


def test_too_few_samples_or_folds_and_odd_shapes_are_refused():
    logits = randn(40, K)
    with pytest.raises(ValueError, match="class 1 has 17 members, of which 9 folds need at least 18"):
        attacked(logits, logits, folds=9)
    with pytest.raises(ValueError, match="folds must be at least 2.*got 1"):
        attacked(logits, logits, folds=1)
    with pytest.raises(ValueError, match=r"must be of the same classes, got \[\] and \[\]"):
        attacked(logits[:0], logits[:0], LABELS[:0])
    for broken in (logits[:39], logits[:, :1], logits[:, 0]):
        with pytest.raises(ValueError, match=r"need logits \(n, K > 1\) and labels \(n,\), got "):
            attacked(logits, broken)
