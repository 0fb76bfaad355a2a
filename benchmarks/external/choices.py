"""Every part of the method beside its absence: variants that differ from the defaults in one thing.

Only development nets take part, with 20 forget images. A variant is a changed configuration, or the defaults with one
function of the package exchanged while the call runs.

Invariant: what is exchanged is put back, also after an exception; test images are read by the judge afterwards.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.external import rows
from benchmarks.external.arms import SEED, Outcome
from benchmarks.external.old import finite, synchronize
from benchmarks.external.originals import Original, on, runs
from zspag.calibration.cross_fitting import Calibration, calibrate, free_shares
from zspag.calibration.open_search import LARGEST, Search, rate_at
from zspag.calibration.trials import Fold, make_folds
from zspag.config import ProxyConfig, UnlearnConfig, UpdateConfig
from zspag.heads.closed_row import original_row_closed
from zspag.lab.by_name import unlearn_by
from zspag.lab.data.splits import Split
from zspag.outcome import Trial
from zspag.profiles import Ladders
from zspag.proxies import Attacked, ProxySet, generate, margins_of
from zspag.report.provenance import closure_hash, code_hash, digest
from zspag.runtime import chunks, frozen, logits_of, pool_map, sent
from zspag.speedups.conv_bn import conv_bn_pairs, fuse_conv_bn

CHOSEN = ("digits-conv", "digits-mlp", "mnist-lenet", "mnist-mlp", "cifar10-conv7", "cifar10-vgg")
COUNT = 20  # forget images
CLASSES = 2  # of a net, the first ones
FIRST = -6  # step of the scale from which "first" climbs: 0.001
DEFAULTS = UnlearnConfig()


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        title: Its name in tables.
        config: Options of the call.
        swaps: Stand-ins of functions or constants of the package, by full name.
        method: Name at the package's door; "" for the original with its row closed.
        against: The variant from which it differs in one thing.
    """

    title: str
    config: UnlearnConfig = DEFAULTS
    swaps: Mapping[str, Any] = field(default_factory=dict)
    method: str = "zs_pag"
    against: str = "defaults"


def changed(part: str, **options: Any) -> UnlearnConfig:
    """Return the defaults with other options of one part."""
    return replace(DEFAULTS, **{part: replace(getattr(DEFAULTS, part), **options)})


def least_radius(*arguments: Any, **options: Any) -> ProxySet:
    """Make proxies that only just hit, as an attack with a radius of its own for every sample does."""
    found = generate(*arguments, **options)
    return replace(found, images=found.barely)


def confident(*arguments: Any, **options: Any) -> ProxySet:
    """Make proxies of which those with the largest margin stand in for the barely hit ones."""
    found = generate(*arguments, **options)
    return replace(found, barely=found.images)


def last_iterate(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    eps: float,
    config: ProxyConfig,
    generator: torch.Generator,
    start: Tensor | None = None,
) -> Attacked:
    """Attack in an L2 ball as fa40f86 did: steps of one length from a random start, and the last iterate."""
    del start  # every radius began anew
    radius = eps * math.sqrt(images[0].numel())
    noise = sent(torch.rand(images.shape, generator=generator, dtype=images.dtype), images.device) * 2 - 1

    def into_ball(moved: Tensor, origin: Tensor) -> Tensor:
        return (origin + (moved - origin) * (radius / _lengths(moved - origin)).clamp_max(1)).clamp(0, 1)

    parts = []
    with frozen(model), fuse_conv_bn(conv_bn_pairs(model, images, passes=2 * config.steps)):
        for origin, moving, wanted in chunks(images, into_ball(images + eps * noise, images), targets):
            for _ in range(config.steps):
                x = moving.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), wanted, reduction="sum"), x)
                step = gradient * (config.step_share * radius / _lengths(gradient))
                moving = into_ball(x.detach() - step, origin)
            parts.append(moving)
    last = torch.cat(parts)
    return Attacked(last, margins_of(logits_of(model, last), targets))


def _lengths(images: Tensor) -> Tensor:
    return torch.linalg.vector_norm(images.flatten(1), dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)


def same_sources(*arguments: Any, **options: Any) -> tuple[Fold, Fold]:
    """Make folds whose held-out proxies come from the samples that made their basis."""
    first, second = make_folds(*arguments, **options)
    return (
        replace(first, barely=second.barely, before=second.before),
        replace(second, barely=first.barely, before=first.before),
    )


def one_layer(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    folds: Sequence[Fold],
    relabel: Any,
    choices: dict[str, tuple[str, ...]],
    **options: Any,
) -> Calibration:
    """Calibrate the one weight that leaves most of held-out forget samples free for what held-out proxies leak."""
    selective = dict.fromkeys(choices["all"], 0.0)
    for fold in folds:
        free, leak = (free_shares(model, part, fold.project) for part in (fold.unseen, fold.barely))
        for name in selective:
            selective[name] += free[name] / leak[name] if leak[name] else 0.0
    best = max(selective, key=lambda name: selective[name])
    return calibrate(model, images, labels, folds, relabel, {"all": (best,)}, **options)


