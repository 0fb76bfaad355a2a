"""What an audit says in words: one line per question, with the numbers that it rests on.

Invariant: nothing here sees a model, and no line says more than its numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from zspag.report.audit.comparison import Comparison, compared
from zspag.report.audit.findings import RATE, SHARE, TITLES, Findings, anamnesis


@dataclass(frozen=True)
class Question:
    """Where the number that answers a question stands in the findings.

    Attributes:
        text: The question.
        measure: Which rows.
        column: Which of their columns.
        where: What other columns must hold; "last" is the largest value there is.
        share: Whether the number is a share that is shown in %.
    """

    text: str
    measure: str
    column: str
    where: Mapping[str, Any] = field(default_factory=dict)
    share: bool = True

    def rows(self, found: Findings) -> pd.DataFrame:
        """Return one row per network, class and seed."""
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
        return f"{shown} ± {factor * one.half:.{digits}f}" if one.half else shown


MEMBERSHIP = Question(
    "membership, AUC of the attack on all four scores", "membership", "auc", {"attack": "regression"}, share=False
)
PROBE = Question(
    "forget class, linear probe of what enters the head", "probes", "known", {"probe": "linear", "depth": "last"}
)
QUESTIONS = (
    MEMBERSHIP,
    PROBE,
    Question("forget class, nearest class mean there", "probes", "known", {"probe": "class means"}),
    Question("forget class, with the original's head", "restored", "acc_forget"),
    Question("forget class after an attack of 8/255", "residual", "known", {"moved": "by attack", "radius": 8 / 255}),
    Question("entropy on forget images (nats)", "streisand", "entropy", share=False),
    Question("probability left on the class", "streisand", "forget_mass"),
)


def verdict_table(found: Findings, *, methods: Sequence[str]) -> pd.DataFrame:
    """Return a table for readers: questions as lines, and per network its mean and whether it is within the spread.

    Args:
        found: Of ``findings``.
        methods: Networks to show; one that was ruined everywhere is left out.

    Returns:
        Per question the retrained networks' mean, what two of them of different seeds differ by (their spread), and per
        network its mean, in brackets the mean difference to the retrained network of the same class and seed with its
        95 % interval over classes, and whether that is "within" or "beyond" the spread (see ``Comparison.within``).
    """
    lines: dict[str, dict[str, str]] = {}
    for question in QUESTIONS:
        audited = set(question.rows(found)["method"])
        against = {TITLES[name]: question.compared(found, name) for name in methods if name in audited}
        first = next(iter(against.values()))
        floor = "not known (one seed)" if first.floor is None else question.number(first.floor)
        line = {"retrained": question.number(first.retrained), "two retrained differ by": floor}
        for title, one in against.items():
            place = {None: "", True: ", within", False: ", beyond"}[one.within]
            line[title] = f"{question.number(one.mean)} ({question.difference(one)}){place}"
        lines[question.text] = line
    return pd.DataFrame.from_dict(lines, orient="index").fillna("ruined").rename_axis("question")


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
    back, index = found["arrivals"], anamnesis(found["arrivals"], lr=RATE, share=SHARE)
    networks = back[(back["lr"] == RATE) & (back["share"] == SHARE)].groupby("method")
    steps, reached = networks["step"].mean(), networks["reached"].min()
    relearned = ", ".join(
        f"{TITLES[name]} {steps[name]:.0f}{'' if reached[name] else '+'} (AIN {index[name]:.3f})"
        for name in ("masked", method, "retrained")
        if name in steps
    )
    return [
        _answer(found, method, MEMBERSHIP),
        _answer(found, method, PROBE),
        f"With the original's last layer put back the class is recognized by: {recognized}.",
        f"Steps of relearning until half of the class is back, rate {RATE:g}: {relearned}.",
    ]


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
