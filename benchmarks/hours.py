"""How many hours the paper's sixteen pairs take, from recorded rates: ``python -m benchmarks.hours [--record]``.

An image of a training costs three forward passes: its own, and two of the same size for both gradients. A pair is an
original, one retrained model per class and as many unlearnings. How fast a training is and which share of one an
unlearning takes come from ``results/bench/cpu.json`` and, where a card was measured, ``results/gpu/nets.json``.

Invariant: no hour is typed. The net that was measured is smaller than the paper's, so this is an order of magnitude.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stages import whole
from benchmarks.stages.settings import Sizes
from zspag.lab import models
from zspag.profiles import PAPER_DATA, PAPER_NETS, PROFILES, for_pair
from zspag.report import files
from zspag.report.provenance import git
from zspag.runtime import plain_attention

# Training images, classes and pixels a side, as published; FaceScrub's loader keeps a fifth for the test.
SHAPES = {
    "facescrub": (round(0.8 * 106_863), 530, 64),
    "svhn": (73_257, 10, 32),
    "cifar10": (50_000, 10, 32),
    "cifar100": (50_000, 100, 32),
}


@dataclass(frozen=True)
class Rate:
    """What one machine was measured to do.

    Attributes:
        machine: Its name.
        operations: Operations per second of a training.
        share: An unlearning's time as a share of a training's.
    """

    machine: str
    operations: float
    share: float


def forward_operations(arch: str, *, width: int, classes: int, side: int) -> int:
    """Return the operations of one colour image's forward pass, two per multiplication."""
    middle = (0.5,) * 3
    shape = {"in_channels": 3, "image_size": side, "width": width, "mean": middle, "std": middle}
    net = models.build(arch, num_classes=classes, seed=0, **shape).eval()
    with plain_attention(), torch.no_grad(), FlopCounterMode(display=False) as counted:
        net(torch.zeros(1, 3, side, side))
    return counted.get_total_flops()


def rates(results: Path) -> Iterator[Rate]:
    """Yield what is recorded: the benchmark's small net on a CPU, and the paper's ResNet-18 on a card.

    Raises:
        ValueError: If no race against retraining is recorded.
    """
    bench = files.read_json(results / "bench" / "cpu.json")["data"]
    profile = whole.profile_of(Sizes())
    raced = [one for one in bench["found"] if one["stage"] == whole.STAGE and "retraining" in one["seconds"]]
    if not raced:
        raise ValueError(
            f"{results / 'bench' / 'cpu.json'} has no race against retraining: make bench RECORD=1 makes one"
        )
    found = raced[-1]  # the record of an older benchmark has a quick way before the defaults
    seconds, images = found["seconds"]["retraining"][0], round(0.9 * SHAPES["cifar10"][0])  # without one class
    here = f"{bench['machine']['name']}, {bench['machine']['threads']} threads"
    one = forward_operations(profile.arch, width=profile.width, classes=10, side=32)
    yield Rate(here, 3 * one * images * profile.train.epochs / seconds, 1 / found["value"])
    if (path := results / "gpu" / "nets.json").is_file():
        told: dict[str, Any] = files.read_json(path)
        net = told["found"]["net"]
        one = forward_operations(net["arch"], width=net["width"], classes=10, side=32)
        whole_training = 3 * one * told["found"]["images"] * told["found"]["epochs"]
        share = told["found"]["unlearning as a share of training"]
        yield Rate(told["device"], whole_training / told["found"]["seconds"]["trained"], share)


@cache
def trainings() -> dict[tuple[str, str], float]:
    """Return the operations of one training of every pair."""
    found = {}
    for data in PAPER_DATA:
        images, classes, side = SHAPES[data]
        for arch in PAPER_NETS:
            profile = for_pair(PROFILES["paper"], dataset=data, arch=arch)
            one = forward_operations(arch, width=profile.width, classes=classes, side=side)
            found[data, arch] = 3.0 * one * images * profile.train.epochs
    return found


def sentences(results: Path) -> Iterator[str]:
    """Yield a sentence per machine: hours of all pairs one after the other, and with one worker for every class."""
    costs, classes = trainings(), len(PROFILES["paper"].classes)
    longest = max(costs, key=lambda pair: costs[pair])
    for rate in rates(results):
        hours = {pair: cost / rate.operations / 3600 for pair, cost in costs.items()}
        every = sum(hours.values()) * trainings_of_a_pair(rate)
        chain = hours[longest] * (2 + rate.share)
        yield (
            f"{rate.machine}: {every:,.0f} hours for all pairs one after the other, {chain:,.0f} with"
            f" {classes * len(costs)} such workers (an original, a retrained model and an unlearning of"
            f" {' on '.join(longest[::-1])}); trainings at {rate.operations / 1e9:,.0f} GFLOP/s, an unlearning"
            f" {100 * rate.share:.1f} % of one."
        )


def by_pair(results: Path) -> list[dict[str, Any]]:
    """Return hours of every pair per machine: an original, and per class a retrained model and an unlearning."""
    return [
        {
            "machine": rate.machine,
            "data": data,
            "net": net,
            "hours": cost / rate.operations / 3600 * trainings_of_a_pair(rate),
        }
        for rate in rates(results)
        for (data, net), cost in trainings().items()
    ]


def trainings_of_a_pair(rate: Rate) -> float:
    """Return how many trainings a pair takes: an original, and per class a retrained model and an unlearning."""
    return 1 + len(PROFILES["paper"].classes) * (1 + rate.share)


def main(arguments: Sequence[str]) -> None:
    """Print the sentences, and with ``--record`` write the hours of every pair to ``results/hours.json``."""
    folder = files.repository_root() / "results"
    for sentence in sentences(folder):
        sys.stdout.write(f"{sentence}\n")
    if "--record" in arguments:
        measured = [asdict(rate) for rate in rates(folder)]
        content = {
            "schema": 1,
            "rates": measured,
            "pairs": by_pair(folder),
            "provenance": {"commit": git("rev-parse", "HEAD")},
        }
        files.write_json(folder / "hours.json", files.plain(content, "hours"))


if __name__ == "__main__":
    main(sys.argv[1:])
