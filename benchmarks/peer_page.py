"""``results/peers/README.md``: zspag beside other packages, from the rows that ``benchmarks.peers`` recorded.

Invariant: no number is typed, and every comparison is computed from the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from benchmarks.peer_uses import FACTOR, FORGOTTEN, REPEATS, SLOW
from zspag.report import files
from zspag.report.claims.decisions import MARGIN
from zspag.report.results_page import filled
from zspag.report.tables import markdown, nats

SCHEMA = 1
REFERENCES = {"original": "original", "masked": "masked original", "retrained": "retrained"}
COLUMNS = [
    "package: method",
    "settings",
    "lines",
    "retained images read",
    "forget %",
    "points lost",
    "drift",
    "probe %",
    "seconds",
    "MiB",
]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Peer:
    """A package.

    Attributes:
        version: The version that is installed.
        module: Its name in an import.
        note: What it has for this task.
        beside: What its uses import, where its own list of dependencies cannot be had beside our torch.
    """

    version: str
    module: str
    note: str
    beside: tuple[str, ...] = ()


_AGAIN = "is zspag's own writing here, without retain data, and its seconds and memory are zspag's."
PEERS = {
    "torchunlearn": Peer(
        "0.1.0",
        "torchunlearn",
        "Methods for classifiers. The published package lacks the folder of its trainers. So its own method, UAM, runs"
        f" in a loop of the user's with a radius of 0.1, for which there is no default, and NegGrad {_AGAIN}",
    ),
    "erasus": Peer(
        "0.2.0",
        "erasus",
        "Strategies for any model. Gradient ascent is the default; the front page selects a coreset before it and takes"
        " retained images beside it.",
    ),
    "supreme-unlearning": Peer(
        "0.1.5",
        "supreme",
        "A pipeline for data sets and nets of its own. Its methods are called without the pipeline. SSD's rate is its"
        " alpha: smaller is stronger.",
        ("lightning", "wandb"),
    ),
    "vision-unlearning": Peer(
        "1.0.0",
        "vision_unlearning",
        "Its methods (LoRA, FADE, UCE) are for diffusion models, and none can run here. SalUn, a published method for"
        f" classifiers, stands in their place and {_AGAIN}",
    ),
}


def summed(content: Mapping[str, Any]) -> Rows:
    """Return a line per use and setting: means over the classes, or what went wrong."""
    lines = []
    for name, use in content["uses"].items():
        for setting in use["settings"]:
            own = [row for row in content["rows"] if (row["use"], row.get("setting")) == (name, setting)]
            line = {
                "use": name,
                "package": use["package"],
                "method": use["method"],
                "setting": setting,
                "lines": use["lines"],
                "error": next((row["error"] for row in own if row["error"] is not None), None),
            }
            if line["error"] is None:
                line |= means(own) | {key: fmean(row[key] for row in own) for key in ("seconds", "peak_mib")}
                line["retain_read"] = max(row["retain_read"] for row in own)
                line["rates"] = sorted({row["rate"] for row in own} - {None})
            lines.append(line)
    return lines


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of what ``judged`` measures; there is no mean of probes where a net was ruined."""
    probes = [row["probe"] for row in rows]
    found = {key: fmean(row[key] for row in rows) for key in ("acc_forget", "lost", "drift")}
    return found | {"probe": None if None in probes else fmean(probes)}


