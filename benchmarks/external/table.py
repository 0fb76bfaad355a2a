"""``results/external``: every row as JSON, of the zoo and of the variants, and a page that is written from each.

Invariant: the pages hold no number that was typed; what failed stands in them.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.external.arms import ARMS, GOAL
from benchmarks.external.bars import (
    LOST_WORST,
    NOT_MEASURED,
    NOT_MET,
    Bar,
    Row,
    all_bars,
    arm_rows,
    case,
    drifts,
    falsely_reached,
    percent,
    points,
    sound,
    time_bars,
    values,
    worse_than_old,
)
from benchmarks.external.choices import CHOSEN, CLASSES, VARIANTS
from benchmarks.external.nets import CONFIRMATION, DEVELOPMENT, NETS
from zspag.report.files import plain, read_json, replacing, repository_root

ROLES: tuple[str | None, ...] = (None, DEVELOPMENT, CONFIRMATION)
OLD = "fa40f86"
METHODS = {"zs_pag": "variants of the call", "zs_pag_fixed": "not calibrated", "": "original, row closed"}
ERROR_LENGTH = 160  # characters of an error in the table; the row holds all

WORDS = """
| word | meaning |
| --- | --- |
| masked original | the original with the forget class's logit at the floor; the yardstick for what is retained |
| points lost | accuracy of the masked original minus that of the model, on retained test images, in points of 100 |
| forget unseen | share of the class's test images that the model still recognizes |
| drift | mean KL(masked original, model) on retained test images, in nats |
| open | no row of the head was closed: what the updates alone made. All tables are about open models |
| row closed | the head's row is rewritten so that no input is answered with the class; free, exact, and no evidence |
| reached | what the method says itself: the class is forgotten |
| failed | the call ended with an error, so that there is no model |
""".strip()


def folder() -> Path:
    """Return the folder of the table."""
    return repository_root() / "results" / "external"


LONG = ("layers", "tried", "history", "remainder")  # of a report: they stay in runs/


def write_table(rows: Sequence[Row], *, timing: dict[str, Any] | None = None, target: Path | None = None) -> str:
    """Write ``zoo.json`` and ``README.md``, and return the text of the page.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError("there is no row to write a table from: run `python -m benchmarks.external rows` first")
    target = target or folder()
    bars = {role or "all": [vars(bar) for bar in all_bars(of_role(rows, role), goal=GOAL)] for role in ROLES}
    _write_rows(
        target / "zoo.json", rows, schema=1, goal=GOAL, bars=bars, time=[vars(bar) for bar in time_bars(timing)]
    )
    text = page(rows, timing=timing)
    (target / "README.md").write_text(text, encoding="utf-8")
    return text


