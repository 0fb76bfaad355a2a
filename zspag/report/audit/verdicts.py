"""How a method compares with retraining, and what an audit says in words, with the numbers that it rests on.

Invariant: only numbers of the same class and seed are compared, and no line says more than its numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from zspag.report.audit.findings import OWN, RATE, SHARE, TITLES, Findings, anamnesis, apart, audited
from zspag.report.tables import over_classes
from zspag.report.tables.averages import FEWEST


@dataclass(frozen=True)
class Comparison:
    """How a number of a method compares with the retrained network's, class by class and seed by seed."""

    mean: float  # of the method, over classes
    retrained: float  # of the retrained networks
    difference: float  # mean of the former minus the latter, same class and seed
    half: float  # half-width of the 95 % interval of ``difference`` over classes; 0 with a single class
    distance: float  # mean absolute difference of the two
    floor: float | None  # mean absolute difference of two retrained networks of different seeds; None with one seed
    excess: float | None  # ``distance`` minus ``floor``
    excess_half: float  # half-width of its 95 % interval over classes
    classes: int

    @property
    def within(self) -> bool | None:
        """Whether the method could be another retrained network; None where nobody knows what those differ by.

        It could not in two cases: it lies further away than they do (the whole interval of ``excess`` is above 0), or
        always to the same side (the interval of ``difference`` excludes 0, and it is larger than ``floor``).
        """
        if self.excess is None or self.floor is None:
            return None
        scattered = self.excess - self.excess_half > 0
        shifted = abs(self.difference) > max(self.half, self.floor)
        return not (scattered or shifted)


def compared(rows: pd.DataFrame, column: str, *, method: str) -> Comparison:
    """Compare a number of a method with that of the retrained networks.

    There is one row per method, class and seed; a case in which the method was ruined has none and is left out.

    Raises:
        ValueError: If the retrained network has no number where the method has one.
    """
    wide = rows.pivot(index=["forget", "seed"], columns="method", values=column)[[method, "retrained"]]
    wide = wide.dropna(subset=[method])
    if wide["retrained"].isna().any():
        raise ValueError(f"{column} of {method} cannot be compared: the retrained network lacks some class and seed")
    gaps = (wide[method] - wide["retrained"]).rename("value").reset_index().assign(method="difference")
    distances = gaps.assign(method="distance", value=gaps["value"].abs())
    floor, rows_of = None, [gaps, distances]
    if (wide.groupby("forget").size() > 1).all():
        pairs = wide["retrained"].groupby("forget").agg(apart)
        floor = float(pairs.mean())
        beyond = distances.groupby("forget")["value"].mean() - pairs
        rows_of.append(beyond.rename("value").reset_index().assign(method="excess"))
    numbers, means = over_classes(pd.concat(rows_of), "value"), wide.groupby("forget").mean().mean()
    excess: dict[str, Any] = numbers.get("excess", {"mean": None, "half": 0.0})
    return Comparison(
        mean=float(means[method]),
        retrained=float(means["retrained"]),
        difference=numbers["difference"]["mean"],
        half=numbers["difference"]["half"],
        distance=numbers["distance"]["mean"],
        floor=floor,
        excess=excess["mean"],
        excess_half=excess["half"],
        classes=int(numbers["difference"]["classes"]),
    )


@dataclass(frozen=True)
class Question:
    """Where the number that answers a question stands in the findings."""

    text: str  # the question
    measure: str  # which rows
    column: str  # which of their columns
    where: Mapping[str, Any] = field(default_factory=dict)  # what others must hold; "last" is the largest value
    share: bool = True  # whether the number is shown in %

    def rows(self, found: Findings) -> pd.DataFrame:
        """Return one row per network, class and seed; none where the measure was left out."""
        if self.measure not in found:
            return pd.DataFrame(columns=["method"])
        rows = found[self.measure]
        for column, value in self.where.items():
            rows = rows[rows[column] == (rows[column].max() if value == "last" else value)]
        return rows

    def compared(self, found: Findings, method: str) -> Comparison:
        """Return how a method compares with the retrained networks."""
        return compared(self.rows(found), self.column, method=method)

    def number(self, value: float) -> str:
        """Return a number as a reader sees it."""
        return f"{100 * value:.1f} %" if self.share else f"{value:.3f}"

    def difference(self, one: Comparison) -> str:
        """Return a difference with its interval, if it has one."""
        factor, digits = (100, 1) if self.share else (1, 3)
        # Adding 0 turns a -0.0 into 0.0.
        shown = f"{round(factor * one.difference, digits) + 0.0:+.{digits}f}"
        return f"{shown} ± {factor * one.half:.{digits}f}" if one.classes >= FEWEST else shown


