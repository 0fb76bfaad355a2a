"""What is measured of one network in an audit: each measure is a function from a bench and a name to rows.

Invariant: a measure changes no network, and every network of a bench is given the same images, draws and orders.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from zspag.heads.head import find_head, head_inputs
from zspag.lab import relearning
from zspag.lab.audit.bench import GRID, Bench, other_seed
from zspag.lab.audit.features import linear_cka, stage_features, unmasked
from zspag.lab.audit.head_row import row_redrawn
from zspag.lab.audit.membership_inference import membership_inference
from zspag.lab.audit.output_divergence import recognized_nearby, recognized_under_attack, residual, streisand, zrf
from zspag.lab.audit.probes import linear_probe, logit_restored, mlp_probe, neighbour_probe, prototype_probe
from zspag.lab.evaluation import accuracy, agreement, macro_accuracy, mean_js
from zspag.lab.experiment import trained, untrained
from zspag.runtime import generator_for, logits_of

Rows = list[dict[str, Any]]
Measures = Mapping[str, Callable[[Bench, str], Rows]]
FOLDS = 5  # of membership inference
PENALTY = 0.01  # of the linear probe
MLP: dict[str, Any] = {"units": 64, "epochs": 20, "lr": 0.01, "draws": 3}  # of the nonlinear probe
NEIGHBOURS = 15  # that vote
RADII = (4 / 255, 8 / 255, 16 / 255, 32 / 255, 64 / 255)  # of moves, in pixels
DRAWS = 8  # random moves of an image
TRIAL_STEPS = 10  # of training, where numbers mean nothing


def membership_rows(bench: Bench, name: str) -> Rows:
    """Infer the membership of the forget training images, against forget test images: an ``Inference`` per attack."""
    logits, generator = bench.logits_of(name), generator_for(bench.case.seed, "membership")
    members, others = logits.forget_train, logits.forget_test
    folds = min(FOLDS, len(members) // 2, len(others) // 2)  # fewer where there are only a handful of images
    if folds < 2:  # too few to learn from some and be judged on others
        return []
    found = membership_inference(members, others, label=bench.case.forget, folds=folds, generator=generator)
    return [{"attack": score} | asdict(figures) for score, figures in found.items()]


def distance_rows(bench: Bench, name: str) -> Rows:
    """Compare accuracy and outputs (js in nats) with the retrained network, per split.

    The retrained network is compared with the one of another seed of the profile, if there is one.
    """
    case, images, labels, other = bench.case, bench.references.images, bench.references.labels, bench.target
    if name == "retrained":
        seed = other_seed(case)
        if seed is None:
            return []
        other = images.map_logits(trained(case.profile, seed, case.forget))
    own, rows = bench.logits_of(name), []
    blank = bench.once(("logits", "untrained"), lambda: images.map_logits(untrained(case.profile, case.seed)))
    for split in ("forget_train", "forget_test", "retain_test"):
        mine, theirs, truth = (getattr(part, split) for part in (own, other, labels))
        right = accuracy(mine, truth)
        row = {"split": split, "accuracy": right, "agreement": agreement(mine, theirs), "js": mean_js(mine, theirs)}
        gap = abs(right - accuracy(theirs, truth))
        rows.append(row | {"gap": gap, "zrf": zrf(mine, getattr(blank, split))})
    return rows


def probe_rows(bench: Bench, name: str) -> Rows:
    """Fit probes to training features and judge them on test images: a linear one per stage, the others at the last.

    A row holds the recall of the forget class (known) and the mean recall of the others (known_retained).
    """
    train = stage_features(bench.networks[name], bench.fitted[0], grid=GRID)
    test, rows = bench.features_of(name), []
    for depth, stage in enumerate(train):
        probed = _probed(bench, train[stage], test[stage], whole=depth == len(train) - 1)
        rows += [{"stage": stage, "depth": depth} | row for row in probed]
    return rows


def head_probe_rows(bench: Bench, name: str) -> Rows:
    """Probe what enters the head alone, as ``probe_rows`` does: other stages cost a matrix of patches each."""
    model, (original, images) = unmasked(bench.networks[name]), (bench.networks["original"], bench.fitted[0])
    head = bench.once(("original", "head"), lambda: find_head(original, images))
    train, test = (head_inputs(model, shown, head) for shown in (images, bench.test[0]))
    return [{"stage": head.name, "depth": 0} | row for row in _probed(bench, train, test, whole=True)]


def _probed(bench: Bench, train: Tensor, test: Tensor, *, whole: bool) -> Rows:
    features, forget = (train, bench.fitted[1], test, bench.test[1]), (bench.case.forget,)
    found = {"linear": linear_probe(*features, forget=forget, penalty=PENALTY)}
    if whole:
        generator = generator_for(bench.case.seed, "mlp probe")
        found["class means"] = prototype_probe(*features, forget=forget)
        found["mlp"] = mlp_probe(*features, forget=forget, **MLP, generator=generator)
        found["neighbours"] = neighbour_probe(*features, forget=forget, neighbours=NEIGHBOURS)
    return [
        {"probe": probe, "known": recall.forget, "known_retained": recall.retain} for probe, recall in found.items()
    ]


def likeness_rows(bench: Bench, name: str) -> Rows:
    """Compare features of all test images with the retrained network's, per stage; None where they are all the same."""
    rows: Rows = []
    for depth, (stage, features) in enumerate(bench.features_of(name).items()):
        cka = linear_cka(features, bench.features_of("retrained")[stage])
        rows.append({"stage": stage, "depth": depth, "cka": cka if math.isfinite(cka) else None})
    return rows


