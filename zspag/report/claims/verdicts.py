"""The claims of the protocol, each as checks on recorded results.

A scientific "no" is a result, and stays in the table with its numbers.

Invariant: nothing here sees a model; a check is made of every result that is recorded, whichever way it falls.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from zspag.report.claims.checks import LIMITS, Check, Limits, Verdict
from zspag.report.claims.dominance import comparison, dominated
from zspag.report.claims.dominance import verdict as told
from zspag.report.claims.evidence import Evidence, read
from zspag.report.claims.labels import BEST_LABELS, C3_FILES, C3_MEASURES, against_rivals, judged
from zspag.report.claims.ranking import improves, ranked
from zspag.report.tables import by_rule, in_hindsight, over_classes, paired, safe_rates, window

CONTROLS = ("forget_subspace", "noise_subspace", "random_subspace")
BEYOND = "below 0, beyond the interval"


def judge(folder: Path, *, profile: str) -> tuple[Verdict, ...]:
    """Return the verdict on every claim from the results of a folder, such as ``results/digits``.

    Args:
        folder: Holds the result files; what is not there is not measured.
        profile: Name of the profile, which says what is asked for.

    Raises:
        ValueError: If a file cannot be read.
    """
    evidence, limits = read(folder), LIMITS.get(profile, Limits())
    return tuple(
        Verdict(claim, statement, tuple(checks(evidence, limits))) for claim, (statement, checks) in CLAIMS.items()
    )


def _number(content: Mapping[str, Any], name: str) -> float:
    return float(content["numbers"][name][0])


def _spread(gap: Mapping[str, float], *, factor: float, digits: int) -> str:
    mean, half = f"{factor * gap['mean']:+.{digits}f}", f"{factor * gap['half']:.{digits}f}"
    return f"{mean} ± {half}" if gap["classes"] > 1 else f"{mean} (one class, no interval)"


def _c1_stand_ins(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    if (found := evidence.contents.get("03_capture")) is not None:
        least = _number(found, "capture_of_oracle_proxies")
        yield Check(
            "capture of the true retain moment, share of the oracle's, worst layer",
            f"at least {limits.capture:g}",
            f"{least:.3f}",
            least >= limits.capture,
            "03_capture",
        )
        panel = next(panel for panel in found["data"]["panels"] if panel["title"] == "selectivity")
        own, *others = (panel["series"][name] for name in ("proxies", "forget samples", "noise", "random"))
        above = [value > max(rivals) for value, *rivals in zip(own, *others, strict=True)]
        yield Check(
            "layers in which selectivity is above that of subspaces of forget samples, noise and random directions",
            f"all {len(above)}",
            f"{sum(above)} (in the last one {own[-1]:.2f} against {max(other[-1] for other in others):.2f})",
            all(above),
            "03_capture",
        )
    for name, frame in evidence.grids.items():
        rows = by_rule(frame)
        if not {"zs_pag", *CONTROLS} <= set(rows["method"]):
            continue
        gaps = {other: _difference(rows, "zs_pag", other)["drift"] for other in CONTROLS}
        parts = [
            f"{_spread(gap, factor=1, digits=4)} to the {_title(evidence, name, other)}" for other, gap in gaps.items()
        ]
        yield Check(
            "outcome: drift minus that of unlearning in other subspaces of equal rank (nats)",
            BEYOND,
            "; ".join(parts),
            {ranked(gap) for gap in gaps.values()} == {"better"},
            name,
        )


def _difference(rows: pd.DataFrame, method: str, other: str) -> dict[str, dict[str, float]]:
    return paired(rows[rows["method"].isin([method, other])], ("drift",), baseline=other)[method]


def _title(evidence: Evidence, name: str, method: str) -> str:
    return evidence.titles(name).get(method, method)


def _c2_safety(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    for name, frame in evidence.grids.items():
        if not {"zs_pag", "unprojected"} <= set(frame["method"]):
            continue
        own, other = (window(safe_rates(frame, method)) for method in ("zs_pag", "unprojected"))
        yield Check(
            "safe window, largest rate over smallest (1: a single rate, 0: none), beside that without the projection",
            f"at least {limits.window:g} times",
            f"{own:g} against {other:g}",
            own >= limits.window * max(other, 1),
            name,
        )
        drift = over_classes(in_hindsight(frame), "drift")
        without = drift["unprojected"]["mean"]
        share = drift["zs_pag"]["mean"] / without if without else math.inf
        both = " against ".join(
            f"{drift[method]['mean']:.4f} ± {drift[method]['half']:.4f}" for method in ("zs_pag", "unprojected")
        )
        yield Check(
            "drift at each arm's own best rate, as a share of that without the projection",
            f"at most {limits.drift:.2f}",
            f"{share:.2f} ({both} nats)",
            share <= limits.drift,
            name,
        )


def _c3_labels(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    if (found := evidence.contents.get("04_verdict")) is not None:
        for rival, gaps in found["data"]["against"].items():
            gap = gaps["js_retain"]
            yield Check(
                f"JS to the retrained model on retained images, minus that of {rival.replace('_', '-')} labels"
                " (thousandths of a nat)",
                BEYOND,
                f"{_spread(gap, factor=1000, digits=3)}: {ranked(gap)}",
                ranked(gap) == "better",
                "04_verdict",
            )
        yield _retained(found["data"]["over_unlearning"], "04_verdict")
    if evidence.halves:
        ruled, titles = judged(evidence.halves["second"]), evidence.titles(C3_FILES["second"])
        for rival, measures in against_rivals(ruled, BEST_LABELS).items():
            parts = [f"{text} {_spread(measures[m], factor=f, digits=d)}" for m, (text, f, d) in C3_MEASURES.items()]
            yield Check(
                f"{titles[BEST_LABELS]} (chosen on half of the test images), minus {titles[rival]}, on the other half",
                "better in one measure, worse in none",
                f"{improves(measures)}: {', '.join(parts)}",
                improves(measures) == "better",
                C3_FILES["second"],
            )
        yield _retained(over_classes(ruled, "over_unlearning")[BEST_LABELS], C3_FILES["second"])


def _retained(lost: Mapping[str, float], file: str) -> Check:
    return Check(
        "retained accuracy lost against the masked original (points)",
        "no loss beyond the interval",
        _spread(lost, factor=100, digits=2),
        ranked(dict(lost)) != "worse",
        file,
    )


def _c4_guarantee(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    if (found := evidence.contents.get("01_bound")) is not None:
        series = [panel["series"] for panel in found["data"]["panels"]]
        slack = [b / m for one in series for b, m in zip(one["bound"], one["measured"], strict=True) if m > 0]
        yield Check(
            "bound of a layer's change over the measured one (T2), on proxies and retained test images, every layer",
            f"from 1 to below {limits.slack:g}",
            f"{min(slack):.2f} to {max(slack):.2f}",
            min(slack) >= 1 and max(slack) < limits.slack,
            "01_bound",
        )
    if (found := evidence.contents.get("01_first_order")) is not None:
        ratio = _number(found, "ratio")
        yield Check(
            "change of the retained logits by a whole update over its first-order prediction",
            f"1 ± {limits.first_order:g}",
            f"{ratio:.2f}",
            abs(ratio - 1) <= limits.first_order,
            "01_first_order",
        )
    if (found := evidence.contents.get("01_proxy_bound")) is not None:
        panel = next(panel for panel in found["data"]["panels"] if panel["title"] == "T3")
        pairs = list(
            zip(panel["series"]["retain data, measured"], panel["series"]["bound for retain data"], strict=True)
        )
        exposed, bound = max(pairs, key=lambda pair: pair[0] / max(pair[1], 1e-12))
        yield Check(
            "exposed share of the retain data's energy, in the layer closest to its bound (T3)",
            "at most its bound",
            f"{exposed:.3f}, bound {bound:.3f}",
            exposed <= bound,
            "01_proxy_bound",
        )


def _c5_dominance(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    subject, required = "forget-only methods that dominate ZS-PAG, the masked original included", "none"
    if (found := evidence.contents.get("05_comparison")) is not None:
        number = _number(found, "methods that dominate ZS-PAG")
        yield Check(subject, required, found["data"]["sentence"], number == 0, "05_comparison")
    for name, frame in evidence.grids.items():
        if "zs_pag" not in set(frame["method"]):
            continue
        summary = comparison(by_rule(frame), frame)
        sentence = told(summary, evidence.titles(name), "zs_pag")
        yield Check(subject, required, sentence, not dominated(summary)["zs_pag"], name)


def _c6_cost(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    seconds = {name: evidence.contents[name]["data"].get("seconds") or {} for name in evidence.grids}
    if (found := evidence.contents.get("05_cost")) is not None:
        stages = {name.removeprefix("seconds "): value for name, (value, _) in found["numbers"].items()}
        seconds = {"05_cost": stages, **seconds}
    for name, stages in seconds.items():
        if not stages.get("retraining"):
            continue  # nobody timed it, as with models that were trained elsewhere
        shares = {stage: spent / stages["retraining"] for stage, spent in stages.items() if stage != "retraining"}
        total = sum(shares.values())
        parts = ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in shares.items())
        yield Check(
            "seconds of all stages, every rate that was tried included, as a share of retraining",
            f"at most {100 * limits.cost:g} %",
            f"{100 * total:.0f} % ({parts})",
            total <= limits.cost,
            name,
        )


CLAIMS: dict[str, tuple[str, Callable[[Evidence, Limits], Iterator[Check]]]] = {
    "C1": ("proxies stand in for retain data", _c1_stand_ins),
    "C2": ("the projection makes unlearning safe where nobody can tune on retain data", _c2_safety),
    "C3": ("influence pseudo-labels improve on random, second-best and soft labels", _c3_labels),
    "C4": ("the guarantee holds, and is not far from what is measured", _c4_guarantee),
    "C5": ("among forget-only methods ZS-PAG is not dominated", _c5_dominance),
    "C6": ("it costs less than retraining", _c6_cost),
}
