"""What a run is said to have reached and cost: class by class, whatever the scale of the logits, and never in ruins."""

from dataclasses import replace
from functools import cache

import external_nets
import pytest
import torch
from external_nets import FORGET, digits
from torch import nn
from torch.nn import functional as F

from zspag import zero_shot_unlearn
from zspag.calibration import verdict
from zspag.calibration.trials import answers_changed, at_common_scale, held_out_damage
from zspag.calibration.verdict import Damage, cautions, damage_of, shortfall
from zspag.config import ProxyConfig, UnlearnConfig
from zspag.outcome import Trial

RUINED = 3  # a class that the narrow net cannot let go alone


@cache
def narrow():
    """A net whose last layer reads fewer features than there are classes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    images, labels = digits()
    steps = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(1500):
        batch = torch.randint(len(images), (128,))
        steps.zero_grad()
        F.cross_entropy(net(images[batch]), labels[batch]).backward()
        steps.step()
    return net.eval()


def retained_accuracy(net, label):
    """Return the accuracy on the other classes, the logit of the class forbidden."""
    images, labels = digits()
    kept = labels != label
    with torch.no_grad():
        logits = net(images[kept])
    logits[:, label] = -torch.inf
    return (logits.argmax(1) == labels[kept]).double().mean().item()


def unlearned(net, label, **options):
    images, labels = digits()
    return zero_shot_unlearn(net, images[labels == label], label, progress=False, **options)


def test_a_net_that_forgetting_would_ruin_is_left_as_it_was_and_not_called_a_success(monkeypatch):
    before = retained_accuracy(narrow(), RUINED)
    with pytest.warns(UserWarning, match="ruins the retained classes"):
        result = unlearned(narrow(), RUINED)
    assert not result.report.reached
    assert result.report.silenced
    assert result.report.forget_accuracy == result.report.original_accuracy > 0.9
    assert (result.report.drift, result.report.unseen_accuracy) == (None, None)
    assert set(result.report.frozen.values()) == {"nothing of the run was handed out"}
    assert "nothing moved, so unseen images" in " ".join(str(result.report).split())
    assert retained_accuracy(result.model, RUINED) == before > 0.9
    images, labels = digits()
    assert not (result.model(images[labels == RUINED]).argmax(1) == RUINED).any()
    monkeypatch.setattr(verdict, "RUINOUS", 100.0)  # what was handed out before
    with pytest.warns(UserWarning, match="may have lost accuracy"):
        result = unlearned(narrow(), RUINED)
    assert result.report.reached
    assert retained_accuracy(result.model, RUINED) < before - 0.3


def test_a_net_that_can_let_a_class_go_is_not_warned_about(recwarn):
    result = unlearned(external_nets.trained(external_nets.mlp), FORGET)
    assert result.report.reached
    assert not [one for one in recwarn if "accuracy" in str(one.message) or "ruin" in str(one.message)]


@pytest.mark.parametrize("factor", [0.01, 1000.0])
def test_what_decides_does_not_depend_on_the_scale_of_the_logits(factor):
    generator = torch.Generator().manual_seed(0)
    before = 4 * torch.randn(50, 6, generator=generator)
    after = before + torch.randn(50, 6, generator=generator)
    changed = answers_changed(before, after, forget=[2])
    assert 0 < changed < 1
    assert answers_changed(factor * before, factor * after, forget=[2]) == changed

    def common(scale):
        return held_out_damage(*at_common_scale(scale * before, scale * after, forget=[2]), forget=[2])

    assert common(factor) == pytest.approx(common(1.0), rel=1e-4)
    assert held_out_damage(factor * before, factor * after, forget=[2]) != pytest.approx(common(1.0), rel=0.5)


def test_a_single_retained_class_has_no_spread_and_nothing_to_change():
    before, after = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 2.0]])
    assert all(map(torch.equal, at_common_scale(before, after, forget=[0]), (before, after)))
    assert answers_changed(before, after, forget=[0]) == 0


# Class by class


class Known(nn.Module):
    """Answers class 0, but to images with a bright first pixel 1 or 2, by the second pixel."""

    def forward(self, x):
        flat = x.flatten(1)
        return torch.stack([torch.full_like(flat[:, 0], 0.5), flat[:, 0] - flat[:, 1], flat[:, 0] * flat[:, 1]], 1)


def made_of(unseen, *, drift=0.001):
    """Return a run with these counts on held-out samples."""

    class Part:
        calibration = None

    trial = Trial("all", 0.1, 0.0, drift, forgot=True, seconds=0.0, unseen=unseen)
    Part.calibration = type("Calibration", (), {"trial": trial, "at_edge": False})
    return Part


def forget_set(first, second, *, known):
    """Return images of class 1 and 2, of which the last ``known`` are recognized."""
    images, labels = torch.zeros(first + second, 1, 2, 2), torch.tensor([1] * first + [2] * second)
    images[:, 0, 0, 1] = (labels == 2).float()
    images[len(labels) - known :, 0, 0, 0] = 1.0
    return images, labels


SOUND, CONFIG = Damage("", 0.0), UnlearnConfig()


def test_one_image_of_a_small_class_is_not_lost_among_those_of_a_large_one():
    missed = shortfall(made_of({}), SOUND, Known(), *forget_set(200, 1, known=1), CONFIG)
    assert missed.startswith("100.0 % of the images of class 2 is still recognized")  # .5 % of all images
    assert shortfall(made_of({}), SOUND, Known(), *forget_set(200, 1, known=0), CONFIG) == ""


def test_a_class_that_is_recognized_unseen_is_named_unless_there_is_too_little_of_it_to_tell():
    counts = {1: (0, 200), 2: (3, 10)}  # 1.4 % of all
    missed = shortfall(made_of(counts), SOUND, Known(), *forget_set(200, 10, known=0), CONFIG)
    assert "30 % of held-out forget samples of class 2" in missed
    few = forget_set(200, 3, known=0)
    assert shortfall(made_of({1: (0, 200), 2: (3, 3)}), SOUND, Known(), *few, CONFIG) == ""
    (said,) = cautions(made_of({}), SOUND, {1: 200, 2: 3}, {0: 1.0}, CONFIG)
    assert said == (
        "none of 3 images was held out: whether unseen images of class 2 are forgotten is not known; pass 4 or more"
    )


def test_what_nobody_could_look_at_is_warned_of():
    """Too few images to hold any out, and a class that nearly no attack reached: neither is taken for checked."""

    def said(counts, hits, config=CONFIG):
        return list(cautions(made_of({}), SOUND, counts, hits, config))

    assert said({3: 40}, {1: 0.9, 2: 0.46}) == []
    assert said({3: 3}, {}) == [
        "none of 3 images was held out: whether unseen images of the class are forgotten is not known; pass 4 or more"
    ]
    (missed,) = said({3: 40}, {1: 0.9, 2: 0.03})
    assert missed.startswith("only 3 % of the attacks arrived in class 2: nothing stands in for it")
    assert missed.endswith("no radius does better")
    for proxies, remedy in ((ProxyConfig(eps=0.1), "leave proxies.eps"), (ProxyConfig(eps_max=0.5), "proxies.eps_max")):
        (missed,) = said({3: 40}, {2: 0.03}, replace(CONFIG, proxies=proxies))
        assert remedy in missed


def test_a_run_of_infinite_weights_is_ruin():
    run = type("Run", (), {"diverged": True})
    assert "infinite" in damage_of(nn.Identity(), type("Made", (), {"run": run}), None, forget=[0]).ruin
