"""The answer of one run of ``zspag.zero_shot_unlearn`` besides the model: a frozen ``Report``.

``print(report)`` is a page of plain text, ``report.to_dict()`` is JSON, ``report.plot()`` draws it.

Invariant: accuracies, hits, leaks and shares are fractions, drifts are nats, times are wall-clock seconds. Everything
was measured on the forget set and on proxies made from it; nothing here has seen retain or test data.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, LABEL = 88, 12  # columns of the page, and of the names at its left
LISTED = 6  # rows of a table of the page; the rest is counted
CONFIDENCE = 0.95  # of the bound on what unseen images will do
LAYERS = ("all", "body", "head")  # what may be chosen; a report of another method names the method
REMOVAL = "removal"  # what stands there where features were moved: what is tried then is a share, and no rate


@dataclass(frozen=True)
class Epoch:
    """One pass over the fitted samples: mean loss, accuracy on the judged ones afterwards (a fraction), seconds."""

    loss: float
    forget_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """One learning rate tried on one choice of layers.

    Attributes:
        layers: Which layers moved: "all", "body" (all but the last) or "head" (the last); "removal" where features did.
        lr: Learning rate; of a removal the share of the way to the fitted weights.
        forget_accuracy: Accuracy on held-out forget samples where there were folds, else on the forget set; None where
            the run diverged.
        drift: Mean KL divergence from the masked original on held-out proxies, in nats; None where not measured.
        forgot: Whether the accuracy fell far enough.
        seconds: Wall-clock seconds.
    """

    layers: str
    lr: float
    forget_accuracy: float | None
    drift: float | None
    forgot: bool
    seconds: float


@dataclass(frozen=True)
class Layer:
    """One weight of the model and what the subspace leaves free in it.

    Attributes:
        name: Name of the weight.
        dimension: Input directions.
        free: Input directions left to the update.
        leak: Share of held-out proxies' energy outside the protected subspace: the damage an update can do.
        free_share: Share of held-out forget samples' energy outside it: what an update can take hold of.
        moved: Whether the update moved it.
        reason: Why it stayed frozen, "" if it moved.
    """

    name: str
    dimension: int
    free: int
    leak: float | None
    free_share: float | None
    moved: bool
    reason: str


@dataclass(frozen=True)
class Remainder:
    """What is left of the forget classes in the features, judged by held-out forget samples and held-out proxies.

    Attributes:
        measurable: False where a probe of the original itself cannot tell the two apart.
        probe_before: Accuracy of a ridge probe that tells them apart by the original's features.
        probe_after: The same on the open model's features.
        probe_chance: The same under permuted labels: what nothing looks like.
        original_head: Share of the forget samples that the original's head, put back, still recognizes.
        note: What limits the measurement, without a full stop.
    """

    measurable: bool
    probe_before: float | None
    probe_after: float | None
    probe_chance: float | None
    original_head: float | None
    note: str


@dataclass(frozen=True)
class Report:
    """How a result came about.

    Attributes:
        forget_classes: Classes that were forgotten, each of them whole.
        already_forgotten: Classes that were named as forgotten before.
        samples: Forget images that were used.
        original_accuracy: Accuracy of the original on the forget set.
        forget_accuracy: Accuracy of the open model on the forget set.
        unseen_accuracy: Accuracy on forget samples that a run had not fitted (cross-fitted); None without folds.
        eps: Radius of the attack, in pixels on [0, 1].
        hits: Share of the attacked samples that arrived, per retained class; empty where nothing was attacked.
        layers: Every weight that could be looked at.
        chosen: Which layers moved: "all", "body" or "head"; "removal"; of another method than ZS-PAG, its name.
        lr: Learning rate used; of a removal the share of the way to the fitted weights.
        tried: Every rate tried, in the order in which they were tried.
        history: One entry per epoch of the final run.
        drift: Mean KL divergence of the open model from the masked original on proxies that were not fitted, in nats.
        remainder: What is left in the features; None where it was not looked at.
        reached: Whether the open model forgot.
        silenced: Whether the forget classes' rows of ``Unlearned.model`` are closed.
        at_edge: The search for a rate ended at the edge of its range.
        warnings: What was warned of, in sentences.
        seconds: Wall-clock seconds per stage.
        unseen_samples: Samples behind ``unseen_accuracy``; None means all of ``samples``.
        left_open: Why the rows could not be closed, without a full stop; "" where they were or nobody asked for it.
        left_out: Forget images that were passed beyond the limit and not used.
    """

    forget_classes: tuple[int, ...]
    already_forgotten: tuple[int, ...]
    samples: int
    original_accuracy: float
    forget_accuracy: float
    unseen_accuracy: float | None
    eps: float
    hits: dict[int, float]
    layers: tuple[Layer, ...]
    chosen: str
    lr: float
    tried: tuple[Trial, ...]
    history: tuple[Epoch, ...]
    drift: float | None
    remainder: Remainder | None
    reached: bool
    silenced: bool
    at_edge: bool
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    unseen_samples: int | None = None
    left_open: str = ""
    left_out: int = 0

    def __str__(self) -> str:
        return "\n".join(_page(self))

    @property
    def unseen_bound(self) -> float | None:
        """What the accuracy on unseen images lies below, at 95 % confidence; None where nothing was held out.

        It holds for independent images of the same source as the forget set, judged by runs like the final one.
        """
        if self.unseen_accuracy is None:
            return None
        recognized, held = self._held_out()
        return upper_bound(recognized, held)

    def _held_out(self) -> tuple[int, int]:
        """Return how many held-out forget samples were recognized, and how many there were."""
        assert self.unseen_accuracy is not None
        held = self.samples if self.unseen_samples is None else self.unseen_samples
        return round(self.unseen_accuracy * held), held

    @property
    def verdict(self) -> str:
        """What was reached, and no more than that: suppressed is not removed."""
        return _judged(self)

    @property
    def legends(self) -> dict[str, str]:
        """What the tables mean: how the choice among the trials was made ("tried"), and the columns of "layers"."""
        return {"tried": f"{_choice(self)} {_trial_rule(self)}", "layers": _layer_terms(self)}

    @property
    def frozen(self) -> dict[str, str]:
        """Weights that did not move, by name, with the reason."""
        return {layer.name: layer.reason for layer in self.layers if not layer.moved}

    @property
    def free_dimension(self) -> dict[str, int]:
        """Input directions left to the update, per weight that moved."""
        return {layer.name: layer.free for layer in self.layers if layer.moved}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: lists, text keys, and None for what is not finite."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    def plot(self) -> "Figure":
        """Draw the rates tried, forgetting over the epochs, leak and free share per layer, and what is left.

        Returns:
            A figure of its own, 1000 pixels wide: no window opens and no state of pyplot changes. A notebook shows it;
            elsewhere, ``report.plot().savefig("report.png")``.
        """
        from zspag.outcome_plot import draw

        verdict = "goal NOT reached, only silenced" if self.silenced else "goal NOT reached"
        if self.reached:
            verdict = "answered no more" if self.chosen == REMOVAL else "suppressed"
        return draw(self.to_dict(), title=f"{_title(self)}: {verdict}")


def _plain(value: Any) -> Any:
    """Return the value as JSON knows it."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def upper_bound(hits: int, count: int) -> float:
    """Return the largest share that still gives so few hits with probability 5 % (Clopper and Pearson, one-sided).

    Args:
        hits: How often it happened.
        count: How often it could have.

    Returns:
        A fraction; without a hit about ``3 / count``.

    Example:
        >>> round(upper_bound(0, 100), 3)
        0.03
    """
    if hits >= count:
        return 1.0
    log_all = math.lgamma(count + 1)  # logarithms, for the coefficients of 2,000 overflow
    ways = [log_all - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in range(hits + 1)]
    low, high = hits / count, 1.0
    for _ in range(50):
        share = (low + high) / 2
        log_share, log_rest = math.log(share), math.log1p(-share) if share < 1 else -math.inf
        at_most = sum(math.exp(way + i * log_share + (count - i) * log_rest) for i, way in enumerate(ways))
        low, high = (share, high) if at_most > 1 - CONFIDENCE else (low, share)
    return high


