"""The claims of the protocol, each as checks on recorded results, and how verdicts are shown.

A contradicted claim is a result, and stays in the table with its numbers. The claims are ours; beside each stands what
the paper says of it. How a number decides is in ``decisions``.

Invariant: every check names its result by key. A claim is supported only if every check that was recorded is, and one
without a check is not measured.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from zspag.report.claims.decisions import (
    CONTRADICTED,
    MARGIN,
    NOISE,
    RUNG,
    SUPPORTED,
    UNDECIDED,
    at_least,
    at_most,
    counted,
    crossed,
    difference,
    every,
    improved,
    interval,
    plural,
    spread_out,
    together,
    within,
)
from zspag.report.claims.dominance import comparison, dominated
from zspag.report.claims.dominance import verdict as sentence_on
from zspag.report.claims.evidence import Evidence, grid, of_older_defaults, read
from zspag.report.claims.labels import BEST_LABELS, C3_FILES, C3_MEASURES, LABELS, RIVALS, against_rivals, judged
from zspag.report.claims.removal import PROBES, REMOVAL, removed
from zspag.report.results import factor_of
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
from zspag.report.tables.averages import FEWEST

CONTROLS = ("forget_subspace", "noise_subspace", "random_subspace")
BELOW = "below 0, with its interval"
SHOWN = 22  # letters of a long file name at either end of a cell


@dataclass(frozen=True)
class Limits:
    """What the claims ask for; the protocol's numbers, except where ``CHOICE`` says that it names none.

    Attributes:
        capture: Least share of the oracle's capture, in the worst layer (C1).
        window: How many times as wide the safe window is as without the projection (C2).
        drift: Most drift as a share of that without the projection, each at its own best rate (C2).
        margin: Points of retained accuracy below the masked original that count as no loss (C3).
        slack: Most that a bound may exceed what it bounds, as a factor (C4).
        first_order: Most relative distance of a change from its first-order prediction (C4). CHOICE.
        cost: Most seconds as a share of retraining (C6). CHOICE: cheaper; and far cheaper where a training takes long.
        closed: Least share of a probe's gap to retraining that removal closes, mean over classes (C7).
        answered: Most recall of the class that removal leaves to the open model, mean over classes (C7).
        restored: Most recall of the class with the original's head put back, where one seed leaves the retrained
            networks' spread unknown (C7).
        lost: Most points of retained accuracy that removal loses against the masked original, mean over classes (C7).
    """

    capture: float = 0.97
    window: float = 5.0
    drift: float = 1 / 3
    margin: float = MARGIN
    slack: float = 100.0
    first_order: float = 0.3
    cost: float = 1.0
    closed: Mapping[str, float] = field(default_factory=lambda: {"linear": 0.7, "mlp": 0.5})
    answered: float = 0.02
    restored: float = 0.02
    lost: float = 0.3


LIMITS = {"smoke": Limits(), "digits": Limits(), "cpu": Limits(), "paper": Limits(cost=0.1)}


@dataclass(frozen=True)
class Check:
    """One thing that a claim asks for, beside what was measured.

    Attributes:
        subject: What is measured.
        required: What the claim asks of it.
        found: What was measured, with its 95 % interval over classes where there are five or more.
        word: "supported", "contradicted" or "undecided".
        n: What stands behind it, such as "10 classes x 3 originals".
        file: Name of the result file, without its ending.
    """

    subject: str
    required: str
    found: str
    word: str
    n: str
    file: str


@dataclass(frozen=True)
class Verdict:
    """A claim of ours, what the paper says of it ("" if nothing), and the checks."""

    claim: str
    statement: str
    paper: str
    checks: tuple[Check, ...]

    @property
    def word(self) -> str:
        """Return the word of all checks together, or "not measured" without any."""
        return together(check.word for check in self.checks)


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
        Verdict(claim, statement, paper, tuple(checks(evidence, limits)))
        for claim, (statement, paper, checks) in CLAIMS.items()
    )


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return verdicts for a terminal: a line per claim, one of the paper's words, and below them two per check."""
    shown = []
    for verdict in verdicts:
        shown += [f"{verdict.claim} {verdict.word}: {verdict.statement}", f"   the paper: {verdict.paper or NOTHING}"]
        for one in verdict.checks:
            shown.append(f"   {one.word}: {one.subject}: {one.found} (n = {one.n})")
            shown.append(f"       required: {one.required} [{one.file}]")
    return shown


