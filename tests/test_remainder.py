"""A probe finds what the features carry of a class, and neither what one image's views share nor the attack's trace."""

import copy

import pytest
import torch
from torch import nn

from tests import reference
from zspag.heads.remainder import contrast, measure_remainder, source_folds, source_probe

D = 30


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def kinds(sources, *, signal, first=3, second=4, width=D):
    """Return features of two kinds, alike within a source and kind up to a little noise, and the direction of the kind.

    Each source has a code for each kind, which nothing else shares; ``signal`` is what the kind itself adds.
    """
    owners = torch.arange(sources)
    rows = [
        randn(sources, width).repeat_interleave(count, 0) + 0.1 * randn(sources * count, width)
        for count in (first, second)
    ]
    direction = randn(width)
    direction /= direction.norm()
    rows[0] += signal * direction
    labels = torch.arange(sources * (first + second)) < sources * first
    return torch.cat(rows), labels, torch.cat([owners.repeat_interleave(count) for count in (first, second)]), direction


def folds_of(sources):
    return source_folds(sources, generator=torch.Generator().manual_seed(1))


# ---- the probe


@pytest.mark.parametrize("width", [D, 400])
def test_a_class_in_the_features_is_told_and_one_that_was_projected_out_is_not(width):
    features, labels, sources, direction = kinds(40, signal=12.0, width=width)
    there = source_probe(features, labels, sources, folds_of(sources), seed=0)
    assert there.accuracy > 0.97
    assert there.clear
    projected = features - (features @ direction)[:, None] * direction
    gone = source_probe(projected, labels, sources, folds_of(sources), seed=0)
    assert abs(gone.accuracy - gone.chance) < 2 * gone.deviation
    assert not gone.clear


def test_a_random_split_takes_views_of_one_image_for_the_class_and_held_out_sources_do_not():
    features, labels, sources, _ = kinds(20, signal=0.0, first=6, second=6, width=400)
    honest = source_probe(features, labels, sources, folds_of(sources), seed=0)
    naive = source_probe(features, labels, sources, torch.randint(5, labels.shape), seed=0)
    assert naive.accuracy > 0.97
    assert abs(honest.accuracy - 0.5) < 3 * honest.deviation
    assert not honest.clear


def test_permuted_labels_give_one_half_and_vary_less_over_more_sources():
    few, many = (
        source_probe(*part[:3], folds_of(part[2]), seed=0) for part in (kinds(10, signal=0.0), kinds(90, signal=0.0))
    )
    assert abs(few.chance - 0.5) < 0.05
    assert abs(many.chance - 0.5) < 0.02
    assert many.deviation < 0.6 * few.deviation


@pytest.mark.parametrize("width", [7, 90])
def test_the_probe_is_the_formula(width):
    features, labels, sources, _ = kinds(12, signal=1.0, first=2, second=3, width=width)
    keep = torch.arange(len(labels)) != 1  # sources of unequal numbers
    features, labels, sources = features[keep], labels[keep], sources[keep]
    features[:, 2] = 5.0  # a dead unit
    folds, y = folds_of(sources), labels.double() * 2 - 1
    right = torch.zeros(len(y), dtype=torch.float64)
    sizes = [((sources == source) & (labels == kind)).sum() for source, kind in zip(sources, labels, strict=True)]
    weight = 0.5 / 12 / torch.stack(sizes).double()
    for i in range(len(y)):
        fitted = folds != folds[i]
        w = torch.diag(weight[fitted] / weight[fitted].sum())
        mean = w.diag() @ features[fitted]
        scale = (w.diag() @ (features[fitted] - mean) ** 2).sqrt()
        scale[2] = torch.inf
        x, alive = (features[fitted] - mean) / scale, width - 1
        level = w.diag() @ y[fitted]
        penalty = alive / len(sources[fitted].unique())
        beta = torch.linalg.inv(x.T @ w @ x + penalty * torch.eye(width)) @ x.T @ w @ (y[fitted] - level)
        right[i] = ((features[i] - mean) / scale @ beta + level > 0) == labels[i]
    expected = sum((weight * right)[labels == kind].sum() / 0.5 for kind in (True, False)) / 2
    found = source_probe(features, labels, sources, folds, seed=0)
    assert found.accuracy == pytest.approx(expected.item(), abs=1e-12)
    assert 0.5 < found.accuracy < 1