# ---- The page


def _page(report: Report) -> Iterator[str]:
    """Yield the lines of the readable page."""
    title = _title(report)
    yield from (title, "=" * len(title))
    for label, text in _verdict(report):
        yield from _entry(label, text)
    yield ""
    yield from _entry("chosen", _choice(report))
    if report.tried:
        yield from _trials(report)
        yield from _entry("", _trial_rule(report))
    yield ""
    if report.layers:
        yield from _layers(report)
        yield ""
    for warning in report.warnings:
        yield from _entry("WARNING", warning)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    yield from _entry("seconds", f"{sum(report.seconds.values()):.1f} in all: {stages}" if stages else "not measured")


def _title(report: Report) -> str:
    images = "1 image" if report.samples == 1 else f"{report.samples} images"
    if report.left_out:
        images = f"{report.samples} of {report.samples + report.left_out} images"
    return f"Unlearning {_classes(report.forget_classes)} with {images}"


def _classes(classes: Sequence[int]) -> str:
    *first, last = map(str, classes)
    return f"classes {', '.join(first)} and {last}" if first else f"class {last}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _entry(label: str, text: str) -> list[str]:
    """Return a paragraph with its name at the left."""
    indent, whole = " " * LABEL, f"{label:<{LABEL}}{text}".replace(" %", "\0%")  # a number keeps its unit
    lines = textwrap.wrap(whole, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace("\0%", " %") for line in lines]


