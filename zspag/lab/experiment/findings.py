"""What the laboratory finds out beside the grid: subspaces on true data, costs, the noise of retraining, single runs.

Invariant: looking changes nothing; a run that was watched ends in the grid's own model.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pandas as pd

from zspag.lab import cache
from zspag.lab.evaluation import agreement, captured, mean_js, selectivity
from zspag.lab.experiment.cases import Case, cases_of, forget_set, guard_of, references_of, trained, training_key
from zspag.lab.experiment.grid import kept_rows
from zspag.lab.experiment.statistics import statistics_of
from zspag.lab.methods import forget_subspace, noise_subspace, retain_subspace
from zspag.profiles import Profile
from zspag.report import provenance
from zspag.runtime import generator_for
from zspag.subspaces import combine, pooled, random_like, second_moments


def subspace_table(case: Case) -> pd.DataFrame:
    """Compare subspaces of equal rank per layer on true retain data (a laboratory measurement, not part of the method).

    Returns:
        One row per subspace ("proxies", "forget", "noise", "random", "oracle") and weight: capture, its ratio to the
        oracle's, selectivity, rank and free dimension.
    """
    return pd.DataFrame(kept_rows(case, "subspaces", lambda: _subspace_rows(case)))


def _subspace_rows(case: Case) -> Iterator[dict[str, Any]]:
    guard, model, statistics = guard_of(case), trained(case.profile, case.seed), statistics_of(case)
    images, _ = forget_set(case, guard)
    retain_images, retain_labels = (part.to(images.device) for part in guard.retain_train())
    own = combine(statistics.moments, config=case.profile.unlearn.subspace)
    noise, random = (generator_for(case.seed, "subspace", index) for index in (1, 2))
    count = len(statistics.proxies.labels)
    subspaces = {
        "proxies": own,
        "forget": forget_subspace(model, images, own=own),
        "noise": noise_subspace(model, images, count=count, own=own, generator=noise),
        "random": random_like(own, generator=random),
        "oracle": retain_subspace(model, retain_images, retain_labels, own=own),
    }
    forget = second_moments(model, images)
    retain = pooled([second_moments(model, retain_images[retain_labels == c]) for c in retain_labels.unique()])
    best = captured(subspaces["oracle"], retain)
    for name, subspace in subspaces.items():
        inside, free = captured(subspace, retain), subspace.free_dimension()
        ratio = selectivity(subspace, forget=forget, retain=retain)
        for weight in own.bases:
            yield {
                "subspace": name,
                "forget": case.forget,
                "seed": case.seed,
                "weight": weight,
                "capture": inside[weight],
                "of_oracle": inside[weight] / best[weight],
                "selectivity": ratio[weight],
                "rank": sum(subspace.ranks[weight]),
                "free": free[weight],
            }


def stage_seconds(profile: Profile, frame: pd.DataFrame) -> dict[str, float]:
    """Return mean wall-clock seconds per stage of ZS-PAG and of retraining, over the profile's classes and seeds.

    Args:
        profile: The profile whose grid was computed.
        frame: Rows of ``compute_grid``, "zs_pag" among them.

    Returns:
        Seconds of "proxies", "subspaces", "update" (labels, all trials of the calibration and the final run; not the
        other rates of the ladder, which are run for curves alone) and "retraining".
    """
    cases = cases_of(profile)
    stages = [statistics_of(case).seconds for case in cases]
    chosen = frame[(frame["method"] == "zs_pag") & frame["chosen"].eq(True)]  # its seconds hold those of the trials
    keys = [training_key(profile, case.seed, case.forget) for case in cases]
    models = [cache.tensors_path(profile, "retrained", key) for key in keys]
    return {
        "proxies": sum(part["proxies"] for part in stages) / len(stages),
        "subspaces": sum(part["subspaces"] for part in stages) / len(stages),
        "update": float(chosen["seconds"].sum()) / len(cases),
        "retraining": sum(provenance.read_record(path)["seconds"] for path in models if path.exists()) / len(cases),
    }


def retraining_noise(profile: Profile) -> pd.DataFrame:
    """Compare retrained models of neighbouring seeds: the floor below which a distance to retraining means nothing.

    Returns:
        One row per class and pair of seeds: agreement and Jensen-Shannon divergence (nats) on forget and retained test
        images. No rows with fewer than two seeds.

    Raises:
        ValueError: If the profile leaves the retrained models out.
    """
    rows = []
    for forget in profile.classes:
        panels = [references_of(Case(profile, seed, forget)) for seed in profile.seeds]
        for first, second in itertools.pairwise(panels):
            ours, theirs = first.retrained, second.retrained
            if ours is None or theirs is None:
                raise ValueError("the profile leaves retrained models out (retrained=False): they have no spread")
            rows.append(
                {
                    "forget": forget,
                    "agreement_forget": agreement(ours.forget_test, theirs.forget_test),
                    "agreement_retain": agreement(ours.retain_test, theirs.retain_test),
                    "js_forget": mean_js(ours.forget_test, theirs.forget_test),
                    "js_retain": mean_js(ours.retain_test, theirs.retain_test),
                }
            )
    return pd.DataFrame(rows)