def first_rate(attempt: Callable[[float], Trial], *, start: int) -> Search:
    """Climb from 0.001 to the first rate that forgets, and look no further."""
    del start
    trials: list[Trial] = []
    for place in range(FIRST, LARGEST + 1):
        trials.append(attempt(rate_at(place)))
        if trials[-1].forgot:
            return Search(tuple(trials), len(trials) - 1, len(trials) == 1)
    return Search(tuple(trials), None, at_edge=True)


LADDER = UpdateConfig().ladder
VARIANTS = {
    "defaults": Variant("defaults"),
    "margin_1": Variant("margin 1", changed("proxies", margin=1.0)),
    "margin_4": Variant("margin 4", changed("proxies", margin=4.0)),
    "least_radius": Variant("least radius of each sample", swaps={"zspag.proxy_statistics.generate": least_radius}),
    "last_iterate": Variant(
        "constant steps, last iterate, margin 1",
        changed("proxies", margin=1.0),
        {"zspag.proxies.attack": last_iterate},
        against="margin_1",
    ),
    "linf": Variant("L-inf", changed("proxies", norm="linf")),
    "steps_20": Variant("20 attack steps", changed("proxies", steps=20)),
    "per_class_50": Variant("50 proxies per class", changed("proxies", per_class=50)),
    "energy_99": Variant("energy .99", changed("subspace", energy=0.99)),
    "energy_999": Variant("energy .999", changed("subspace", energy=0.999)),
    "soft": Variant("soft projector, damping .01", changed("subspace", kind="soft", damping=0.01)),
    "all": Variant("all layers", changed("update", layers="all")),
    "body": Variant("body", changed("update", layers="body")),
    "head": Variant("head", changed("update", layers="head")),
    "one_layer": Variant("most selective layer", swaps={"zspag.calibration.cross_fitting.calibrate": one_layer}),
    "min_steps_20": Variant("20 batches per epoch", changed("update", min_steps=20)),
    "settle_1": Variant("settles half as long", changed("update", settle=1.0)),
    "no_views": Variant("no views", replace(DEFAULTS, views=1)),
    "fixed": Variant(
        "no calibration, ladder from .3",
        swaps={"zspag.lab.by_name.LADDERS": Ladders(LADDER, LADDER, LADDER)},
        method="zs_pag_fixed",
    ),
    "confident": Variant("judged by confident proxies", swaps={"zspag.proxy_statistics.generate": confident}),
    "same_sources": Variant(
        "judged by the basis's sources", swaps={"zspag.calibration.cross_fitting.make_folds": same_sources}
    ),
    "first_rate": Variant("first rate that forgets", swaps={"zspag.calibration.cross_fitting.search_rate": first_rate}),
    "closed": Variant("original, row closed", method=""),
}


@dataclass(frozen=True)
class Choice(rows.Job):
    """A row of this table; ``arm`` names the variant."""

    @property
    def path(self) -> Path:
        """Where the row lies."""
        return folder() / f"{self.net}-class{self.label}-{self.count}-{self.arm}.json"


def folder() -> Path:
    """Return the folder of the rows."""
    return runs() / "choices"


def jobs(nets: Sequence[str], variants: Sequence[str], *, device: str, threads: int) -> list[Choice]:
    """Return the rows of the table, net by net."""
    return [
        Choice(name, label, COUNT, variant, device, threads)
        for name in nets
        for label in rows.NETS[name].classes[:CLASSES]
        for variant in variants
    ]


def run_variant(arm: str, known: Original, forget: Split, *, device: str, **_: Any) -> Outcome:
    """Run one variant; the remainder, which changes no weight, is not measured."""
    images, labels, variant = on(device, forget.images), forget.labels.to(device), VARIANTS[arm]
    if not variant.method:
        return Outcome(original_row_closed(known.twin, sorted(set(labels.tolist())), images=images))
    swaps = {"zspag.unlearning.measure_remainder": lambda *_, **__: None, **variant.swaps}
    with contextlib.ExitStack() as stack:
        for name, stand_in in swaps.items():
            stack.enter_context(patch(name, stand_in))
        started, worked = time.perf_counter(), time.process_time()
        result = unlearn_by(
            variant.method, known.model, images, labels, num_classes=known.num_classes, config=variant.config, seed=SEED
        )
        synchronize(device)
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
    report = finite(result.report.to_dict()) | {"processor_seconds": worked}
    return Outcome(result.open_model, None, result.report.reached, seconds, report)


@lru_cache
def code_of(arm: str) -> str:
    """Return what the code of a variant is known by."""
    module = "zspag.unlearning" if VARIANTS[arm].method == "zs_pag" else "zspag.lab.by_name"
    return digest([closure_hash([module]), code_hash([rows.JUDGE, __name__])])[:16]


def make_choice(job: Choice) -> bool:
    """Make one row unless it is there, as the zoo's rows are made; return whether it had to be made."""
    with patch.object(rows, "run_arm", run_variant), patch.object(rows, "code_of", code_of):
        return rows.make_row(job)


def make_choices(todo: Sequence[Choice], *, workers: int) -> Iterator[tuple[Choice, bool | Exception]]:
    """Make rows on ``workers`` processes.

    Yields:
        Each job as it is done, and whether its row had to be made; or what kept the row from being written.
    """
    threads = todo[0].threads if todo else 1
    yield from pool_map(make_choice, todo, workers=workers, threads_each=threads, title="choices")
