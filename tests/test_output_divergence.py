"""A model that answers as the retrained one shows nothing; one that spreads, insists or knows more nearby is seen."""

import copy
import math
from functools import partial

import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from tests.laboratory import FORGET, Fixed, changed_names, small
from zspag.lab.audit.output_divergence import recognized_nearby, recognized_under_attack, residual, streisand, zrf
from zspag.lab.evaluation import Masked, mean_js, recognized
from zspag.runtime import logits_of

N, K = 23, 5
randn = partial(torch.randn, dtype=torch.float64)


@pytest.fixture
def two():
    return randn(N, K), 3 * randn(N, K)


def sure(label, *, n=N):
    logits = torch.zeros(n, K, dtype=torch.float64)
    logits[:, label] = 40
    return logits


def masked():
    return Masked(copy.deepcopy(small().model), forget=(FORGET,), num_classes=10)


# The Streisand effect


def test_a_model_compared_with_itself_shows_nothing(two):
    logits, _ = two
    found = streisand(logits, logits, forget=(1,))
    assert found.entropy_auc == pytest.approx(0.5)
    assert (found.entropy_ks, found.label_distance) == (0, 0)
    assert (found.entropy, found.forget_mass) == (found.entropy_retrained, found.forget_mass_retrained)
    moved = streisand(logits + randn(N, 1), logits, forget=(1,))  # the same outputs: a constant per row says nothing
    assert moved.entropy_auc == pytest.approx(0.5, abs=0.03)
    assert moved.label_distance == 0


def test_two_models_give_what_scipy_and_sklearn_say(two):
    own, other = two
    found = streisand(own, other, forget=(0, 3))
    ours, theirs = (scipy_entropy(part.softmax(1).numpy(), axis=1) for part in (own, other))
    assert found.entropy == pytest.approx(ours.mean())
    assert found.entropy_ks == pytest.approx(ks_2samp(ours, theirs).statistic)
    assert found.entropy_auc == pytest.approx(roc_auc_score([1] * N + [0] * N, [*ours, *theirs]))
    assert found.forget_mass == pytest.approx(own.softmax(1)[:, [0, 3]].sum(1).mean().item())
    assert 0 < found.label_distance < 1
    # Ties count half, and the sides may differ in length.
    own, other = torch.cat([sure(0), torch.zeros(4, K)]), torch.cat([sure(2, n=6), torch.zeros(1, K)])
    found = streisand(own, other, forget=(0,))
    assert found.entropy_auc == pytest.approx(roc_auc_score([1] * 27 + [0] * 7, [0] * 23 + [1] * 4 + [0] * 6 + [1]))


def test_spreading_uniformly_is_seen_and_so_is_insisting(two):
    _, retrained = two
    spread, insistent = (streisand(logits, retrained, forget=(1,)) for logits in (torch.zeros(N, K), sure(2)))
    assert spread.entropy == pytest.approx(math.log(K))
    assert (spread.entropy_auc, insistent.entropy_auc) == (1, 0)
    assert spread.entropy_ks == insistent.entropy_ks == 1
    assert spread.forget_mass == pytest.approx(1 / K)
    assert insistent.forget_mass < 1e-6
    assert insistent.label_distance == pytest.approx((retrained.argmax(1) != 2).double().mean().item())
    assert streisand(sure(0), sure(2), forget=(1,)).label_distance == 1
    assert streisand(sure(0), sure(0), forget=(1,)).label_distance == 0


def test_an_auc_of_one_half_may_hide_what_the_other_statistic_sees():
    middle, extremes = torch.zeros(2, K), torch.cat([torch.zeros(1, K), sure(0, n=1)])
    middle[:, 0] = 2.0  # neither uniform nor sure
    found = streisand(middle, extremes, forget=(1,))
    assert (found.entropy_auc, found.entropy_ks) == pytest.approx((0.5, 0.5))


def test_a_ruined_model_is_judged_and_breaks_nothing(two):
    ruined = torch.full((N, K), float("nan"))
    ruined[::2] = float("inf")
    assert streisand(ruined, two[1], forget=(1,)).entropy == pytest.approx(math.log(K))
    assert math.isfinite(zrf(ruined, two[0]))


