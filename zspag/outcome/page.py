"""A report as a page of plain text: the verdict, how it came about, and what every number was measured on.

Invariant: a yes or no stands beside its rule, a number beside the model and the images it is from; one page is enough.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence

from zspag.outcome.answers import LAYERS, REMOVAL, Answers, Remainder, Trial

WIDTH, LABEL = 88, 12  # columns of the page, and of the names at its left
LISTED = 6  # rows of a table of the page; the rest is counted


def lines(report: Answers) -> Iterator[str]:
    """Yield the lines of the readable page."""
    head = title(report)
    yield from (head, "=" * len(head))
    for label, text in _verdict(report):
        yield from _entry(label, text)
    yield ""
    yield from _entry("chosen", choice(report))
    if report.tried:
        yield from _trials(report)
        yield from _entry("", trial_rule(report))
    yield ""
    if report.layers:
        yield from _layers(report)
        yield ""
    for warning in report.warnings:
        yield from _entry("WARNING", warning)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    yield from _entry("seconds", f"{sum(report.seconds.values()):.1f} in all: {stages}" if stages else "not measured")


def title(report: Answers) -> str:
    """Return what was asked for: classes and number of images."""
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
    wrapped = textwrap.wrap(whole, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace("\0%", " %") for line in wrapped]


def _verdict(report: Answers) -> Iterator[tuple[str, str]]:
    """Yield name and text of the paragraphs that say what came out."""
    yield "verdict", judged(report)
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


def judged(report: Answers) -> str:
    """Return the verdict, and no more than was reached: suppressed is not removed."""
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


def _goal_rule(report: Answers) -> str:
    # The numbers of the defaults, which a test compares; the report does not hold the options.
    text = "Reached is at most 1 % of it"
    if report.chosen in (*LAYERS, REMOVAL) and report.unseen_accuracy is not None:
        text += " and 10 % of held-out images"
    return f"{text} (default)."


def _unseen(report: Answers) -> str:
    if report.unseen_accuracy is None and report.layers and not report.free_dimension:
        return "not measured: nothing moved, so unseen images are recognized as they were."
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


def choice(report: Answers) -> str:
    """Return what was chosen among the trials, and by which rule."""
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


def _choice_rule(report: Answers) -> str:
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


def trial_rule(report: Answers) -> str:
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


def _is_chosen(trial: Trial, report: Answers) -> bool:
    return (trial.layers, trial.lr) == (report.chosen, report.lr)


def _trials(report: Answers) -> Iterator[str]:
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


def _layers(report: Answers) -> Iterator[str]:
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
        yield from _entry("", layer_terms(report))


def layer_terms(report: Answers) -> str:
    """Return what the columns of the table of layers mean."""
    text = "free: directions left to the update"
    if any(layer.leak is not None for layer in report.layers):
        text += "; leak: energy of held-out proxies in them (damage), free share: of held-out forget images"
    return f"{text}."