def test_many_views_of_one_image_weigh_no_more_than_one():
    features, labels, sources, _ = kinds(12, signal=2.0)
    again = torch.cat([torch.arange(len(labels))] + 20 * [(sources == 3).nonzero()[:, 0]])
    once, often = (
        source_probe(features[rows], labels[rows], sources[rows], folds_of(sources)[rows], seed=0)
        for rows in (torch.arange(len(labels)), again)
    )
    assert often.accuracy == pytest.approx(once.accuracy, abs=1e-12)
    assert often.chance == pytest.approx(once.chance, abs=1e-12)


def test_dead_features_tell_nothing():
    features, labels, sources, _ = kinds(12, signal=2.0)
    dead = source_probe(torch.ones_like(features), labels, sources, folds_of(sources), seed=0)
    assert dead.accuracy == 0.5
    assert not dead.clear


def test_sources_stay_together_in_folds_of_two_or_more():
    for count, folds in ((2, 1), (8, 4), (9, 4), (40, 5)):
        sources = torch.arange(count).repeat(3) * 7
        dealt = folds_of(sources)
        assert all(len(dealt[sources == source].unique()) == 1 for source in sources.unique())
        assert len(dealt.unique()) == folds
        assert (dealt[:count].bincount() >= 2).all()


def test_a_probe_without_two_kinds_or_folds_is_refused():
    features, labels, sources, _ = kinds(12, signal=2.0)
    with pytest.raises(ValueError, match="two kinds and two folds, got 84 of 84"):
        source_probe(features, torch.ones_like(labels), sources, folds_of(sources), seed=0)
    with pytest.raises(ValueError, match="two kinds and two folds"):
        source_probe(features, labels, sources, torch.zeros_like(sources), seed=0)


# ---- what it measures of models: pixel 0 is the class, above 1/2, and pixel 1 the trace that any attack leaves


