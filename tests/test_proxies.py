"""PGD stays in its ball and in [0, 1], touches no parameter, and every proxy is what its label says."""

import math
from dataclasses import replace

import pytest
import reference
import torch
from torch import nn

from zspag.config import ProxyConfig
from zspag.proxies import attack, find_eps, generate

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


def loss(model, x, targets):
    return nn.functional.cross_entropy(model(x), targets).item()


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_stays_in_the_ball_and_in_the_pixel_range(norm, random_start):
    x, targets = images(), torch.arange(11) % CLASSES
    config = replace(CONFIG, norm=norm, random_start=random_start, steps=30, step_share=0.5)
    moved = attack(linear(), x, targets, eps=0.1, config=config, generator=generator())
    delta = (moved - x).flatten(1)
    size, radius = (delta.abs().amax(1), 0.1) if norm == "linf" else (delta.norm(dim=1), 0.1 * math.sqrt(30))
    assert (size <= radius * (1 + 1e-9)).all()
    assert size.max() > 0.9 * radius  # the ball is used, not only respected
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not moved.requires_grad


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_lowers_the_loss_of_its_target_and_a_larger_ball_lowers_it_more(norm):
    model, x, targets = linear(), images(), torch.arange(11) % CLASSES
    config = replace(CONFIG, norm=norm)
    small, large = (attack(model, x, targets, eps=e, config=config, generator=generator()) for e in (0.05, 0.2))
    assert loss(model, x, targets) > loss(model, small, targets) > loss(model, large, targets)
    assert loss(model, small, (targets + 1) % CLASSES) > loss(model, small, targets)


def test_one_step_against_a_linear_model_is_the_sign_of_its_gradient():
    model, x = linear(), torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), torch.tensor([2])).backward()
    config = replace(CONFIG, steps=1, step_share=0.5)
    moved = attack(model, x, torch.tensor([2]), eps=0.1, config=config, generator=generator())
    torch.testing.assert_close(moved, x - 0.05 * leaf.grad.sign())


def test_an_l2_step_follows_the_gradient_and_not_its_sign():
    model, x = linear(), torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    config = replace(CONFIG, steps=1, step_share=0.5, norm="l2")
    delta = attack(model, x, torch.tensor([2]), eps=0.1, config=config, generator=generator()) - x
    assert delta.norm().item() == pytest.approx(0.05 * math.sqrt(30))
    assert delta.abs().std() > 1e-3


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
    assert steps == [(False, [False] * 4, True)] * CONFIG.steps
    reference.assert_same_state(before, reference.state_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_confident_samples_stop_and_the_others_go_on():
    model, x = Probe(), images()
    targets = torch.arange(11) % CLASSES
    config = replace(CONFIG, eps=0.4, steps=25)
    full = attack(model, x, targets, eps=0.4, config=config, generator=generator())
    everybody = sum(model.rows)
    model.rows.clear()
    early = attack(model, x, targets, eps=0.4, config=replace(config, confidence=0.6), generator=generator())
    looked, *rows = model.rows
    assert looked == 1
    assert rows == sorted(rows, reverse=True)
    assert sum(rows) < 0.8 * everybody

    def confidence(at):
        return model.eval()(at).softmax(1).gather(1, targets[:, None])[:, 0]

    stopped = confidence(early) >= 0.6
    assert 0 < stopped.sum() <= 11
    assert confidence(full).mean() > confidence(early).mean()
    moving = ~stopped
    torch.testing.assert_close(early[moving], full[moving])


def test_a_sample_that_is_confident_from_the_start_never_moves():
    model, x = linear(), images()
    targets = model(x).argmax(1)
    sure = model(x).softmax(1).amax(1) >= 0.5
    moved = attack(model, x, targets, eps=0.2, config=replace(CONFIG, confidence=0.5), generator=generator())
    assert 0 < sure.sum() < 11
    assert torch.equal(moved[sure], x[sure])
    assert not torch.isclose(moved[~sure], x[~sure]).all()


def test_large_sets_are_attacked_in_chunks_with_the_same_result(monkeypatch):
    x, targets = images(), torch.arange(11) % CLASSES
    config = replace(CONFIG, random_start=True)
    whole = attack(linear(), x, targets, eps=0.1, config=config, generator=generator())
    monkeypatch.setattr("zspag.runtime.CHUNK", 4)
    torch.manual_seed(0)
    torch.testing.assert_close(attack(linear(), x, targets, eps=0.1, config=config, generator=generator()), whole)


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


def test_the_class_with_fewest_hits_sets_the_number():
    config = replace(CONFIG, eps=0.12, per_class=11)
    proxies = generate(linear(), images(), retained=[0, 2, 3], config=config, generator=generator())
    assert 0 < min(proxies.hits.values()) < max(proxies.hits.values()) == 1
    assert proxies.labels.bincount().unique().tolist() == [0, round(11 * min(proxies.hits.values()))]


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
    config = replace(CONFIG, eps=0.3, random_start=True)
    first, again, other = (
        generate(linear_of_seed(0), images(), retained=[0, 2], config=config, generator=generator(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.sources, again.sources)
    assert not torch.equal(first.sources, other.sources)


def linear_of_seed(seed):
    torch.manual_seed(seed)
    return linear()


# ---- The search for eps


def shares(model, x, eps, config):
    hits = []
    for label in (0, 2, 3):
        targets = torch.full((len(x),), label)
        moved = attack(model, x, targets, eps=eps, config=config, generator=generator())
        hits.append((model(moved).argmax(1) == label).double().mean().item())
    return min(hits)


def test_eps_doubles_until_every_class_is_hit_often_enough():
    model, x = linear(), images()
    config = replace(CONFIG, eps=None, eps_start=0.01, hit_rate=0.9)
    eps = find_eps(model, x, retained=[0, 2, 3], config=config, generator=generator())
    doublings = math.log2(eps / 0.01)
    assert doublings == pytest.approx(round(doublings))
    assert doublings >= 1
    assert shares(model, x, eps, config) >= 0.9 > shares(model, x, eps / 2, config)


def test_a_higher_hit_rate_needs_a_larger_eps_and_the_cap_is_the_last_try():
    model, x = linear(), images()
    config = replace(CONFIG, eps=None, eps_start=0.01)
    found = [
        find_eps(model, x, retained=[0, 2, 3], config=replace(config, hit_rate=rate), generator=generator())
        for rate in (0.05, 1.0)
    ]
    assert found[0] < found[1]
    capped = replace(config, eps_max=0.015)
    assert find_eps(model, x, retained=[0, 2, 3], config=capped, generator=generator()) == 0.015


def test_generate_searches_eps_when_there_is_none_and_reports_it():
    config = replace(CONFIG, eps=None, eps_start=0.01, margin=2.0)
    proxies = generate(linear(), images(), retained=[0, 2, 3], config=config, generator=generator())
    found = find_eps(linear(), images(), retained=[0, 2, 3], config=config, generator=generator())
    assert proxies.eps == config.margin * found > found
    capped = replace(config, eps_max=1.5 * found)
    assert generate(linear(), images(), retained=[0, 2, 3], config=capped, generator=generator()).eps == 1.5 * found
    fixed = generate(linear(), images(), retained=[0, 2, 3], config=CONFIG, generator=generator())
    assert fixed.eps == CONFIG.eps
