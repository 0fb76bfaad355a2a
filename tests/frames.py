"""Rows of a grid as the tables and the claims read them, made by hand."""

import math
from itertools import product

import pandas as pd

NAN = math.nan


def rows(method, values, *, column="acc_retain", seeds=(0, 1)):
    """One row per class and seed; ``values`` maps a class to one number per seed."""
    return [
        {"method": method, "forget": forget, "seed": seed, column: number}
        for forget, numbers in values.items()
        for seed, number in zip(seeds, numbers, strict=False)
    ]


def grid(method, ladder, *, classes=(3, 5), seeds=(0,), read=0):
    """A grid of ``ladder`` {rate: (acc_forget, over_unlearning, drift)}, the same for every class and seed."""
    chosen = next((lr for lr, point in ladder.items() if point[0] <= 0.01), list(ladder)[-1])
    return [
        {
            "method": method,
            "forget": forget,
            "seed": seed,
            "lr": lr,
            "chosen": lr == chosen,
            "acc_forget": point[0],
            "acc_retain": 0.9 - point[1],
            "over_unlearning": point[1],
            "drift": point[2],
            "gap": 0.1,
            "retain_samples_read": read,
        }
        for forget, seed, (lr, point) in product(classes, seeds, ladder.items())
    ]


REFERENCE = {"acc_forget": 0.0, "acc_retain": 0.9, "over_unlearning": 0.0, "drift": 0.0, "gap": 0.2}


def references(classes=(3, 5)):
    """A row per reference and class."""
    pairs = product(("original", "masked", "retrained"), classes)
    return [{"method": name, "forget": forget, "seed": 0} | REFERENCE for name, forget in pairs]


FURTHER = {
    "acc_forget_train": 0.0,
    "agreement_forget": 0.5,
    "agreement_retain": 0.9,
    "js_forget": 0.2,
    "js_retain": 0.01,
    "epochs": 4.0,
    "seconds": 2.0,
}


def whole_frame():
    """Two classes; ZS-PAG is chosen at its second rate, an oracle at its first."""
    ladder = {0.1: (0.5, 0.0, 0.01), 0.3: (0.0, 0.004, 0.02), 1.0: (0.0, 0.004, 0.03)}
    made = references() + grid("zs_pag", ladder) + grid("oracle", {0.1: (0.0, 0.0, 0.0)}, read=99)
    frame = pd.DataFrame(made).assign(**FURTHER)
    frame.loc[frame["method"].isin(("original", "masked", "retrained")), ["epochs", "seconds"]] = NAN
    frame.loc[(frame["method"] == "zs_pag") & (frame["forget"] == 5), "acc_retain"] += 0.02
    return frame