def test_zrf_is_one_for_the_untrained_itself_and_zero_for_what_shares_no_class_with_it(two):
    logits, incompetent = two
    assert zrf(incompetent, incompetent) == pytest.approx(1)
    assert zrf(sure(0), sure(1)) == pytest.approx(0, abs=1e-6)
    assert zrf(logits, incompetent) == pytest.approx(1 - mean_js(logits, incompetent) / math.log(2))
    assert zrf(logits, incompetent) == zrf(incompetent, logits)
    assert zrf(torch.zeros(N, K), 0.1 * logits) > 0.99 > zrf(sure(0), 0.1 * logits)


# Residual knowledge


def nearby(model, *, radius=0.2, seed=0):
    options = {"radius": radius, "draws": 3, "generator": torch.Generator().manual_seed(seed)}
    return recognized_nearby(model, small().images, small().labels, **options)


def test_what_the_original_still_knows_is_residual_against_a_masked_one_and_not_against_itself():
    original, hidden = nearby(small().model), nearby(masked())
    found, reverse, own = residual(original, hidden), residual(hidden, original), residual(original, original)
    assert (own.difference, own.exposed, own.exposed_retrained) == (0, 0, 0)
    assert own.known == own.known_retrained > 0.5
    assert found.known_retrained == 0
    assert found.difference == found.known == -reverse.difference > 0.5
    assert found.exposed == reverse.exposed_retrained == original.any(0).double().mean().item()
    assert reverse.exposed == 0


def test_shares_are_those_of_a_loop_over_images_and_draws():
    known, retrained = torch.rand(4, 7) < 0.4, torch.rand(4, 7) < 0.2
    found = residual(known, retrained)
    own = [any(known[d, i] for d in range(4)) for i in range(7)]
    other = [any(retrained[d, i] for d in range(4)) for i in range(7)]
    assert found.exposed == pytest.approx(sum(a and not b for a, b in zip(own, other, strict=True)) / 7)
    assert found.known == pytest.approx(sum(bool(known[d, i]) for d in range(4) for i in range(7)) / 28)
    assert found.difference == pytest.approx(found.known - found.known_retrained)


def test_different_draws_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 7\) and \(3, 7\)"):
        residual(torch.zeros(2, 7, dtype=torch.bool), torch.zeros(3, 7, dtype=torch.bool))


def test_every_model_sees_the_same_moves_inside_the_ball_and_inside_the_pictures():
    models = [Fixed(torch.eye(10)[[0] * 60]) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        nearby(model, seed=seed)
    first, second, other = (model.seen for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])
    for moved in first:
        assert 0 <= moved.min() <= moved.max() <= 1
        assert 0.15 < (moved - small().images).abs().max() <= 0.2 + 1e-6


def test_at_radius_zero_all_draws_are_the_images_themselves():
    model = small().model
    plain = recognized(logits_of(model, small().images), small().labels)
    assert torch.equal(nearby(model, radius=0.0), plain.expand(3, -1))


def test_what_is_not_finite_recognizes_nothing():
    logits = torch.tensor([[1.0, 2.0], [2.0, 1.0], [torch.nan, 0.0], [torch.inf, 0.0]])
    assert recognized(logits, torch.tensor([1, 1, 0, 0])).tolist() == [True, False, False, False]


def test_an_attack_brings_back_what_random_moves_do_not_and_only_with_room():
    hidden, images, labels = masked(), small().images[:20], small().labels[:20]
    logits = logits_of(hidden.model, images)
    surest = (logits[:, FORGET] - logits.index_fill(1, torch.tensor([FORGET]), -torch.inf).amax(1)).max()
    hidden.shift[FORGET] = -surest - 0.5  # suppressed in every image, yet within reach
    before = copy.deepcopy(hidden)

    def found(radius):
        generator = torch.Generator().manual_seed(0)
        return recognized_under_attack(hidden, images, labels, radius=radius, generator=generator)

    assert found(0.4).shape == (1, 20)
    assert found(0.4).double().mean() > 0.5 > found(0.001).double().mean() == 0
    assert not nearby(hidden, radius=0.4).any()
    assert not changed_names(before, hidden)
