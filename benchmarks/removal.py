"""Removal's parts, each beside its absence or another choice, and what removal closes case by case.

``python -m benchmarks.removal compare`` fits every variant once on CIFAR-10's conv7, one original, and judges shares of
the way on the *first* half of the test images: the half that defaults were chosen on. All variants but those about
steps take ``STEPS``, so that one core does them in minutes. The whole call also runs two half fits, which choose a
share; here every share is shown. ``python -m benchmarks.removal cost`` times whole calls beside training.
``python -m benchmarks.removal table`` writes ``results/removal/README.md`` from these and from every recorded audit.

Invariant: a variant differs from the defaults in what it names. One with "oracle" in its title reads retained images,
to say what the proxies lack; no other does.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.external.timing import training_seconds
from zspag import removal as ours
from zspag.heads.head import Head, features_and_logits
from zspag.lab.audit.bench import Bench
from zspag.lab.audit.measures import FEATURES
from zspag.lab.audit.running import rows_of
from zspag.lab.evaluation import Masked
from zspag.lab.experiment import (
    Case,
    answered,
    data_of,
    forget_set,
    guard_of,
    kept_rows,
    made_now,
    recipe,
    statistics_of,
    trained,
)
from zspag.profiles import PROFILES
from zspag.projected_sgd import Run
from zspag.proxies import generate
from zspag.removal import Material, Removal, RunningProbe, anchor_weights, part_of_the_way, prepare_removal
from zspag.report import audit, files, results
from zspag.report.audit import gap
from zspag.report.claims.verdicts import Limits
from zspag.report.tables import markdown
from zspag.runtime import generator_for, pick_device, pool_map, threads
from zspag.unlearning import zero_shot_unlearn

CLASSES, SEED = (3, 7), 0  # cat and horse, the classes that removal was developed on
STEPS = 200
_CPU = PROFILES["cpu"]
_UNLEARN = replace(_CPU.unlearn, removal=replace(_CPU.unlearn.removal, steps=STEPS))
PROFILE = replace(_CPU, recorded_models=True, test_half="first", unlearn=_UNLEARN)
SHARES = (0.5, 0.75, 1.0)
AT_MOST = Limits().lost  # retained points, of claim C7
RANDOM_FEATURES = 256
STAGES = (-5, -3)  # convolutions, counted from the end, whose outputs are probed as well
PROBES = tuple(gap.PROBES)
Change = Callable[[Removal, Case], Removal]


@dataclass(frozen=True)
class Variant:
    """One line of the table: what it is called, and how it differs from the defaults."""

    title: str
    change: Change = lambda removal, _case: removal
    swaps: Mapping[str, Any] = field(default_factory=dict)  # stand-ins of parts of ``zspag.removal`` while a fit runs


def options(**changed: Any) -> Change:
    """Return the change that sets options of ``RemovalConfig``."""
    return lambda removal, _case: replace(removal, config=replace(removal.config, **changed))


def anchors(make: Callable[[Removal, Case], Mapping[str, Tensor]]) -> Change:
    """Return the change that replaces parts of the material."""
    return lambda removal, case: replace(removal, material=replace(removal.material, **make(removal, case)))


def several_radii(removal: Removal, case: Case) -> dict[str, Tensor]:
    """Return anchors of the usual radius, of half of it and of twice it, as many of each."""
    statistics, material = statistics_of(case), removal.material
    retained = sorted(statistics.proxies.hits)
    config, made = case.profile.unlearn.proxies, []
    for factor in (0.5, 1.0, 2.0):
        eps = min(factor * statistics.proxies.eps, config.eps_max)
        one = replace(config, eps=eps, per_class=removal.config.per_class)
        stream = generator_for(removal.seed, "anchors", factor)
        made.append(generate(removal.model, material.images, retained=retained, config=one, generator=stream))
    return _weighted(material, *(torch.cat([getattr(one, part) for one in made]) for part in ANCHOR_PARTS))


ANCHOR_PARTS = ("images", "barely", "labels")


def mixed(removal: Removal, _case: Case) -> dict[str, Tensor]:
    """Return anchors that are mixed with another one each, by a uniform draw of up to a half."""
    material, stream = removal.material, generator_for(removal.seed, "mixed")
    order = torch.randperm(len(material.weights), generator=stream)
    part = 0.5 * torch.rand(len(order), 1, 1, 1, generator=stream)
    return {
        name: getattr(material, name).lerp(getattr(material, name)[order], part) for name in ("confident", "barely")
    }


def retained_images(removal: Removal, case: Case) -> dict[str, Tensor]:
    """Return real training images of the retained classes: what anchors stand in for."""
    images, labels = guard_of(case).retain_train(removal.config.per_class)
    images = images.to(removal.material.images)
    return _weighted(removal.material, images, images, labels.to(removal.material.labels.device))


def _weighted(material: Material, confident: Tensor, barely: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {"confident": confident, "barely": barely, "weights": anchor_weights(material.targets, labels)}


def last_layers(count: int) -> Change:
    """Return the change that moves the last few layers alone."""
    return lambda removal, _case: replace(removal, names=removal.names[-count:])


class RandomFeatureProbe:
    """A ridge probe on random ReLU features of the standardized features, and one on the features: their mean."""

    def __init__(self, features: Tensor) -> None:
        self.mean, self.scale = features.mean(0), 1 / features.std(0).clamp_min(1e-6)
        stream = torch.Generator().manual_seed(0)
        self.weight = torch.randn(features.shape[1], RANDOM_FEATURES, generator=stream).to(features)
        self.weight /= features.shape[1] ** 0.5
        self.plain, self.random = RunningProbe(features), RunningProbe(self._drawn(features))

    def _drawn(self, features: Tensor) -> Tensor:
        return torch.relu(((features - self.mean) * self.scale) @ self.weight)

    def explained(self, forget: Tensor, others: Tensor, weights: Tensor) -> Tensor:
        """Return the mean share that both explain."""
        drawn = self.random.explained(self._drawn(forget), self._drawn(others), weights)
        return (self.plain.explained(forget, others, weights) + drawn) / 2


def features_of_stages(model: nn.Module, images: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Return features and logits; beside what enters the head, channel means of some convolutions' outputs."""
    seen: list[Tensor] = []
    hooks = [
        _convolutions(model)[place].register_forward_hook(lambda _part, _given, out: seen.append(out.mean((2, 3))))
        for place in STAGES
    ]
    try:
        entered, logits = features_and_logits(model, images, head)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([entered, *seen], 1), logits


