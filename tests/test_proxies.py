"""PGD stays in its ball and in [0, 1], touches no parameter, and every proxy is what its label says."""

import math
from dataclasses import replace

import pytest
import reference
import torch
from torch import nn

from zspag.config import ProxyConfig
from zspag.proxies import HALVINGS, attack, generate, margins_of, pulled_back, search_radius

CLASSES, SHAPE = 4, (2, 5, 3)
CONFIG = ProxyConfig(norm="linf", eps=0.2, steps=12, per_class=6, random_start=False)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=11):
    """Samples that touch both ends of [0, 1], where a step may not leave the pixel range."""
    drawn = torch.rand(count, *SHAPE, generator=generator(5), dtype=torch.float64)
    return (1.4 * drawn - 0.2).clamp(0, 1)


def linear(scale=3.0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), CLASSES)).double()
    with torch.no_grad():
        model[1].weight *= scale
    return model


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_stays_in_the_ball_and_in_the_pixel_range(norm, random_start):
    x, targets = images(), torch.arange(11) % CLASSES
    config = replace(CONFIG, norm=norm, random_start=random_start, steps=30, step_share=0.5)
    moved = attack(linear(), x, targets, eps=0.1, config=config, generator=generator()).images
    delta = (moved - x).flatten(1)
    size, radius = (delta.abs().amax(1), 0.1) if norm == "linf" else (delta.norm(dim=1), 0.1 * math.sqrt(30))
    assert (size <= radius * (1 + 1e-9)).all()
    assert size.max() > 0.9 * radius  # the ball is used, not only respected
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not moved.requires_grad


def test_an_l2_step_follows_the_gradient_and_not_its_sign():
    model, x = linear(), torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    config = replace(CONFIG, steps=1, step_share=0.5, norm="l2")
    delta = attack(model, x, torch.tensor([2]), eps=0.1, config=config, generator=generator()).images - x
    assert delta.norm().item() == pytest.approx(0.05 * math.sqrt(30))
    assert delta.abs().std() > 1e-3


def curved(norm=nn.Identity, *, seed=0, hidden=32, scale=4.0):
    """A net with one hidden layer, its weights so large that its gradient turns within a few steps of PGD."""
    torch.manual_seed(seed)
    layers = nn.Linear(math.prod(SHAPE), hidden), norm(hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)
    model = nn.Sequential(nn.Flatten(), *layers).double().eval()
    with torch.no_grad():
        for layer in (model[1], model[4]):
            layer.weight *= scale
    return model


class Probe(nn.Module):
    """Counts forward passes, and notes modes and flags as they are inside one."""

    def __init__(self):
        super().__init__()
        self.body, self.drop, self.norm = linear()[1], nn.Dropout(0.5), nn.BatchNorm1d(CLASSES).double()
        self.seen, self.rows = [], []

    def forward(self, x):
        self.seen.append((self.training, [p.requires_grad for p in self.parameters()], x.requires_grad))
        self.rows.append(len(x))
        return self.norm(self.drop(self.body(x.flatten(1))))


def test_no_parameter_requires_grad_while_the_attack_runs_and_the_model_comes_back():
    model = Probe().train()
    model.norm.eval()
    model.body.bias.requires_grad_(False)
    before = reference.state_of(model)
    attack(model, images(), torch.arange(11) % CLASSES, eps=0.1, config=CONFIG, generator=generator())
    looked, *steps = model.seen  # one image is passed first, to see which norms may be folded
    assert looked == (False, [False] * 4, False)
    assert steps == [(False, [False] * 4, True)] * CONFIG.steps + [(False, [False] * 4, False)]  # the last one judges
    reference.assert_same_state(before, reference.state_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_margins_are_those_of_the_images_and_say_what_the_model_answers(norm):
    model, x, targets = linear(), images(), torch.arange(11) % CLASSES
    found = attack(model, x, targets, eps=0.1, config=replace(CONFIG, norm=norm), generator=generator())
    torch.testing.assert_close(found.margins, margins_of(model(found.images), targets).detach())
    assert torch.equal(found.hits, model(found.images).argmax(1) == targets)
    assert 0 < found.hits.sum() < 11


def iterates(model, x, targets, *, eps, config):
    """Every point at which PGD looks, its steps shrinking evenly, written out for the L-inf ball; and the margins."""
    moving, seen = x.clone(), []
    for step in range(config.steps + 1):
        leaf = moving.clone().requires_grad_()
        logits = model(leaf)
        others = logits.clone()
        others[torch.arange(len(x)), targets] = -torch.inf
        margins = logits[torch.arange(len(x)), targets] - others.max(1).values
        seen.append((moving, margins.detach()))
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, targets, reduction="sum"), leaf)
        moving = moving - eps * config.step_share * (1 - step / config.steps) * gradient.sign()
        moving = torch.max(torch.min(moving, x + eps), x - eps).clamp(0, 1)
    return torch.stack([one for one, _ in seen]), torch.stack([margins for _, margins in seen])


