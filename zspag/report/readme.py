"""The README's tables and numbers, written from committed result files: ``make readme``.

The same command accepts what is recorded (``claims.accept``): ``zspag claims`` refuses what was changed afterwards.

Text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` belongs to this module, the rest to people. A test
fails when a block no longer says what the files say.

Invariant: no number is typed; a block without its files says that it was not measured.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from zspag.report import audit, claims, files, results, results_page, tables
from zspag.report.results import Result

MANY = 200  # forget images from which on unseen ones are held to a bar
_BLOCK = re.compile(r"(<!-- begin (?P<name>[a-z0-9_]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)
NOT_YET = "_not yet measured_\n"
CHAPTERS = {
    "00_quickstart": "What happens to a model that is made to forget a class?",
    "01_theory": "Why does projecting an update keep what is retained, and how far does the guarantee reach?",
    "02_proxy_generation": "What stands in for the retain data nobody has?",
    "03_subspace_construction": "Which directions are protected, and are they the right ones?",
    "04_pseudo_labeling": "What should a forgotten image become, and does the influence of a label matter?",
    "05_experiments": "Does it hold for every class and seed, and would something simpler have done?",
    "06_ablations": "Which of its many choices matter, and where does it break?",
    "07_audit": "Is the class gone, or only silent, and which requests fail?",
    "08_removal": "What does it take to remove a class from the features, and what does that cost?",
}


def render(text: str, root: Path) -> str:
    """Return a README text with every block written anew from ``root / results``.

    Raises:
        ValueError: If a block has a name that nothing writes.
    """

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise ValueError(f"README block {name!r} is written by nothing; blocks are {', '.join(BLOCKS)}")
        return match[1] + BLOCKS[name](root / "results") + match[3]

    return _BLOCK.sub(block, text)


def _read(path: Path) -> dict[str, Any] | None:
    return files.read_json(path) if path.is_file() else None


def _grid(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    return tables.markdown(pd.DataFrame(lines, columns=list(header)).set_index(header[0])) + "\n"


def chapters(folder: Path) -> str:
    """Return the table of notebooks: title, what it answers, seconds and memory of the recorded run."""
    costs = (_read(folder / "digits" / "time_and_memory.json") or {}).get("notebooks", {})
    lines = []
    for name, question in CHAPTERS.items():
        spent = ["not yet measured", ""]
        if (cost := costs.get(name)) is not None:
            memory = max(cost["peak_memory_mib"].values()) / 1024
            spent = [f"{cost['seconds']:.0f}", f"{memory:.1f} GiB per process"]
        lines.append([f"[{name}](notebooks/{name}.ipynb)", question, *spent])
    if costs:
        lines.append(["all", "", f"{sum(cost['seconds'] for cost in costs.values()):.0f}", ""])
    return _grid(["chapter", "answers", "seconds", "peak memory"], lines)


def commands(folder: Path) -> str:
    """Return how long the README's commands took in a fresh clone, as ``make fresh-clone`` timed them."""
    if (found := _read(folder / "commands.json")) is None:
        return NOT_YET
    minutes = {name: f"{spent / 60:.1f} minutes" for name, spent in found["seconds"].items()}
    return (
        f"In a fresh clone of {found['provenance']['commit'][:7]} on {found['provenance']['threads']} cores, after the"
        " set-up (mostly a download), `make figures` took"
        f" {minutes['make figures']},\ntyped again {minutes['make figures, again']}, and `make test`"
        f" {minutes['make test']}; all ended well.\n"
    )


def _table(name: str) -> Callable[[Path], str]:
    def block(folder: Path) -> str:
        found = _digits(folder, name)
        return NOT_YET if found is None else found.measurements["markdown"] + "\n"

    return block


def _digits(folder: Path, name: str) -> Result | None:
    path = folder / "digits" / f"{name}.json"
    return results.read(path) if path.is_file() else None


