"""Tables and sentences about recorded files: runs, sweeps, audits, claim C3, benchmarks, other people's nets.

Invariant: no number is typed; what is not recorded is named as not measured.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from zspag.report import audit, claims, files, results, tables
from zspag.report.results import Result

LIBRARIES = ("timm", "torchvision", "Hugging Face")  # a net of theirs has the name in its title
ALIKE = 2.5  # points of accuracy. CHOICE, made with the table at hand: originals of two recipes differ by 1.8
MANY = 200  # forget images from which on unseen ones are held to a bar
_COMPARED = ("run_", "sweep_", "audit_", "features_")  # notebooks are all made anew at once
NOT_YET = "_not yet measured_\n"


def headline(folder: Path) -> str:
    """Return what the recorded sweep of digits found, one sentence per number."""
    found = next((path for place, path in recorded_sweeps(folder).items() if place[0] == "digits"), None)
    if found is None:
        return NOT_YET
    sweep = results.read(found)
    frame = pd.DataFrame(sweep.measurements["rows"])
    ruled = tables.by_rule(frame)
    own = ruled[ruled["method"] == "zs_pag"]
    safe = {name: len(tables.safe_rates(frame, name)) for name in ("zs_pag", "unprojected")}
    drift = tables.over_classes(tables.in_hindsight(frame), "drift")
    share = drift["zs_pag"]["mean"] / drift["unprojected"]["mean"]
    end = (
        "."
        if safe["zs_pag"] > safe["unprojected"]
        else ": where accuracy is at its ceiling, the projection does not widen the window (but see CIFAR-10)."
    )
    together = claims.comparison(ruled, frame)
    lines = [
        f"* {frame['forget'].nunique()} classes x {frame['seed'].nunique()} seeds, layers and rate chosen on forget"
        f" images alone: {_lost(own)} (without class 3, the class of the trials: {_lost(own[own['forget'] != 3])}).",
        f"* Safe learning rates on a ladder of seven, a factor of about 3 apart: {safe['zs_pag']} with the projection,"
        f" {safe['unprojected']} with the same labels without it{end}",
        f"* Drift on retained images at the rate that loses each arm fewest points in hindsight: {share:.2f} of the"
        " unprojected run's.",
        f"* {claims.verdict(together, sweep.measurements['titles'], 'zs_pag')}",
    ]
    if (path := folder / "digits" / "03_capture.json").is_file():
        capture, kinds = results.read(path), ("proxies", "forget", "noise", "random")
        shares = [f"{kind} {capture.number(f'capture_of_oracle_{kind}'):.3f}" for kind in kinds]
        selective = [f"{kind} {capture.number(f'head_selectivity_{kind}'):.2f}" for kind in kinds]
        lines.append(
            "* Subspaces of equal rank, capture of the true retain moment as a share of the oracle's, worst layer:"
            f" {', '.join(shares)}; selectivity in the head: {', '.join(selective)}."
        )
    return "\n".join(lines) + "\n"


def _lost(own: pd.DataFrame) -> str:
    forget, lost = (
        100 * tables.over_classes(own, name)["zs_pag"]["mean"] for name in ("acc_forget", "over_unlearning")
    )
    return f"forget accuracy {forget:.2f} %, {lost:+.2f} points of retained accuracy lost against the masked original"


def runs(folder: Path) -> str:
    """Return one line per recorded ``zspag run``: scores, rate, time, the retain samples read, and the file."""
    header = (
        "data, net|class|seed|forget % before|after|reached|retain %|masked|retrained|drift|rate|seconds (threads)|read"
        "|file"
    )
    lines = []
    for path in sorted(folder.glob("*/run_*.json")):
        found = results.read(path)
        share = found.config["unlearn"]["update"].get("held_out", 0.0)
        card = found.provenance.get("device") == "cuda"
        setting = _setting(found) + (f" ({100 * share:g} % held out)" if share else "")
        for row in found.measurements["rows"]:
            score = row["scores"]
            forgot = [f"{100 * score[name]['acc_forget']:.1f}" for name in ("original", "unlearned")]
            kept = [f"{100 * score[name]['acc_retain']:.2f}" for name in ("unlearned", "masked", "retrained")]
            seconds = f"{row['seconds']['total']:.0f} ({'GPU' if card else row['threads']})"
            cost = [f"{row['lr']:g}", seconds, row["retain_samples_read"]]
            drift = f"{score['unlearned']['drift']:.4f}"
            reached = "yes" if row["reached"] else "**no**"
            lines.append([setting, row["class_name"], row["seed"], *forgot, reached, *kept, drift, *cost, _link(path)])
    return grid(header.split("|"), lines) if lines else NOT_YET


def _link(path: Path) -> str:
    """Return a link to a file of a profile's, for a page beside the profiles' folders, and say where it is old."""
    old = ", older defaults" * _is_old(path)
    return f"[{path.stem.partition('_')[0]}]({path.parent.name}/{path.name}){old}"


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

    All that a claim can rest on have tables, those of older defaults where there is no other. Everything is made from
    the rows: no table is older than the code that makes it.
    """
    paths = [profile / f"{name}.json" for profile in sorted(folder.glob("*/")) for name in claims.read(profile).needed]
    found = [results.read(path) for path in paths]
    known = {name: title for one in found for name, title in one.measurements.get("titles", {}).items()}
    parts = []
    for path, one in zip(paths, found, strict=True):
        measured, frame = one.measurements, pd.DataFrame(one.measurements["rows"])
        titles, ruled = measured.get("titles", known), tables.by_rule(frame)
        parts += [
            _title(one, frame["seed"].nunique(), path),
            tables.markdown(tables.main_table(ruled, frame, titles)),
            _labels(one),
        ]
        if "zs_pag" in set(frame["method"]):
            together = claims.comparison(ruled, frame)
            dominance = tables.markdown(claims.comparison_table(together, titles))
            parts += [claims.verdict(together, titles, "zs_pag"), dominance]
        shown = tables.every_table(
            frame,
            titles,
            reads=measured.get("reads", {}),
            noise=pd.DataFrame(measured.get("noise", [])),
            seconds={} if one.provenance.get("device") == "cuda" else measured.get("seconds", {}),
        )
        parts += [_folded(question, tables.markdown(table)) for question, table in shown.items()]
    return "\n\n".join(filter(None, parts)) + "\n" if parts else NOT_YET