class StageProbe:
    """A ridge probe for what enters the head and one for each of the other stages; their mean."""

    def __init__(self, features: Tensor) -> None:
        others = [_convolutions(trained(PROFILE, SEED))[place].out_channels for place in STAGES]
        self.sizes = [features.shape[1] - sum(others), *others]
        self.probes = [RunningProbe(part) for part in features.split(self.sizes, 1)]

    def explained(self, forget: Tensor, others: Tensor, weights: Tensor) -> Tensor:
        """Return the mean share that the probes explain."""
        pairs = zip(self.probes, forget.split(self.sizes, 1), others.split(self.sizes, 1), strict=True)
        return torch.stack([probe.explained(own, other, weights) for probe, own, other in pairs]).mean()


def _convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [part for part in model.modules() if isinstance(part, nn.Conv2d)]


VARIANTS = {
    "defaults": Variant("defaults, with fewer steps"),
    "steps-300": Variant("300 steps", options(steps=300)),
    "steps-600": Variant("600 steps", options(steps=600)),
    "confident": Variant("anchors: confident proxies alone", anchors(lambda r, _: {"barely": r.material.confident})),
    "barely": Variant("anchors: barely hit proxies alone", anchors(lambda r, _: {"confident": r.material.barely})),
    "radii": Variant("anchors: of half the radius and twice it, too", anchors(several_radii)),
    "mixed": Variant("anchors: mixed with one another", anchors(mixed)),
    "alike": Variant(
        "anchors: all classes weigh alike", anchors(lambda r, _: {"weights": torch.ones_like(r.material.weights)})
    ),
    "retained": Variant("anchors: real retained images (oracle)", anchors(retained_images)),
    "none": Variant("no adversary", options(strength=0.0)),
    "batch": Variant("adversary: of one batch alone", swaps={"DECAY": 0.0}),
    "random": Variant("adversary: random ReLU features, too", swaps={"RunningProbe": RandomFeatureProbe}),
    "stages": Variant(
        "adversary: at three depths",
        swaps={"RunningProbe": StageProbe, "features_and_logits": features_of_stages},
    ),
    "strong": Variant("adversary three times as strong", options(strength=3.0)),
    "strong-kept": Variant("adversary and anchors three times as strong", options(strength=3.0, keep=30.0)),
    "projected": Variant("projected", options(projected=True)),
    "views": Variant("no views", lambda removal, _case: replace(removal, changes=())),
    "rate": Variant("rate 3e-3", options(lr=3e-3)),
    "last": Variant("last four layers alone", last_layers(4)),
}