def headline(folder: Path) -> str:
    """Return the digits headline in one sentence per number."""
    found, hindsight, ladder = (_digits(folder, name) for name in ("05_headline", "05_hindsight", "05_ladder"))
    if found is None or hindsight is None or ladder is None:
        return NOT_YET
    points = {name: 100 * value for name, (value, _) in found.numbers.items()}
    safe, unprojected = (ladder.number(f"safe rates {name}") for name in ("zs_pag", "unprojected"))
    classes, seeds = len(found.measurements["classes"]), len(found.measurements["seeds"])
    ceiling = ": where accuracy is at its ceiling, the projection does not widen the window (but see CIFAR-10)."
    lines = [
        f"* {classes} classes x {seeds} seeds, layers and rate chosen on forget images alone: forget accuracy"
        f" {points['acc_forget']:.2f} %, over-unlearning {points['over_unlearning']:+.2f} points against the masked"
        " original, negative meaning better (without class 3, the class of the trials:"
        f" {points['acc_forget without class 3']:.2f} %, {points['over_unlearning without class 3']:+.2f}).",
        f"* Safe learning rates on a ladder of seven, a factor of about 3 apart: {safe:.0f} with the projection,"
        f" {unprojected:.0f} with the same labels without it{'.' if safe > unprojected else ceiling}",
        "* Drift on retained images at each arm's best rate in hindsight:"
        f" {hindsight.number('drift ratio'):.2f} of the unprojected run's.",
    ]
    if (capture := _digits(folder, "03_capture")) is not None:
        kinds = ("proxies", "forget", "noise", "random")
        shares = [f"{kind} {capture.number(f'capture_of_oracle_{kind}'):.3f}" for kind in kinds]
        selective = [f"{kind} {capture.number(f'head_selectivity_{kind}'):.2f}" for kind in kinds]
        lines.append(
            "* Subspaces of equal rank, capture of the true retain moment as a share of the oracle's, worst layer:"
            f" {', '.join(shares)}; selectivity in the head: {', '.join(selective)}."
        )
    if (compared := _digits(folder, "05_comparison")) is not None:
        lines.append(f"* {compared.measurements['sentence']}")
    return "\n".join(lines) + "\n"


def runs(folder: Path) -> str:
    """Return one line per recorded ``zspag run``: scores, rate, time, and the retain samples read (last)."""
    header = "data, net|class|seed|forget % before|after|retain %|masked|retrained|drift|rate|seconds (threads)|read"
    lines = []
    for path in sorted(folder.glob("*/run_*.json")):
        found = results.read(path)
        share = found.config["unlearn"]["update"].get("held_out", 0.0)
        setting = _setting(found) + (f" ({100 * share:g} % held out)" if share else "")
        for row in found.measurements["rows"]:
            score = row["scores"]
            forgot = [f"{100 * score[name]['acc_forget']:.1f}" for name in ("original", "unlearned")]
            kept = [f"{100 * score[name]['acc_retain']:.2f}" for name in ("unlearned", "masked", "retrained")]
            cost = [f"{row['lr']:g}", f"{row['seconds']['total']:.0f} ({row['threads']})", row["retain_samples_read"]]
            drift = f"{score['unlearned']['drift']:.4f}"
            lines.append([setting, row["class_name"], row["seed"], *forgot, *kept, drift, *cost])
    return _grid(header.split("|"), lines) if lines else NOT_YET


def _setting(found: Result) -> str:
    """Return data set, where its pixels came from (older audits do not know), and net."""
    source = found.measurements.get("data_source")
    data = Path(found.config["dataset"]).name + (f" ({source})" if source else "")
    return f"{data}, {Path(found.config['arch']).name}"


def recorded_sweeps(folder: Path) -> dict[tuple[str, str, str, str], Path]:
    """Return the sweep that counts for every profile, data set, architecture and size (see ``claims.sweeps``).

    Args:
        folder: The folder that holds one folder per profile.
    """
    found: dict[tuple[str, str, str, str], Path] = {}
    for profile in sorted(folder.glob("*/")):
        counting = claims.sweeps(map(results.read, sorted(profile.glob("sweep_*.json"))))
        found |= {(profile.name, *key): profile / f"{sweep.name}.json" for key, sweep in counting.items()}
    return found