def test_the_best_iterate_is_kept_and_it_is_not_always_the_last(monkeypatch):
    model, x, targets = curved(), images(40), torch.arange(40) % CLASSES
    config = replace(CONFIG, steps=6, step_share=1.0)
    seen, margins = iterates(model, x, targets, eps=0.3, config=config)
    best = margins.argmax(0)
    found = attack(model, x, targets, eps=0.3, config=config, generator=generator())
    torch.testing.assert_close(found.images, seen[best, torch.arange(40)])
    torch.testing.assert_close(found.margins, margins.amax(0))
    assert (best < config.steps).any()
    assert (best == config.steps).any()
    monkeypatch.setattr("zspag.runtime.CHUNK", 7)
    parted = attack(model, x, targets, eps=0.3, config=config, generator=generator())
    torch.testing.assert_close(parted.images, found.images)


def test_from_the_best_iterates_of_a_smaller_ball_no_margin_falls():
    model, x, targets = curved(), images(40), torch.arange(40) % CLASSES
    before = None
    for eps in (0.02, 0.04, 0.08, 0.16, 0.32):
        start = None if before is None else before.images
        found = attack(model, x, targets, eps=eps, config=CONFIG, generator=generator(), start=start)
        assert before is None or (found.margins >= before.margins - 1e-12).all()
        before = found
    assert before.hits.double().mean() > 0.5


# ---- Proxy sets


@pytest.mark.parametrize("random_start", [False, True])
def test_every_proxy_is_classified_as_its_label_and_each_class_has_as_many(random_start):
    model, x = linear(), images()
    config = replace(CONFIG, eps=0.3, random_start=random_start)
    proxies = generate(model, x, retained=[0, 2, 3], config=config, generator=generator())
    assert torch.equal(model(proxies.images).argmax(1), proxies.labels)
    assert proxies.labels.unique(return_counts=True)[1].unique().numel() == 1
    assert proxies.labels.unique().tolist() == [0, 2, 3]
    assert (proxies.images - x[proxies.sources]).abs().max() <= 0.3 * (1 + 1e-9)
    assert proxies.images.min() >= 0
    assert proxies.images.max() <= 1
    assert set(proxies.hits) == {0, 2, 3}
    assert all(0 < share <= 1 for share in proxies.hits.values())
    assert torch.equal(proxies.of_class(2), proxies.images[proxies.labels == 2])
    assert len(proxies.of_class(2)) <= config.per_class


@pytest.mark.parametrize("hit_rate", [0.9, 0.2])
def test_the_class_with_fewest_hits_sets_the_number_unless_it_was_hardly_reached(hit_rate):
    config = replace(CONFIG, eps=0.12, per_class=11, hit_rate=hit_rate)
    proxies = generate(linear(), images(), retained=[0, 2, 3], config=config, generator=generator())
    fewest = min(proxies.hits.values())
    assert 0 < fewest < max(proxies.hits.values()) == 1
    few, hardly = round(11 * fewest), fewest < hit_rate / 2
    counts = [proxies.labels.bincount()[label].item() for label in (0, 2, 3)]
    assert min(counts) == few
    assert (max(counts) > few) == hardly
    assert hardly == (hit_rate == 0.9)


@pytest.mark.parametrize("per_class", [3, 7, 50])
def test_without_a_random_start_no_proxy_comes_twice(per_class):
    config = replace(CONFIG, eps=0.5, per_class=per_class)
    for seed in range(5):
        proxies = generate(linear(), images(10), retained=[0, 1, 3], config=config, generator=generator(seed))
        pairs = torch.stack([proxies.labels, proxies.sources], 1)
        assert len(pairs.unique(dim=0)) == len(pairs)
        assert len(proxies.images.flatten(1).unique(dim=0)) == len(pairs)


