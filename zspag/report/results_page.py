"""``results/README.md``: the verdicts, and of every recorded file what made it, which command and at which commit.

From any number on a page the file is known; from here its command. The command is composed from the configuration that
stands in the file, option by option where it differs from the profile's.

Invariant: nothing is typed, and a file without a record says so.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, StrictUndefined

from zspag.config import to_dict
from zspag.profiles import PAPER_DATA, PAPER_NETS, PROFILES, for_pair
from zspag.report import claims, files, provenance, recorded_tables, results
from zspag.report.results import Result

KINDS = {"run": "zspag run", "sweep": "zspag sweep", "audit": "zspag audit", "features": "zspag audit --features"}
# What other programs write, and how, where the file itself does not say it.
PROGRAMS = {
    "bench/*.json": "make bench RECORD=1",
    "external/zoo.json": "python -m benchmarks.external rows",
    "external/choices.json": "python -m benchmarks.external choices",
    "external/timing.json": "python -m benchmarks.external time",
    "peers/peers.json": "python -m benchmarks.peers run --record",
    "scenarios/*.json": "python -m benchmarks.scenarios run",
    "spread/digits.json": "python -m benchmarks.spread digits --goals suppress",
    "spread/cifar10.json": "python -m benchmarks.spread cifar10 --goals suppress",
    "removal/compare.json": "python -m benchmarks.removal compare",
    "removal/cost.json": "python -m benchmarks.removal cost",
    "*/time_and_memory.json": "zspag reproduce --profile digits --record",
    "commands.json": "make fresh-clone",
    "hours.json": "python -m benchmarks.hours --record",
    "claims.json": "make readme",
    "published/*.json": "typed from what its source prints",
}
PAGE = """# Results

Written by `make readme` from the files beside it. `zspag claims` prints the verdicts, after it has verified that the
files are those that were recorded (`SHA256SUMS`).

Other pages: [every table of runs, sweeps and audits](TABLES.md), [benchmarks](bench/README.md),
[growth](bench/GROWTH.md), [the zoo of other nets](external/README.md),
[every part beside its absence](external/CHOICES.md), [removal](removal/README.md),
[where the spread comes from](spread/README.md), [other packages](peers/README.md),
[requests beyond one class](scenarios/README.md).

{{ older }}{% for profile, table in verdicts.items() %}
## Claims, profile `{{ profile }}`

{{ table }}
{% endfor %}
## The paper's sixteen pairs

Forget accuracy in % and points of retained accuracy below the masked original, means over classes and originals, where
they are measured, with the command. Hours are counted from operations and a recorded rate (`python -m
benchmarks.hours`): an original, and per class a retrained model and an unlearning. How long one GPU takes is
{{ "in the last column" if on_gpu else "not measured; `make gpu` measures it" }}.

| data, net | forget %, points lost | command{% for machine in machines %} | hours, {{ machine }}{% endfor %} |
| --- | --- | ---{% for _ in machines %} | ---{% endfor %} |
{% for pair in pairs -%}
| {{ pair.name }} | {{ pair.found }} | `{{ pair.command }}`{% for one in pair.hours %} | {{ one }}{% endfor %} |
{% endfor %}
## An outside check

{{ outside }}
## Every file, and what made it

Options that are not named are the profile's. *Changed* says that the code was not committed as it ran, *unknown* that
the commit was not recorded; of a network the command prints the recipe. What was made on a GPU ran beside fourteen
other processes on the same card: its times compare with nothing. Minutes are those of the command, without what it
found cached; how much memory a command took is measured of the notebooks alone. The notebooks' files are made by one
command; `make figures` does the same without recording it. A trained network's own record names its recipe and its
data.

| file | command | commit | started | minutes |
| --- | --- | --- | --- | --- |
{% for one in records -%}
| {{ one.shown }} | `{{ one.command }}` | {{ one.commit }} | {{ one.started }} | {{ one.minutes }} |
{% endfor %}"""


TABLES = """# Tables

Written by `make readme` from the files beside it; [results](README.md) says which command made each file.

{{ older }}
**Digits**, a demonstration:

{{ headline }}
## Runs

One run of `zspag run` a line. *Masked* and *retrained* are the yardsticks of *retain %*, *read* counts retain samples.

{{ runs }}
## Sweeps

Methods over their ladders of seven rates (`zspag sweep`), at the rate that the forget-only rule takes. The sentence
says which forget-only methods dominate ZS-PAG. Nobody can beat the masked original on drift and safe window: drift is
measured from it, and it has no rate to choose. Edits of the last layer alone leave every feature where it was, which
these numbers reward; the audits below show what that is worth.