def sweeps(folder: Path) -> str:
    """Return the tables of every recorded ``zspag sweep``, every method at the rate that the forget-only rule takes.

    Sweeps of one profile, data set, architecture and size have one table: see ``recorded_sweeps``.
    """
    parts = []
    for path in recorded_sweeps(folder).values():
        found = results.read(path)
        measured = found.measurements
        frame = pd.DataFrame(measured["rows"])
        parts.append(f"{_title(found, frame['seed'].nunique())}\n\n{measured['markdown']}\n{_labels(found)}")
        titles = measured.get("titles", {})
        if "zs_pag" in titles:  # from the rows: older files compared on other numbers
            together = claims.comparison(tables.by_rule(frame), frame)
            dominance = tables.markdown(claims.comparison_table(together, titles))
            parts[-1] += f"\n{claims.verdict(together, titles, 'zs_pag')}\n\n{dominance}\n"
    return "\n".join(parts) or NOT_YET


def _title(found: Result, seeds: int) -> str:
    """Return what a sweep or audit is about."""
    shown = " (a demonstration)" if found.config.get("demonstration", False) else ""
    cut = f" ({left_out})" if (left_out := claims.cut_down(found.config)) else ""
    classes = ", ".join(found.measurements["class_names"])
    return f"{_setting(found)}{shown}, {classes}, {seeds} seed{'s' * (seeds > 1)}{cut}:"


def _labels(found: Result) -> str:
    """Say whether labels by influence drifted less than soft ones (claim C3), where a sweep ran both."""
    own, soft = (f"drift in hindsight {name}" for name in ("process_labels", "zs_pag"))
    if own not in found.numbers or soft not in found.numbers:
        return ""
    less = found.number(own) < found.number(soft)
    return (
        f"\nAt its best rate ZS-PAG drifts {found.number(own):.4f} nats with labels that follow their influence,"
        f" {found.number(soft):.4f} with soft ones (beta = 0, the default): influence drifts"
        f" {'less, as claim C3 has it' if less else 'no less, against claim C3'}.\n"
    )


def audits(folder: Path) -> str:
    """Return every recorded ``zspag audit``: what it says of ZS-PAG and of removal, and its table.

    The sentences are made anew from the rows: those of older records show AIN without its control.
    """
    parts = []
    for path in sorted(folder.glob("*/audit_*.json")):
        found = results.read(path)
        title = _title(found, len(found.measurements["seeds"]))
        said = audit.told(audit.unpacked(found.measurements["rows"]))
        parts.append("\n".join([title, "", *(f"* {line}" for line in said), "", found.measurements["markdown"], ""]))
    return "\n".join(parts) or NOT_YET


def c3(folder: Path) -> str:
    """Return claim C3: labels against soft ones on the half they were chosen on and on the other, and the verdict."""
    paths = {half: folder / "cpu" / f"{name}.json" for half, name in claims.C3_FILES.items()}
    if not all(path.is_file() for path in paths.values()):
        return NOT_YET
    measured = {half: results.read(path).measurements for half, path in paths.items()}
    halves = {half: pd.DataFrame(one["rows"]) for half, one in measured.items()}
    titles = measured["first"]["titles"] | measured["second"]["titles"]
    table = tables.markdown(claims.label_table(halves, baseline="zs_pag", titles=titles))
    return f"{table}\n\n{claims.label_verdict(halves, titles=titles)}\n"


def verdicts(folder: Path) -> str:
    """Return the verdict on every claim, one table per profile of which anything is recorded."""
    shown = [
        f"Profile `{profile}`:\n\n{claims.table(claims.judge(folder / profile, profile=profile))}\n"
        for profile in claims.profiles(folder)
    ]
    return "\n".join(shown) or NOT_YET