def table(verdicts: Sequence[Verdict], *, folder: str | None = None) -> str:
    """Return verdicts as GitHub markdown: a line per claim with the paper's words, and below it one per check.

    Args:
        verdicts: Of one profile.
        folder: Where its result files lie, for a link to each; None names the files only.
    """
    columns = ["claim", "what is measured", "required", "measured", "n", "verdict", "result file"]
    cells = []
    for one in verdicts:
        paper = f"paper: {one.paper or NOTHING}"
        cells.append([f"**{one.claim}**", f"**{one.statement}** ({paper})", "", "", "", f"**{one.word}**", ""])
        for check in one.checks:
            file = check.file if len(check.file) <= 2 * SHOWN else f"{check.file[:SHOWN]}…{check.file[-SHOWN:]}"
            linked = file if folder is None else f"[{file}]({folder}/{check.file}.json)"
            cells.append(["", check.subject, check.required, check.found, check.n, check.word, linked])
    return markdown(pd.DataFrame(cells, columns=columns).set_index("claim"))


def _c1_stand_ins(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    if (capture := evidence.result("03_capture")) is not None:
        least, tolerance = capture.numbers["capture_of_oracle_proxies"]
        known = tolerance or 0.0
        layers = pd.DataFrame(capture.measurements["selectivity"])
        count = f"{plural(len(layers), 'layer', 'layers')}, {crossed(len(capture.config['classes']), 1)}"
        yield Check(
            "capture of the true retain moment, share of the oracle's, worst layer",
            f"at least {limits.capture:g}, known up to {known:g}, which counts as reproduced",
            f"{least:.3f}",
            within(limits.capture, least, slack=known),
            count,
            capture.name,
        )
        own, others = layers["proxies"], layers[["forget", "noise", "random"]].max(axis=1)
        yield Check(
            "selectivity above that of subspaces of forget samples, noise and random directions, in every layer",
            f"all {len(layers)}, each known up to {NOISE:.0%}",
            f"{(own > others).sum()} (in the last one {own.iloc[-1]:.2f} against {others.iloc[-1]:.2f})",
            together(within(share, 1, factor=1 + NOISE) for share in others / own),
            count,
            capture.name,
        )
    for name, frame in evidence.grids("zs_pag", *CONTROLS).items():
        rows, titles = by_rule(frame), evidence.sweeps[name].measurements.get("titles", {})
        gaps = {
            other: paired(rows[rows["method"].isin(["zs_pag", other])], ("drift",), baseline=other)["zs_pag"]["drift"]
            for other in CONTROLS
        }
        parts = [
            f"{interval(gap, factor=1, digits=4)} to the {titles.get(other, other)}" for other, gap in gaps.items()
        ]
        yield Check(
            "outcome: drift minus that of unlearning in other subspaces of equal rank (nats)",
            BELOW,
            "; ".join(parts),
            together(difference(gap) for gap in gaps.values()),
            counted(rows),
            name,
        )


def _c2_safety(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    for name, frame in evidence.grids("zs_pag", "unprojected").items():
        own, other = (window(safe_rates(frame, method)) for method in ("zs_pag", "unprojected"))
        few = frame["forget"].nunique() < FEWEST
        yield Check(
            "safe window, largest rate over smallest (1: a single rate, 0: none), beside that without the projection",
            f"at least {limits.window:g} times, and known up to a rung of the ladder",
            f"{own:g} against {other:g}",
            UNDECIDED if few else within(limits.window * max(other, 1), own, factor=RUNG),
            counted(frame),
            name,
        )
        best = in_hindsight(frame)
        per_class = best.groupby(["method", "forget"])["drift"].mean().unstack("method")[["zs_pag", "unprojected"]]
        share = _ratio(per_class["zs_pag"].mean(), per_class["unprojected"].mean())
        both = " against ".join(spread_out(per_class[method], factor=1, digits=4) for method in per_class)
        yield Check(
            "drift at the rate that loses each arm fewest points in hindsight, as a share of the unprojected one's",
            f"at most {limits.drift:.2f}",
            f"{share:.2f} ({both} nats)",
            at_most(per_class["zs_pag"] - limits.drift * per_class["unprojected"], 0),
            counted(frame),
            name,
        )


def _ratio(value: float, base: float) -> float:
    return value / base if base else math.inf


def _c3_labels(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    for name, frame in evidence.grids(LABELS, *RIVALS).items():
        rows, titles = by_rule(frame), evidence.sweeps[name].measurements.get("titles", {})
        for rival in RIVALS:
            pair = rows[rows["method"].isin([LABELS, rival])]
            gap = paired(pair, ("js_retain",), baseline=rival)[LABELS]["js_retain"]
            yield Check(
                f"JS to the retrained model on retained images: {titles.get(LABELS, LABELS)} minus"
                f" {titles.get(rival, rival)} (thousandths of a nat)",
                BELOW,
                interval(gap, factor=1000, digits=3),
                difference(gap),
                counted(rows),
                name,
            )
        lost = over_classes(rows, "over_unlearning")[LABELS]
        yield _retained(lost, limits.margin, counted(rows), name)
    if halves := evidence.halves():
        old = " (older defaults)" * of_older_defaults(halves["second"])
        ruled, titles = judged(grid(halves["second"])), halves["second"].measurements["titles"]
        for rival, measures in against_rivals(ruled, BEST_LABELS).items():
            parts = [f"{text} {interval(measures[m], factor=f, digits=d)}" for m, (text, f, d) in C3_MEASURES.items()]
            yield Check(
                f"{titles[BEST_LABELS]} (chosen on half of the test images), minus {titles[rival]}, on the other{old}",
                "better in one measure, worse in none",
                f"{improves(measures)}: {', '.join(parts)}",
                improved(improves(measures)),
                counted(ruled),
                C3_FILES["second"],
            )
        lost = over_classes(ruled, "over_unlearning")[BEST_LABELS]
        yield _retained(lost, limits.margin, counted(ruled), C3_FILES["second"], old)


def _retained(lost: Mapping[str, float], margin: float, count: str, file: str, old: str = "") -> Check:
    return Check(
        f"retained accuracy lost against the masked original (points){old}",
        f"at most {margin:g}, with its interval",
        interval(lost, factor=100, digits=2),
        difference(lost, most=margin / 100),
        count,
        file,
    )


def _c4_guarantee(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    if (found := evidence.result("01_bound")) is not None:
        # Per kind of images, and per layer: the measured change and its bound.
        sides = pd.concat([pd.DataFrame(layers) for layers in found.measurements.values()])
        slack = (sides["bound"] / sides["measured"])[sides["measured"] > 0]
        yield Check(
            "bound of a layer's change over the measured one (T2), on proxies and retained test images, every layer",
            f"from 1 to below {limits.slack:g}",
            f"{slack.min():.2f} to {slack.max():.2f}",
            every([slack.min() >= 1, slack.max() < limits.slack]),
            LAYERS.format(count=plural(len(slack), "layer and kind of images", "layers and kinds of images")),
            found.name,
        )
    if (found := evidence.result("01_first_order")) is not None:
        ratio, known = found.number("ratio"), factor_of(found.numbers["ratio"][1]) or 1 + NOISE
        yield Check(
            "change of the retained logits by a whole update over its first-order prediction",
            f"up to a factor of {1 + limits.first_order:g}, known up to one of {known:g}, which counts as reproduced",
            f"{ratio:.2f}",
            within(max(ratio, 1 / ratio) if ratio > 0 else math.inf, 1 + limits.first_order, factor=known),
            LAYERS.format(count="1 update"),
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
            every([exposed <= bound]),
            LAYERS.format(count=plural(len(layers), "layer", "layers")),
            found.name,
        )


def _c5_dominance(evidence: Evidence, _limits: Limits) -> Iterator[Check]:
    subject = "forget-only methods that dominate ZS-PAG, the masked original included"
    required = "none; contradicted where one is better beyond its interval, undecided where it is so by means alone"
    for name, frame in evidence.grids("zs_pag").items():
        rows = by_rule(frame)
        summary = comparison(rows, frame)
        sentence = sentence_on(summary, evidence.sweeps[name].measurements.get("titles", {}), "zs_pag")
        word = _of_many(rows, _dominated(rows, dominated(summary)["zs_pag"]))
        yield Check(subject, required, sentence, word, counted(frame), name)


def _of_many(rows: pd.DataFrame, verdict: str) -> str:
    """Return the verdict, or that fewer than ``FEWEST`` classes decide nothing about classes in general."""
    return verdict if rows["forget"].nunique() >= FEWEST else UNDECIDED


def _dominated(rows: pd.DataFrame, rivals: Sequence[str]) -> str:
    """Decide on domination: by means, and beyond the paired interval in the gap or the drift."""
    if not rivals:
        return SUPPORTED
    columns = tuple(name for name in ("gap", "drift") if rows[name].notna().any())
    gaps = paired(rows[rows["method"].isin([*rivals, "zs_pag"])], columns, baseline="zs_pag")
    clear = any(ranked(gap) == "better" for measures in gaps.values() for gap in measures.values())
    return CONTRADICTED if clear else UNDECIDED


def _c6_cost(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    # Nobody timed a retraining where models were trained elsewhere, and on a card many jobs ran side by side.
    own = {name: evidence.sweeps[name] for name in evidence.grids()}
    quiet = [name for name, sweep in own.items() if sweep.provenance.get("device") != "cuda"]
    seconds = {name: own[name].measurements.get("seconds") or {} for name in quiet}
    timed = {name: stages for name, stages in seconds.items() if stages.get("retraining")}
    for name, stages in timed.items():
        shares = {stage: spent / stages["retraining"] for stage, spent in stages.items() if stage != "retraining"}
        total, rows = sum(shares.values()), grid(evidence.sweeps[name])
        parts = ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in shares.items())
        yield Check(
            "seconds of one call with the defaults, its own trials included, as a share of retraining",
            f"at most {100 * limits.cost:g} %",
            f"{100 * total:.0f} % ({parts})",
            _of_many(rows, within(total, limits.cost, factor=1 + NOISE)),
            counted(rows),
            name,
        )


def _c7_removal(evidence: Evidence, limits: Limits) -> Iterator[Check]:
    for name, found in evidence.audits(REMOVAL).items():
        one = removed(found)
        total = one.classes * one.originals
        if one.ruined:
            text = f"{one.ruined} of {total}"
            yield Check("removal (ours): networks that it ruined", "none", text, CONTRADICTED, f"{total}", name)
        for probe, title in PROBES.items():
            if one.shares[probe].empty:  # no ruler: here this probe cannot tell removal from silence
                continue
            least = limits.closed[probe]
            yield Check(
                f"removal (ours): share of the gap to retraining that it closes, {title}",
                f"at least {100 * least:g} %",
                f"{spread_out(one.shares[probe], factor=100, digits=1)} %",
                at_least(one.shares[probe], least),
                one.counting(probe),
                name,
            )
        if one.restored.empty:  # ruined everywhere
            continue
        yield Check(
            "removal (ours): class still recognized by the open model",
            f"at most {100 * limits.answered:g} %",
            f"{spread_out(one.answered, factor=100, digits=1, share=True)} %{_above(one.answered, limits.answered)}",
            at_most(one.answered, limits.answered),
            one.counted,
            name,
        )
        known = not math.isnan(one.most_restored)
        most = one.most_restored if known else limits.restored
        yield Check(
            "removal (ours): class recognized with the original's head put back",
            f"at most {100 * most:.1f} % ({'retrained networks and their spread' if known else 'one seed: no spread'})",
            f"{spread_out(one.restored, factor=100, digits=1, share=True)} %, retrained {100 * one.retrained:.1f} %",
            at_most(one.restored, most),
            one.counted,
            name,
        )
        yield Check(
            "removal (ours): retained accuracy lost against the masked original (points)",
            f"at most {limits.lost:g}",
            f"{spread_out(one.lost, factor=1, digits=2)}{_above(one.lost, limits.lost)}",
            at_most(one.lost, limits.lost),
            one.counted,
            name,
        )


def _above(values: pd.Series, most: float) -> str:
    """Say in how many classes a value lies above a limit that is asked of the mean."""
    return f"; above that in {(values > most).sum()} of {plural(len(values), 'class', 'classes')}"


# The paper's words are those of its abstract; of the rest no code or table is public that we could test.
NOTHING = "nothing"
LAYERS = "{count}, 1 class x 1 original"
CLAIMS: dict[str, tuple[str, str, Callable[[Evidence, Limits], Iterator[Check]]]] = {
    "C1": (
        "proxies stand in for retain data",
        '"we approximate the inaccessible remaining data by generating adversarial samples"',
        _c1_stand_ins,
    ),
    "C2": (
        "the projection makes unlearning safe where nobody can tune on retain data",
        '"a specific subspace to perform the unlearning process, therefore preventing over-unlearning"; that it widens'
        " the safe rates is our test of it",
        _c2_safety,
    ),
    "C3": (
        "influence pseudo-labels improve on random, second-best and soft labels",
        '"further improves the model\'s performance after unlearning"; its formula is not public, and ours may differ',
        _c3_labels,
    ),
    "C4": (
        "the guarantee holds, and is not far from what is measured",
        '"holds a theoretical guarantee"; T1 to T4 are our statements of it',
        _c4_guarantee,
    ),
    "C5": (
        "among forget-only methods ZS-PAG is not dominated",
        '"superiority of our proposed method over several baselines"; not to be dominated is less',
        _c5_dominance,
    ),
    "C6": ("it costs less than retraining", "", _c6_cost),
    "C7": ("removal (ours, no claim of the paper): the class is taken out of the features", "", _c7_removal),
}
