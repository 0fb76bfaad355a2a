"""Recorded results made by hand, in which every claim holds: what the claims and their files are tested on."""

from tests.frames import REFERENCES, grid
from zspag.report.claims import BEST_LABELS, C3_FILES, FROZEN, RIVALS
from zspag.report.files import read_json, write_json

SWEEP = "sweep_digits_digits_3-5"
MADE = {"config": {"dataset": "digits", "arch": "digits"}, "started": "2026-01-01"}


def write(folder, name, *, numbers=(), config=(), **data):
    """Write one result file."""
    made = MADE | {"config": MADE["config"] | dict(config)}
    pairs = {number: [value, None] for number, value in dict(numbers).items()}
    content = {"schema": 2, "name": name, "numbers": pairs, "data": data, "provenance": made}
    write_json(folder / f"{name}.json", content)


def change(folder, name, function):
    """Change the content of a result file in place."""
    content = read_json(folder / f"{name}.json")
    function(content)
    write_json(folder / f"{name}.json", content)


def sweep(folder, name=SWEEP, *, unprojected=None, controls=0.03, own=0.001, config=()):
    """A sweep in which ZS-PAG is safe over a factor of 10, its drift is ``own``, and nobody else is safe anywhere."""
    wide = {0.1: (0.0, 0.0, own), 0.3: (0.0, 0.0, own), 1.0: (0.0, 0.0, own)}
    bad = {0.1: (0.0, 0.02, controls)}
    frame = [*REFERENCES, *grid("zs_pag", wide), *grid("unprojected", unprojected or bad)]
    for control in ("forget_subspace", "noise_subspace", "random_subspace"):
        frame += grid(control, bad)
    kept = [row | {"gap": 0.1 if row["method"] == "zs_pag" else 0.2} for row in frame]
    best = (unprojected or bad)[0.1][2]
    numbers = {"safe window zs_pag": 10.0, "drift in hindsight zs_pag": own, "drift in hindsight unprojected": best}
    write(folder, name, numbers=numbers, config=config, rows=kept, titles={"zs_pag": "ZS-PAG"}, seconds={})


def half(folder, half_name, *, added):
    """Rows of half a test set: labels by influence have ``added`` to every measure, and all others nothing."""
    own = (BEST_LABELS, FROZEN)
    rows = [
        {
            "method": name,
            "forget": forget,
            "seed": 0,
            "lr": 1.0,
            "chosen": True,
            "acc_forget": 0.0,
            "over_unlearning": change,
            "drift": 0.5 + change,
            "nll_retain": 0.5 + change,
        }
        for name in (*RIVALS, *own)
        for forget in (0, 3, 7)
        for change in [added * (1 + forget / 100) if name in own else 0.0]
    ]
    titles = {name: f"<{name}>" for name in (*RIVALS, *own)}
    write(folder, C3_FILES[half_name], config={"retrained": False}, rows=rows, test_half=half_name, titles=titles)


def everything(folder):
    """Write results in which every claim holds."""
    layers = {"proxies": [1.2, 2.0], "forget samples": [0.4, 0.1], "noise": [0.9, 0.9], "random": [1.0, 1.0]}
    write(
        folder,
        "03_capture",
        numbers={"capture_of_oracle_proxies": 0.98},
        panels=[{"title": "capture", "series": {}}, {"title": "selectivity", "series": layers}],
    )
    sweep(folder)
    half(folder, "first", added=-0.1)
    half(folder, "second", added=-0.1)
    better = {"mean": -0.002, "half": 0.001, "sd": 0.001, "classes": 3}
    against = {rival: {"js_retain": better} for rival in ("random", "second_best", "soft")}
    write(
        folder, "04_verdict", against=against, over_unlearning={"mean": 0.0, "half": 0.001, "sd": 0.001, "classes": 3}
    )
    measured = {"measured": [0.1, 0.2, 0.0], "bound": [0.1, 19.0, 0.0]}
    write(folder, "01_bound", panels=[{"title": "proxies", "series": measured}])
    write(folder, "01_first_order", numbers={"ratio": 1.2}, panels=[])
    exposed = {"retain data, measured": [0.0, 0.1], "bound for retain data": [0.1, 0.2]}
    write(folder, "01_proxy_bound", panels=[{"title": "T3", "series": exposed}])
    write(folder, "05_comparison", numbers={"methods that dominate ZS-PAG": 0}, sentence="ZS-PAG is dominated by none.")
    seconds = {"seconds proxies": 0.2, "seconds subspaces": 0.1, "seconds update": 0.4, "seconds retraining": 1.0}
    write(folder, "05_cost", numbers=seconds, panels=[])
