"""The audit: forgotten, or only silent? What attackers, probes and training see in each network of a class and seed.

Every measure is made of the references and of methods alike: a number means something only beside the retrained
network's, and beside that of one that only hides the class. ``bench`` holds networks and images, ``measures`` what is
measured, ``head_row`` the control of relearning, ``running`` spreads classes and seeds over processes, and
``zspag.report.audit`` reads the rows.

Invariant: the laboratory's view; an audit changes no network. A published file holds every number of every class and
seed but the training curves, which it keeps as means.
"""

import time
from collections.abc import Iterator

from zspag.lab import experiment, runs
from zspag.lab.audit.bench import METHODS, SUBJECTS
from zspag.lab.audit.running import audit
from zspag.profiles import Profile
from zspag.report import audit as report
from zspag.report.results import Result

__all__ = ["METHODS", "SUBJECTS", "audit", "publish"]


def publish(profile: Profile, *, record: bool, features_only: bool = False) -> Iterator[str]:
    """Audit every class and seed of a profile and write what was found; ``record`` writes it to ``results/``, too.

    With ``features_only`` the file says whether the class is still in the features, and nothing else.

    Yields:
        Lines for the reader: the verdicts on ZS-PAG and on removal, then the files.
    """
    started = time.time()
    found = report.findings(audit(profile, seeds=profile.seeds, features_only=features_only))
    title, data = profile.dataset, experiment.data_of(profile)
    yield from report.told(found)
    panels = report.gap_panels(found, title=title)
    caption = "Share of the gap to retraining that is closed in the features, over what it costs."
    if not features_only:
        panels = [
            *report.relearning_panels(found, title=title, rates=[report.RATE]),
            *report.probe_panels(found, title=title),
            *report.residual_panels(found, title=title),
            *panels,
        ]
        caption = f"Relearning, probes of every stage, likeness to the retrained network, residual knowledge. {caption}"
    result = Result(
        name=f"{'features' if features_only else 'audit'}_{experiment.case_name(profile)}",
        profile=profile.name,
        draw="curves",
        caption=caption,
        data={"panels": panels, "columns": 3, "size": [4.3, 3.2]},
        measurements={
            "rows": report.packed(found),
            "class_names": [data.classes[forget] for forget in profile.classes],
            "seeds": list(profile.seeds),
            "data_source": data.data_source,
        },
        provenance=experiment.made_now(profile, seed=profile.seeds[0], started=started),
    )
    yield from runs.publish(result, record=record)
