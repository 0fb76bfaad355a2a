"""One result as a page that can be attached to a ticket: a single HTML file without links to anything else.

Invariant: every word that comes from outside (paths, class names, messages) is escaped, and every picture is inside.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

MARK = '<meta name="generator" content="zspag unlearn">'  # by which a page of ours is known
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; }
.no, .warning { color: #b2182b; font-weight: 600; }
.yes { color: #1b7837; font-weight: 600; }
figure { display: inline-block; margin: .3rem; text-align: center; font-size: .85rem; }
figure img { width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; background: #fff; }
img.plot { max-width: 100%; background: #fff; }
@media (prefers-color-scheme: dark) { .no, .warning { color: #ff8a80; } .yes { color: #7ddc8d; } }
"""


@dataclass(frozen=True)
class Example:
    """A forget image, as a PNG, and what was answered."""

    png: bytes
    before: str
    after: str


def page(
    report: Mapping[str, Any],
    *,
    text: str,
    verdict: str,
    legends: Mapping[str, str],
    figure: bytes,
    examples: Sequence[Example],
    facts: Mapping[str, str],
) -> str:
    """Return the page.

    Args:
        report: ``Report.to_dict()``.
        text: The report as it is printed; its first line is the title.
        verdict: What was reached, in one sentence.
        legends: What the tables "tried" and "layers" mean.
        figure: The report's figure, a PNG.
        examples: Forget images with the answers of the original and of the open model.
        facts: How it was made: command, versions, commit, and so on.
    """
    title, _, rest = text.partition("\n")
    body = [f"<h1>{escape(title)}</h1>", _paragraph(verdict, kind="yes" if report["reached"] else "no")]
    body += [_paragraph(f"Warning: {one}", kind="warning") for one in report["warnings"]]
    body += ["<h2>What came out</h2>", f"<pre>{escape(_until_the_tables(rest))}</pre>"]
    if examples:
        body += ["<h2>Images to forget, answers before → after (updates alone)</h2>", *map(_example, examples)]
    body += ["<h2>What was tried</h2>", f'<img class="plot" alt="trials, run and layers" src="{_inline(figure)}">']
    body += [_paragraph(legends["tried"]), _table(_trial_columns(report), _trials(report))]
    if report["layers"]:
        body += ["<h2>Layers</h2>", _paragraph(legends["layers"]), _table(_LAYERS, report["layers"])]
    body += ["<h2>How it was made</h2>", _table({"fact": "name", "": "value"}, _pairs(facts))]
    head = f'<meta charset="utf-8">{MARK}<title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


_LAYERS = {
    "weight": "name",
    "inputs": "dimension",
    "free": "free",
    "leak": "leak",
    "free share": "free_share",
    "why it stayed": "reason",
}
_SHARES = ("forget_accuracy", "leak", "free_share")  # shown in per cent, as in the text


def _trial_columns(report: Mapping[str, Any]) -> dict[str, str]:
    # Titles as in the printed table.
    dial = "share" if report.get("chosen") == "removal" else "rate"
    judged = "forget accuracy" if report.get("unseen_accuracy") is None else "held-out accuracy"
    columns = {"layers": "layers", dial: "lr", judged: "forget_accuracy"}
    return columns | {"drift, nats": "drift", "forgot": "forgot", "": "chosen"}


def _trials(report: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    taken = report.get("chosen"), report.get("lr")
    return [
        {**trial, "chosen": "chosen" if (trial["layers"], trial["lr"]) == taken else ""} for trial in report["tried"]
    ]


def _paragraph(text: str, *, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _until_the_tables(text: str) -> str:
    # The printed page without its rule, the verdict, which stands above, and the tables, which stand below.
    lines = text.splitlines()[1:]
    starts = [place for place, line in enumerate(lines) if line.startswith("forget set")]
    ends = [place for place, line in enumerate(lines) if line.startswith("chosen")]
    return "\n".join(lines[starts[0] if starts else 0 : ends[0] if ends else None]).strip()


def _pairs(facts: Mapping[str, str]) -> Iterable[Mapping[str, str]]:
    return [{"name": name, "value": value} for name, value in facts.items()]


def _table(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in columns)
    lines = ["".join(f"<td>{escape(_shown(key, row.get(key)))}</td>" for key in columns.values()) for row in rows]
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in _SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _example(one: Example) -> str:
    words = f"{escape(one.before)} → {escape(one.after)}"
    return f'<figure><img alt="{words}" src="{_inline(one.png)}"><figcaption>{words}</figcaption></figure>'
