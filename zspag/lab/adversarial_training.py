"""A short adversarial training of a finished classifier: the ablations ask what a net that is hard to fool does.

Invariant: the classifier passed in stays as it is; nothing but training images is read.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import ProxyConfig
from zspag.profiles import TrainConfig
from zspag.proxies import attack
from zspag.runtime import device_of, logits_of, sent

# CHOICE: enough for a net that is visibly harder to fool, and no attempt at the most robust one.
TRAINING = TrainConfig(epochs=5, batch_size=64, lr=0.05)
ATTACK = ProxyConfig(norm="l2", steps=4, step_share=0.5)


def adversarially_trained(
    model: nn.Module, images: Tensor, labels: Tensor, *, radius: float, generator: torch.Generator
) -> nn.Module:
    """Train a copy of a classifier further, on images pushed towards a random wrong class.

    Args:
        model: Maps [0, 1] images to logits (n, K).
        images: Shape (n, C, H, W), float on [0, 1].
        labels: Shape (n,).
        radius: Radius of the attack in pixels, as in ``ProxyConfig.eps``.
        generator: CPU generator of order, wrong classes and random starts.

    Returns:
        The copy, in eval mode.

    Note:
        DIFFERS: adversarial training (Madry et al., 2018) pushes away from the true class and starts from scratch. A
        random wrong class is what the proxies' attack aims at, and a finished original costs nothing more.
    """
    trained, place = copy.deepcopy(model).train(), device_of(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=TRAINING.lr, momentum=TRAINING.momentum, nesterov=True)
    images, labels = images.to(place), labels.to(place)
    classes = logits_of(model, images[:1]).shape[1]
    for _ in range(TRAINING.epochs):
        order = torch.randperm(len(images), generator=generator).to(place)
        for batch in order.split(TRAINING.batch_size):
            away = sent(torch.randint(1, classes, (len(batch),), generator=generator), place)
            wrong = (labels[batch] + away) % classes
            moved = attack(trained, images[batch], wrong, eps=radius, config=ATTACK, generator=generator).images
            loss = F.cross_entropy(trained(moved), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    return trained.eval()