def _verdict(report: Report) -> Iterator[tuple[str, str]]:
    """Yield name and text of the paragraphs that say what came out."""
    yield "verdict", report.verdict
    yield (
        "forget set",
        f"`open_model` (updates alone) recognizes {_percent(report.forget_accuracy)} of it, the original"
        f" {_percent(report.original_accuracy)}. {_goal_rule(report)}",
    )
    if report.already_forgotten:
        yield "earlier", f"{_classes(report.already_forgotten)} (named as forgotten before)."
    yield "unseen", _unseen(report)
    text = f"open: {report.left_open or '`model` is what the updates alone made'}."
    if report.silenced:
        gone = _classes(sorted({*report.forget_classes, *report.already_forgotten}))
        text = f"closed: no input makes `model` answer {gone}; the numbers here were taken before that."
        text += "" if report.reached else " The class is silenced, NOT forgotten."
    yield "rows", text
    text = "not measured."
    if report.drift is not None:
        text = (
            f"{_number(report.drift)} nats (0: none), on proxies of the forget set: how far answers on retained classes"
            " moved from the original's with the forget classes masked."
        )
    yield "drift", text
    yield "features", _features(report.remainder)
    if report.hits:
        worst = min(report.hits, key=lambda label: report.hits[label])
        least, most = _percent(report.hits[worst]), _percent(max(report.hits.values()))
        arrived = f"{least} (class {worst}) to {most} of attacks arrived, by class"
        if least == most:
            arrived = f"{least} of attacks arrived, in every class"
        yield "attack", f"radius {_number(report.eps)} (pixels on [0, 1]); {arrived}."


def _judged(report: Report) -> str:
    if not report.reached:
        silenced = "; closed rows only silence the class" if report.silenced else ""
        return f"Goal NOT reached: too many images of {_classes(report.forget_classes)} are still recognized{silenced}."
    one = len(report.forget_classes) == 1
    text = f"Goal reached: {_classes(report.forget_classes)} {'is' if one else 'are'} "
    text += "answered no more" if report.chosen == REMOVAL else "suppressed"
    left = report.remainder
    if left is None or left.original_head is None:
        return f"{text}. What is left in the features is not known."
    text += ". What is left in the features" if report.chosen == REMOVAL else ", not removed"
    return f"{text}: the original's head, put back, recognizes {_percent(left.original_head)} of the forget images."


def _goal_rule(report: Report) -> str:
    # The numbers of the defaults, which a test compares; the report does not hold the options.
    text = "Reached is at most 1 % of it"
    if report.chosen in (*LAYERS, REMOVAL) and report.unseen_accuracy is not None:
        text += " and 10 % of held-out images"
    return f"{text} (default)."


def _unseen(report: Report) -> str:
    if report.unseen_accuracy is None:
        return "not measured: no forget image was held out, so nothing is known about unseen images."
    recognized, held = report._held_out()
    text = (
        f"of {held} held-out forget images {recognized} were recognized by trials that had not fitted them. Expect"
        f" about {_percent(report.unseen_accuracy)} of unseen images of the same source, at most"
        f" {_percent(report.unseen_bound)} (95 % bound)."
    )
    return text if held >= 100 else f"{text} More images would make the bound tighter."


def _features(left: Remainder | None) -> str:
    if left is None:
        return "not looked at."
    text = f"not measurable{f': {left.note}' if left.note else ''}."
    if left.measurable:
        text = (
            "a ridge probe tells held-out forget images from proxies by their features with accuracy"
            f" {_percent(left.probe_before)} before and {_percent(left.probe_after)} after;"
            f" {_percent(left.probe_chance)} under permuted labels."
        )
    if left.original_head is None:
        return text
    head = _percent(left.original_head)
    return f"{text} The original's head, put back, recognizes {head} of the forget images."


def _choice(report: Report) -> str:
    forgot = [trial for trial in report.tried if trial.forgot]
    how = f"{report.chosen}{' layers' if report.chosen in LAYERS else ''}"
    text = f"{how}, {f'{100 * report.lr:g} % of the way' if report.chosen == REMOVAL else f'rate {report.lr:g}'}: "
    text += f"{len(forgot) or 'none'} of {len(report.tried)} trials forgot"
    drifts = [trial.drift for trial in forgot if trial.drift is not None]
    mine = [trial.drift for trial in forgot if _is_chosen(trial, report)][:1]
    if drifts and mine == [min(drifts)]:
        text += ", this one with the least drift"
    if report.at_edge:
        edge = "the search ended at the EDGE of its range"
        text += f"; {'no share forgot with LITTLE damage' if report.chosen == REMOVAL else edge}"
    return f"{text}.{f' Rule: {_choice_rule(report)}.' if len(report.tried) > 1 else ''}"


