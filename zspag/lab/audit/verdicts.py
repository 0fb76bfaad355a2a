"""What an audit says in words: one line per question, with the numbers that it rests on.

Invariant: nothing here sees a model, and no line says more than its numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from zspag.lab.audit.comparison import Comparison, compared
from zspag.lab.audit.findings import Findings
from zspag.lab.audit.returns import anamnesis
from zspag.lab.experiment import TITLES
from zspag.lab.relearning import RATE, SHARE


@dataclass(frozen=True)
class Question:
    """Where the number that answers a question stands in the findings.

    Attributes:
        measure: Which rows.
        column: Which of their columns.
        where: What other columns must hold; "last" is the largest value there is.
        share: Whether the number is a share that is shown in %.
    """

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
        """Return how a method stands to the retrained networks."""
        return compared(self.rows(found), self.column, method=method)


MEMBERSHIP = "membership, AUC of the attack on all four scores"
PROBE = "forget class, linear probe of what enters the head"
QUESTIONS: Mapping[str, Question] = {
    MEMBERSHIP: Question("membership", "auc", {"attack": "regression"}, share=False),
    PROBE: Question("probes", "known", {"probe": "linear", "depth": "last"}),
    "forget class, nearest class mean there": Question("probes", "known", {"probe": "class means"}),
    "forget class, with the original's head": Question("restored", "acc_forget"),
    "forget class after an attack of 8/255": Question("residual", "known", {"moved": "by attack", "radius": 8 / 255}),
    "entropy on forget images (nats)": Question("streisand", "entropy", share=False),
    "probability left on the class": Question("streisand", "forget_mass"),
}


def verdict_table(found: Findings, *, methods: tuple[str, ...]) -> pd.DataFrame:
    """Return a table for readers: questions as lines, and per network its mean and what it is beyond the spread.

    Args:
        found: Of ``findings``.
        methods: Networks to show; one that was ruined everywhere is left out.

    Returns:
        Per question the retrained networks' mean, what two of them of different seeds differ by (their spread), and per
        network its mean, in brackets the mean difference to the retrained network of the same class and seed with its
        95 % interval over classes, and whether that is "within" or "beyond" the spread (see ``Comparison.within``).
    """
    lines: dict[str, dict[str, str]] = {}
    for text, question in QUESTIONS.items():
        audited = set(question.rows(found)["method"])
        against = {TITLES[name]: question.compared(found, name) for name in methods if name in audited}
        first = next(iter(against.values()))
        floor = "not known (one seed)" if first.floor is None else _number(first.floor, share=question.share)
        lines[text] = {"retrained": _number(first.retrained, share=question.share), "two retrained differ by": floor}
        lines[text] |= {title: _cell(one, share=question.share) for title, one in against.items()}
    return pd.DataFrame.from_dict(lines, orient="index").fillna("ruined").rename_axis("question")


def verdicts(found: Findings, *, method: str) -> list[str]:
    """Return the audit of one method in sentences."""
    if method not in set(found["restored"]["method"]):
        return [f"{TITLES[method]} was ruined in every class and seed: there is nothing to audit."]
    return [
        *(_told(found, method, text) for text in (MEMBERSHIP, PROBE)),
        _restored(found, method),
        _relearned(found, method),
    ]


def _told(found: Findings, method: str, text: str) -> str:
    question = QUESTIONS[text]
    one, share = question.compared(found, method), question.share
    numbers = f"{TITLES[method]} {_number(one.mean, share=share)}, retrained {_number(one.retrained, share=share)}"
    line = f"{text[0].upper()}{text[1:]}: {numbers} ({_difference(one, share=share)}); {_spread(one, share=share)}."
    blind = "original" in set(question.rows(found)["method"]) and question.compared(found, "original").within
    return f"{line} So is the original, which knows the class: this measure cannot judge here." if blind else line


def _restored(found: Findings, method: str) -> str:
    known = found["restored"].groupby(["method", "forget"])["acc_forget"].mean().groupby("method").mean()
    shown = [name for name in ("original", "masked", method, "retrained") if name in known]
    listed = ", ".join(f"{TITLES[name]} {_number(known[name], share=True)}" for name in shown)
    return f"With the original's last layer put back the class is recognized by: {listed}."


def _relearned(found: Findings, method: str) -> str:
    back = found["arrivals"]
    index = anamnesis(back, lr=RATE, share=SHARE)
    back = back[(back["lr"] == RATE) & (back["share"] == SHARE)]
    steps, reached = back.groupby("method")["step"].mean(), back.groupby("method")["reached"].min()
    shown = [name for name in ("masked", method, "retrained") if name in steps]
    listed = ", ".join(
        f"{TITLES[name]} {steps[name]:.0f}{'' if reached[name] else '+'} (AIN {index[name]:.3f})" for name in shown
    )
    return f"Steps of relearning until half of the class is back, rate {RATE:g}: {listed}."


def _spread(one: Comparison, *, share: bool) -> str:
    if one.floor is None:
        return "what two retrained networks differ by is not known, for there is one seed"
    own, others = _number(one.distance, share=share), _number(one.floor, share=share)
    verdict = "within" if one.within else "beyond"
    return f"they differ by {own}, two retrained networks by {others}: {verdict} the retrained networks' own spread"


def _cell(one: Comparison, *, share: bool) -> str:
    mean = f"{_number(one.mean, share=share)} ({_difference(one, share=share)})"
    return mean if one.within is None else f"{mean}, {'within' if one.within else 'beyond'}"


def _difference(one: Comparison, *, share: bool) -> str:
    # Adding 0 turns a -0.0 into 0.0.
    shown = f"{round(100 * one.difference, 1) + 0.0:+.1f}" if share else f"{round(one.difference, 3) + 0.0:+.3f}"
    half = f"{100 * one.half:.1f}" if share else f"{one.half:.3f}"
    return f"{shown} ± {half}" if one.half else shown


def _number(value: float, *, share: bool) -> str:
    return f"{100 * value:.1f} %" if share else f"{value:.3f}"
