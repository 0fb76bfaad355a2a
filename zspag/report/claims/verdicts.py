"""The claims of the protocol, each as checks on recorded results, and how verdicts are shown.

A scientific "no" is a result, and stays in the table with its numbers.

Invariant: every check names its result by key. A claim holds only if every check that was recorded holds, and one
without a check is not measured.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from zspag.report.claims.dominance import comparison, dominated
from zspag.report.claims.dominance import verdict as sentence_on
from zspag.report.claims.evidence import Evidence, grid, read
from zspag.report.claims.labels import BEST_LABELS, C3_FILES, C3_MEASURES, against_rivals, judged
from zspag.report.claims.removal import PROBES, REMOVAL, removed, spread_out
from zspag.report.tables import (
    by_rule,
    improves,
    in_hindsight,
    markdown,
    over_classes,
    paired,
    ranked,
    safe_rates,
    window,
)

YES, NO, NOT_MEASURED = "yes", "no", "not measured"
CONTROLS = ("forget_subspace", "noise_subspace", "random_subspace")
BEYOND = "below 0, beyond the interval"
DECIMALS = 9  # to which numbers are equal: sums depend on their order
SHOWN = 22  # letters of a long file name at either end of a cell


@dataclass(frozen=True)
class Limits:
    """What the claims ask for; the protocol's numbers, except where ``CHOICE`` says that it names none.

    Attributes:
        capture: Least share of the oracle's capture, in the worst layer (C1).
        window: How many times as wide the safe window is as without the projection (C2).
        drift: Most drift as a share of that without the projection, each at its own best rate (C2).
        slack: Most that a bound may exceed what it bounds, as a factor (C4).
        first_order: Most relative distance of a change from its first-order prediction (C4). CHOICE.
        cost: Most seconds as a share of retraining (C6). CHOICE: cheaper; and far cheaper where a training takes long.
        closed: Least share of a probe's gap to retraining that removal closes, mean over classes (C7).
        restored: Most recall of the class with the original's head put back, where one seed leaves the retrained
            networks' spread unknown (C7).
        lost: Most points of retained accuracy that removal loses against the masked original, mean over classes (C7).
    """

    capture: float = 0.97
    window: float = 5.0
    drift: float = 1 / 3
    slack: float = 100.0
    first_order: float = 0.3
    cost: float = 1.0
    closed: Mapping[str, float] = field(default_factory=lambda: {"linear": 0.7, "mlp": 0.5})
    restored: float = 0.02
    lost: float = 0.3


LIMITS = {"smoke": Limits(), "digits": Limits(), "cpu": Limits(), "paper": Limits(cost=0.1)}


@dataclass(frozen=True)
class Check:
    """One thing that a claim asks for, beside what was measured.

    Attributes:
        subject: What is measured.
        required: What the claim asks of it.
        found: What was measured, with its 95 % interval over classes where there is one.
        holds: Whether the claim gets what it asks for.
        file: Name of the result file, without its ending.
    """

    subject: str
    required: str
    found: str
    holds: bool
    file: str

    @property
    def word(self) -> str:
        """Return "yes" or "no"."""
        return YES if self.holds else NO


@dataclass(frozen=True)
class Verdict:
    """A claim and its checks."""

    claim: str
    statement: str
    checks: tuple[Check, ...]

    @property
    def word(self) -> str:
        """Return "yes" if every check holds, "no" if one does not, and "not measured" without checks."""
        if not self.checks:
            return NOT_MEASURED
        return YES if all(check.holds for check in self.checks) else NO


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


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return verdicts for a terminal: a line per claim, and below it two per check."""
    shown = []
    for verdict in verdicts:
        shown.append(f"{verdict.claim} {verdict.word}: {verdict.statement}")
        for one in verdict.checks:
            shown += [f"   {one.word:<4}{one.subject}: {one.found}", f"       required: {one.required} [{one.file}]"]
    return shown