def _write_rows(path: Path, rows: Sequence[Row], **beside: Any) -> None:
    """Write rows as JSON, one on a line, without what is long in their reports and in no table."""
    head, *_ = json.dumps(plain(beside, "beside"), allow_nan=False).rpartition("}")
    short = [
        row | {"report": {name: part for name, part in row.get("report", {}).items() if name not in LONG}}
        for row in rows
    ]
    lines = ",\n".join(json.dumps(plain(row, "row"), allow_nan=False, separators=(",", ":")) for row in short)
    with replacing(path) as temporary:
        temporary.write_text(f'{head}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def with_recorded(rows: Sequence[Row], path: Path) -> list[Row]:
    """Add the recorded rows of cases and arms that no row here is of: who made some rows does not lose the others."""

    def place(row: Row) -> tuple[Any, ...]:
        return (*(row["key"][name] for name in ("net", "label", "count", "seed")), row["arm"])

    fresh = {place(row) for row in rows}
    recorded = read_json(path)["rows"] if path.exists() else []
    return [*rows, *(row for row in recorded if place(row) not in fresh)]


def recorded_timing() -> dict[str, Any] | None:
    """Return what ``python -m benchmarks.external time`` wrote, if it did."""
    path = folder() / "timing.json"
    return read_json(path) if path.exists() else None


def of_role(rows: Iterable[Row], role: str | None) -> list[Row]:
    """Return the rows of development or confirmation nets; None takes all."""
    return [row for row in rows if role is None or row["role"] == role]


def page(rows: Sequence[Row], *, timing: dict[str, Any] | None = None) -> str:
    """Return the page in Markdown."""
    nets = [name for name in NETS if any(row["net"] == name for row in rows)]
    own, old, beyond = arm_rows(rows, "zs_pag"), arm_rows(rows, OLD), worse_than_old(rows)
    wrong = [row for row in [*own, *old] if falsely_reached(row, goal=GOAL)]
    honest = [row for row in sound(own) if row["reached"] is False]
    costly = [row for row in sound(own) if row["measures"]["lost_points"] > LOST_WORST]
    parts = [
        "# The zoo: nets of all kinds, defaults only",
        "Written by `python -m benchmarks.external table` from the rows in `zoo.json`:"
        " [sources](../README.md#every-file-and-what-made-it).",
        WORDS,
        "## The bars",
        f"Runs of ours: {len(own)}, on nets: {len({row['net'] for row in own})}. Development nets were looked at while"
        " the method was made; confirmation nets were not. CIFAR-10 development uses the first half of the test images,"
        " confirmation the second. A bar is met where it is on all nets and on the confirmation nets. A failed run"
        " meets no bar.",
        bars_table(rows, old),
        "## Time",
        "The two sides of a line took turns on one machine; lines come from several runs (*code*, *load before*).",
        time_table(timing),
        table(
            ["bar", "wanted", "measured", "n", "verdict"],
            [[bar.name, bar.wanted, bar.value or "-", bar.n, bar.verdict] for bar in time_bars(timing)],
        ),
        "### Where it goes",
        "One call of ours, stage by stage; the share of convolutions and matrix products is of all time in kernels. The"
        " peak is what the call added to the memory of the process. A training is conv7's recipe, of 16 epochs; for"
        " other nets three epochs of all 50,000 images. Three rounds against retraining:"
        " [benchmarks](../bench/README.md).",
        stage_table(timing),
        "## Arms",
        arms_table(rows),
        "## Net by net",
        nets_table(rows, nets),
        "### Forget unseen, mean over the classes",
        unseen_table(rows, nets),
        "### Drift",
        "Medians over the cases that all three have; *lowest* counts the cases in which ours drifts least.",
        drift_table(rows),
        "### Points lost beyond fa40f86",
        "Mean over the cases of a net, and two standard errors.",
        table(
            ["net", "mean", "2 s.e.", "n"],
            [[net, points(more), points(error).lstrip("+"), n] for net, (more, error, n) in beyond.items()],
        ),
        "### Seconds, median",
        seconds_table(rows, nets),
        "## What went wrong",
        "### False 'reached'",
        cases(wrong, unseen, "forget unseen"),
        "### Not reached, and said so",
        cases(honest, unseen, "forget unseen"),
        "### More than a point lost",
        cases(costly, lambda row: points(row["measures"]["lost_points"]), "points lost"),
        "### Failed",
        cases([row for row in rows if row["error"] is not None], first_words, "error"),
        "## What these rows are",
        origin(rows),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, or a dash where it would be empty."""
    if not body:
        return "None."
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def bars_table(rows: Sequence[Row], old: Sequence[Row]) -> str:
    """Return every bar with what was measured on all, development and confirmation nets, and the old defaults."""
    groups = {role or "all": all_bars(of_role(rows, role), goal=GOAL) for role in ROLES}
    controls = [row for row in rows if row["arm"] in ("head_only", "delete")]
    before = {bar.name: bar for bar in all_bars([*(row | {"arm": "zs_pag"} for row in old), *controls], goal=GOAL)}
    body = []
    for bar, seen, fresh in zip(*(groups[role or "all"] for role in ROLES), strict=True):
        was, verdict = before[bar.name], NOT_MET if fresh.verdict == NOT_MET else bar.verdict
        body.append([bar.name, bar.wanted, *counted(seen), *counted(fresh), *counted(bar), verdict, was.value or "-"])
    few = [row for row in arm_rows(rows, "zs_pag") if row["samples"] == 20]
    if sound(few):
        said = f"{percent(median(values(few, 'forget_unseen')))}, {percent(max(values(few, 'forget_unseen')))}"
        body.append(["forget unseen, 20 images, median and worst", "said", "", "", "", "", said, len(few), "said", ""])
    head = ["bar", "wanted", "development", "n", "confirmation", "n", "all", "n", "verdict", OLD]
    return table(head, body)


def counted(bar: Bar) -> tuple[str, str]:
    """Return a bar's value with its own verdict, and on how many rows it rests."""
    value = "-" if bar.verdict == NOT_MEASURED else f"{bar.value or 'no model'} ({bar.verdict})"
    return value, f"{bar.n}" + (f", {bar.failed} failed" if bar.failed else "")


def number(value: float, form: Callable[[float], str]) -> str:
    """Return a formatted number, or a dash where there is none."""
    return "-" if math.isnan(value) else form(value)


def nats(value: float) -> str:
    """Return a drift with two significant digits."""
    return f"{value:.2g}" if math.isfinite(value) else "not finite"


def middle(found: Sequence[float]) -> float:
    """Return the median, or NaN where there is nothing."""
    return median(found) if found else math.nan


def most(found: Sequence[float]) -> float:
    """Return the largest, or NaN where there is nothing."""
    return max(found, default=math.nan)


def arms_table(rows: Sequence[Row]) -> str:
    """Return one line per arm over all nets."""
    body = []
    for arm, title in ARMS.items():
        own = arm_rows(rows, arm)
        if not own:
            continue
        lost, unseen, drift = (values(own, name) for name in ("lost_points", "forget_unseen", "drift"))
        says = [row for row in sound(own) if row["reached"] is not None]
        body.append(
            [
                title,
                len(own),
                len(own) - len(sound(own)),
                number(middle(lost), points),
                number(most(lost), points),
                number(middle(unseen), percent),
                number(most(unseen), percent),
                number(middle(drift), nats),
                f"{sum(row['reached'] for row in says)} of {len(says)}" if says else "-",
                sum(falsely_reached(row, goal=GOAL) for row in own) if says else "-",
            ]
        )
    head = ["arm", "n", "failed", "lost, median", "lost, worst", "unseen, median", "unseen, worst", "drift, median"]
    return table([*head, "reached", "falsely"], body)


def nets_table(rows: Sequence[Row], nets: Sequence[str]) -> str:
    """Return one line per net: what was lost, beside the old defaults."""
    body = []
    for net in nets:
        mine = [row for row in rows if row["net"] == net]
        own, old = arm_rows(mine, "zs_pag"), arm_rows(mine, OLD)
        lost, before = values(own, "lost_points"), values(old, "lost_points")
        body.append(
            [
                f"{mine[0]['title']} ({net})",
                mine[0]["norm"],
                mine[0]["role"],
                percent(mine[0]["original_accuracy"]),
                len(own),
                len(own) - len(sound(own)),
                number(middle(lost), points),
                number(most(lost), points),
                number(middle(before), points),
                number(most(before), points),
                f"{sum(bool(row['reached']) for row in sound(own))} of {len(own)}",
            ]
        )
    head = ["net", "norm", "role", "original", "n", "failed", "lost, median", "lost, worst"]
    return table([*head, f"{OLD}, median", f"{OLD}, worst", "reached"], body)


def unseen_table(rows: Sequence[Row], nets: Sequence[str]) -> str:
    """Return, per net and arm, how much of the class is recognized on unseen images, by forget images."""
    columns = [20, 50, 200, "all"]
    body = []
    for net in nets:
        for arm in ("zs_pag", OLD):
            own = [row for row in arm_rows(rows, arm) if row["net"] == net]
            if not own:
                continue
            line: list[object] = [net, ARMS[arm]]
            for column in columns:
                chosen = [row for row in own if (row["count"] or "all") == column]
                found = values(chosen, "forget_unseen")
                line.append(percent(sum(found) / len(found)) if found else "failed" if chosen else "")
            body.append(line)
    return table(["net", "arm", *map(str, columns)], body)


def drift_table(rows: Sequence[Row]) -> str:
    """Return the drift of every net beside both controls."""
    body = []
    for one in drifts(rows):
        each = [number(value, nats) for value in (one.own, one.head_only, one.delete)]
        body.append([one.net, *each, f"{one.lowest} of {one.n}", one.verdict])
    return table(["net", "ours", "head only", "DELETE", "lowest", "verdict"], body)


def seconds_table(rows: Sequence[Row], nets: Sequence[str]) -> str:
    """Return the median seconds of every arm that works, net by net."""
    arms = [arm for arm in ARMS if any(row["seconds"] is not None for row in arm_rows(rows, arm))]
    body = []
    for net in nets:
        line: list[object] = [net]
        for arm in arms:
            own = [row["seconds"] for row in arm_rows(rows, arm) if row["net"] == net and row["seconds"] is not None]
            line.append(number(middle(own), lambda value: f"{value:.1f}"))
        body.append(line)
    return table(["net", *(ARMS[arm] for arm in arms)], body)


def time_table(timing: dict[str, Any] | None) -> str:
    """Return seconds of both sides in turn, net by net."""
    body = []
    for entry in [] if timing is None else timing["nets"]:
        sides = [entry["ours_seconds"], entry["fa40f86_seconds"]]
        body.append(
            [
                entry["title"],
                entry["norm"],
                entry["samples"],
                *("failed" if value is None else f"{value:.1f}" for value in sides),
                "-" if entry["ratio"] is None else f"{entry['ratio']:.2f}",
                min(map(len, entry["seconds"].values())),
                entry["threads"],
                entry["device"],
                f"{entry['load_before']:.1f}",
                entry["commit"],
            ]
        )
    head = [
        "net",
        "norm",
        "images",
        "ours, s",
        f"{OLD}, s",
        "ratio",
        "runs",
        "threads",
        "device",
        "load before",
        "code",
    ]
    return table(head, body)


def stage_table(timing: dict[str, Any] | None) -> str:
    """Return where the time of one call goes, net by net: shares of the stages, of the arithmetic, and the memory."""
    entries = [entry for entry in ([] if timing is None else timing["nets"]) if entry.get("stages")]
    stages = list(dict.fromkeys(stage for entry in entries for stage in entry["stages"]))
    body = []
    for entry in entries:
        whole, training = sum(entry["stages"].values()), entry["training_seconds"]
        shares = [f"{100 * entry['stages'].get(stage, 0.0) / whole:.0f} %" for stage in stages]
        body.append(
            [
                entry["title"],
                entry["samples"],
                f"{entry['ours_seconds']:.1f}",
                *shares,
                f"{100 * entry['useful_share']:.0f} %",
                f"{entry['peak_mib']:.0f}",
                "-" if training is None else f"1/{training / entry['ours_seconds']:.0f} of {training:.0f} s",
            ]
        )
    head = ["net", "images", "seconds", *stages, "convolutions and products", "peak, MiB", "of training"]
    return table(head, body)


def unseen(row: Row) -> str:
    """Return how much of the class a row still recognizes on unseen images."""
    return percent(row["measures"]["forget_unseen"])


def first_words(row: Row) -> str:
    """Return the beginning of an error, safe in a table."""
    return row["error"].replace("|", "/").replace("\n", " ")[:ERROR_LENGTH]


def cases(chosen: Sequence[Row], say: Callable[[Row], str], what: str) -> str:
    """Return one line per row: what it is about, and one value."""
    body = [[row["net"], row["label"], row["samples"], ARMS[row["arm"]], say(row)] for row in chosen]
    return table(["net", "class", "images", "arm", what], body)


def origin(rows: Sequence[Row], titles: Mapping[str, str] = ARMS) -> str:
    """Return what made the rows of each arm, and say so where an arm holds rows of different code."""
    body = []
    for arm, title in titles.items():
        own = arm_rows(rows, arm)
        if own:
            states: dict[tuple[str, ...], list[str]] = {}
            for row in own:
                state = tuple(row["key"][name] for name in ("code", "torch", "device", "threads"))
                states.setdefault(state, []).append((row["provenance"]["commit"] or "unknown")[:7])
            body += [
                [title, ", ".join(sorted(set(commits))), *state[1:], len(commits)]
                for state, commits in sorted(states.items())
            ]
    text = table(["arm", "commit", "torch", "device", "threads", "rows"], body)
    mixed = sorted({line[0] for line in body if sum(other[0] == line[0] for other in body) > 1})
    if mixed:
        text += f"\n\n**Rows of different code, torch or machine stand together in: {', '.join(mixed)}.**"
    mends = sorted({row["mended"] for row in rows if row["mended"]})
    if mends:
        text += "\n\nMended for fa40f86, which fails otherwise: " + "; ".join(mends) + "."
    return text


def write_choices(rows: Sequence[Row], *, target: Path | None = None) -> str:
    """Write ``choices.json`` and ``CHOICES.md``, and return the text of the page."""
    target = target or folder()
    titles = {name: {"title": one.title, "against": one.against} for name, one in VARIANTS.items()}
    _write_rows(target / "choices.json", rows, schema=1, goal=GOAL, variants=titles)
    text = choices_page(rows)
    (target / "CHOICES.md").write_text(text, encoding="utf-8")
    return text


def choices_page(rows: Sequence[Row]) -> str:
    """Return the page of the variants in Markdown."""
    known = [row for row in rows if row["arm"] in VARIANTS]
    present = [name for name in VARIANTS if arm_rows(known, name)]
    nets = [name for name in NETS if any(row["net"] == name for row in known)]
    cases_run, planned = {case(row) for row in known}, len(CHOSEN) * CLASSES * len(VARIANTS)
    parts = [
        "# Every part beside its absence",
        "Written by `python -m benchmarks.external table` from the rows in `choices.json`:"
        " [sources](../README.md#every-file-and-what-made-it).",
        f"Each variant differs in one thing from the one it stands *beside*. Development nets: {', '.join(nets)}."
        f" Cases (net and forget class): {len(cases_run)} of {len(CHOSEN) * CLASSES}. Models are open, except for the"
        " original with its row closed. The words are those of the [zoo](README.md).",
        "## Variants",
        "Ratios are geometric means over the cases that both have; *time* is that of the processor. *Falsely* counts"
        " runs that say reached and are wrong by more than ten points on unseen images.",
        variants_table(known, present),
        "## Case by case",
        "\n".join(f"* {compared(known, name)}" for name in present if name != VARIANTS[name].against),
        "## What the runs say themselves",
        "Medians; the hit rate is that of the worst class. *Damage* is that on held-out proxies, in nats, and *drift to"
        " damage* the geometric mean of how many times as far retained test images drift.",
        said_table(known, present),
        "## Points lost, the worse class of each net",
        table(["variant", *nets], [[VARIANTS[name].title, *worst_of(arm_rows(known, name), nets)] for name in present]),
        "## Failed",
        table(
            ["net", "class", "variant", "error"],
            [[*case(row)[:2], VARIANTS[row["arm"]].title, first_words(row)] for row in known if row["error"]],
        ),
        f"Rows that were not made: {planned - len(known)} of {planned}.",
        "## What these rows are",
        origin([row | {"arm": VARIANTS[row["arm"]].method} for row in known], METHODS),
    ]
    return "\n\n".join(parts) + "\n"


def pairs(rows: Sequence[Row], name: str) -> list[tuple[Row, Row]]:
    """Return the sound rows of a variant, each with that of the variant it stands beside."""
    beside = {case(row): row for row in sound(arm_rows(rows, VARIANTS[name].against))}
    return [(row, beside[case(row)]) for row in sound(arm_rows(rows, name)) if case(row) in beside]


def geometric(found: Sequence[tuple[float | None, float | None]]) -> float:
    """Return the geometric mean of ratios a / b; pairs without a positive b are left out, an absent a is infinite."""
    logs = [math.log(math.inf if a is None else max(a, 1e-12)) - math.log(b) for a, b in found if b]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def times(value: float) -> str:
    """Return a ratio with two significant digits."""
    return number(value, nats)


def variants_table(rows: Sequence[Row], present: Sequence[str]) -> str:
    """Return one line per variant: what it loses, leaves and costs."""
    body = []
    for name in present:
        own, both = arm_rows(rows, name), pairs(rows, name)
        lost, unseen, drift = (values(own, measure) for measure in ("lost_points", "forget_unseen", "drift"))
        says = [row for row in sound(own) if row["reached"] is not None]
        body.append(
            [
                VARIANTS[name].title,
                VARIANTS[VARIANTS[name].against].title,
                len(own),
                len(own) - len(sound(own)),
                number(middle(lost), points),
                number(most(lost), points),
                number(middle(unseen), percent),
                number(most(unseen), percent),
                number(middle(drift), nats),
                times(geometric([(a["measures"]["drift"], b["measures"]["drift"]) for a, b in both])),
                times(geometric([(worked(a), worked(b)) for a, b in both if worked(a)])),
                f"{sum(row['reached'] for row in says)} of {len(says)}" if says else "-",
                sum(falsely_reached(row, goal=GOAL) for row in own) if says else "-",
            ]
        )
    head = ["variant", "beside", "n", "failed", "lost, median", "lost, worst", "unseen, median", "unseen, worst"]
    return table([*head, "drift, median", "drift ratio", "time ratio", "reached", "falsely"], body)


def worked(row: Row) -> float | None:
    """Return the processor seconds of a row, if it has any."""
    found: float | None = row["report"].get("processor_seconds")
    return found


def compared(rows: Sequence[Row], name: str) -> str:
    """Return one sentence on where a variant does more harm, or leaves more, than what it stands beside."""
    both = pairs(rows, name)

    def counts(measure: str) -> tuple[int, int]:
        each = [(a["measures"][measure], b["measures"][measure]) for a, b in both]
        return sum(a > b for a, b in each), sum(a < b for a, b in each)

    (more, less), (left, gone) = counts("lost_points"), counts("forget_unseen")
    return (
        f"**{VARIANTS[name].title}** beside {VARIANTS[VARIANTS[name].against].title}, {len(both)} cases: more points"
        f" lost in {more} and fewer in {less}; more of the class left in {left} and less in {gone}."
    )


def said_table(rows: Sequence[Row], present: Sequence[str]) -> str:
    """Return one line per variant: what its reports say of attack, calibration and held-out damage."""
    body = []
    for name in present:
        own = [row for row in sound(arm_rows(rows, name)) if row["report"]]
        if not own:
            continue
        reports = [row["report"] for row in own]
        hits = [min(one["hits"].values()) for one in reports if one["hits"]]
        seconds = {
            part: [one["seconds"][part] for one in reports if part in one["seconds"]]
            for part in ("proxies", "calibration")
        }
        damage = [one["drift"] for one in reports if one["drift"] is not None]
        beyond = geometric([(row["measures"]["drift"], row["report"]["drift"]) for row in own])
        chosen = Counter(one["chosen"] for one in reports)
        rates = sorted(one["lr"] for one in reports)
        body.append(
            [
                VARIANTS[name].title,
                number(middle(hits), percent),
                *(number(middle(seconds[part]), lambda value: f"{value:.1f}") for part in seconds),
                number(middle(damage), nats),
                times(beyond),
                ", ".join(f"{layers} {count}" for layers, count in chosen.most_common()),
                f"{rates[0]:g} to {rates[-1]:g}",
                sum(one["at_edge"] for one in reports),
            ]
        )
    head = ["variant", "hit rate", "attack, s", "calibration, s", "damage", "drift to damage", "layers", "rates"]
    return table([*head, "at edge"], body)


def worst_of(rows: Sequence[Row], nets: Sequence[str]) -> list[str]:
    """Return the most points lost on each net."""
    each = [[row for row in rows if row["net"] == net] for net in nets]
    return [number(most(values(own, "lost_points")), points) if own else "" for own in each]