def references(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the means of the networks that all others are held against."""
    return {title: means([row for row in content["rows"] if row["use"] == name]) for name, title in REFERENCES.items()}


def sentences(content: Mapping[str, Any]) -> Iterator[str]:
    """Say what the rows say.

    Yields:
        Sentences on who forgets at what cost, on drift and probe among those, and on time, memory and lines.
    """
    ran = [line for line in summed(content) if line["error"] is None]
    good = [line for line in ran if line["acc_forget"] <= FORGOTTEN and line["lost"] <= MARGIN]
    bar = f"recognize at most {100 * FORGOTTEN:g} % of the class's test images and lose at most {MARGIN:g} points"
    yield f"Of {len(ran)} rows {len(good)} {bar}: {listed(good)}."
    yield f"Without reading a retained image these do: {listed([one for one in good if not one['retain_read']])}."
    gone = [line for line in ran if line["acc_forget"] <= FORGOTTEN]
    for what, rows, key, number in (
        (f"Least drift of the {len(gone)} rows that forget to {100 * FORGOTTEN:g} %", gone, "drift", "{:.4f} nats"),
        (f"Fewest points lost of these {len(gone)}", gone, "lost", "{:.2f}"),
        ("Shortest time of all rows", ran, "seconds", "{:.2f} s"),
        ("Lowest memory of all rows", ran, "peak_mib", "{:.0f} MiB"),
        ("Fewest lines of all rows", ran, "lines", "{:g}"),
    ):
        order = sorted(rows, key=lambda line, key=key: line[key])
        first = [line for line in order if number.format(line[key]) == number.format(order[0][key])]
        shown = first + [line for line in order[len(first) :] if line["package"] == "zspag"]
        if shown:
            yield f"{what}: {'; '.join(f'{called(line)}, {number.format(line[key])}' for line in shown)}."
    target, probed = references(content)["retrained"]["probe"], [one for one in gone if one["probe"] is not None]
    if probed:
        nearest = min(round(100 * abs(line["probe"] - target), 1) for line in probed)  # as printed
        tied = [line for line in probed if round(100 * abs(line["probe"] - target), 1) == nearest]
        shown = "; ".join(
            f"{called(line)}, {100 * line['probe']:.1f} %, at {line['lost']:.2f} points lost" for line in tied
        )
        yield (
            f"Nearest to the retrained network's probe ({100 * target:.1f} %) of the rows that forget to"
            f" {100 * FORGOTTEN:g} %: {shown}."
        )


def called(line: Mapping[str, Any]) -> str:
    """Return what a line is called in a sentence."""
    return f"{line['package']}'s {line['method']} ({line['setting']})"


def listed(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the names of lines in a row."""
    return ", ".join(map(called, lines)) or "none"


def comparison(content: Mapping[str, Any]) -> str:
    """Return the table of everything that is measured of a net, and of making it."""
    lines = []
    for title, found in references(content).items():
        lines.append({"package: method": f"*{title}*"} | _cells(found))
    for line in summed(content):
        version = content["packages"][line["package"]]["version"]
        cells = {"package: method": f"{line['package']} {version}: {line['method']}", "lines": str(line["lines"])}
        if line["error"] is not None:
            lines.append(cells | {"settings": f"{line['setting']}: did not run"})
            continue
        ends = dict.fromkeys(line["rates"][:1] + line["rates"][-1:])
        rates = " to ".join(f"{rate:.3g}" for rate in ends)
        cells |= {
            "settings": f"{line['setting']}{', ' * bool(rates)}{rates}",
            "retained images read": str(line["retain_read"]),
        }
        cells |= _cells(line) | {"seconds": f"{line['seconds']:.2f}", "MiB": f"{line['peak_mib']:.0f}"}
        lines.append(cells)
    return markdown(pd.DataFrame([dict.fromkeys(COLUMNS, "") | line for line in lines]).set_index(COLUMNS[0]))


def _cells(found: Mapping[str, Any]) -> dict[str, str]:
    return {
        "forget %": f"{100 * found['acc_forget']:.1f}",
        "points lost": f"{round(found['lost'], 2) + 0.0:.2f}",  # adding 0 turns a -0.00 into 0.00
        "drift": nats(found["drift"]),
        "probe %": "ruined" if found["probe"] is None else f"{100 * found['probe']:.1f}",
    }


def bad_inputs(content: Mapping[str, Any]) -> str:
    """Return the table of what a bad input leads to."""
    lines: dict[str, dict[str, str]] = {}
    for row in content["bad"]:
        use = content["uses"][row["use"]]
        lines.setdefault(f"{use['package']}: {use['method']}", {})[row["input"]] = row["kind"]
    return markdown(pd.DataFrame.from_dict(lines, orient="index").rename_axis("package: method"))


def messages(content: Mapping[str, Any]) -> Iterator[str]:
    """Say which texts bad inputs lead to.

    Yields:
        A line per text of a package and kind of input, with the methods that say it.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in content["bad"]:
        if row["said"]:
            use = content["uses"][row["use"]]
            found.setdefault((use["package"], row["input"], row["said"]), []).append(use["method"])
    for (package, given, said), methods in found.items():
        yield f"{package} ({', '.join(methods)}), {given}: `{said.replace('`', chr(39))}`"


def render(content: Mapping[str, Any]) -> str:
    """Return the page."""
    made = content["provenance"]
    told = {
        "commit": (made["commit"] or "unknown")[:7] + " (changed)" * bool(made["dirty"]),
        "minutes": f"{made['seconds'] / 60:.1f}",
        "classes": ", ".join(content["forget_samples"]),
        "span": lambda counts: " to ".join(str(one) for one in sorted({min(counts), max(counts)})),
    }
    told |= {"factor": f"{FACTOR:g}", "forgotten": f"{100 * FORGOTTEN:g}", "slow": f"{SLOW:g}", "repeats": REPEATS}
    told |= {"comparison": comparison(content), "bad": bad_inputs(content), "sentences": list(sentences(content))}
    told["said"] = list(messages(content))
    told |= {"content": content, "uses": content["uses"], "peers": PEERS, "lines": summed(content)}
    return filled(PAGE, **told)


PAGE = """# zspag beside other packages

Written by `python -m benchmarks.peers table` from `peers.json`, which `python -m benchmarks.peers run --record` made in
one run of {{ minutes }} minutes at commit {{ commit }}. None of these packages is a dependency: they are installed
apart.

Digits, one original, one class forgotten at a time (classes {{ classes }}); numbers are means over these classes. The
forget set has {{ span(content.forget_samples.values()) }} images. Who asks for retained images gets all
{{ span(content.retain_samples.values()) }}. This is a demonstration on a small net: nobody should choose a package for
a large one by it.

{{ comparison }}

* *Settings*: "default" is the package's own default rate, or that of its front page. "Ladder" walks from there, by a
  factor of {{ factor }}: to stronger rates until at most {{ forgotten }} % of the forget set are recognized, or to
  gentler ones as long as that holds. The gentlest that forgets counts, else the one that forgets most. The walk sees
  the forget set alone and may make {{ content.trials }} trials, as many as zspag's own search on the first class.
* *Lines*: of the function that was run (`benchmarks/peer_uses.py`), imports included, counted by the program.
* *Forget %*: test images of the class that are recognized. zspag's net is judged before the row of the class is closed
  in the last layer, which would tell nothing: any net can be given that.
* *Points lost*: retained test accuracy below the masked original, whose logit of the class is at a floor; below 0 is a
  gain. *Drift*: mean KL divergence from it on retained test images, in nats.
* *Probe %*: recall of the class by a linear probe on what enters the last layer. The retrained network's is the aim.
* *Seconds*: after a warm-up, the median of {{ repeats }} runs, or one run where it took more than {{ slow }} s; one
  thread. A ladder or search counts with all the trials that it made. *MiB*: peak memory of the process, Python and
  torch included.

## What the rows say
{% for one in sentences %}
* {{ one }}
{%- endfor %}

## Bad inputs

*Message*: the package itself refuses the input. *Error*: something else fails on it. *Silent*: a net comes back;
*ruined* if its weights are not finite. Each at default settings, with one thing wrong in the first class's forget set.

{{ bad }}

What they say:
{% for one in said %}
* {{ one }}
{%- endfor %}

## The packages
{% for name, one in content.packages.items() if name in peers %}
* **{{ name }} {{ one.version }}**. {{ peers[name].note }}
{%- if one.error is not none %} It does not install: `{{ one.error }}`
{%- elif one.clash is not none %} Its dependencies are left out, because pip says: `{{ one.clash }}`
{%- if peers[name].beside %} Beside it are {{ peers[name].beside | join(" and ") }}.{% endif %}{% endif %}
{%- endfor %}
{%- for one in lines if one.error is not none %}
* {{ one.package }}, {{ one.method }} ({{ one.setting }}) did not run: `{{ one.error }}`
{%- endfor %}
"""


def table(folder: Path) -> Path:
    """Write the page beside its file.

    Raises:
        ValueError: If nothing is recorded, or in another form.
    """
    path = folder / "peers.json"
    if not path.is_file():
        raise ValueError(f"{files.shown(path)} is not there: run `python -m benchmarks.peers run --record` first")
    content = files.read_json(path)
    if content["schema"] != SCHEMA:
        raise ValueError(f"{files.shown(path)} has schema {content['schema']}, not {SCHEMA}: make it again")
    files.write_text(folder / "README.md", render(content))
    return folder / "README.md"
