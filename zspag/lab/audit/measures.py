"""What is measured of one network in an audit: each measure is a function from a bench and a name to rows.

Invariant: a measure changes no network, and every network of a bench is given the same images, draws and orders.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from zspag.lab.audit import features, membership, output_divergence, probes, recovery, residual
from zspag.lab.audit.bench import DRAWS, FOLDS, GRID, PENALTY, Bench, other_seed
from zspag.lab.evaluation import accuracy, agreement, macro_accuracy, mean_js
from zspag.lab.experiment import trained, untrained
from zspag.lab.relearning import share_recognized
from zspag.runtime import generator_for, logits_of

Rows = Iterator[dict[str, Any]]
TRIAL_STEPS = 10  # of training, where numbers mean nothing


def membership_rows(bench: Bench, name: str) -> Rows:
    """Attack the membership of the forget training images, against forget test images.

    Yields:
        A row per attack: attack, and the fields of ``membership.Attack``.
    """
    logits, labels = bench.logits_of(name), bench.references.labels
    draws = generator_for(bench.case.seed, "membership")
    members, others = membership.balanced(labels.forget_train, labels.forget_test, generator=draws)
    folds = min(FOLDS, len(members) // 2)  # fewer where a trial leaves a handful of images
    found = membership.attack(
        logits.forget_train.cpu()[members],
        labels.forget_train.cpu()[members],
        logits.forget_test.cpu()[others],
        labels.forget_test.cpu()[others],
        folds=folds,
        generator=draws,
    )
    for attack, figures in found.items():
        yield {"attack": attack} | asdict(figures)


def distance_rows(bench: Bench, name: str) -> Rows:
    """Compare with the retrained network; that one with the one of another seed of the profile, if there is one.

    Yields:
        A row per split: split, accuracy, agreement, js (nats), gap (in accuracy) and zrf.
    """
    case, images, labels, other = bench.case, bench.references.images, bench.references.labels, bench.target
    if name == "retrained":
        seed = other_seed(case)
        if seed is None:
            return
        other = images.map_logits(trained(case.profile, seed, case.forget))
    own = bench.logits_of(name)
    blank = bench.once(("logits", "untrained"), lambda: images.map_logits(untrained(case.profile, case.seed)))
    for split in ("forget_train", "forget_test", "retain_test"):
        mine, theirs, truth = (getattr(part, split) for part in (own, other, labels))
        right = accuracy(mine, truth)
        yield {
            "split": split,
            "accuracy": right,
            "agreement": agreement(mine, theirs),
            "js": mean_js(mine, theirs),
            "gap": abs(right - accuracy(theirs, truth)),
            "zrf": output_divergence.zrf(mine, getattr(blank, split)),
        }


def probe_rows(bench: Bench, name: str) -> Rows:
    """Fit probes of all classes to training features of every stage and judge them on test images.

    Yields:
        A row per stage for the probe "linear" and one for "class means" of the last stage: probe, stage, depth, known
        and known_retained (recall of the forget class and mean recall of the others).
    """
    images, labels = bench.fitted
    train, test = features.stage_features(bench.networks[name], images, grid=GRID), bench.features_of(name)
    for depth, stage in enumerate(train):
        rows, forget = (train[stage], labels, test[stage], bench.test[1]), (bench.case.forget,)
        found = {"linear": probes.linear_probe(*rows, forget=forget, penalty=PENALTY)}
        if depth == len(train) - 1:
            found["class means"] = probes.prototype_probe(*rows, forget=forget)
        for probe, recall in found.items():
            place = {"probe": probe, "stage": stage, "depth": depth}
            yield place | {"known": recall.forget, "known_retained": recall.retain}


def likeness_rows(bench: Bench, name: str) -> Rows:
    """Compare features of all test images with the retrained network's.

    Yields:
        A row per stage: stage, depth and cka; None where features are the same for all images.
    """
    for depth, (stage, rows) in enumerate(bench.features_of(name).items()):
        cka = features.linear_cka(rows, bench.features_of("retrained")[stage])
        yield {"stage": stage, "depth": depth, "cka": cka if math.isfinite(cka) else None}


def restored_rows(bench: Bench, name: str) -> Rows:
    """Put the original's last layer into the network and judge it again.

    Yields:
        One row: acc_forget and acc_retain with that layer, and acc_forget_before.
    """
    images, labels = bench.references.images, bench.references.labels
    back = probes.logit_restored(bench.networks["original"], bench.networks[name], bench.test[0][:1])
    yield {
        "acc_forget_before": accuracy(bench.logits_of(name).forget_test, labels.forget_test),
        "acc_forget": accuracy(logits_of(back, images.forget_test), labels.forget_test),
        "acc_retain": macro_accuracy(logits_of(back, images.retain_test), labels.retain_test),
    }


def relearning_rows(bench: Bench, name: str) -> Rows:
    """Show the class again, and other classes alone, and follow what is recognized.

    Yields:
        A row per kind of images, rate and checkpoint: shown ("the class" or "other classes"), lr, step, samples,
        acc_forget and acc_retain. Where the class is shown, a curve ends some time after all that is asked for is back.
    """
    images, labels = bench.references.images.forget_train, bench.references.labels.forget_train
    known = bench.once(
        ("original", "known"), lambda: share_recognized(bench.networks["original"], *bench.judged["acc_forget"])
    )
    shown = {
        "the class": (images, labels, recovery.RATES, max(recovery.SHARES) * known),
        "other classes": (*bench.retained, recovery.RATES_OF_OTHERS, math.inf),
    }
    for what, (pictures, classes, rates, enough) in shown.items():
        if bench.case.profile.trial:
            rates = dict.fromkeys(rates, TRIAL_STEPS)
        curves = recovery.training_curves(
            bench.networks[name],
            pictures,
            classes,
            judged=bench.judged,
            rates=rates,
            seeds=(bench.case.seed,),
            enough=enough,
        )
        for row in curves.drop(columns="seed").to_dict("records"):
            yield {"shown": what} | {str(column): value for column, value in row.items()}


def streisand_rows(bench: Bench, name: str) -> Rows:
    """Compare outputs on forget test images with the retrained network's.

    Yields:
        One row: the fields of ``output_divergence.Traces``.
    """
    own = bench.logits_of(name).forget_test
    yield asdict(output_divergence.streisand(own, bench.target.forget_test, forget=bench.references.forget))


def residual_rows(bench: Bench, name: str) -> Rows:
    """Move forget test images a little, at random or by attack, and see what recognizes them.

    Yields:
        A row per kind of move and radius: moved ("at random" or "by attack"), radius (pixels), and the fields of
        ``residual.Residual``.
    """
    images, labels = bench.moved
    looks: dict[str, Callable[..., Tensor]] = {
        "at random": partial(residual.recognized_nearby, draws=DRAWS),
        "by attack": residual.recognized_under_attack,
    }
    for radius in residual.RADII:
        for moved, look in looks.items():
            known, target = (
                bench.once(
                    (moved, radius, one),
                    partial(
                        look,
                        bench.networks[one],
                        images,
                        labels,
                        radius=radius,
                        generator=generator_for(bench.case.seed, "moved"),
                    ),
                )
                for one in (name, "retrained")
            )
            yield {"moved": moved, "radius": radius} | asdict(residual.residual(known, target))


MEASURES: Mapping[str, Callable[[Bench, str], Rows]] = {
    "membership": membership_rows,
    "distance": distance_rows,
    "probes": probe_rows,
    "likeness": likeness_rows,
    "restored": restored_rows,
    "relearning": relearning_rows,
    "streisand": streisand_rows,
    "residual": residual_rows,
}