@dataclass(frozen=True)
class Job:
    """One variant on one class."""

    forget: int
    variant: str


@lru_cache(maxsize=1)
def _prepared(case: Case) -> tuple[Removal, Bench]:
    original, retrained = trained(case.profile, case.seed), trained(case.profile, case.seed, case.forget)
    _, labels = forget_set(case, guard_of(case))
    removal = prepare_removal(
        original, labels, statistics_of(case), forget=(case.forget,), config=case.profile.unlearn, seed=case.seed
    )
    masked = Masked(original, forget=(case.forget,), num_classes=data_of(case.profile).num_classes)
    return removal, Bench(case, {"original": original, "masked": masked.to(pick_device()), "retrained": retrained})


def make(job: Job) -> list[dict[str, Any]]:
    """Return the rows of one variant: those of an audit of its features, per share, and of what it is held against."""
    case = Case(PROFILE, SEED, job.forget)
    return kept_rows(case, f"removal-{job.variant}", partial(_rows, case, job.variant), code=(__name__,))


def _rows(case: Case, name: str) -> Iterator[dict[str, Any]]:
    removal, bench = _prepared(case)
    run, seconds = fitted(VARIANTS[name], removal, case)
    for network in ("original", "masked", "retrained"):
        for row in bench.once(("rows", network), partial(_looked_at, bench, network)):
            yield row | {"share": 0.0, "seconds": 0.0}
    for share in SHARES:
        bench.networks["remove"] = part_of_the_way(removal.model, run.model, share)
        for row in rows_of(bench, "remove", FEATURES):
            yield row | {"share": share, "seconds": seconds}
        bench.drop("remove")


def fitted(variant: Variant, removal: Removal, case: Case) -> tuple[Run, float]:
    """Return the run of a variant and its seconds; what it exchanges is put back, also after an exception."""
    changed = variant.change(removal, case)
    with contextlib.ExitStack() as stack:
        for part, stand_in in variant.swaps.items():
            stack.enter_context(patch.object(ours, part, stand_in))
        started = time.perf_counter()
        run = changed.fit(changed.material, stream="update", project=changed.project)
        return run, time.perf_counter() - started


def _looked_at(bench: Bench, network: str) -> list[dict[str, Any]]:
    return list(rows_of(bench, network, FEATURES))


def folder() -> Path:
    """Return where page and rows are written."""
    return files.repository_root() / "results" / "removal"


