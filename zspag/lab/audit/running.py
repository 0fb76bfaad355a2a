"""Running an audit: every class and seed on the worker processes, each finished one kept as a file.

Invariant: the laboratory's view; an audit changes no network.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd

from zspag.lab.audit.bench import Bench, other_seed
from zspag.lab.audit.measures import FEATURES, MEASURES, Measures
from zspag.lab.experiment import Case, answered, kept_rows
from zspag.profiles import Profile
from zspag.runtime import logits_of, pool_map


def audit(profile: Profile, *, seeds: Sequence[int], features_only: bool = False) -> pd.DataFrame:
    """Audit every class of a profile, from files where they are finished.

    Args:
        profile: Says classes, data, recipe and workers.
        seeds: Seeds to audit; the others of the profile give the noise of retraining.
        features_only: Leave out what says nothing of the features: the measures beside ``FEATURES``, which are most of
            the work.

    Returns:
        Rows of all measures below each other: measure, method (of ``SUBJECTS``), forget, seed, and the columns that the
        measure names. A network with infinite answers has one row, of the measure "ruined".

    Raises:
        RunsFailed: If a class and seed failed; the others are finished and kept.
    """
    cases = [Case(profile, seed, forget) for seed in seeds for forget in profile.classes]

    def failure(case: Case) -> str:
        return f"the audit of class {case.forget}, seed {case.seed} failed"

    look = partial(audited, features_only=features_only)
    answers = answered(profile, pool_map, look, cases, title="audits", name=failure)
    return pd.DataFrame([row for case in cases for row in answers[case]])


def audited(case: Case, *, features_only: bool = False) -> list[dict[str, Any]]:
    """Return the rows of one class and seed."""
    beside, name = other_seed(case), "features" if features_only else "audit"
    name += "" if beside is None else f"-beside-seed{beside}"
    return kept_rows(case, name, lambda: _rows(case, FEATURES if features_only else MEASURES), code=(__name__,))


def _rows(case: Case, measures: Measures) -> Iterator[dict[str, Any]]:
    bench = Bench(case)
    for name in bench.networks:
        yield from rows_of(bench, name, measures)
        if name != "retrained":  # all others are compared with it
            bench.drop(name)


def rows_of(bench: Bench, name: str, measures: Measures) -> Iterator[dict[str, Any]]:
    """Look at one network of a bench.

    Yields:
        Rows of all measures, each with its measure, the network's name, class and seed. A network with infinite answers
        has one row, of the measure "ruined".
    """
    place = {"method": name, "forget": bench.case.forget, "seed": bench.case.seed}
    if not bool(logits_of(bench.networks[name], bench.test[0]).isfinite().all()):
        yield {"measure": "ruined"} | place
        return
    for measure, function in measures.items():
        yield from ({"measure": measure} | place | row for row in function(bench, name))
