"""An adversarially trained net is harder to fool, and the net it was made from stays as it is."""

import copy

import pytest
import torch
from laboratory import changed_names, small

from zspag.config import ProxyConfig
from zspag.lab.adversarial_training import adversarially_trained
from zspag.proxies import attack
from zspag.runtime import generator_for, logits_of

RADIUS = 0.1


@pytest.fixture(scope="module")
def pair():
    """A trained net, and the same trained further on attacked images of all classes."""
    here = small()
    images, labels = torch.cat([here.images, here.retain_images]), torch.cat([here.labels, here.retain_labels])
    before = copy.deepcopy(here.model)
    hard = adversarially_trained(here.model, images, labels, radius=RADIUS, generator=generator_for(0, "adversarial"))
    assert not changed_names(before, here.model)
    assert not here.model.training
    return here, hard, (images, labels)


def hits(model, images):
    targets = torch.arange(len(images)) % 3  # none of them the images' own class
    found = attack(
        model, images, targets, eps=RADIUS, config=ProxyConfig(norm="l2", steps=20), generator=generator_for(0)
    )
    return (logits_of(model, found.images).argmax(1) == targets).double().mean().item()


@pytest.mark.slow
def test_it_is_fooled_less_often(pair):
    here, hard, _ = pair
    assert hits(hard, here.images) < 0.8 * hits(here.model, here.images)


def test_it_still_knows_its_classes(pair):
    _, hard, (images, labels) = pair
    assert (logits_of(hard, images).argmax(1) == labels).double().mean() > 0.9


def test_it_comes_back_ready_to_use(pair):
    _, hard, _ = pair
    assert not any(part.training for part in hard.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in hard.parameters())


def test_the_same_stream_gives_the_same_net_and_another_one_does_not():
    here = small()
    nets = [
        adversarially_trained(here.model, here.images, here.labels, radius=RADIUS, generator=generator_for(seed))
        for seed in (1, 1, 2)
    ]
    assert not changed_names(nets[0], nets[1])
    assert changed_names(nets[0], nets[2])
