"""What is measured of one network in an audit: each measure is a function from a bench and a name to rows.

Invariant: a measure changes no network, and every network of a bench is given the same images, draws and orders.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from zspag.lab import relearning
from zspag.lab.audit.bench import GRID, Bench, other_seed
from zspag.lab.audit.features import linear_cka, stage_features
from zspag.lab.audit.membership_inference import membership_inference
from zspag.lab.audit.output_divergence import recognized_nearby, recognized_under_attack, residual, streisand, zrf
from zspag.lab.audit.probes import linear_probe, logit_restored, prototype_probe
from zspag.lab.evaluation import accuracy, agreement, macro_accuracy, mean_js
from zspag.lab.experiment import trained, untrained
from zspag.runtime import generator_for, logits_of

Rows = Iterator[dict[str, Any]]
FOLDS = 5  # of membership inference
PENALTY = 0.01  # of the linear probe
RADII = (4 / 255, 8 / 255, 16 / 255, 32 / 255, 64 / 255)  # of moves, in pixels
DRAWS = 8  # random moves of an image
TRIAL_STEPS = 10  # of training, where numbers mean nothing


def membership_rows(bench: Bench, name: str) -> Rows:
    """Infer the membership of the forget training images, against forget test images.

    Yields:
        A row per score: attack (the name of the score), and the fields of ``membership_inference.Inference``.
    """
    logits, generator = bench.logits_of(name), generator_for(bench.case.seed, "membership")
    members, others = logits.forget_train, logits.forget_test
    folds = min(FOLDS, len(members) // 2, len(others) // 2)  # fewer where a trial leaves a handful of images
    found = membership_inference(members, others, label=bench.case.forget, folds=folds, generator=generator)
    for score, figures in found.items():
        yield {"attack": score} | asdict(figures)


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
            "zrf": zrf(mine, getattr(blank, split)),
        }


def probe_rows(bench: Bench, name: str) -> Rows:
    """Fit probes of all classes to training features of every stage and judge them on test images.

    Yields:
        A row per stage for the probe "linear" and one for "class means" of the last stage: probe, stage, depth, known
        and known_retained (recall of the forget class and mean recall of the others).
    """
    images, labels = bench.fitted
    train, test = stage_features(bench.networks[name], images, grid=GRID), bench.features_of(name)
    for depth, stage in enumerate(train):
        rows, forget = (train[stage], labels, test[stage], bench.test[1]), (bench.case.forget,)
        found = {"linear": linear_probe(*rows, forget=forget, penalty=PENALTY)}
        if depth == len(train) - 1:
            found["class means"] = prototype_probe(*rows, forget=forget)
        for probe, recall in found.items():
            place = {"probe": probe, "stage": stage, "depth": depth}
            yield place | {"known": recall.forget, "known_retained": recall.retain}


def likeness_rows(bench: Bench, name: str) -> Rows:
    """Compare features of all test images with the retrained network's.

    Yields:
        A row per stage: stage, depth and cka; None where features are the same for all images.
    """
    for depth, (stage, rows) in enumerate(bench.features_of(name).items()):
        cka = linear_cka(rows, bench.features_of("retrained")[stage])
        yield {"stage": stage, "depth": depth, "cka": cka if math.isfinite(cka) else None}


def restored_rows(bench: Bench, name: str) -> Rows:
    """Put the original's last layer into the network and judge it again.

    Yields:
        One row: acc_forget and acc_retain with that layer, and acc_forget_before.
    """
    images, labels = bench.references.images, bench.references.labels
    back = logit_restored(bench.networks["original"], bench.networks[name], bench.test[0][:1])
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
    own = bench.references.images.forget_train, bench.references.labels.forget_train
    recognized = partial(relearning.share_recognized, bench.networks["original"], *bench.judged["acc_forget"])
    known = bench.once(("original", "known"), recognized)
    shown = {
        "the class": (own, relearning.RATES, max(relearning.SHARES) * known),
        "other classes": (bench.retained, relearning.RATES_OF_OTHERS, math.inf),
    }
    for what, (samples, rates, enough) in shown.items():
        for lr, most_steps in rates.items():
            curve = relearning.relearning_curve(
                bench.networks[name],
                *samples,
                judged=bench.judged,
                lr=lr,
                steps=relearning.checkpoints(TRIAL_STEPS if bench.case.profile.trial else most_steps),
                generator=generator_for(bench.case.seed, "relearning"),
                enough=enough,
            )
            yield from ({"shown": what, "lr": lr} | row for row in curve)


def streisand_rows(bench: Bench, name: str) -> Rows:
    """Compare outputs on forget test images with the retrained network's.

    Yields:
        One row: the fields of ``output_divergence.OutputDivergence``.
    """
    own = bench.logits_of(name).forget_test
    yield asdict(streisand(own, bench.target.forget_test, forget=bench.references.forget))


def residual_rows(bench: Bench, name: str) -> Rows:
    """Move forget test images a little, at random or by attack, and see what recognizes them.

    Yields:
        A row per kind of move and radius: moved ("at random" or "by attack"), radius (pixels), and the fields of
        ``output_divergence.Residual``.
    """
    looks: dict[str, Callable[..., Tensor]] = {
        "at random": partial(recognized_nearby, draws=DRAWS),
        "by attack": recognized_under_attack,
    }

    def recognized(network: str, moved: str, radius: float) -> Tensor:
        generator, model = generator_for(bench.case.seed, "moved"), bench.networks[network]
        look = partial(looks[moved], model, *bench.moved, radius=radius, generator=generator)
        return bench.once((moved, radius, network), look)

    for radius, moved in itertools.product(RADII, looks):
        known, target = (recognized(network, moved, radius) for network in (name, "retrained"))
        yield {"moved": moved, "radius": radius} | asdict(residual(known, target))


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
