"""A laboratory small enough for tests: a digits net of width 8, trained in a second, and everything made from it."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from zspag.config import UnlearnConfig
from zspag.lab.data import Guard, channel_statistics
from zspag.lab.data.sources import read_digits
from zspag.lab.methods import Problem, method
from zspag.lab.models import build
from zspag.lab.training import train
from zspag.outcome import Epoch
from zspag.profiles import PROFILES, Ladders
from zspag.projected_sgd import Run
from zspag.proxy_statistics import ProxyStatistics, prepare
from zspag.runtime import generator_for

LADDER = (0.03, 1.0)
TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    train=replace(PROFILES["smoke"].train, epochs=3),
    ladders=Ladders(LADDER, LADDER, LADDER),
    methods=("zs_pag", "head_only"),
)
FORGET = 3


@dataclass(frozen=True)
class Small:
    """A trained net, its forget samples, true retain data for the oracle, and the proxy statistics."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    retain_images: Tensor
    retain_labels: Tensor
    config: UnlearnConfig
    statistics: ProxyStatistics


@cache
def small() -> Small:
    """Train once per process; the tests check that nobody changes what comes back."""
    data = read_digits()
    mean, std = channel_statistics(data.train.images)
    net = build("digits", num_classes=10, in_channels=1, image_size=8, width=TINY.width, mean=mean, std=std, seed=0)
    model = train(net, data.train.images, data.train.labels, config=TINY.train, seed=0).model.eval()
    guard = Guard(data, (FORGET,))
    images, labels = guard.forget_train(60)
    config = replace(TINY.unlearn, update=replace(TINY.unlearn.update, ladder=LADDER, whole_ladder=True))
    generator = generator_for(0, "material")
    statistics = prepare(model, images, forget=(FORGET,), num_classes=10, config=config, generator=generator)
    return Small(model, images, labels, *guard.retain_train(), config, statistics)


def problem(*, oracle=False, **changes):
    """Return the small case as a method is handed it, with retain data for an oracle, some fields changed."""
    case = small()
    given = Problem(case.model, case.images, case.labels, 10, generator_for(0, "method"), case.statistics)
    retain = (case.retain_images, case.retain_labels) if oracle else None
    return replace(given, **{"retain": retain} | changes)


@contextmanager
def rooted(root, data):
    """Run with ``root`` as the repository and ``data`` as the folder of the data sets; for fixtures of a module.

    Yields:
        The root.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSPAG_ROOT", str(root))
        patch.setenv("ZSPAG_DATA", str(data))
        yield root


def changed_names(before: nn.Module, after: nn.Module) -> set[str]:
    """Return the names of parameters and buffers that differ in any bit."""
    other = after.state_dict()
    return {name for name, tensor in before.state_dict().items() if not torch.equal(tensor, other[name])}


def caught_losses(monkeypatch, run):
    """Call ``run``, a method of the table, and return what it hands to the loop at every rate: loss and options."""
    caught = []

    def keep(model, *_, loss, update, **options):
        caught.append((loss, options | {"update": update}))
        return Run(model, update.lr, (Epoch(0.0, 1.0, 0.0),), diverged=False)

    with monkeypatch.context() as patch:
        patch.setattr(method, "projected_sgd", keep)
        run()
    return caught


class Fixed(nn.Module):
    """A model whose logits are given, one row per image; it records which images it saw."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return self.logits[: len(images)]
