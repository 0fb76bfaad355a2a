"""Running an audit: every class and seed on the worker processes, each finished one kept as a file.

Invariant: the laboratory's view; an audit changes no network.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from zspag.lab.audit.bench import Bench, other_seed
from zspag.lab.audit.measures import MEASURES
from zspag.lab.experiment import Case, answered, kept_rows
from zspag.profiles import Profile
from zspag.runtime import logits_of, pool_map


def audit(profile: Profile, *, seeds: Sequence[int]) -> pd.DataFrame:
    """Audit every class of a profile, from files where they are finished.

    Args:
        profile: Says classes, data, recipe and workers.
        seeds: Seeds to audit; the others of the profile give the noise of retraining.

    Returns:
        Rows of all measures below each other: measure, method (of ``SUBJECTS``), forget, seed, and the columns that the
        measure names. A network with infinite answers has one row, of the measure "ruined".

    Raises:
        RunsFailed: If a class and seed failed; the others are finished and kept.
    """
    cases = [Case(profile, seed, forget) for seed in seeds for forget in profile.classes]

    def failure(case: Case) -> str:
        return f"the audit of class {case.forget}, seed {case.seed} failed"

    answers = answered(profile, pool_map, audited, cases, title="audits", name=failure)
    return pd.DataFrame([row for case in cases for row in answers[case]])


def audited(case: Case) -> list[dict[str, Any]]:
    """Return the rows of one class and seed."""
    beside = other_seed(case)
    name = "audit" if beside is None else f"audit-beside-seed{beside}"
    return kept_rows(case, name, lambda: _rows(case), code=(__name__,))


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
