"""An audit as a file: ``zspag audit`` writes what was found, its tables and one figure; chapters and README read it.

Invariant: the file holds every number of every class and seed but the training curves, which it keeps as means.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zspag.config import Profile
from zspag.lab import experiment, runs
from zspag.lab.audit.bench import SUBJECTS
from zspag.lab.audit.findings import Findings, findings, packed, unpacked
from zspag.lab.audit.panels import probe_panels, relearning_panels, residual_panels
from zspag.lab.audit.returns import arrival_table
from zspag.lab.audit.running import audit
from zspag.lab.audit.verdicts import verdict_table, verdicts
from zspag.lab.relearning import RATE
from zspag.report import files
from zspag.report.tables import markdown

ASKED = tuple(name for name in SUBJECTS if name != "retrained")


def publish(profile: Profile, *, record: bool) -> Iterator[str]:
    """Audit every class and seed of a profile and write what was found.

    Args:
        profile: Data, architecture, classes and seeds.
        record: Write the result to ``results/<profile>`` too.

    Yields:
        Lines for the reader: the verdict on ZS-PAG, then the files.
    """
    started = time.time()
    result = _result(profile, findings(audit(profile, seeds=profile.seeds)), started=started)
    yield from result["data"]["verdicts"]
    yield from runs.publish(result, record=record)


def _result(profile: Profile, found: Findings, *, started: float) -> dict[str, Any]:
    data, title = experiment.data_of(profile), profile.dataset
    main = [panel for panel in relearning_panels(found, title=title) if panel["title"].endswith(f"{RATE:g}")]
    panels = [*main, *probe_panels(found, title=title), *residual_panels(found, title=title)]
    return {
        "schema": 1,
        "name": f"audit_{experiment.case_name(profile)}",
        "profile": profile.name,
        "draw": "curves",
        "caption": "Relearning, probes of every stage, likeness to the retrained network, and residual knowledge.",
        "numbers": {},
        "data": {
            "panels": panels,
            "columns": 3,
            "size": [4.3, 3.2],
            "verdicts": verdicts(found, method="zs_pag"),
            "markdown": markdown(verdict_table(found, methods=ASKED)),
            "arrivals": markdown(arrival_table(found["arrivals"], experiment.TITLES)),
            "rows": packed(found),
            "class_names": [data.classes[forget] for forget in profile.classes],
            "seeds": list(profile.seeds),
        },
        "provenance": experiment.made_now(profile, seed=profile.seeds[0], started=started),
    }


def recorded(results: Path) -> dict[str, tuple[dict[str, Any], Findings]]:
    """Return the content and the findings of every recorded audit, by a title such as "digits, 10 classes, 3 seeds".

    Args:
        results: The folder that holds one folder per profile.
    """
    contents = [files.read_json(path) for path in sorted(results.glob("*/audit_*.json"))]
    return {title(content): (content, unpacked(content["data"]["rows"])) for content in contents}


def title(content: dict[str, Any]) -> str:
    """Return what an audit's file is about: data, classes and seeds."""
    config, data = content["provenance"]["config"], content["data"]
    seeds, classes = len(data["seeds"]), data["class_names"]
    named = f"{len(classes)} classes" if len(classes) > 3 else ", ".join(classes)
    return f"{Path(config['dataset']).name}, {named}, {seeds} seed{'s' * (seeds > 1)}"
