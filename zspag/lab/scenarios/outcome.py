"""One request: the samples it names, what the method answers, and what comes out beside a model retrained without them.

Invariant: the method is handed the named samples and their labels, and of the model's past only which classes are gone.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zspag.lab.data import Split
from zspag.lab.evaluation import accuracy, macro_accuracy, masked, mean_kl, per_class_accuracy
from zspag.lab.experiment import Case, data_of, judged_on, trained, trained_on, training_key
from zspag.profiles import Profile
from zspag.report import provenance
from zspag.runtime import generator_for, logits_of, pick_device, spread_evenly
from zspag.unlearning import zero_shot_unlearn

COMPARED = ("acc_forget_train", "acc_forget", "acc_retain_micro")  # what the gap to the retrained model is the mean of


@dataclass(frozen=True)
class Request:
    """Training samples that shall be forgotten.

    Attributes:
        profile: Whose data and whose original.
        seed: Seed of the original.
        samples: Indices into the training split, increasing.
    """

    profile: Profile
    seed: int
    samples: tuple[int, ...]

    @property
    def named(self) -> Split:
        """The samples themselves."""
        return data_of(self.profile).train.select(torch.tensor(self.samples))

    @property
    def rest(self) -> Split:
        """The other training samples."""
        others = torch.ones(len(data_of(self.profile).train), dtype=torch.bool)
        others[list(self.samples)] = False
        return data_of(self.profile).train.select(others)

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes of the samples, in order."""
        return tuple(self.named.labels.unique().tolist())

    @property
    def whole(self) -> bool:
        """Whether nothing of these classes is left."""
        return not set(self.classes) & set(self.rest.labels.tolist())


def of_classes(profile: Profile, seed: int, classes: Sequence[int]) -> Request:
    """Return the request to forget all training samples of some classes."""
    inside = torch.isin(data_of(profile).train.labels, torch.tensor(classes))
    return Request(profile, seed, tuple(inside.nonzero().flatten().tolist()))


def drawn(case: Case, share: float, *, of: Tensor) -> Request:
    """Return the request to forget this share of the training samples at ``of``, drawn at random."""
    order = torch.randperm(len(of), generator=generator_for(case.seed, "request"))
    chosen = of[order[: round(share * len(of))]].sort().values
    return Request(case.profile, case.seed, tuple(chosen.tolist()))


def compared(request: Request, title: str) -> list[dict[str, Any]]:
    """Send a request to the original and judge what comes back beside the original and the retrained model.

    Returns:
        Rows of the methods "original", "retrained" and "zs_pag": request (the title), method, the columns of
        ``judged``, gap (mean absolute difference to the retrained model over ``COMPARED``), and for "zs_pag" those of
        ``unlearned``; where the request is refused they are all that it has.
    """
    original = trained(request.profile, request.seed)
    target = judged(request, retrained(request))
    model, facts = unlearned(request, original)
    rows = {"original": judged(request, original), "retrained": target}
    rows["zs_pag"] = facts if model is None else judged(request, model) | facts
    for row in rows.values():
        if "acc_forget" in row:
            row["gap"] = sum(abs(row[name] - target[name]) for name in COMPARED) / len(COMPARED)
    return [{"request": title, "method": name, "seed": request.seed} | row for name, row in rows.items()]


def unlearned(
    request: Request, model: nn.Module, *, already_forgotten: Sequence[int] = ()
) -> tuple[nn.Module | None, dict[str, Any]]:
    """Send a request to the method, with the profile's options.

    Returns:
        The unlearned model, or None where the request is refused; and refused (the message, or ""), warned (the
        messages), and where it was not refused lr, reached, eps and seconds.
    """
    named, device = handed(request), pick_device()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = zero_shot_unlearn(
                model,
                named.float().to(device),
                named.labels.to(device),
                config=request.profile.unlearn,
                num_classes=data_of(request.profile).num_classes,
                already_forgotten=already_forgotten,
                seed=request.seed,
            )
        except ValueError as error:
            return None, {"refused": str(error), "warned": []}
    report = result.report
    return result.open_model, {
        "refused": "",
        "warned": [str(warning.message) for warning in caught],
        "lr": report.lr,
        "reached": report.reached,
        "eps": report.eps,
        "seconds": sum(report.seconds.values()),
    }


def handed(request: Request) -> Split:
    """Return the samples that the method is handed: of each class at most as many as the profile says."""
    named, limit = request.named, request.profile.forget_samples
    chosen = [spread_evenly((named.labels == label).nonzero().flatten(), limit) for label in request.classes]
    return named.select(torch.cat(chosen).sort().values)


def retrained(request: Request) -> nn.Module:
    """Return the model retrained without the samples, from the store or trained."""
    profile, seed = request.profile, request.seed
    if request.whole and len(request.classes) == 1:
        return trained(profile, seed, request.classes[0])  # the grid's own
    key = training_key(profile, seed, None) | {"without": provenance.digest(request.samples)}
    title = f"retrained {profile.dataset} seed {seed} without {len(request.samples)} samples"
    return trained_on(request.rest, profile, seed, kind="retrained", key=key, title=title)


def judged(request: Request, model: nn.Module) -> dict[str, Any]:
    """Judge a model by what a request names and by what shall stay.

    Returns:
        classes, whole, samples (their number), acc_forget_train (the samples handed to the method), acc_rest (training
        samples of the same classes that the request does not name; None if there are none), acc_forget (test images of
        these classes) and by_class (each alone), acc_others (test images of other classes, macro; None if there are
        none); and on the test images of what shall stay, that is of other classes if the request names whole ones, else
        of all: acc_retain (macro), acc_retain_micro, over_unlearning and drift as in ``evaluation.Scores``, drift None
        where the model is ruined and it is not finite.
    """

    def answers(one: nn.Module, split: Split) -> Tensor:
        return logits_of(one, split.float().to(pick_device())).cpu()

    test, classes, named, rest = judged_on(request.profile).test, request.classes, handed(request), request.rest
    rest = rest.select(torch.isin(rest.labels, torch.tensor(classes)))
    among = torch.isin(test.labels, torch.tensor(classes))
    stays = ~among if request.whole else torch.ones_like(among)
    logits, original = answers(model, test), answers(trained(request.profile, request.seed), test)
    yardstick = masked(original[stays], forget=classes if request.whole else ())
    acc_retain = macro_accuracy(logits[stays], test.labels[stays])
    drift = mean_kl(yardstick, logits[stays])
    return {
        "classes": list(classes),
        "whole": request.whole,
        "samples": len(request.samples),
        "acc_forget_train": accuracy(answers(model, named), named.labels),
        "acc_rest": accuracy(answers(model, rest), rest.labels) if len(rest) else None,
        "acc_forget": accuracy(logits[among], test.labels[among]),
        "by_class": list(per_class_accuracy(logits[among], test.labels[among]).values()),
        "acc_others": macro_accuracy(logits[~among], test.labels[~among]) if not among.all() else None,
        "acc_retain": acc_retain,
        "acc_retain_micro": accuracy(logits[stays], test.labels[stays]),
        "over_unlearning": macro_accuracy(yardstick, test.labels[stays]) - acc_retain,
        "drift": drift if math.isfinite(drift) else None,
    }