def older(folder: Path) -> str:
    """Say which records were made before layers and rate were chosen on held-out halves, and what that method was.

    A file of that time knows no views.
    """
    paths = sorted(path for kind in ("run", "sweep", "audit") for path in folder.glob(f"*/{kind}_*.json"))
    old = dict.fromkeys(path.parent.name for path in paths if "views" not in results.read(path).config["unlearn"])
    if not old:
        return "Every run, sweep and audit on record was made by the defaults of today.\n"
    named = " and ".join(f"`results/{profile}`" for profile in old)
    return (
        f"**Older defaults.** Every run, sweep and audit in {named} was made before there was a calibration: *ZS-PAG*"
        " there moves all layers,\nfits the forget images alone, takes proxies that only just arrive and the smallest"
        " rate of a ladder that forgets (the defaults of fa40f86).\nIn tables of today that is nearest to *ZS-PAG, not"
        " calibrated*. These numbers do not describe what `zero_shot_unlearn` does now.\n"
    )


def bench(folder: Path) -> str:
    """Return how many bars the recorded benchmarks met, device by device, and every one that was missed."""
    parts = []
    for path in sorted(folder.glob("bench/*.json")):
        found = files.read_json(path)
        if "found" not in found["data"]:
            continue  # curves, which are drawn
        here, held = found["data"]["machine"], [row for row in found["data"]["found"] if row["wanted"]]
        counts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(row["verdict"] for row in held).items())
        parts.append(
            f"On {here['name']}, {here['threads']} threads, commit {found['provenance']['commit'][:7]}: of {len(held)}"
            f" bars {counts}. Every number, its range and its rounds: [results/bench](results/bench/README.md).\n"
        )
        parts += [
            f"* Missed: {row['what']}, {row['wanted']} wanted, {row['value']:.3g} found ({row['case']}).\n"
            for row in held
            if row["verdict"] == "missed"
        ]
    return "".join(parts) or NOT_YET


def external(folder: Path) -> str:
    """Return what the defaults did on nets of other people's shapes, open models, in a sentence each."""
    rows = (_read(folder / "external" / "zoo.json") or {}).get("rows", [])
    own = [row for row in rows if row["arm"] == "zs_pag"]
    judged = [row for row in own if row["measures"] is not None]
    if not judged:
        return NOT_YET
    lost = [row["measures"]["lost_points"] for row in judged]
    many = [row["measures"]["forget_unseen"] for row in judged if row["samples"] >= MANY]
    few = [row["measures"]["forget_unseen"] for row in judged if row["samples"] < MANY]
    return (
        f"* {len(own)} runs on {len({row['net'] for row in own})} nets, defaults only,"
        f" {len(own) - len(judged)} of them failed.\n"
        f"* Retained accuracy lost against the masked original: {median(lost):.2f} points in the median,"
        f" {max(lost):.2f} at worst.\n"
        f"* Unseen images of the class still recognized, at worst: {max(many, default=0):.1%} with {MANY} forget images"
        f" or more ({len(many)} runs), {max(few, default=0):.1%} with fewer ({len(few)} runs).\n"
    )


BLOCKS: dict[str, Callable[[Path], str]] = {
    "commands": commands,
    "chapters": chapters,
    "headline": headline,
    "claims": verdicts,
    "main_table": _table("05_main"),
    "hindsight_table": _table("05_hindsight"),
    "runs": runs,
    "sweeps": sweeps,
    "c3": c3,
    "audits": audits,
    "older": older,
    "bench": bench,
    "external": external,
}


def main() -> None:
    """Accept the recorded results as they are, and rewrite the README's blocks and the page of results in place."""
    root = files.repository_root()
    path, page = root / "README.md", root / "results" / "README.md"
    for target, text in ((page, results_page.render(root)), (path, render(path.read_text(encoding="utf-8"), root))):
        with files.replacing(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    claims.accept(root / "results")


if __name__ == "__main__":
    main()