def compare(classes: Sequence[int], names: Sequence[str], *, workers: int) -> None:
    """Make all rows that are missing, on ``workers`` processes, and write what they say to ``compare.json``.

    Recorded rows of other variants and classes stay as they are, each with the commit that made it.

    Raises:
        RunsFailed: If a variant failed; what the others finished is kept.
    """
    started, jobs = time.time(), [Job(forget, name) for forget in classes for name in names]
    profile = replace(PROFILE, workers=workers)
    made = answered(profile, pool_map, make, jobs, title="variants", name=lambda job: f"{job.variant} of {job.forget}")
    rows = [row for job in jobs for row in closed(made[job], variant=job.variant)]
    names_of, provenance = list(data_of(PROFILE).classes), made_now(PROFILE, seed=SEED, started=started)
    fresh = [row | {"class_name": names_of[row["forget"]], "commit": provenance["commit"]} for row in rows]
    asked = {(job.variant, job.forget) for job in jobs}
    kept = [row for row in _recorded() if (row["variant"], row["forget"]) not in asked]
    both = sorted(kept + fresh, key=lambda row: list(VARIANTS).index(row["variant"]))
    found = {"schema": 1, "rows": both, "provenance": provenance}
    files.write_json(folder() / "compare.json", files.plain(found, "comparison"))


def _recorded() -> list[dict[str, Any]]:
    path = folder() / "compare.json"
    found = files.read_json(path) if path.is_file() else {"rows": []}
    return [{"commit": found["provenance"]["commit"]} | row for row in found["rows"] if row["variant"] in VARIANTS]


def closed(rows: Sequence[Mapping[str, Any]], *, variant: str) -> Iterator[dict[str, Any]]:
    """Say what a variant closes.

    Yields:
        Per share of the way, points lost and the share of the gap that is closed per probe.
    """
    frame = pd.DataFrame(rows)
    still = frame[frame["method"] != "remove"]
    for share, own in frame[frame["method"] == "remove"].groupby("share"):
        place = {"variant": variant, "forget": int(own["forget"].iloc[0]), "share": share}
        place["seconds"] = float(own["seconds"].iloc[0])
        if "ruined" in set(own["measure"]):
            yield place | {"lost": None, "closed": {}}
            continue
        gaps = audit.gap_closed(audit.findings(pd.concat([still, own])))
        gaps = gaps[gaps["method"] == "remove"].set_index("probe")
        shares = {str(name): None if pd.isna(one) else float(one) for name, one in gaps["share"].items()}
        yield place | {"lost": float(gaps["lost"].iloc[0]), "closed": shares}


def cost() -> None:
    """Time whole calls with the defaults, each beside a part of a training, and write ``cost.json``.

    Both run in this process on as many threads as the profile says. A training's time is that of its part, scaled to
    all images and epochs.
    """
    started, rows, split = time.time(), [], data_of(_CPU).train
    with threads(_CPU.threads):
        for forget in CLASSES:
            case = Case(PROFILE, SEED, forget)
            model, config = trained(PROFILE, SEED), replace(_CPU.unlearn, goal="remove")
            images, labels = forget_set(case, guard_of(case))
            training = training_seconds(model, split, config=recipe(_CPU), whole=len(split))
            before = time.perf_counter()
            zero_shot_unlearn(model, images, labels, config=config, seed=SEED)
            rows.append(
                {
                    "class_name": data_of(_CPU).classes[forget],
                    "seconds": time.perf_counter() - before,
                    "training_seconds": training,
                }
            )
    found = {"schema": 1, "rows": rows, "provenance": made_now(PROFILE, seed=SEED, started=started)}
    files.write_json(folder() / "cost.json", files.plain(found, "cost"))


