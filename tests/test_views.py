"""Views come after the images, keep their class and their source, and only kinds that the model recognizes are made."""

import math

import pytest
import torch
from torch import nn

from zspag import views
from zspag.views import NOISE, SHIFT, make_views, mirrored, noisy, recognized_changes, shifted, sometimes_mirrored

SHAPE = (2, 6, 5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=7, *, shape=SHAPE, seed=3):
    return torch.rand(count, *shape, generator=generator(seed), dtype=torch.float64)


class Asks(nn.Module):
    """Answers 1 where a question about the images is answered with yes, else 0."""

    def __init__(self, question):
        super().__init__()
        self.question = question

    def forward(self, x):
        yes = self.question(x).double()
        return torch.stack([1 - yes, yes], 1)


def always(x):
    return torch.ones(len(x), dtype=torch.bool)


def leans_left(x):
    """What no mirror keeps, and every small shift and noise does."""
    return x[..., :2].mean((1, 2, 3)) > x[..., -2:].mean((1, 2, 3))


def left_bright(count=9):
    """Images whose left half is bright: shifted and noisy they still are, mirrored they are not."""
    found = 0.2 * images(count, shape=(1, 8, 8))
    found[..., :4] += 0.7
    return found


# ---- Which there are


def test_the_images_come_first_bit_for_bit_and_are_left_as_they_were():
    x = images()
    before = x.clone()
    made = make_views(Asks(always), x, least=30, generator=generator())
    assert torch.equal(x, before)
    assert torch.equal(made.images[:7], x)
    assert made.sources[:7].tolist() == list(range(7))
    assert len(made.images) == len(made.sources) == 7 * math.ceil(30 / 7)
    assert made.sources.bincount().tolist() == [math.ceil(30 / 7)] * 7
    assert made.kinds == ("shift", "mirror", "noise")
    assert made.images.dtype == x.dtype
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert len(made.images.flatten(1).unique(dim=0)) == len(made.images)  # views differ from each other
    flat = torch.linspace(0.1, 0.9, 5, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, *SHAPE)
    grey = make_views(Asks(always), flat, least=50, generator=generator())
    nearest = (grey.images.mean((1, 2, 3))[:, None] - flat.mean((1, 2, 3))).abs().argmin(1)
    assert torch.equal(nearest, grey.sources)  # every view comes from its source
    single = make_views(Asks(always), images(1), least=20, generator=generator())
    assert single.sources.tolist() == [0] * 20


@pytest.mark.parametrize("least", [1, 6, 7])
def test_with_enough_images_there_are_no_views(least):
    x = images()
    made = make_views(Asks(always), x, least=least, generator=generator())
    assert torch.equal(made.images, x)
    assert made.kinds == ()
    assert len(make_views(Asks(always), x, least=8, generator=generator()).images) == 14


def test_a_kind_of_view_that_the_model_does_not_recognize_is_not_used():
    x, model = left_bright(), Asks(leans_left)
    made = make_views(model, x, least=60, generator=generator())
    assert made.kinds == ("shift", "noise")
    wrong = Asks(lambda found: ~leans_left(found))  # what counts is the model's own answer, right or wrong
    assert make_views(wrong, x, least=60, generator=generator()).kinds == made.kinds
    assert leans_left(made.images).all()
    assert not leans_left(mirrored(x, generator())).any()  # with mirrors, half of the views would be of another class
    indifferent = make_views(Asks(always), x, least=60, generator=generator())
    assert indifferent.kinds == ("shift", "mirror", "noise")
    assert not leans_left(indifferent.images).all()


def test_the_changes_that_a_model_recognizes_are_those_that_its_views_are_made_with():
    x = left_bright()
    for question, kinds in ((always, ["shift", "mirror", "noise"]), (leans_left, ["shift", "noise"])):
        found = recognized_changes(Asks(question), x, generator=generator())
        assert list(found) == kinds
        assert make_views(Asks(question), x, least=60, generator=generator()).kinds == tuple(found)
        assert found["noise"] is noisy
        assert found["shift"] is shifted
    assert recognized_changes(Asks(always), x, generator=generator())["mirror"] is sometimes_mirrored
    before = x.clone()
    exactly = Asks(lambda shown: torch.tensor([any(torch.equal(one, known) for known in x) for one in shown]))
    assert recognized_changes(exactly, x, generator=generator()) == {}
    assert torch.equal(x, before)


def test_a_single_view_that_gets_another_answer_is_left_out(monkeypatch):
    x = left_bright(20)
    x[13, :, :, :2] = x[13, :, :, -2:] + 1e-3  # this one is told by a hair, which noise covers
    model = Asks(leans_left)
    assert leans_left(x).all()
    made = make_views(model, x, least=400, generator=generator())
    assert "noise" in made.kinds
    assert leans_left(made.images).all()
    assert 1 <= made.sources.bincount()[13] < 20
    assert made.sources.bincount()[[i for i in range(20) if i != 13]].tolist() == [20] * 19
    monkeypatch.setattr(views, "LOST", 0.0)
    assert "noise" not in make_views(model, x, least=400, generator=generator()).kinds


def test_where_no_kind_is_recognized_the_images_stay_alone():
    x = images()
    exactly = Asks(lambda found: torch.tensor([any(torch.equal(one, known) for known in x) for one in found]))
    alone = make_views(exactly, x, least=100, generator=generator())
    assert alone.kinds == ()
    assert torch.equal(alone.images, x)
    assert alone.sources.tolist() == list(range(7))


def test_the_same_generator_makes_the_same_views_and_another_one_others():
    first, again, other = (
        make_views(Asks(always), images(), least=40, generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.sources, again.sources)
    assert not torch.equal(first.images, other.images)


# ---- The changes themselves


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 6, 5), (3, 40, 70)])
def test_a_shift_moves_pixels_by_little_and_repeats_the_border(shape):
    x, most = images(40, shape=shape), max(1, min(shape[1:]) // SHIFT)
    moved = shifted(x, generator())
    seen = set()
    for image, found in zip(x, moved, strict=True):
        candidates = {
            (down, right): image[:, torch.arange(shape[1]).add(down).clamp(0, shape[1] - 1)][
                :, :, torch.arange(shape[2]).add(right).clamp(0, shape[2] - 1)
            ]
            for down in range(-most, most + 1)
            for right in range(-most, most + 1)
        }
        fits = [step for step, candidate in candidates.items() if torch.equal(candidate, found)]
        assert fits
        seen.update(fits if len(fits) == 1 else [])
    assert shape == (1, 1, 1) or len(seen) > 5  # each image goes its own way
    assert shape == (1, 1, 1) or max(max(map(abs, step)) for step in seen) == most


def test_half_of_the_images_are_mirrored_and_the_others_stay():
    x = images(200)
    found = sometimes_mirrored(x, generator())
    stayed = torch.tensor([torch.equal(a, b) for a, b in zip(found, x, strict=True)])
    assert torch.equal(mirrored(x, generator())[..., 0], x[..., -1])
    turned = torch.tensor([torch.equal(a, b) for a, b in zip(found, mirrored(x, generator()), strict=True)])
    assert torch.equal(stayed, ~turned)
    assert 70 < stayed.sum() < 130


def test_noise_has_its_deviation_and_stays_in_range():
    grey = torch.full((50, 3, 9, 9), 0.5, dtype=torch.float64)
    found = noisy(grey, generator())
    assert (found - grey).std().item() == pytest.approx(NOISE, rel=0.05)
    assert (found - grey).mean().abs() < NOISE / 20
    edges = noisy(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(90, 2, 3, 3), generator())
    assert (edges.min(), edges.max()) == (0, 1)