def restored_rows(bench: Bench, name: str) -> Rows:
    """Put the original's last layer into the network and judge it again: one row."""
    images, labels = bench.references.images, bench.references.labels
    back = logit_restored(bench.networks["original"], bench.networks[name], bench.test[0][:1])
    row = {
        "acc_forget_before": accuracy(bench.logits_of(name).forget_test, labels.forget_test),
        "acc_forget": accuracy(logits_of(back, images.forget_test), labels.forget_test),
        "acc_retain": macro_accuracy(logits_of(back, images.retain_test), labels.retain_test),
    }
    return [row]


def relearning_rows(bench: Bench, name: str) -> Rows:
    """Show the class again, and other classes alone, and follow what is recognized: a row per rate and checkpoint.

    The class is shown under three heads. Steps under the "own" one measure the class's row of it (see ``head_row``).
    Under the "original's" they say whether the features still fit the row that once knew the class, and with a
    "fresh" row, of which nothing is known, how soon the features teach one. Curves end some time after all that is
    asked for is back.
    """
    network, images = bench.networks[name], bench.references.images
    heads = {"own": network, "original's": logit_restored(bench.networks["original"], network, bench.test[0][:1])}
    generator = generator_for(bench.case.seed, "fresh row")
    fresh = row_redrawn(network, forget=bench.case.forget, images=images.forget_test, generator=generator)
    if fresh is not None:
        heads["fresh"] = fresh
    recognized = partial(relearning.share_recognized, bench.networks["original"], *bench.judged["acc_forget"])
    known = bench.once(("original", "known"), recognized)
    shown = {
        "the class": ((images.forget_train, bench.references.labels.forget_train), relearning.RATES, heads),
        "other classes": (bench.retained, relearning.RATES_OF_OTHERS, {"own": network}),
    }
    rows: Rows = []
    for what, (samples, rates, models) in shown.items():
        enough = max(relearning.SHARES) * known if what == "the class" else math.inf
        for (head, model), (lr, most_steps) in itertools.product(models.items(), rates.items()):
            curve = relearning.relearning_curve(
                model,
                *samples,
                judged=bench.judged,
                lr=lr,
                steps=relearning.checkpoints(TRIAL_STEPS if bench.case.profile.trial else most_steps),
                generator=generator_for(bench.case.seed, "relearning"),
                enough=enough,
            )
            rows += [{"shown": what, "head": head, "lr": lr} | row for row in curve]
    return rows


def streisand_rows(bench: Bench, name: str) -> Rows:
    """Compare outputs on forget test images with the retrained network's: one ``OutputDivergence``."""
    own = bench.logits_of(name).forget_test
    return [asdict(streisand(own, bench.target.forget_test, forget=bench.references.forget))]


def residual_rows(bench: Bench, name: str) -> Rows:
    """Move forget test images, at random or by attack, and see what recognizes them: a ``Residual`` per radius."""
    looks: dict[str, Callable[..., Tensor]] = {
        "at random": partial(recognized_nearby, draws=DRAWS),
        "by attack": recognized_under_attack,
    }

    def recognized(network: str, moved: str, radius: float) -> Tensor:
        generator, model = generator_for(bench.case.seed, "moved"), bench.networks[network]
        look = partial(looks[moved], model, *bench.moved, radius=radius, generator=generator)
        return bench.once((moved, radius, network), look)

    rows = []
    for radius, moved in itertools.product(RADII, looks):
        known, target = (recognized(network, moved, radius) for network in (name, "retrained"))
        rows.append({"moved": moved, "radius": radius} | asdict(residual(known, target)))
    return rows


MEASURES: Measures = {
    "membership": membership_rows,
    "distance": distance_rows,
    "probes": probe_rows,
    "likeness": likeness_rows,
    "restored": restored_rows,
    "relearning": relearning_rows,
    "streisand": streisand_rows,
    "residual": residual_rows,
}
FEATURES: Measures = {  # tell whether the class is still in the features
    "distance": distance_rows,
    "probes": head_probe_rows,
    "restored": restored_rows,
}