def costs(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say what whole calls took beside a training, class by class, and whether a third and a tenth of it are met."""
    shares = [row["seconds"] / row["training_seconds"] for row in rows]
    each = "; ".join(
        f"{row['class_name']}: {row['seconds']:.0f} s, 1/{1 / share:.1f} of the {row['training_seconds']:.0f} s of a"
        " training"
        for row, share in zip(rows, shares, strict=True)
    )
    words = [f"at most 1/{limit}: {'met' if max(shares) <= 1 / limit else 'missed'}" for limit in (3, 10)]
    return f"{each}. {words[0][0].upper()}{words[0][1:]}; {words[1]}."


def percent(value: float | None) -> str:
    """Return a share as a reader sees it."""
    return "-" if value is None else f"{100 * value:.0f}"


def compared(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of variants: a line each, for every class the whole way and the furthest that loses little."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(VARIANTS[row["variant"]].title, {})
        place = row["class_name"]
        text = "ruined"
        if row["lost"] is not None:
            parts = " / ".join(percent(row["closed"].get(probe)) for probe in PROBES[:4])
            text = f"{row['lost']:.2f}: {parts}"
        if row["share"] == max(SHARES):
            line[f"{place}, all of the way"] = text
        line.setdefault(f"{place}, at most {AT_MOST} lost", "none")
        if row["lost"] is not None and row["lost"] <= AT_MOST:
            line[f"{place}, at most {AT_MOST} lost"] = f"{100 * row['share']:.0f} %, {text}"
    frame = pd.DataFrame.from_dict(lines, orient="index").rename_axis("variant")
    order = [column for column in frame if "all of" in column] + [column for column in frame if "at most" in column]
    return markdown(frame[order])


def reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say, all of the way, what each suspect is worth: proxies, radius, adversary, capacity, projection."""
    whole = {(row["variant"], row["class_name"]): row for row in rows if row["share"] == max(SHARES) and row["closed"]}
    said = {
        "retained": "With real retained images in place of the proxies",
        "radii": "With half the radius and twice it among the proxies",
        "none": "Without the adversary",
        "strong": "With an adversary three times as strong",
        "last": "With the last four layers alone",
        "projected": "Under the projection",
    }
    lines = []
    for variant, text in said.items():
        pairs = {
            place: (whole[variant, place], whole["defaults", place])
            for name, place in whole
            if name == variant and ("defaults", place) in whole
        }
        if not pairs:
            continue
        more = sum(
            (one["closed"].get("linear") or 0) > (own["closed"].get("linear") or 0) for one, own in pairs.values()
        )
        dearer = sum(one["lost"] > own["lost"] for one, own in pairs.values())
        parts = [f"{place}: {_told(one)}, against {_told(own)}" for place, (one, own) in pairs.items()]
        lines.append(
            f"* {text} a larger share of the linear gap is closed in {more} of {len(pairs)} classes, and more points"
            f" are lost in {dearer} ({'; '.join(parts)})."
        )
    return "\n".join(lines)


def _told(row: Mapping[str, Any]) -> str:
    shares = " and ".join(f"{percent(row['closed'].get(probe))} % ({probe})" for probe in PROBES[:2])
    return f"{row['lost']:.2f} points lost, {shares} closed"


def cases(root: Path) -> str:
    """Return what removal and its rivals close, per recorded audit: a line per network."""
    lines = []
    for path in sorted(one for kind in ("audit", "features") for one in root.glob(f"*/{kind}_*.json")):
        found = results.read(path)
        rows = audit.unpacked(found.measurements["rows"])
        if "remove" not in audit.audited(rows):
            continue
        gaps = audit.gap_closed(rows)
        known = rows["restored"].groupby("method")["acc_forget_before"].mean()
        seeds = len(found.measurements["seeds"])
        for method in (name for name in audit.TITLES if name in set(gaps["method"])):
            own = gaps[gaps["method"] == method].set_index("probe")
            back = own.loc["original's head", "known"]
            line = {
                "data, net": f"{Path(found.config['dataset']).name}, {Path(found.config['arch']).stem}",
                "classes x originals": f"{own['forget'].nunique()} x {seeds}",
                "network": audit.TITLES[method],
                "own answer (%)": f"{100 * known[method]:.1f}",
                "points lost": "-"
                if own["lost"].isna().all()
                else f"{own.groupby('forget')['lost'].first().mean():.2f}",
                **{probe: _share(own, probe) for probe in PROBES[:4]},
                "original's head (%)": f"{100 * pd.Series(back).mean():.1f}",
                "commit": (found.provenance["commit"] or "unknown")[:7],
            }
            lines.append(line)
    return markdown(pd.DataFrame(lines).set_index("data, net")) if lines else "Nothing is recorded."


def _share(own: pd.DataFrame, probe: str) -> str:
    shares = pd.Series(own["share"].get(probe), dtype=float).dropna()
    return f"{round(100 * shares.mean()) + 0:d} (n={len(shares)})" if len(shares) else "no gap"


def figures(root: Path) -> list[str]:
    """Return the figure of the largest recorded audit of features, all its networks and probes, if there is one."""
    drawn = [path for path in sorted(root.glob("cpu/features_*.json")) if _figure_of(path).is_file()]
    if not drawn:
        return []
    largest = max(drawn, key=lambda path: len(results.read(path).measurements["class_names"]))
    place = Path("../..") / _figure_of(largest).relative_to(root.parent)
    alt = "Share of the gap closed over retained points lost, a panel per probe, a mark per network."
    return [f"![{alt}]({place.as_posix()})"]


def _figure_of(record: Path) -> Path:
    return record.parents[2] / "figures" / record.parent.name / f"{record.stem}.png"


def table() -> Path:
    """Write ``README.md`` from what is recorded."""
    parts = [HEAD]
    if (path := folder() / "compare.json").is_file():
        found = files.read_json(path)
        commits = dict.fromkeys(row.get("commit") or found["provenance"]["commit"] for row in found["rows"])
        made = ", ".join((one or "unknown")[:7] for one in commits)
        made += " (changed)" * bool(found["provenance"]["dirty"])
        usual = [row["seconds"] for row in found["rows"] if row["variant"] == "defaults"]
        parts += [
            COMPARED.format(
                commit=made, seconds=sum(usual) / len(usual), steps=STEPS, default=_CPU.unlearn.removal.steps
            ),
            compared(found["rows"]),
        ]
        if told := reasons(found["rows"]):
            parts += [REASONS, told]
    if (path := folder() / "cost.json").is_file():
        found = files.read_json(path)
        threads_each, commit = found["provenance"]["threads"], (found["provenance"]["commit"] or "unknown")[:7]
        parts += [COST.format(threads=threads_each, epochs=_CPU.train.epochs, commit=commit), costs(found["rows"])]
    parts += [CASES, *figures(folder().parent), cases(folder().parent)]
    files.write_text(folder() / "README.md", "\n\n".join(parts) + "\n")
    return folder() / "README.md"


HEAD = """# Removal, measured

Written by `python -m benchmarks.removal table`. Removal (`goal="remove"`) is ours; the paper
claims only that the class is no longer answered.
A probe's recall of the class on the original and on the retrained network are the two ends of a ruler; a share of 100
says that the probe finds as little as after retraining. *Points lost* are retained test accuracy below the masked
original, in percentage points; below 0 is a gain. [Sources](../README.md#every-file-and-what-made-it)."""
COMPARED = """## Each part beside another choice

CIFAR-10, conv7, one original, 1,000 forget images, the first half of the test images, code of {commit}. Per class:
points lost, then the share of the gap closed (%) by linear / nonlinear (MLP) / 15 neighbours / class means. Where the
line names no other number, a fit has {steps} steps (the default is {default}); it took {seconds:.0f} s in the mean on
one core of two, and a whole call has three."""
REASONS = """**Why is not all of it closed?** Each change alone, all of the way. What real images would do says whether
the net has room for both, or whether the proxies are what is missing:"""
COST = """## What it costs

CIFAR-10, conv7, a whole call with the defaults beside a training of {epochs} epochs, in one process on {threads}
thread(s), commit {commit}."""
CASES = """## Case by case

From every recorded audit that looked at removal, defaults, shares chosen without retained data. `n` counts the classes
in which the gap is larger than the retrained networks' spread (with one original: above 0)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.removal", description=__doc__)
    parser.add_argument("command", choices=("compare", "cost", "table"))
    parser.add_argument("--classes", default=",".join(map(str, CLASSES)), help="forget classes, comma-separated")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one thread")
    chosen = parser.parse_args(arguments)
    if unknown := sorted({*chosen.variants.split(",")} - {*VARIANTS}):
        parser.error(f"unknown {', '.join(unknown)}; known are {', '.join(VARIANTS)}")
    if chosen.command == "compare":
        compare([int(one) for one in chosen.classes.split(",")], chosen.variants.split(","), workers=chosen.workers)
    elif chosen.command == "cost":
        cost()
    sys.stdout.write(f"wrote {table()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