def originals(folder: Path) -> str:
    """Return what methods do to other originals at the rates that were taken on the first, and where that differs."""
    parts = []
    for path in sorted(folder.glob("*/sweep_*.json")):
        again = results.read(path)
        if not (source := again.config.get("rates_of")):
            continue
        titles, rows = again.measurements["titles"], pd.DataFrame(again.measurements["rows"])
        given = results.read(folder.parent / source)
        first = pd.DataFrame(given.measurements["rows"])
        first = first[first["method"].isin(rows["method"]) & first["forget"].isin(rows["forget"])]
        first = first[first["seed"] == first["seed"].iloc[0]]
        shown = tables.by_rule(pd.concat([first, rows]))
        shown = shown[shown["method"] != "retrained"]
        parts += [
            _title(again, rows["seed"].nunique(), path),
            tables.markdown(tables.originals_table(shown, titles)),
            _moved(shown, titles),
        ]
        if (devices := [one.provenance["device"] for one in (given, again)])[0] != devices[1]:
            parts.append(
                f"The rows of the first original were made on device `{devices[0]}`, the others on `{devices[1]}`; an"
                " original that was trained on another device is another net, also of the same seed."
            )
    return "\n\n".join(parts) + "\n" if parts else NOT_YET


def _moved(shown: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Say which methods lose another amount on another original, by more than makes a rate unsafe."""
    lost = shown[~shown["method"].isin(tables.REFERENCES)].pivot_table("over_unlearning", "method", "seed", sort=False)
    ranges = 100 * (lost.max(axis=1) - lost.min(axis=1))
    most = 100 * tables.SAFE_RETAIN
    moved = [f"{titles[str(name)]} ({gap:.2f})" for name, gap in ranges.items() if gap > most]
    kept = f"{len(ranges) - len(moved)} of {len(ranges)} methods"
    said = f"Over {lost.shape[1]} originals the mean loss of {kept} stays within {most:g} points"
    return f"{said}; it does not for {', '.join(moved)}." if moved else f"{said}."


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _title(found: Result, seeds: int, path: Path) -> str:
    """Return what a sweep or audit is about."""
    shown = " (a demonstration)" if found.config.get("demonstration", False) else ""
    cut = f" ({left_out})" if (left_out := claims.cut_down(found.config)) else ""
    classes = ", ".join(found.measurements["class_names"])
    return f"{_setting(found)}{shown}, {classes}, {seeds} seed{'s' * (seeds > 1)}{cut} ({_link(path)}):"


def _labels(found: Result) -> str:
    """Say what labels by influence drift beside soft ones (claim C3), where a sweep ran both."""
    best = tables.in_hindsight(pd.DataFrame(found.measurements["rows"]))
    pair = best[best["method"].isin(["process_labels", "zs_pag"])]
    if pair["method"].nunique() < 2:
        return ""
    gap = tables.paired(pair, ("drift",), baseline="zs_pag")["process_labels"]["drift"]
    return (
        "At the rate that loses each fewest points in hindsight, labels that follow their influence drift by"
        f" {claims.interval(gap, factor=1000, digits=2)} thousandths of a nat more than soft ones (beta = 0, the"
        " default); below 0 is less."
    )


def audits(folder: Path) -> str:
    """Return every recorded ``zspag audit``: what it says of ZS-PAG and of removal, and its tables, from its rows."""
    parts = []
    for path in [*sorted(folder.glob("*/audit_*.json")), *sorted(folder.glob("*/features_*.json"))]:
        one = results.read(path)
        found = audit.unpacked(one.measurements["rows"])
        asked = [name for name in audit.TITLES if name in audit.audited(found) and name != "retrained"]
        parts += [
            _title(one, len(one.measurements["seeds"]), path),
            "\n".join(f"* {line}" for line in audit.told(found)),
            tables.markdown(audit.verdict_table(found, methods=asked)),
        ]
        if "arrivals" in found:
            arrivals = audit.arrival_table(found["arrivals"], audit.TITLES)
            parts.append(_folded("When does the class come back?", tables.markdown(arrivals)))
    return "\n\n".join(parts) + "\n" if parts else NOT_YET


def outside(folder: Path) -> str:
    """Return, for every published table that was measured again, ours beside it, and where they agree."""
    parts = []
    for path in sorted(folder.glob("published/*.json")):
        published, lines, near = files.read_json(path), [], []
        again = folder / f"{published['against']}.json"
        if not again.is_file():
            continue
        own = results.read(again)
        rows = tables.by_rule(pd.DataFrame(own.measurements["rows"])).groupby("method")[["acc_retain", "acc_forget"]]
        means, titles = 100 * rows.mean(), own.measurements["titles"]
        for method, theirs in published["accuracy"].items():
            ours = means.loc[method].tolist()
            gaps = [one - (math.nan if their is None else their) for one, their in zip(ours, theirs, strict=True)]
            shown = [" / ".join("-" if one is None else f"{one:.1f}" for one in both) for both in (ours, theirs)]
            apart = " / ".join("-" if math.isnan(gap) else f"{gap:+.1f}" for gap in gaps)
            lines.append([titles[method], *shown, apart])
            near += [titles[method]] * (abs(gaps[0]) <= ALIKE)
        seeds = own.provenance["config"]["seeds"]
        parts += [
            f"{published['data']}, {published['net']}, class {published['class']}: {_link(again)},"
            f" {claims.plural(len(seeds), 'original', 'originals')}, beside {published['source']}, mean of"
            f" {published['seeds']} originals. Retained classes / forgotten class, % of test images.\n",
            grid(["network", "ours", "published", "difference"], lines),
            f"In retained accuracy {len(near)} of {len(lines)} agree within {ALIKE:g} points ({', '.join(near)}).\n"
            "Our methods take the smallest rate of a ladder that forgets the images they are given. Theirs have rates\n"
            "of their own, stop on test accuracy, and start from originals of another recipe.\n",
        ]
    return "\n".join(parts) if parts else NOT_YET


def c3(folder: Path) -> str:
    """Return claim C3: labels against soft ones on the half they were chosen on and on the other, and the verdict."""
    paths = {half: folder / "cpu" / f"{name}.json" for half, name in claims.C3_FILES.items()}
    if not all(path.is_file() for path in paths.values()):
        return NOT_YET
    measured = {half: results.read(path).measurements for half, path in paths.items()}
    halves = {half: pd.DataFrame(one["rows"]) for half, one in measured.items()}
    titles = measured["first"]["titles"] | measured["second"]["titles"]
    table = tables.markdown(claims.label_table(halves, baseline="zs_pag", titles=titles))
    links = "; ".join(f"{half} half {_link(path)}" for half, path in paths.items())
    return f"{table}\n\n{claims.label_verdict(halves, titles=titles)}\n\nFiles: {links}.\n"


def older(folder: Path) -> str:
    """Say which records were made before layers and rate were chosen on held-out halves, and what that method was."""
    paths = [path for path in sorted(folder.glob("*/*.json")) if path.stem.startswith(_COMPARED)]
    old = [path for path in paths if _is_old(path)]
    if not old:
        return "Every run, sweep and audit on record was made by the defaults of today.\n"
    parts = []
    for profile in sorted({path.parent.name for path in old}):
        every = [path for path in paths if path.parent.name == profile]
        those = [f"`{path.stem}`" for path in every if path in old]
        parts.append(f"{len(those)} of {len(every)} files in `results/{profile}` ({', '.join(those)})")
    return (
        f"**Older defaults.** {' and '.join(parts)} were made before there was a calibration: *ZS-PAG* there moves all"
        " layers,\nfits the forget images alone, takes proxies that barely cross into their class and the smallest rate"
        " of a ladder that forgets (the defaults of commit fa40f86).\nIn tables of today that is nearest to *ZS-PAG,"
        " not calibrated*. These numbers do not describe what `zero_shot_unlearn` does now.\n"
    )


def _is_old(path: Path) -> bool:
    return path.stem.startswith(_COMPARED) and claims.of_older_defaults(results.read(path))


def older_claims(folder: Path, judged: Mapping[str, Sequence[claims.Verdict]]) -> str:
    """Say which verdicts stand on records of older defaults, profile by profile; nothing where none does.

    Args:
        folder: The folder that holds one folder per profile.
        judged: The verdicts by profile.
    """
    parts = []
    for profile, verdicts in judged.items():
        kinds = {
            one.claim: {_is_old(folder / profile / f"{check.file}.json") for check in one.checks} for one in verdicts
        }
        for whole, words in ((True, "on"), (False, "partly on")):
            named = [claim for claim, kind in kinds.items() if kind == ({True} if whole else {True, False})]
            if named:
                stand = "stands" if len(named) == 1 else "stand"
                parts.append(f"{', '.join(named)} of `{profile}` {stand} {words} records of older defaults")
    return f"{'; '.join(parts)} ([which these are](results/TABLES.md)).\n" if parts else ""


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
            f" bars {counts}. Every number, its range and its rounds: [results/bench](../results/bench/README.md).\n"
        )
        parts += [
            f"* Missed: {row['what']}, {row['wanted']} wanted, {row['value']:.3g} found ({row['case']}).\n"
            for row in held
            if row["verdict"] == "missed"
        ]
    return "".join(parts) or NOT_YET


def external(folder: Path) -> str:
    """Return what the defaults did on nets that the method was not made on, open models, in a sentence each."""
    found = read(folder / "external" / "zoo.json") or {}
    own = [row for row in found.get("rows", []) if row["arm"] == "zs_pag"]
    judged = [row for row in own if row["measures"] is not None]
    if not judged:
        return NOT_YET
    nets = {row["net"]: row["title"] for row in own}
    libraries = sum(any(name in title for name in LIBRARIES) for title in nets.values())
    ours = sum("the package's" in title for title in nets.values())
    lost = [row["measures"]["lost_points"] for row in judged]
    many = [row["measures"]["forget_unseen"] for row in judged if row["samples"] >= MANY]
    few = [row["measures"]["forget_unseen"] for row in judged if row["samples"] < MANY]
    commits = ", ".join(sorted({row["provenance"]["commit"][:7] for row in own}))
    missed = [
        f"{one['name']} ({one['wanted']} wanted, {one['value']} found)"
        for one in found["bars"]["confirmation"]
        if one["verdict"] == "not met"
    ]
    return (
        f"* {len(nets)} nets: {libraries} of timm, torchvision and Hugging Face, {len(nets) - libraries - ours} written"
        f" for this test, {ours} of the package. {len(own)} runs with\n  nothing but the defaults, commit {commits};"
        f" {len(own) - len(judged)} failed.\n"
        f"* Retained accuracy lost against the masked original: {median(lost):.2f} points in the median,"
        f" {max(lost):.2f} at worst.\n"
        f"* Unseen images of the class still recognized, at worst: {max(many, default=0):.1%} with {MANY} forget images"
        f" or more ({len(many)} runs), {max(few, default=0):.1%} with fewer ({len(few)} runs).\n"
        f"* Bars not met on the nets that nobody looked at while the method was made: {'; '.join(missed) or 'none'}.\n"
    )


def read(path: Path) -> dict[str, Any] | None:
    """Return the content of a file, None where there is none."""
    return files.read_json(path) if path.is_file() else None


def grid(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Return lines of cells as markdown."""
    return tables.markdown(pd.DataFrame(lines, columns=list(header)).set_index(header[0])) + "\n"