{{ sweeps }}
## Other originals, the same rates

The rate that the forget-only rule took for each class on the first original, run once on others (`zspag sweep --rates
FILE`), means over classes.

{{ originals }}
## Labels (claim C3)

Every formula minus soft labels, paired by class and original, with its interval over classes and the share of pairs
that are lower; lower is better. Chosen on one half of CIFAR-10's test images, confirmed on the other half with an
original trained for it.

{{ c3 }}
## Audits: forgotten, or only silent?

`zspag audit` attacks, probes and relearns the original, two controls (the masked original, and the original with one
row of its head edited), ZS-PAG, removal (ours) and three rivals. In brackets: the mean difference to the retrained
network of the same class and seed, with its 95 % interval over classes. *Within* means that it could be one more
retrained network. Steps of relearning under the own head (AIN) measure mostly one row of the head.

{{ audits }}"""


@dataclass(frozen=True)
class Record:
    """One line of the table."""

    file: str
    command: str
    commit: str
    started: str
    minutes: str

    @property
    def shown(self) -> str:
        """The file as a reader of the page sees it; the site has no copy of networks."""
        return f"[{self.file}]({self.file})" if self.file.endswith(".json") else self.file


@dataclass(frozen=True)
class Pair:
    """One of the paper's pairs of data and net."""

    name: str
    found: str
    command: str
    hours: tuple[str, ...]


def pairs(folder: Path, machines: Sequence[str], hours: Sequence[Mapping[str, Any]]) -> Iterator[Pair]:
    """Say of every pair what was measured, or how to.

    Yields:
        Pairs in the order of the paper's data sets.
    """
    scores: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    commands: dict[tuple[str, str], str] = {}
    for path in sorted(folder.glob("paper/run_*.json")):
        found = results.read(path)
        place = (Path(found.config["dataset"]).name, found.config["arch"])
        scores.setdefault(place, []).extend(row["scores"]["unlearned"] for row in found.measurements["rows"])
        commands[place] = command_of("run", found)
    spent = {(one["machine"], one["data"], one["net"]): f"{one['hours']:,.0f}" for one in hours}
    for place in product(PAPER_DATA, PAPER_NETS):
        text, known = "not measured", scores.get(place)
        if known is not None:
            forget, lost = (100 * fmean(score[name] for score in known) for name in ("acc_forget", "over_unlearning"))
            text = f"{forget:.1f}, {lost:+.2f} (n = {len(known)})"
        command = f"zspag run --profile paper --dataset {place[0]} --arch {place[1]} --record"
        command = commands.get(place, command)
        yield Pair(" x ".join(place), text, command, tuple(spent.get((name, *place), "") for name in machines))


def filled(template: str, **values: Any) -> str:
    """Return a markdown page from its template."""
    page = Environment(autoescape=False, undefined=StrictUndefined).from_string(template)  # noqa: S701  markdown
    return page.render(**values).rstrip() + "\n"


def render(root: Path) -> str:
    """Return the page from what lies in ``root / results``."""
    folder = root / "results"
    verdicts = {
        profile: claims.table(claims.judge(folder / profile, profile=profile), folder=profile)
        for profile in claims.profiles(folder)
    }
    hours = files.read_json(folder / "hours.json")["pairs"] if (folder / "hours.json").is_file() else []
    machines = list(dict.fromkeys(one["machine"] for one in hours))
    on_gpu = (folder / "gpu" / "nets.json").is_file()
    told = {"pairs": list(pairs(folder, machines, hours)), "machines": machines, "on_gpu": on_gpu}
    told |= {"records": list(records(folder))}
    told |= {name: getattr(recorded_tables, name)(folder) for name in ("older", "outside")}
    return filled(PAGE, verdicts=verdicts, **told)


def render_tables(root: Path) -> str:
    """Return the page of tables from what lies in ``root / results``."""
    parts = ("older", "headline", "runs", "sweeps", "originals", "c3", "audits")
    told = {name: getattr(recorded_tables, name)(root / "results") for name in parts}
    return filled(TABLES, **told)