MEMBERSHIP = Question(
    "membership, AUC of the attack on all four scores", "membership", "auc", {"attack": "regression"}, share=False
)
PROBE = Question(
    "forget class, linear probe of what enters the head", "probes", "known", {"probe": "linear", "depth": "last"}
)
NONLINEAR = Question("forget class, nonlinear probe (MLP) there", "probes", "known", {"probe": "mlp"})
HEADS = {  # that a network is trained under, as sentences name them
    OWN: "under the own head",
    "original's": "with the original's head put back",
    "fresh": "under the own head with a fresh row of the class",
}
TOLD = ("zs_pag", "remove")  # methods whose audit is told in sentences: the paper's, and ours
QUESTIONS = (
    MEMBERSHIP,
    PROBE,
    NONLINEAR,
    Question("forget class, nearest neighbours there", "probes", "known", {"probe": "neighbours"}),
    Question("forget class, nearest class mean there", "probes", "known", {"probe": "class means"}),
    Question("forget class, with the original's head", "restored", "acc_forget"),
    Question("forget class after an attack of 8/255", "residual", "known", {"moved": "by attack", "radius": 8 / 255}),
    Question("entropy on forget images (nats)", "streisand", "entropy", share=False),
    Question("probability left on the class", "streisand", "forget_mass"),
)


def verdict_table(found: Findings, *, methods: Sequence[str]) -> pd.DataFrame:
    """Return a table for readers: questions as lines, and a column per network that was not ruined everywhere.

    A line holds the retrained networks' mean, what two of them of different seeds differ by (their spread), and per
    network its mean, in brackets the mean difference to the retrained network of the same class and seed with its 95 %
    interval over classes, and whether that is "within" or "beyond" the spread (see ``Comparison.within``).
    """
    lines: dict[str, dict[str, str]] = {}
    for question in QUESTIONS:
        asked = set(question.rows(found)["method"])
        against = {TITLES[name]: question.compared(found, name) for name in methods if name in asked}
        if not against:  # an older record lacks this question
            continue
        first = next(iter(against.values()))
        floor = "not known (one seed)" if first.floor is None else question.number(first.floor)
        line = {"retrained": question.number(first.retrained), "two retrained differ by": floor}
        for title, one in against.items():
            place = {None: "", True: ", within", False: ", beyond"}[one.within]
            line[title] = f"{question.number(one.mean)} ({question.difference(one)}){place}"
        lines[question.text] = line
    return pd.DataFrame.from_dict(lines, orient="index").fillna("ruined").rename_axis("question")


def told(found: Findings) -> list[str]:
    """Return the audit in sentences: of ZS-PAG, and of removal where that was audited, too."""
    return [line for method in TOLD if method in audited(found) for line in verdicts(found, method=method)]


def verdicts(found: Findings, *, method: str) -> list[str]:
    """Return the audit of one method in sentences."""
    if method not in set(found["restored"]["method"]):
        return [f"{TITLES[method]} was ruined in every class and seed: there is nothing to audit."]
    known = found["restored"].groupby(["method", "forget"])["acc_forget"].mean().groupby("method").mean()
    recognized = ", ".join(
        f"{TITLES[name]} {100 * known[name]:.1f} %"
        for name in ("original", "masked", method, "retrained")
        if name in known
    )
    asked = [question for question in (MEMBERSHIP, PROBE, NONLINEAR) if len(question.rows(found))]  # not in all records
    return [
        *(_answer(found, method, question) for question in asked),
        f"With the original's last layer put back the class is recognized by: {recognized}.",
        *(_relearned(found["arrivals"], method) if "arrivals" in found else ()),
    ]


def _relearned(back: pd.DataFrame, method: str) -> list[str]:
    """Say how soon the class is back, head by head, and what steps under the own head measure."""
    lines = []
    part = back[(back["lr"] == RATE) & (back["share"] == SHARE)]
    for head, rows in part.groupby("head", sort=False):
        networks, index = rows.groupby("method"), anamnesis(back, head=str(head), lr=RATE, share=SHARE)
        steps, reached = networks["step"].mean(), networks["reached"].min()
        numbers = "; ".join(
            f"{TITLES[name]} {steps[name]:.0f}{'' if reached[name] else '+'} (AIN {index[name]:.3f})"
            for name in ("masked", "row_only", method, "retrained")
            if name in steps
        )
        text = f"Steps of relearning {HEADS[str(head)]} until half of the class is back, rate {RATE:g}: {numbers}."
        if head == OWN:
            control = f"the control is the {TITLES['row_only']}" if "row_only" in steps else "no control was made here"
            text += f" They measure one row of the head; {control}."
        lines.append(text)
    return lines


def _answer(found: Findings, method: str, question: Question) -> str:
    """Answer a question; where the original passes it too, the measure cannot judge."""
    one, number = question.compared(found, method), question.number
    spread = "what two retrained networks differ by is not known, for there is one seed"
    if one.floor is not None:
        place = "within" if one.within else "beyond"
        spread = f"they differ by {number(one.distance)}, two retrained networks by {number(one.floor)}"
        spread += f": {place} the retrained networks' own spread"
    text = f"{question.text[0].upper()}{question.text[1:]}"
    numbers = f"{TITLES[method]} {number(one.mean)}, retrained {number(one.retrained)} ({question.difference(one)})"
    blind = "original" in set(question.rows(found)["method"]) and question.compared(found, "original").within
    warning = " So is the original, which knows the class: this measure cannot judge here." if blind else ""
    return f"{text}: {numbers}; {spread}.{warning}"
