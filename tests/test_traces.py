"""A model that answers as the retrained one leaves no trace; one that spreads, insists or recognizes leaves its own."""

import math
from functools import partial

import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from tests.laboratory import FORGET, Fixed, changed_names, small
from zspag.evaluation import Masked, mean_js
from zspag.runtime import logits_of
from zspag.traces import (
    entropies,
    label_shares,
    recognized,
    recognized_nearby,
    recognized_under_attack,
    residual,
    streisand,
    zrf,
)

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
    assert not recognized(ruined, torch.zeros(N, dtype=torch.long)).any()


def test_zrf_is_one_for_the_untrained_itself_and_zero_for_what_shares_no_class_with_it():
    logits, incompetent = two()
    assert zrf(incompetent, incompetent) == pytest.approx(1)
    assert zrf(sure(0), sure(1)) == pytest.approx(0, abs=1e-6)
    assert zrf(logits, incompetent) == pytest.approx(1 - mean_js(logits, incompetent) / math.log(2))
    assert zrf(logits, incompetent) == zrf(incompetent, logits)
    assert zrf(torch.zeros(N, K), 0.1 * logits) > 0.99 > zrf(sure(0), 0.1 * logits)


def nearby(model, *, radius=0.2, draws=3, seed=0, images=None):
    made = small()
    images = made.images if images is None else images
    return recognized_nearby(
        model, images, made.labels, radius=radius, draws=draws, generator=torch.Generator().manual_seed(seed)
    )


def test_a_model_has_no_residual_knowledge_of_its_own():
    known = nearby(small().model)
    found = residual(known, known)
    assert (found.difference, found.exposed, found.exposed_retrained) == (0, 0, 0)
    assert found.known == found.known_retrained > 0.5


def test_what_the_original_still_knows_is_residual_against_a_masked_one_and_not_the_other_way_round():
    original = nearby(small().model)
    masked = nearby(Masked(small().model, forget=(FORGET,), num_classes=10))
    found, reverse = residual(original, masked), residual(masked, original)
    assert found.known_retrained == 0
    assert found.difference == found.known == -reverse.difference > 0.5
    assert found.exposed == reverse.exposed_retrained == original.any(0).double().mean().item()
    assert reverse.exposed == 0


def test_shares_are_those_of_a_loop_over_images_and_draws():
    torch.manual_seed(0)
    known, retrained = torch.rand(4, 7) < 0.4, torch.rand(4, 7) < 0.2
    found = residual(known, retrained)
    own = [any(known[d, i] for d in range(4)) for i in range(7)]
    other = [any(retrained[d, i] for d in range(4)) for i in range(7)]
    assert found.exposed == pytest.approx(sum(a and not b for a, b in zip(own, other, strict=True)) / 7)
    assert found.known == pytest.approx(sum(bool(known[d, i]) for d in range(4) for i in range(7)) / 28)
    assert found.difference == pytest.approx(found.known - found.known_retrained)


def test_different_draws_are_refused():
    with pytest.raises(ValueError, match=r"same draws, got shapes \(2, 7\) and \(3, 7\)"):
        residual(torch.zeros(2, 7, dtype=torch.bool), torch.zeros(3, 7, dtype=torch.bool))


def test_every_model_sees_the_same_moves_inside_the_ball_and_inside_the_pictures():
    made, models = small(), [Fixed(torch.eye(10)[[0] * 60]) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        nearby(model, seed=seed)
    first, second, other = ([part for part in model.seen] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])
    for moved in first:
        assert 0 <= moved.min() <= moved.max() <= 1
        assert 0.15 < (moved - made.images).abs().max() <= 0.2 + 1e-6


def test_at_radius_zero_all_draws_are_the_images_themselves():
    model = small().model
    plain = recognized(logits_of(model, small().images), small().labels)
    assert torch.equal(nearby(model, radius=0.0), plain.expand(3, -1))


def test_an_attack_brings_back_what_random_moves_do_not_and_only_with_room():
    made = small()
    masked = Masked(made.model, forget=(FORGET,), num_classes=10)
    masked.shift[FORGET] = -12.0  # suppressed, yet within reach
    before = {name: tensor.clone() for name, tensor in masked.state_dict().items()}
    images, labels = made.images[:20], made.labels[:20]

    def found(radius):
        return recognized_under_attack(
            masked, images, labels, radius=radius, generator=torch.Generator().manual_seed(0)
        )

    assert found(0.4).shape == (1, 20)
    assert found(0.4).double().mean() > 0.5 > found(0.001).double().mean() == 0
    assert not nearby(masked, radius=0.4).any()
    assert all(torch.equal(before[name], tensor) for name, tensor in masked.state_dict().items())
    assert not changed_names(made.model, masked.model)