def _choice_rule(report: Report) -> str:
    """Say which trial is taken; the numbers are those of ``calibration.open_search`` and of the defaults."""
    forgot = any(trial.forgot for trial in report.tried)
    if report.chosen == REMOVAL:
        if not report.at_edge:
            return "the largest share that forgot with a drift of at most 0.01 nats (default)"
        return "the smallest share that forgot" if forgot else "the largest share"
    if report.chosen in LAYERS:
        if not forgot:
            return "the trial that recognized least"
        return "the gentlest rate within twice the least drift; body or head only if that halves it"
    return "the smallest rate that forgot" if forgot else "the last rate"


def _trial_rule(report: Report) -> str:
    """Say what "forgot" and the other columns of the trials are measured on."""
    if report.chosen not in (*LAYERS, REMOVAL):
        return "forgot: at most 1 % of the forget set is recognized (default)."
    text = (
        "A trial fits one half of the forget set, then the other; accuracy and drift are of the half left out and its"
    )
    text += " proxies. forgot: at most "
    if report.chosen == REMOVAL:
        text += "2 % of it recognized."
    else:
        text += "1 % of the fitted half recognized after 2 of 8 epochs, both times (defaults)."
    if any(trial.drift is None and trial.forget_accuracy is not None for trial in report.tried):
        text += " Without a drift: final runs that did not forget."
    return text


def _is_chosen(trial: Trial, report: Report) -> bool:
    return (trial.layers, trial.lr) == (report.chosen, report.lr)


def _trials(report: Report) -> Iterator[str]:
    """Yield the table of the trials, those of the chosen layers nearest to the chosen rate if there are many."""
    if not report.tried:
        return

    def distance(trial: Trial) -> tuple[bool, bool, float]:
        return not _is_chosen(trial, report), trial.layers != report.chosen, abs(math.log(trial.lr / report.lr))

    judged = "forget accuracy" if report.unseen_accuracy is None else "held-out accuracy"
    dial = "share" if report.chosen == REMOVAL else "rate"
    yield f"{'':{LABEL}}  {'layers':<8}{dial:>10}{judged:>20}{'drift, nats':>14}{'forgot':>9}"
    listed = sorted(report.tried, key=distance)[:LISTED]
    for trial in sorted(listed, key=lambda one: (one.layers, one.lr)):
        accuracy = "diverged" if trial.forget_accuracy is None else _percent(trial.forget_accuracy)
        yield (
            f"{'':{LABEL}}{'> ' if _is_chosen(trial, report) else '  '}{trial.layers:<8}{trial.lr:>10.3g}{accuracy:>20}"
            f"{_number(trial.drift):>14}{'yes' if trial.forgot else 'no':>9}"
        )
    if len(report.tried) > LISTED:
        yield f"{'':{LABEL}}  and {len(report.tried) - LISTED} more in report.tried"


def _layers(report: Report) -> Iterator[str]:
    """Yield why layers stayed, and the table of those that moved; if there are many, those that leak most."""
    reasons: dict[str, list[str]] = {}
    for name, reason in report.frozen.items():
        reasons.setdefault(reason or "not chosen", []).append(name)
    text = f"{len(report.free_dimension)} of {len(report.layers)} moved"
    for reason, names in list(reasons.items())[:3]:
        text += f"; {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} stayed: {reason}"
    if len(reasons) > 3:
        text += f"; {len(reasons) - 3} more reasons in report.frozen"
    yield from _entry("layers", f"{text}.")
    moved = [layer for layer in report.layers if layer.moved]
    worst = sorted(moved, key=lambda layer: -(layer.leak or 0))[:LISTED]
    if moved:
        yield f"{'':{LABEL}}  {'weight':<34}{'inputs':>8}{'free':>8}{'leak':>10}{'free share':>14}"
    for layer in [layer for layer in moved if layer in worst]:
        name = layer.name.removesuffix(".weight")
        name = name if len(name) <= 33 else f"...{name[-30:]}"  # the end tells layers apart
        yield (
            f"{'':{LABEL}}  {name:<34}{layer.dimension:>8}{layer.free:>8}{_percent(layer.leak):>10}"
            f"{_percent(layer.free_share):>14}"
        )
    if len(moved) > LISTED:
        yield f"{'':{LABEL}}  and {len(moved) - LISTED} that leak less, in report.layers"
    if moved:
        yield from _entry("", _layer_terms(report))


def _layer_terms(report: Report) -> str:
    text = "free: directions left to the update"
    if any(layer.leak is not None for layer in report.layers):
        text += "; leak: energy of held-out proxies in them (damage), free share: of held-out forget images"
    return f"{text}."
