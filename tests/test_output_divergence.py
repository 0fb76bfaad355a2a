"""A model that answers as the retrained one leaves no trace; one that spreads or insists leaves its own."""

import math
from functools import partial

import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from tests.laboratory import FORGET, small
from zspag.lab.audit.output_divergence import entropies, label_shares, streisand, zrf
from zspag.lab.evaluation import Masked, mean_js
from zspag.runtime import logits_of

N, K = 23, 5
randn = partial(torch.randn, dtype=torch.float64)


def two():
    torch.manual_seed(0)
    return randn(N, K), 3 * randn(N, K)


def sure(label, *, n=N):
    logits = torch.zeros(n, K, dtype=torch.float64)
    logits[:, label] = 40
    return logits


def test_a_model_compared_with_itself_leaves_no_trace():
    logits, _ = two()
    found = streisand(logits, logits, forget=(1,))
    assert found.entropy_auc == pytest.approx(0.5)
    assert (found.entropy_ks, found.label_distance) == (0, 0)
    assert (found.entropy, found.forget_mass) == (found.entropy_retrained, found.forget_mass_retrained)
    moved = streisand(logits + randn(N, 1), logits, forget=(1,))  # the same outputs: a constant per row says nothing
    assert moved.entropy_auc == pytest.approx(0.5, abs=0.03)
    assert moved.label_distance == 0


def test_two_models_give_what_scipy_and_sklearn_say():
    own, other = two()
    found = streisand(own, other, forget=(0, 3))
    ours, theirs = (scipy_entropy(part.softmax(1).numpy(), axis=1) for part in (own, other))
    assert entropies(own).numpy() == pytest.approx(ours)
    assert found.entropy == pytest.approx(ours.mean())
    assert found.entropy_ks == pytest.approx(ks_2samp(ours, theirs).statistic)
    assert found.entropy_auc == pytest.approx(roc_auc_score([1] * N + [0] * N, [*ours, *theirs]))
    assert found.forget_mass == pytest.approx(own.softmax(1)[:, [0, 3]].sum(1).mean().item())
    assert 0 < found.label_distance < 1


def test_ties_count_half_and_the_sides_may_differ_in_length():
    own, other = torch.cat([sure(0), torch.zeros(4, K)]), torch.cat([sure(2, n=6), torch.zeros(1, K)])
    found = streisand(own, other, forget=(0,))
    assert found.entropy_auc == pytest.approx(roc_auc_score([1] * 27 + [0] * 7, [0] * 23 + [1] * 4 + [0] * 6 + [1]))


def test_spreading_uniformly_is_seen_and_so_is_insisting():
    _, retrained = two()
    spread, insistent = (streisand(logits, retrained, forget=(1,)) for logits in (torch.zeros(N, K), sure(2)))
    assert spread.entropy == pytest.approx(math.log(K))
    assert (spread.entropy_auc, insistent.entropy_auc) == (1, 0)
    assert spread.entropy_ks == insistent.entropy_ks == 1
    assert insistent.label_distance == pytest.approx(1 - label_shares(retrained)[2].item())


def test_labels_that_share_no_class_are_at_distance_one():
    assert streisand(sure(0), sure(2), forget=(1,)).label_distance == 1
    assert streisand(sure(0), sure(0), forget=(1,)).label_distance == 0


def test_an_auc_of_one_half_may_hide_what_the_other_statistic_sees():
    middle, extremes = torch.zeros(2, K), torch.cat([torch.zeros(1, K), sure(0, n=1)])
    middle[:, 0] = 2.0  # neither uniform nor sure
    found = streisand(middle, extremes, forget=(1,))
    assert (found.entropy_auc, found.entropy_ks) == pytest.approx((0.5, 0.5))


def test_a_masked_net_that_spreads_is_told_from_one_that_is_retrained_like():
    made = small()
    masked = Masked(made.model, forget=(FORGET,), num_classes=10)
    logits = logits_of(masked, made.images)
    hidden = streisand(0 * logits, logits, forget=(FORGET,))
    assert hidden.entropy_auc == 1
    assert hidden.forget_mass == pytest.approx(0.1)
    assert hidden.forget_mass_retrained < 1e-6


def test_a_ruined_model_is_judged_and_breaks_nothing():
    ruined = torch.full((N, K), float("nan"))
    ruined[::2] = float("inf")
    found = streisand(ruined, two()[1], forget=(1,))
    assert found.entropy == pytest.approx(math.log(K))
    assert math.isfinite(zrf(ruined, two()[0]))


def test_zrf_is_one_for_the_untrained_itself_and_zero_for_what_shares_no_class_with_it():
    logits, incompetent = two()
    assert zrf(incompetent, incompetent) == pytest.approx(1)
    assert zrf(sure(0), sure(1)) == pytest.approx(0, abs=1e-6)
    assert zrf(logits, incompetent) == pytest.approx(1 - mean_js(logits, incompetent) / math.log(2))
    assert zrf(logits, incompetent) == zrf(incompetent, logits)
    assert zrf(torch.zeros(N, K), 0.1 * logits) > 0.99 > zrf(sure(0), 0.1 * logits)