class Pixels(nn.Module):
    """The features are the pixels, by way of a linear layer; class 1 is a pixel 0 above 1/2."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(D, D), nn.Linear(D, 2)
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(D))
            self.body.bias.zero_()
            self.head.weight.zero_()
            self.head.weight[1, 0] = 20.0
            self.head.bias.copy_(torch.tensor([0.0, -10.0]))

    def forward(self, images):
        return self.head(self.body(images.flatten(1)))


class Together(Pixels):
    """Its head reads three rows, whatever the number of images."""

    def forward(self, images):
        return self.head(images.flatten(1)[:3]).mean(0, keepdim=True).expand(len(images), -1)


def samples(count=40, *, views=2, proxies=6):
    """Return forget samples with views, and proxies that barely cross over and bear the trace."""
    base = 0.1 + 0.6 * torch.rand(count, 1, 1, D)
    base[..., 0] = 0.55 + 0.4 * torch.rand(count, 1, 1)
    base[..., 1] /= 5
    owners, makers = torch.arange(count).repeat_interleave(views), torch.arange(count).repeat_interleave(proxies)
    images = base[owners] + 0.02 * torch.rand(len(owners), 1, 1, D)
    images[::views] = base  # the image itself is one of its views
    attacked = base[makers] + 0.02 * torch.randn(len(makers), 1, 1, D)
    attacked[..., 0] = 0.49
    attacked[..., 1] += 0.3
    return {
        "forget_images": images,
        "forget_labels": torch.ones(len(images), dtype=torch.long),
        "forget_sources": owners,
        "proxy_images": attacked.clamp(0, 1),
        "proxy_sources": makers,
    }


def without_the_class(model):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.body.weight[:, 0] = 0
        changed.body.bias[0] = 0.49
    return changed


def test_what_left_the_features_is_told_from_what_only_left_the_head():
    original, data = Pixels(), samples()
    silent, removed = copy.deepcopy(original), without_the_class(original)
    with torch.no_grad():
        silent.head.weight[1] = -5.0
    hidden, gone = (measure_remainder(original, model, **data, seed=0) for model in (silent, removed))
    assert (silent(data["forget_images"]).argmax(1) == 1).double().mean() == 0
    assert hidden.measurable
    assert gone.measurable
    assert hidden.probe_after == hidden.probe_before == gone.probe_before > 0.75
    assert hidden.original_head == 1
    assert abs(gone.probe_after - gone.probe_chance) < 0.15
    assert gone.original_head == 0
    assert "sources; permuted labels give 0." in gone.note


def test_without_exchanged_perturbations_the_trace_alone_passes_for_the_class():
    data = samples()
    removed = without_the_class(Pixels())
    rows = removed.body(torch.cat([data["forget_images"], data["proxy_images"]]).flatten(1)).detach().double()
    sources = torch.cat([data["forget_sources"], data["proxy_sources"]])
    plain = source_probe(rows, torch.arange(len(rows)) < len(data["forget_images"]), sources, folds_of(sources), seed=0)
    assert plain.accuracy > 0.9


def test_a_perturbation_is_added_to_another_image_of_its_fold_that_stays_what_it_is():
    original, data = Pixels(), samples()
    count = len(data["forget_images"])
    data["forget_images"][..., 2] = (data["forget_sources"] / 100)[:, None, None]  # whose image it is
    data["proxy_images"][..., 2] = (data["proxy_sources"] / 100)[:, None, None]
    data["forget_images"][..., 3] = 0.2
    data["proxy_images"][..., 3] = 0.2 + (data["proxy_sources"] / 100)[:, None, None]  # whose perturbation it is
    pairs = contrast(original, *data.values(), generator=torch.Generator().manual_seed(0))
    perturbed = pairs.images[pairs.first].flatten(1)
    assert torch.equal((perturbed[:, 2] * 100).round().long(), pairs.sources[pairs.first])
    fold = dict(zip(pairs.sources.tolist(), pairs.folds.tolist(), strict=True))
    donors = ((perturbed[:, 3] - 0.2) * 100).round().long().tolist()
    bearers = pairs.sources[pairs.first].tolist()
    assert all(donor != bearer for donor, bearer in zip(donors, bearers, strict=True))
    assert [fold[donor] for donor in donors] == [fold[bearer] for bearer in bearers]
    assert len(set(donors)) > 20
    assert 60 < len(perturbed) < count * 3  # those that the perturbation carries over are left out
    assert (original(pairs.images[pairs.first]).argmax(1) == 1).all()


def test_few_sources_cannot_be_measured_and_the_head_still_is():
    found = measure_remainder(Pixels(), Pixels(), **samples(6), seed=0)
    assert not found.measurable
    assert (found.probe_before, found.probe_after, found.probe_chance) == (None, None, None)
    assert found.original_head == 1
    assert "a probe needs 8" in found.note


def test_where_the_two_overlap_it_says_so():
    data = samples(12)
    data["forget_images"][..., 0] = 0.5 + 1e-3 * (1 + torch.rand(24, 1, 1))
    data["proxy_images"][..., 0] = 0.499
    data["proxy_images"][..., 4:] = torch.rand(72, 1, 1, D - 4)
    data["forget_images"][..., 4:] = torch.rand(24, 1, 1, D - 4)
    loud = Pixels()
    with torch.no_grad():
        loud.body.weight[0] += 0.3 * torch.rand(D)
        loud.head.weight[1, 0], loud.head.bias[1] = 0.0, 1.0  # everything is class 1
    found = measure_remainder(loud, loud, **data, seed=0)
    assert not found.measurable
    assert "does not stand out" in found.note
    assert found.probe_before == found.probe_after


def test_ruined_features_and_models_without_a_head_are_said():
    ruined = Pixels()
    ruined.body.weight.data[4] = torch.nan
    found = measure_remainder(Pixels(), ruined, **samples(), seed=0)
    assert (found.measurable, found.original_head, found.note) == (False, 0.0, "the features are not finite")
    for model in (nn.Flatten(), Together()):
        found = measure_remainder(model, model, **samples(), seed=0)
        assert (found.measurable, found.original_head) == (False, None)
        assert "cannot be read" in found.note


def test_the_same_seed_gives_the_same_answer_and_nothing_is_changed():
    original, removed = Pixels().train(), without_the_class(Pixels())
    removed.body.weight.requires_grad_(False)
    data = samples()
    before = [reference.state_of(model) for model in (original, removed)]
    kept = {name: part.clone() for name, part in data.items()}
    first, again = (measure_remainder(original, removed, **data, seed=3) for _ in range(2))
    assert first == again
    assert measure_remainder(original, removed, **data, seed=4) != first
    for state, model in zip(before, (original, removed), strict=True):
        reference.assert_same_state(state, reference.state_of(model))
    assert all(torch.equal(data[name], kept[name]) for name in kept)