def table(verdicts: Sequence[Verdict]) -> str:
    """Return verdicts as GitHub markdown: a line per claim, and below it one per check."""
    columns = ["claim", "what is measured", "required", "measured", "verdict", "result file"]
    cells = []
    for verdict in verdicts:
        cells.append([f"**{verdict.claim}**", f"**{verdict.statement}**", "", "", f"**{verdict.word}**", ""])
        for one in verdict.checks:
            file = one.file if len(one.file) <= 2 * SHOWN else f"{one.file[:SHOWN]}…{one.file[-SHOWN:]}"
            cells.append(["", one.subject, one.required, one.found, one.word, file])
    return markdown(pd.DataFrame(cells, columns=columns).set_index("claim"))


def _c1_stand_ins(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    if (capture := evidence.result("03_capture")) is not None:
        least = capture.number("capture_of_oracle_proxies")
        yield Check(
            "capture of the true retain moment, share of the oracle's, worst layer",
            f"at least {limits.capture:g}",
            f"{least:.3f}",
            least >= limits.capture,
            capture.name,
        )
        layers = pd.DataFrame(capture.measurements["selectivity"])
        own, others = layers["proxies"], layers[["forget", "noise", "random"]].max(axis=1)
        yield Check(
            "layers in which selectivity is above that of subspaces of forget samples, noise and random directions",
            f"all {len(layers)}",
            f"{(own > others).sum()} (in the last one {own.iloc[-1]:.2f} against {others.iloc[-1]:.2f})",
            bool((own > others).all()),
            capture.name,
        )
    for name, frame in evidence.grids("zs_pag", *CONTROLS).items():
        rows, titles = by_rule(frame), evidence.sweeps[name].measurements.get("titles", {})
        gaps = {
            other: paired(rows[rows["method"].isin(["zs_pag", other])], ("drift",), baseline=other)["zs_pag"]["drift"]
            for other in CONTROLS
        }
        parts = [
            f"{_interval(gap, factor=1, digits=4)} to the {titles.get(other, other)}" for other, gap in gaps.items()
        ]
        yield Check(
            "outcome: drift minus that of unlearning in other subspaces of equal rank (nats)",
            BEYOND,
            "; ".join(parts),
            all(ranked(gap) == "better" for gap in gaps.values()),
            name,
        )


def _c2_safety(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    for name, frame in evidence.grids("zs_pag", "unprojected").items():
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


def _c3_labels(evidence: Evidence, _limits: Limits) -> Iterator[Check]:
    if (verdict := evidence.result("04_verdict")) is not None:
        for rival, gaps in verdict.measurements["against"].items():
            gap = gaps["js_retain"]
            yield Check(
                f"JS to the retrained model on retained images, minus that of {rival.replace('_', '-')} labels"
                " (thousandths of a nat)",
                BEYOND,
                f"{_interval(gap, factor=1000, digits=3)}: {ranked(gap)}",
                ranked(gap) == "better",
                verdict.name,
            )
        yield _retained(verdict.measurements["over_unlearning"], verdict.name)
    if halves := evidence.halves():
        ruled, titles = judged(grid(halves["second"])), halves["second"].measurements["titles"]
        for rival, measures in against_rivals(ruled, BEST_LABELS).items():
            parts = [f"{text} {_interval(measures[m], factor=f, digits=d)}" for m, (text, f, d) in C3_MEASURES.items()]
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
        _interval(lost, factor=100, digits=2),
        ranked(lost) != "worse",
        file,
    )


def _interval(gap: Mapping[str, float], *, factor: float, digits: int) -> str:
    mean, half = f"{factor * gap['mean']:+.{digits}f}", f"{factor * gap['half']:.{digits}f}"
    return f"{mean} ± {half}" if gap["classes"] > 1 else f"{mean} (one class, no interval)"


def _c4_guarantee(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    if (found := evidence.result("01_bound")) is not None:
        # Per kind of images, and per layer: the measured change and its bound.
        sides = pd.concat([pd.DataFrame(layers) for layers in found.measurements.values()])
        slack = (sides["bound"] / sides["measured"])[sides["measured"] > 0]
        yield Check(
            "bound of a layer's change over the measured one (T2), on proxies and retained test images, every layer",
            f"from 1 to below {limits.slack:g}",
            f"{slack.min():.2f} to {slack.max():.2f}",
            slack.min() >= 1 and slack.max() < limits.slack,
            found.name,
        )
    if (found := evidence.result("01_first_order")) is not None:
        ratio = found.number("ratio")
        yield Check(
            "change of the retained logits by a whole update over its first-order prediction",
            f"1 ± {limits.first_order:g}",
            f"{ratio:.2f}",
            abs(ratio - 1) <= limits.first_order,
            found.name,
        )
    if (found := evidence.result("01_proxy_bound")) is not None:
        layers = pd.DataFrame(found.measurements["T3"])
        closest = (layers["measured"] / layers["bound"].clip(lower=1e-12)).idxmax()
        exposed, bound = layers.loc[closest, "measured"], layers.loc[closest, "bound"]
        yield Check(
            "exposed share of the retain data's energy, in the layer closest to its bound (T3)",
            "at most its bound",
            f"{exposed:.3f}, bound {bound:.3f}",
            exposed <= bound,
            found.name,
        )


def _c5_dominance(evidence: Evidence, _limits: Limits) -> Iterator[Check]:
    subject, required = "forget-only methods that dominate ZS-PAG, the masked original included", "none"
    grids = evidence.grids("zs_pag")
    for name, frame in grids.items():
        summary = comparison(by_rule(frame), frame)
        sentence = sentence_on(summary, evidence.sweeps[name].measurements.get("titles", {}), "zs_pag")
        yield Check(subject, required, sentence, not dominated(summary)["zs_pag"], name)
    if not grids and (found := evidence.result("05_comparison")) is not None:
        better, sentence = found.measurements["dominated_by"], found.measurements["sentence"]
        yield Check(subject, required, sentence, not better, found.name)


def _c6_cost(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    # Nobody timed a retraining where models were trained elsewhere.
    seconds = {name: sweep.measurements.get("seconds") or {} for name, sweep in evidence.sweeps.items()}
    timed = {name: stages for name, stages in seconds.items() if stages.get("retraining")}
    if not timed and (found := evidence.result("05_cost")) is not None:
        timed = {found.name: found.measurements["seconds"]}
    for name, stages in timed.items():
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


def _c7_removal(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    for name, found in evidence.audits(REMOVAL).items():
        one = removed(found)
        if one.ruined:
            total = one.classes * one.originals
            yield Check("removal (ours): networks that it ruined", "none", f"{one.ruined} of {total}", False, name)
        if any(one.shares[probe].empty for probe in PROBES):  # no ruler: this audit cannot tell removal from silence
            continue
        for probe, title in PROBES.items():
            least = limits.closed[probe]
            yield Check(
                f"removal (ours): share of the gap to retraining that it closes, {title}",
                f"at least {100 * least:g} %",
                f"{spread_out(one.shares[probe], factor=100, digits=1)} % ({one.counting(probe)})",
                round(one.shares[probe].mean(), DECIMALS) >= least,
                name,
            )
        known = not math.isnan(one.most_restored)
        most = one.most_restored if known else limits.restored
        yield Check(
            "removal (ours): class recognized with the original's head put back",
            f"at most {100 * most:.1f} % ({'retrained networks and their spread' if known else 'one seed: no spread'})",
            f"{100 * one.restored:.1f} %, retrained {100 * one.retrained:.1f} %",
            round(one.restored - most, DECIMALS) <= 0,
            name,
        )
        yield Check(
            "removal (ours): retained accuracy lost against the masked original (points)",
            f"at most {limits.lost:g}",
            spread_out(one.lost, factor=1, digits=2),
            round(one.lost.mean(), DECIMALS) <= limits.lost,
            name,
        )


CLAIMS: dict[str, tuple[str, Callable[[Evidence, Limits], Iterator[Check]]]] = {
    "C1": ("proxies stand in for retain data", _c1_stand_ins),
    "C2": ("the projection makes unlearning safe where nobody can tune on retain data", _c2_safety),
    "C3": ("influence pseudo-labels improve on random, second-best and soft labels", _c3_labels),
    "C4": ("the guarantee holds, and is not far from what is measured", _c4_guarantee),
    "C5": ("among forget-only methods ZS-PAG is not dominated", _c5_dominance),
    "C6": ("it costs less than retraining", _c6_cost),
    "C7": ("removal (ours, no claim of the paper): the class is taken out of the features", _c7_removal),
}