def records(folder: Path) -> Iterator[Record]:
    """Say of every result file of ``folder`` what made it.

    Yields:
        Files of profiles, then of programs, each in alphabetical order. Notebooks of a profile are made by one command.
    """
    for path in sorted(folder.glob("*/*.json")):
        kind = path.stem.partition("_")[0]
        content = files.read_json(path)
        if kind in KINDS:
            yield _record(folder, path, command_of(kind, Result.from_dict(content)), content.get("provenance") or {})
        elif kind.isdigit():
            command = f"zspag reproduce --profile {path.parent.name} --record --write-back"
            yield _record(folder, path, command, content.get("provenance") or {})
    for pattern, command in PROGRAMS.items():
        for path in sorted(folder.glob(pattern)):
            content = files.read_json(path)
            rows = content.get("rows") or content.get("nets") or ()
            told = content.get("command") or "; ".join(_asked(command, rows))
            yield _record(folder, path, told, content.get("provenance") or {}, rows=rows)
    for path in sorted(folder.glob("*/checkpoints/*.safetensors")):
        # A training is what `zspag run` does first; what it trains is in the file's own record.
        command = f"zspag provenance results/{path.relative_to(folder).as_posix()}"
        yield _record(folder, path, command, provenance.read_record(path))


def _asked(command: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the command with the nets and repeats of these rows, where it takes any; one for every number of runs."""
    if not command.startswith("python -m benchmarks.external"):
        return [command]
    asked: dict[int, dict[str, None]] = {}
    for row in rows:
        runs = min(map(len, row["seconds"].values())) if isinstance(row.get("seconds"), Mapping) else 0
        asked.setdefault(runs, {})[row["net"]] = None
    return [f"{command} --nets {','.join(nets)}" + f" --repeats {runs}" * (runs > 0) for runs, nets in asked.items()]


def _record(
    folder: Path, path: Path, command: str, made: Mapping[str, Any], *, rows: Sequence[Mapping[str, Any]] = ()
) -> Record:
    each = [made, *(row.get("provenance") or row for row in rows)]
    commits = dict.fromkeys(one.get("commit") or "" for one in each)
    commit = ", ".join(one[:7] for one in commits if one) + (" (changed)" if made.get("dirty") else "")
    minutes = f"{made['seconds'] / 60:.1f}" if "seconds" in made else ""
    if made.get("device") == "cuda":  # beside other jobs, and some files were only put together then
        minutes = "on a GPU"
    started = made.get("started", "")[:10]
    return Record(path.relative_to(folder).as_posix(), command, commit or "unknown", started, minutes)


def command_of(kind: str, found: Result) -> str:
    """Return the command that makes a result of ``zspag run``, ``sweep`` or ``audit`` anew.

    Args:
        kind: A key of ``KINDS``.
        found: The result; the configuration in it may lack options that are younger.

    Note:
        A data set that was read from a folder outside the data root is named by its last part.
    """
    config, options = found.config, []
    base = to_dict(PROFILES[config["name"]])
    recipe = for_pair(PROFILES[config["name"]], dataset=Path(config["dataset"]).name, arch=config["arch"]).train
    epochs = (config.get("train") or {}).get("epochs", recipe.epochs)
    measured = found.measurements
    names = measured.get("class_names") or [row["class_name"] for row in measured["rows"]]
    given: dict[str, tuple[Any, str]] = {
        "dataset": (config["dataset"], Path(config["dataset"]).name),
        "arch": (config["arch"], config["arch"]),
        "classes": (config["classes"], ",".join(dict.fromkeys(names))),
        "seeds": (config["seeds"], ",".join(map(str, config["seeds"]))),
        "forget_samples": (config.get("forget_samples"), str(config.get("forget_samples"))),
        "retain_samples": (config.get("retain_samples"), str(config.get("retain_samples"))),
        "test_half": (config.get("test_half"), str(config.get("test_half"))),
    }
    for name, (value, text) in given.items():
        if value is not None and list_of(value) != list_of(base.get(name)):
            options.append(f"--{name.replace('_', '-')} {shlex.quote(text)}")
    options += [f"--epochs {epochs}"] * (epochs != recipe.epochs)
    size = (config.get("folder") or {}).get("image_size")
    options += [f"--image-size {size}"] * (size is not None)
    if kind == "sweep":
        methods = [name for name in measured.get("titles", {}) if name not in ("original", "masked", "retrained")]
        options += [f"--methods {','.join(methods)}"] * bool(methods)
        options += ["--no-retrained"] * (config.get("retrained") is False)
        ladders = config.get("ladders", {})
        if config.get("rates_of"):
            options.append(f"--rates {shlex.quote(config['rates_of'])}")
        elif ladders and any(list_of(base["ladders"][name]) != list_of(rates) for name, rates in ladders.items()):
            # one ladder for all methods
            options.append(f"--rates {','.join(f'{rate:g}' for rate in ladders['high'])}")
    options += ["--recorded-models"] * bool(config.get("recorded_models"))
    return " ".join([KINDS[kind], f"--profile {config['name']}", *options, "--record"])


def list_of(value: Any) -> Any:
    """Return a tuple as a list, as JSON holds it; anything else as it is."""
    return list(value) if isinstance(value, tuple) else value
