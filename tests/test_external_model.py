"""A net that nobody here wrote the method for: one call, no option, and it forgets and keeps.

Forget accuracy may be 3 % at most on test images (one of some thirty images), and the retained accuracy may be two
points below the masked original: a class of digits has 36 test images, so one image in 323 is 0.3 point.
"""

import pytest
import reference
import torch
from external_model import external_model

from zspag import zero_shot_unlearn
from zspag.lab.data import load
from zspag.lab.models import build
from zspag.lab.training import train
from zspag.profiles import TrainConfig

FORGET = 8


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("digits", root=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    net = external_model(num_classes=10, in_channels=1, image_size=8)
    recipe = TrainConfig(epochs=6, batch_size=64, lr=0.05)
    return train(net, digits.train.images, digits.train.labels, config=recipe, seed=0).model


@torch.no_grad()
def accuracies(model, split, *, masked=False):
    """Return the accuracy on the forget class and on all others."""
    logits = model(split.float())
    if masked:
        logits[:, FORGET] = -torch.inf
    right, gone = logits.argmax(1) == split.labels, split.labels == FORGET
    return right[gone].double().mean().item(), right[~gone].double().mean().item()


@pytest.mark.slow
def test_an_external_net_forgets_a_class_and_keeps_the_others(digits, trained):
    original = accuracies(trained, digits.test)
    assert min(original) > 0.9
    assert (trained(digits.test.float()).argmax(1) == digits.test.labels).double().mean() > 0.95
    before = reference.state_of(trained)

    chosen = digits.train.labels == FORGET
    images, labels = digits.train.float()[chosen], digits.train.labels[chosen]
    result = zero_shot_unlearn(trained, images, labels, num_classes=10)

    forget, retain = accuracies(result.model, digits.test)
    _, yardstick = accuracies(trained, digits.test, masked=True)
    assert result.report.reached
    assert forget <= 0.03
    assert retain >= yardstick - 0.02
    reference.assert_same_state(before, reference.state_of(trained))
    frozen = result.report.frozen
    assert {name for name, why in frozen.items() if why != "the proxies leave no direction free"} == {"position"}
    assert "features.3.weight" in result.report.free_dimension  # grouped and strided
    assert "block.attention.in_proj_weight" in result.report.free_dimension


def test_the_net_is_one_that_the_package_can_build_from_its_file():
    net = build("tests/external_model.py:external_model", num_classes=10, in_channels=3, image_size=8, width=1, seed=0)
    assert net(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    assert 30_000 < sum(parameter.numel() for parameter in net.parameters()) < 60_000