def test_with_a_random_start_a_source_repeats_only_after_all_were_used():
    config = replace(CONFIG, eps=1.0, steps=30, random_start=True, per_class=20, oversample=1.0)
    proxies = generate(linear(), images(10), retained=[0, 1], config=config, generator=generator())
    assert proxies.hits == {0: 1.0, 1: 1.0}
    for label in (0, 1):
        assert proxies.sources[proxies.labels == label].bincount().tolist() == [2] * 10


def test_a_class_without_a_hit_is_named_with_what_helps():
    model = linear()
    with torch.no_grad():
        model[1].bias[3] -= 1e6
    with pytest.raises(ValueError, match=r"reached class 3 within eps=0.2 \(pixels\) and steps=12: raise proxies.eps"):
        generate(model, images(), retained=[0, 2, 3], config=CONFIG, generator=generator())


def test_same_generator_same_proxies_and_another_one_others():
    config, model = replace(CONFIG, eps=0.3, random_start=True), linear()
    first, again, other = (
        generate(model, images(), retained=[0, 2], config=config, generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.sources, again.sources)
    assert not torch.equal(first.sources, other.sources)


# ---- The search for the radius


def radius(model, x, config, *, seed=0):
    return search_radius(model, x, retained=[0, 2, 3], config=config, generator=generator(seed))


def shares(model, x, eps, config):
    hits = []
    for label in (0, 2, 3):
        targets = torch.full((len(x),), label)
        moved = attack(model, x, targets, eps=eps, config=config, generator=generator()).images
        hits.append((model(moved).argmax(1) == label).double().mean().item())
    return min(hits)


def test_the_radius_doubles_until_every_class_is_hit_often_enough():
    model, x = linear(), images()
    config = replace(CONFIG, eps=None, eps_start=0.01, hit_rate=0.9, per_class=100)  # so many that all images are tried
    found = radius(model, x, config)
    assert [eps for eps, _ in found.tried] == [0.01 * 2**j for j in range(len(found.tried))]
    assert len(found.tried) > 1
    assert found.eps == found.tried[-1][0]
    assert found.tried[-1][1] >= 0.9 > found.tried[-2][1]
    assert shares(model, x, found.eps, config) >= 0.9 > shares(model, x, found.eps / 2, config)
    assert radius(model, x, replace(config, hit_rate=0.05)).eps < found.eps
    assert radius(model, x, replace(config, eps_max=0.015)).eps == 0.015  # the cap is the last try

    def used(config):
        return generate(model, x, retained=[0, 2, 3], config=config, generator=generator()).eps

    assert used(replace(config, margin=2.0)) == 2 * found.eps
    assert used(replace(config, margin=2.0, eps_max=1.5 * found.eps)) == 1.5 * found.eps
    assert used(CONFIG) == CONFIG.eps


RADII = [0.005 * 2**j for j in range(8)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("layer", [nn.Identity, nn.BatchNorm1d, nn.LayerNorm])
@pytest.mark.parametrize("seed", range(2))
def test_the_hit_rate_cannot_fall_as_the_radius_grows(layer, norm, seed):
    config = ProxyConfig(eps=None, eps_start=RADII[0], hit_rate=1.0, norm=norm, steps=4, per_class=300)
    model = curved(layer, seed=seed, hidden=128, scale=10.0)
    tried = radius(model, images(20), config, seed=seed).tried
    assert [eps for eps, _ in tried] == RADII[: len(tried)]
    rates = [rate for _, rate in tried]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]
    assert len(set(rates)) > 3


def plain_rates(model, x, radii, *, steps, share):
    """Worst class's share of hits at each radius, by steps of one length whose last iterate counts."""
    rates = []
    for eps in radii:
        worst = 1.0
        for label in (0, 2, 3):
            moving, targets = x.clone(), torch.full((len(x),), label)
            for _ in range(steps):
                leaf = moving.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), targets), leaf)
                moving = torch.max(torch.min(moving - share * eps * gradient.sign(), x + eps), x - eps).clamp(0, 1)
            worst = min(worst, (model(moving).argmax(1) == label).double().mean().item())
        rates.append(worst)
    return rates


def test_with_steps_of_one_length_and_the_last_iterate_it_does_fall():
    """The control: the same nets, images and radii, attacked as PGD is usually written."""
    falls = 0
    for seed in range(4):
        rates = plain_rates(curved(seed=seed, hidden=128, scale=10.0), images(20), RADII, steps=4, share=1.0)
        falls += rates != sorted(rates)
    assert falls > 0


