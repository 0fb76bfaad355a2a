"""The audit: forgotten, or only silent? What attackers, probes and training see in each network of a class and seed.

Every measure is made of the references and of methods alike, for a number of this kind means something only beside the
retrained network's, and beside that of one that only hides the class.

Invariant: the laboratory's view; an audit changes no network.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from zspag import recovery
from zspag.audit.bench import METHODS, SUBJECTS, Bench
from zspag.audit.measures import MEASURES
from zspag.config import Profile
from zspag.experiment import Case, Spread, answered, kept_rows
from zspag.runtime import logits_of, pool_map

__all__ = ["METHODS", "SUBJECTS", "anamnesis", "arrival_table", "arrivals", "audit", "audited", "measured"]
CODE = tuple(
    f"zspag.{name}" for name in ("audit", "features", "membership", "probes", "recovery", "residual", "roc", "traces")
)


def audit(profile: Profile, *, seeds: Sequence[int], spread: Spread = pool_map) -> pd.DataFrame:
    """Audit every class of a profile, from files where they are finished.

    Args:
        profile: Says classes, data, recipe and workers.
        seeds: Seeds to audit; the others of the profile give the noise of retraining.
        spread: What carries classes and seeds to processes.

    Returns:
        Rows of all measures below each other: measure, method (of ``SUBJECTS``), forget, seed, and the columns that the
        function of the measure in ``measures.MEASURES`` names. A network with infinite answers has one row, of the
        measure "ruined".

    Raises:
        RunsFailed: If a class and seed failed; the others are finished and kept.
    """
    cases = [Case(profile, seed, forget) for seed in seeds for forget in profile.classes]
    answers = answered(profile, spread, audited, cases, title="audits", name=_name)
    return pd.DataFrame([row for case in cases for row in answers[case]])


def _name(case: Case) -> str:
    return f"the audit of class {case.forget}, seed {case.seed} failed"


def audited(case: Case) -> list[dict[str, Any]]:
    """Return the rows of one class and seed."""
    return kept_rows(case, "audit", lambda: _rows(case), code=CODE)


def _rows(case: Case) -> Iterator[dict[str, Any]]:
    bench = Bench(case)
    for name, network in bench.networks.items():
        place = {"method": name, "forget": case.forget, "seed": case.seed}
        if not bool(logits_of(network, bench.test[0]).isfinite().all()):
            yield {"measure": "ruined"} | place
            continue
        for measure, function in MEASURES.items():
            yield from ({"measure": measure} | place | row for row in function(bench, name))
        if name != "retrained":  # all others are compared with it
            bench.drop(name)


def measured(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the rows of one measure, with its columns."""
    return rows[rows["measure"] == measure].dropna(axis=1, how="all").reset_index(drop=True)


def arrivals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how soon the class was back where it was shown again, per network, class, seed, rate and share.

    Args:
        rows: Of ``audit``; the level is a share of what the original recognizes.

    Returns:
        Columns method, forget, and those of ``recovery.arrivals``.
    """
    curves = measured(rows, "relearning")
    curves, found = curves[curves["shown"] == "the class"], []
    untouched = curves[(curves["method"] == "original") & (curves["step"] == 0)].drop_duplicates(["forget", "seed"])
    level = untouched.set_index(["forget", "seed"])["acc_forget"]
    for (method, forget, seed), own in curves.groupby(["method", "forget", "seed"], sort=False):
        back = recovery.arrivals(own, original=float(level[forget, seed]))
        found.append(back.assign(method=method, forget=forget))
    return pd.concat(found, ignore_index=True)


def anamnesis(back: pd.DataFrame, *, lr: float, share: float) -> dict[str, float]:
    """Return AIN per network: its steps over the retrained network's, seeds averaged per class, mean over classes.

    Args:
        back: Of ``arrivals``.
        lr: Learning rate.
        share: Share of the original's forget accuracy.

    Returns:
        Networks by name; classes of which the retrained network needed no step are left out. Where counting stopped
        before it arrived, an index is an upper bound.
    """
    part = back[(back["lr"] == lr) & (back["share"] == share)]
    targets = dict(iter(part[part["method"] == "retrained"].groupby("forget")))
    found: dict[str, list[float]] = {}
    for (method, forget), own in part.groupby(["method", "forget"], sort=False):
        found.setdefault(method, []).append(recovery.anamnesis(own, targets[forget])["index"].item())
    return {method: float(pd.Series(indices).mean()) for method, indices in found.items()}


def arrival_table(back: pd.DataFrame, titles: dict[str, str]) -> pd.DataFrame:
    """Return what ``arrivals`` found as a reader sees it: steps, AIN and retained accuracy per rate and share.

    Returns:
        One line per network and a column per rate and share, such as "12 steps, AIN 0.05, retained 97 %": means over
        classes and seeds. A plus sign says that some had not arrived when counting stopped.
    """
    lines: dict[str, dict[str, str]] = {}
    for (lr, share), part in back.groupby(["lr", "share"], sort=False):
        index = anamnesis(back, lr=lr, share=share)
        for method, own in part.groupby("method", sort=False):
            more = "" if own["reached"].all() else "+"
            text = f"{own['step'].mean():.0f}{more} steps, AIN {index.get(str(method), float('nan')):.3f}"
            line = lines.setdefault(titles[str(method)], {})
            line[f"{100 * share:g} % back at {lr:g}"] = f"{text}, retained {100 * own['acc_retain'].mean():.0f} %"
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("network")
