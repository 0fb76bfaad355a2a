"""A model has no residual knowledge beside itself; one that knows what another has lost shows it, at every distance."""

import pytest
import torch

from tests.laboratory import FORGET, Fixed, changed_names, small
from zspag.lab.audit.residual import recognized, recognized_nearby, recognized_under_attack, residual
from zspag.lab.evaluation import Masked
from zspag.runtime import logits_of


def test_recognized_is_what_has_its_label_as_argmax_and_nothing_that_is_not_finite():
    logits = torch.tensor([[1.0, 2.0], [2.0, 1.0], [torch.nan, 0.0], [torch.inf, 0.0]])
    assert recognized(logits, torch.tensor([1, 1, 0, 0])).tolist() == [True, False, False, False]


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
    images, labels = made.images[:20], made.labels[:20]
    logits = logits_of(made.model, images)
    surest = (logits[:, FORGET] - logits.index_fill(1, torch.tensor([FORGET]), -torch.inf).amax(1)).max()
    masked.shift[FORGET] = -surest - 0.5  # suppressed in every image, yet within reach
    before = {name: tensor.clone() for name, tensor in masked.state_dict().items()}

    def found(radius):
        return recognized_under_attack(
            masked, images, labels, radius=radius, generator=torch.Generator().manual_seed(0)
        )

    assert found(0.4).shape == (1, 20)
    assert found(0.4).double().mean() > 0.5 > found(0.001).double().mean() == 0
    assert not nearby(masked, radius=0.4).any()
    assert all(torch.equal(before[name], tensor) for name, tensor in masked.state_dict().items())
    assert not changed_names(made.model, masked.model)
