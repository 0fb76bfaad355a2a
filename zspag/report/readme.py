"""The README's tables and numbers, written from committed result files: ``make readme``.

The same command accepts what is recorded (``claims.accept``): ``zspag claims`` refuses what was changed afterwards.

Text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` belongs to this module, the rest to people. A test
fails when a block no longer says what the files say.

Invariant: no number is typed; a block without its files says that it was not measured.
"""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from zspag.profiles import PAPER_DATA, PAPER_NETS
from zspag.report import claims, files, tables

MANY = 200  # forget images from which on unseen ones are held to a bar
_BLOCK = re.compile(r"(<!-- begin (?P<name>[a-z0-9_]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)
NOT_YET = "_not yet measured_\n"


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


def chapters(results: Path) -> str:
    """Return the table of notebooks: title, what it answers, seconds and memory of the recorded run."""
    found = _read(results / "digits" / "time_and_memory.json")
    lines = ["| chapter | answers | seconds | peak memory |", "| --- | --- | --- | --- |"]
    for name, question in CHAPTERS.items():
        cost = (found or {}).get("notebooks", {}).get(name)
        spent = ["not yet measured", ""]
        if cost is not None:
            memory = cost["peak_memory_mib"]
            spent = [f"{cost['seconds']:.0f}", f"{max(memory.values()) / 1024:.1f} GiB per process"]
        lines.append(f"| [{name}](notebooks/{name}.ipynb) | {question} | {' | '.join(spent)} |")
    if found is not None:
        total = sum(cost["seconds"] for cost in found["notebooks"].values())
        lines.append(f"| all | | {total:.0f} | |")
    return "\n".join(lines) + "\n"


CHAPTERS = {
    "00_quickstart": "What happens to a model that is made to forget a class?",
    "01_theory": "Why does projecting an update keep what is retained, and how far does the guarantee reach?",
    "02_proxy_generation": "What stands in for the retain data nobody has?",
    "03_subspace_construction": "Which directions are protected, and are they the right ones?",
    "04_pseudo_labeling": "What should a forgotten image become, and does the influence of a label matter?",
    "05_experiments": "Does it hold for every class and seed, and would something simpler have done?",
    "06_ablations": "Which of its many choices matter, and where does it break?",
    "07_audit": "Is the class gone, or only silent, and which requests fail?",
}


def commands(results: Path) -> str:
    """Return how long the README's commands took in a fresh clone, as ``make fresh-clone`` timed them."""
    found = _read(results / "commands.json")
    if found is None:
        return NOT_YET
    minutes = {name: f"{spent / 60:.1f} minutes" for name, spent in found["seconds"].items()}
    return (
        f"In a fresh clone of {found['provenance']['commit'][:7]} on {found['provenance']['threads']} cores, after the"
        " set-up (mostly a download), `make figures` took"
        f" {minutes['make figures']},\ntyped again {minutes['make figures, again']}, and `make test`"
        f" {minutes['make test']}; all ended well.\n"
    )


def _table(name: str) -> Callable[[Path], str]:
    def block(results: Path) -> str:
        found = _read(results / "digits" / f"{name}.json")
        return NOT_YET if found is None else found["data"]["markdown"] + "\n"

    return block


def headline(results: Path) -> str:
    """Return the digits headline in one sentence per number."""
    found, hindsight = _read(results / "digits" / "05_headline.json"), _read(results / "digits" / "05_hindsight.json")
    ladder, capture = _read(results / "digits" / "05_ladder.json"), _read(results / "digits" / "03_capture.json")
    if found is None or hindsight is None or ladder is None:
        return NOT_YET
    points = {name: 100 * value for name, (value, _) in found["numbers"].items()}
    safe = {name.removeprefix("safe rates "): int(value) for name, (value, _) in ladder["numbers"].items()}
    classes, seeds = len(found["data"]["classes"]), len(found["data"]["seeds"])
    lines = [
        f"* {classes} classes x {seeds} seeds, layers and rate chosen on forget images alone: forget accuracy"
        f" {points['acc_forget']:.2f} %, over-unlearning {points['over_unlearning']:+.2f} points against the masked"
        " original, negative meaning better (without class 3, the class of the trials:"
        f" {points['acc_forget without class 3']:.2f} %, {points['over_unlearning without class 3']:+.2f}).",
        f"* Safe learning rates on a ladder of seven, a factor of about 3 apart: {safe['zs_pag']} with the projection,"
        f" {safe['unprojected']} with the same labels without it"
        + (
            "."
            if safe["zs_pag"] > safe["unprojected"]
            else ": where accuracy is at its ceiling, the projection does not widen the window (but see CIFAR-10)."
        ),
        "* Drift on retained images at each arm's best rate in hindsight:"
        f" {hindsight['numbers']['drift ratio'][0]:.2f} of the unprojected run's.",
    ]
    if capture is not None:
        kinds = ("proxies", "forget", "noise", "random")
        share = {kind: capture["numbers"][f"capture_of_oracle_{kind}"][0] for kind in kinds}
        choosy = {kind: capture["numbers"][f"head_selectivity_{kind}"][0] for kind in kinds}
        lines += [
            "* Subspaces of equal rank, capture of the true retain moment as a share of the oracle's, worst layer: "
            + ", ".join(f"{kind} {value:.3f}" for kind, value in share.items())
            + "; selectivity in the head: "
            + ", ".join(f"{kind} {value:.2f}" for kind, value in choosy.items())
            + ".",
        ]
    if (compared := _read(results / "digits" / "05_comparison.json")) is not None:
        lines.append(f"* {compared['data']['sentence']}")
    return "\n".join(lines) + "\n"


def runs(results: Path) -> str:
    """Return one line per recorded ``zspag run``: scores, rate, time, and the retain samples read (last)."""
    header = "data, net|class|seed|forget % before|after|retain %|masked|retrained|drift|rate|seconds (threads)|read"
    lines = []
    for path in sorted(results.glob("*/run_*.json")):
        found = files.read_json(path)
        for row in found["data"]["rows"]:
            score = row["scores"]
            forgot = [f"{100 * score[name]['acc_forget']:.1f}" for name in ("original", "unlearned")]
            kept = [f"{100 * score[name]['acc_retain']:.2f}" for name in ("unlearned", "masked", "retrained")]
            cost = [f"{row['lr']:g}", f"{row['seconds']['total']:.0f} ({row['threads']})", row["retain_samples_read"]]
            place = [_setting(found) + _held_out(found), row["class_name"], row["seed"]]
            lines.append([*place, *forgot, *kept, f"{score['unlearned']['drift']:.4f}", *cost])
    if not lines:
        return NOT_YET
    table = [header.split("|"), ["---"] * len(lines[0]), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in table) + "\n"


def _held_out(found: dict[str, Any]) -> str:
    """Say which share of the forget set was held out, where a run departed from the defaults so."""
    share = found["provenance"]["config"]["unlearn"]["update"].get("held_out", 0.0)
    return f" ({100 * share:g} % held out)" if share else ""


def _setting(found: dict[str, Any]) -> str:
    """Return data set and net; results on pixels that were coded with loss say so, older files do not know."""
    config = found["provenance"]["config"]
    lossy = re.search(r"([\w -]+) \(lossy\)", found["data"].get("data_source", ""))
    return f"{Path(config['dataset']).name}{f' ({lossy[1].strip()})' if lossy else ''}, {Path(config['arch']).name}"


def pairs(results: Path) -> str:
    """Return the table of the paper's sixteen pairs: what the profile "paper" measured, and what nobody has yet."""
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(results.glob("paper/run_*.json")):
        found = files.read_json(path)
        config = found["provenance"]["config"]
        measured.setdefault((Path(config["dataset"]).name, config["arch"]), []).extend(found["data"]["rows"])
    lines = [["", *PAPER_NETS], ["---"] * (len(PAPER_NETS) + 1)]
    lines += [[data, *(_pair(measured.get((data, arch), [])) for arch in PAPER_NETS)] for data in PAPER_DATA]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _pair(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "not yet measured"
    scores = [row["scores"]["unlearned"] for row in rows]
    forget, lost = (100 * sum(one[key] for one in scores) / len(rows) for key in ("acc_forget", "over_unlearning"))
    return f"{forget:.1f} / {lost:+.2f} ({len(rows)})"


def recorded_sweeps(results: Path) -> dict[tuple[str, str, str, str], Path]:
    """Return the sweep that counts for every profile, data set, architecture and size (see ``claims.sweeps``).

    Args:
        results: The folder that holds one folder per profile.
    """
    found: dict[tuple[str, str, str, str], Path] = {}
    for folder in sorted(results.glob("*/")):
        contents = {path.stem: files.read_json(path) for path in sorted(folder.glob("sweep_*.json"))}
        names = claims.sweeps(contents)
        found |= {(folder.name, *key): folder / f"{name}.json" for key, name in names.items()}
    return found


def sweeps(results: Path) -> str:
    """Return the tables of every recorded ``zspag sweep``, every method at the rate that the forget-only rule takes.

    Sweeps of one profile, data set, architecture and size have one table: see ``recorded_sweeps``.
    """
    tables = []
    for (*_, cut), path in recorded_sweeps(results).items():
        found = files.read_json(path)
        names = ", ".join(found["data"].get("class_names") or found["name"].rpartition("_")[2].split("-"))
        seeds = pd.DataFrame(found["data"]["rows"])["seed"].nunique()
        shown = " (a demonstration)" * found["provenance"]["config"].get("demonstration", False)
        title = f"{_setting(found)}{shown}, {names}, {seeds} seed{'s' * (seeds > 1)}{f' ({cut})' * bool(cut)}:"
        tables.append(f"{title}\n\n{found['data']['markdown']}\n{_labels(found.get('numbers', {}))}{_verdict(found)}")
    return "\n".join(tables) or NOT_YET


def _verdict(found: dict[str, Any]) -> str:
    """Return claim C5 on the rows of a sweep, sentence and table, where the file has them."""
    compared = found["data"].get("tables", {}).get("Who is dominated?")
    return "\n" + "\n\n".join([*found["data"]["verdicts"], compared]) + "\n" if compared else ""


def _labels(numbers: dict[str, list[float]]) -> str:
    """Say whether labels by influence drifted less than soft ones (claim C3), where a sweep ran both."""
    found = {name.removeprefix("drift in hindsight "): value for name, (value, _) in numbers.items()}
    drift = [found.get("process_labels"), found.get("zs_pag")]  # with or without calibration, both alike
    if drift[0] is None or drift[1] is None:
        return ""
    verdict = "less, as claim C3 has it" if drift[0] < drift[1] else "no less, against claim C3"
    return (
        f"\nAt its best rate ZS-PAG drifts {drift[0]:.4f} nats with labels that follow their influence, {drift[1]:.4f}"
        f" with soft ones (beta = 0, the default): influence drifts {verdict}.\n"
    )


def audits(results: Path) -> str:
    """Return every recorded ``zspag audit``: what it says of ZS-PAG, and its table."""
    parts = []
    for path in sorted(results.glob("*/audit_*.json")):
        found = files.read_json(path)
        data, config = found["data"], found["provenance"]["config"]
        seeds = len(data["seeds"])
        shown = " (a demonstration)" * config.get("demonstration", False)
        cut = f" ({claims.cut_down(config)})" if claims.cut_down(config) else ""
        title = f"{_setting(found)}{shown}, {', '.join(data['class_names'])}, {seeds} seed{'s' * (seeds > 1)}{cut}:"
        parts.append("\n".join([title, "", *(f"* {line}" for line in data["verdicts"]), "", data["markdown"], ""]))
    return "\n".join(parts) or NOT_YET


def c3(results: Path) -> str:
    """Return claim C3: labels against soft ones on the half they were chosen on and on the other, and the verdict."""
    found = {half: _read(results / "cpu" / f"{name}.json") for half, name in claims.C3_FILES.items()}
    if found["first"] is None or found["second"] is None:
        return NOT_YET
    data = {half: one["data"] for half, one in found.items() if one is not None}
    halves = {half: pd.DataFrame(one["rows"]) for half, one in data.items()}
    titles = data["first"]["titles"] | data["second"]["titles"]
    table = tables.markdown(claims.label_table(halves, baseline="zs_pag", titles=titles))
    return f"{table}\n\n{claims.label_verdict(halves, titles=titles)}\n"


def verdicts(results: Path) -> str:
    """Return the verdict on every claim, one table per profile of which anything is recorded."""
    shown = [
        f"Profile `{profile}`:\n\n{claims.table(claims.judge(results / profile, profile=profile))}\n"
        for profile in claims.profiles(results)
    ]
    return "\n".join(shown) or NOT_YET


def older(results: Path) -> str:
    """Say which records were made before layers and rate were chosen on held-out halves, and what that method was.

    A file of that time knows no views.
    """
    kinds = ("run_", "sweep_", "audit_")
    old = dict.fromkeys(
        path.parent.name
        for path in sorted(results.glob("*/*.json"))
        if path.name.startswith(kinds) and "views" not in files.read_json(path)["provenance"]["config"]["unlearn"]
    )
    if not old:
        return "Every run, sweep and audit on record was made by the defaults of today.\n"
    named = " and ".join(f"`results/{folder}`" for folder in old)
    return (
        f"**Older defaults.** Every run, sweep and audit in {named} was made before there was a calibration: *ZS-PAG*"
        " there moves all layers,\nfits the forget images alone, takes proxies that only just arrive and the smallest"
        " rate of a ladder that forgets (the defaults of fa40f86).\nIn tables of today that is nearest to *ZS-PAG, not"
        " calibrated*. These numbers do not describe what `zero_shot_unlearn` does now.\n"
    )


def bench(results: Path) -> str:
    """Return the recorded benchmarks: a table per device, and the machine it was measured on."""
    parts = []
    for path in sorted(results.glob("bench/*.json")):
        found = files.read_json(path)
        if "found" not in found["data"]:
            continue  # curves, which are drawn
        here = found["data"]["machine"]
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in here["products"].items())
        parts.append(
            f"On {here['name']}, {here['threads']} threads, {found['provenance']['versions']['torch']} (torch),"
            f" matrix products {rates} GFLOP/s, copies {here['copy'] / 1e9:.0f} GB/s, commit"
            f" {found['provenance']['commit'][:7]}:\n\n{tables.benchmarks(found['data']['found'])}"
        )
    return "\n".join(parts) or NOT_YET


def external(results: Path) -> str:
    """Return what the defaults did on nets of other people's shapes, open models, in a sentence each."""
    found = _read(results / "external" / "zoo.json")
    rows = [row for row in (found or {}).get("rows", []) if row["arm"] == "zs_pag"]
    judged = [row for row in rows if row["measures"] is not None]
    if not judged:
        return NOT_YET
    lost = [row["measures"]["lost_points"] for row in judged]
    many = [row["measures"]["forget_unseen"] for row in judged if row["samples"] >= MANY]
    few = [row["measures"]["forget_unseen"] for row in judged if row["samples"] < MANY]
    return (
        f"* {len(rows)} runs on {len({row['net'] for row in rows})} nets, defaults only,"
        f" {len(rows) - len(judged)} of them failed.\n"
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
    "pairs": pairs,
    "sweeps": sweeps,
    "c3": c3,
    "audits": audits,
    "older": older,
    "bench": bench,
    "external": external,
}


def main() -> None:
    """Accept the recorded results as they are, and rewrite the README's blocks in place."""
    root = files.repository_root()
    claims.accept(root / "results")
    path = root / "README.md"
    with files.replacing(path) as temporary:
        temporary.write_text(render(path.read_text(encoding="utf-8"), root), encoding="utf-8")


if __name__ == "__main__":
    main()