class Flat(nn.Module):
    """A linear model that has no gradient for images with a bright corner, and answers 1 to them whatever is done."""

    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, x):
        stubborn = (x[:, :1, 0, 0].flatten(1) == 1).to(x.dtype)
        answer = 100 * nn.functional.one_hot(torch.ones(len(x), dtype=torch.long), CLASSES).to(x.dtype)
        return (1 - stubborn) * self.inner(x) + stubborn * answer


def test_one_sample_that_no_radius_moves_does_not_take_the_others_to_the_largest():
    x = 0.5 + 0.2 * (images(20) - 0.5)  # grey images lie near the borders
    config = replace(CONFIG, eps=None, eps_start=0.01, eps_max=1.0, hit_rate=1.0, per_class=1000)
    free = radius(Flat().eval(), x, config)
    assert free.tried[-1][1] == 1
    x[0, 0, 0, 0] = 1.0  # the clamp keeps it there as long as its gradient is 0
    found = radius(Flat().eval(), x, config)
    assert found.tried[-1] == (0.01 * 2 ** (len(found.tried) - 1), pytest.approx(1 - 1 / 20))
    assert found.eps == free.eps < found.tried[-1][0]
    sure = replace(config, eps_max=2 * free.eps)  # too few doublings to tell: as far as it goes
    assert radius(Flat().eval(), x, sure).eps == sure.eps_max


@pytest.mark.parametrize("count", [3, 11, 60])
@pytest.mark.parametrize(("per_class", "steps"), [(12, 12), (30, 10), (30, 3), (100, 1)])
def test_the_whole_search_costs_at_most_half_of_the_attack_that_follows(count, per_class, steps):
    model = Probe().eval()
    with torch.no_grad():
        model.norm.bias[1] += 1e6  # no other class is reached: the search walks to its end with all its samples
    config = ProxyConfig(eps=None, per_class=per_class, steps=steps)
    found = radius(model, images(count), config)
    assert found.eps == config.eps_max
    searching = sum(model.rows)
    model.rows.clear()
    wanted = 3 * math.ceil(config.per_class * config.oversample)
    sources = torch.arange(wanted) % count
    attack(model, images(count)[sources], sources % CLASSES, eps=0.1, config=config, generator=generator())
    assert searching - len(found.tried) <= (sum(model.rows) - 1) / 2  # each attack passes one image to look at norms


# ---- Barely hit proxies


@pytest.mark.parametrize("make", [linear, curved])
def test_a_barely_hit_proxy_hits_and_just_before_it_on_the_way_to_its_source_lies_a_miss(make):
    model, x = make(), images(30)
    proxies = generate(
        model, x, retained=[0, 2, 3], config=replace(CONFIG, eps=0.4, per_class=20), generator=generator()
    )
    own, barely = x[proxies.sources], proxies.barely
    assert torch.equal(model(barely).argmax(1), proxies.labels)
    way = (proxies.images - own).flatten(1)
    part = ((barely - own).flatten(1) * way).sum(1) / way.square().sum(1)  # share of the way from source to proxy
    torch.testing.assert_close(barely, own + part.view(-1, 1, 1, 1) * (proxies.images - own))  # on the segment
    assert part.min() > 0
    assert part.max() <= 1
    before = own + (part - 2.0**-HALVINGS).view(-1, 1, 1, 1) * (proxies.images - own)
    misses = model(before).argmax(1) != proxies.labels
    foreign = model(own).argmax(1) != proxies.labels  # a source that is of the class already has no border before it
    assert 0 < foreign.sum() < len(foreign)
    assert misses[foreign].all()
    torch.testing.assert_close(part[~foreign], torch.full_like(part[~foreign], 2.0**-HALVINGS))
    assert part.median() < 0.9  # most come back a good piece of the way
    deep, just = (margins_of(model(one), proxies.labels) for one in (proxies.images, barely))
    assert just.min() > 0
    assert just.median() < 0.4 * deep.median()


def test_a_proxy_that_only_just_hits_stays_bit_for_bit():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight[:] = torch.tensor([[0.0], [1.0]])
    source, proxy = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (-0.5, 1e-3))
    found = pulled_back(model, proxy, source, torch.tensor([1]))
    assert torch.equal(found, proxy)
