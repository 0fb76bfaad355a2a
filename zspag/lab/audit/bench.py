"""The bench of an audit: every network of a class and seed, and the images that all of them are shown.

Invariant: methods ran under the data guard by the forget-only rule, as a user would run them; the bench may read all.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from zspag.lab.audit.features import stage_features
from zspag.lab.audit.head_row import row_edited
from zspag.lab.evaluation import Masked, Parts
from zspag.lab.experiment import (
    Case,
    data_of,
    guard_of,
    judged_on,
    references_of,
    run_method,
    statistics_of,
    trained,
)
from zspag.runtime import pick_device, spread_evenly

T = TypeVar("T")
# Beside the references; notebook 05 says what speaks for the rivals.
METHODS = ("zs_pag", "remove", "delete", "boundary_shrink", "head_only")
SUBJECTS = ("original", "masked", "row_only", "retrained", *METHODS)
GRID = 2  # cells along an axis that a map of features is averaged over
FITTED = 200  # training images of a class that a probe is fitted to
JUDGED = {"acc_forget": 100, "acc_retain": 30}  # test images of a class that training curves are judged on, at most
MOVED = 100  # forget test images that are moved, at most: an attack on each radius and network takes long


def networks(case: Case) -> dict[str, nn.Module]:
    """Return every network that is looked at, by its name in ``SUBJECTS``.

    "row_only", the original with one row of its head edited, is left out where that row cannot be written.
    """
    original, statistics = trained(case.profile, case.seed), statistics_of(case)
    retrained, device = trained(case.profile, case.seed, case.forget), pick_device()
    masked = Masked(original, forget=(case.forget,), num_classes=data_of(case.profile).num_classes)
    found = {"original": original, "masked": masked.to(device)}
    images, _ = guard_of(case).forget_test()
    edited = row_edited(original, retrained, forget=case.forget, images=images.to(device))
    if edited is not None:
        found["row_only"] = edited
    found["retrained"] = retrained
    for name in METHODS:
        search, _ = run_method(case, name, model=original, statistics=statistics, whole=False)
        found[name] = search.kept.model
    return found


def other_seed(case: Case) -> int | None:
    """Return the seed whose retrained network stands beside the one of a case, or None if the profile has one seed."""
    return next((seed for seed in case.profile.seeds if seed != case.seed), None)


class Bench:
    """What the measures of one class and seed share.

    Args:
        case: The class and seed.
        nets: What is looked at, by name, the retrained network among them; ``networks`` without it.
    """

    def __init__(self, case: Case, nets: Mapping[str, nn.Module] | None = None) -> None:
        self.case, self.references = case, references_of(case)
        if self.references.retrained is None:
            raise ValueError("an audit needs retrained models, and the profile leaves them out (retrained=False)")
        self.target, self.networks = self.references.retrained, networks(case) if nets is None else dict(nets)
        device, images, labels = pick_device(), self.references.images, self.references.labels
        retained, retained_labels = guard_of(case).retain_train(FITTED)
        self.retained = retained.to(device), retained_labels.to(device)
        forgotten = _evenly(images.forget_train, labels.forget_train, FITTED)
        fitted, fitted_labels = (torch.cat(parts) for parts in zip(self.retained, forgotten, strict=True))
        self.fitted = fitted, fitted_labels.cpu()  # probes are fitted on the CPU
        test = judged_on(case.profile).test
        self.test = test.float().to(device), test.labels
        retained_most = JUDGED["acc_retain"] * (data_of(case.profile).num_classes - 1)
        self.judged = {  # what training curves are judged on
            "acc_forget": _evenly(images.forget_test, labels.forget_test, JUDGED["acc_forget"]),
            "acc_retain": _evenly(images.retain_test, labels.retain_test, retained_most),
        }
        self.moved = _evenly(images.forget_test, labels.forget_test, MOVED)
        self._seen: dict[tuple[Hashable, ...], Any] = {}

    def once(self, key: tuple[Hashable, ...], compute: Callable[[], T]) -> T:
        """Return what a computation gave the first time; the last part of its key says of which network it is."""
        if key not in self._seen:
            self._seen[key] = compute()
        return cast("T", self._seen[key])

    def drop(self, name: str) -> None:
        """Let go of what was computed of one network alone; features of many images are large."""
        self._seen = {key: value for key, value in self._seen.items() if key[-1] != name}

    def features_of(self, name: str) -> dict[str, Tensor]:
        """Return what enters each weight of a network on all test images."""
        return self.once(("features", name), lambda: stage_features(self.networks[name], self.test[0], grid=GRID))

    def logits_of(self, name: str) -> Parts:
        """Return the logits of a network on the images of the references."""
        return self.once(("logits", name), lambda: self.references.images.map_logits(self.networks[name]))


def _evenly(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    kept = spread_evenly(torch.arange(len(labels)), count)
    return images[kept], labels[kept]
