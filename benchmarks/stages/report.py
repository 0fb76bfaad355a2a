"""Findings as lines, as a table, as a figure, and stage by stage beside older ones.

Invariant: what is read is what a result file holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
PREFACE = """Written by `python -m benchmarks --table` from the JSON files here. `make bench RECORD=1` measures anew.

Ways that are compared run in turns. Each round gives a ratio. The table shows the median of these ratios, their range
and how many there were. A bar is *met* if every round meets it and *missed* if none does. Otherwise the verdict is
*within noise*. A line without a bar informs. The docstrings of `benchmarks/stages/` count the operations of each limit.
"""
FAR = 8  # margins from here on are drawn alike: one of a billion would leave no room to see the others


def told(row: Row) -> str:
    """Return one finding in a line."""
    wanted = f" ({row['wanted']}: {row['verdict']})" if row["wanted"] else ""
    value = "not measured" if row["value"] is None else number(row["value"])
    because = f" [{row['note']}]" if row["note"] else ""
    return f"{row['stage']}: {row['what']}: {value}{wanted} -- {row['case']}{because}"


def number(value: float | None) -> str:
    """Return a number with three digits; nothing for None.

    Example:
        >>> number(0.12345), number(4321.5), number(None)
        ('0.123', '4322', '')
    """
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def page(contents: Sequence[Row]) -> str:
    """Return the page of all recorded benchmarks: a table per device, and the machine it was measured on.

    Args:
        contents: Result files that hold findings.
    """
    parts = ["# How fast\n", PREFACE]
    for content in contents:
        here, made = content["data"]["machine"], content["provenance"]
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in here["products"].items())
        parts.append(
            f"## {here['name']}, {here['threads']} threads\n\ntorch {made['versions']['torch']}, commit"
            f" {made['commit'][:7]}, {made['seconds'] / 60:.0f} minutes. Matrix products {rates} GFLOP/s; copies"
            f" {here['copy'] / 1e9:.0f} GB/s.\n\n{table(content['data']['found'])}"
        )
    return "\n".join(parts)


def table(found: Sequence[Row]) -> str:
    """Return findings as a Markdown table, one line each."""
    lines = [
        "| stage | measured on | number | wanted | median | min – max | rounds | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        rounds = row.get("rounds") or [row["value"]]  # records from before there were rounds have none
        spread = f"{number(min(rounds))} – {number(max(rounds))}" if len(rounds) > 1 else ""
        measured = "" if row["value"] is None else len(rounds)
        cells = (row["case"], row["what"], row["wanted"], number(row["value"]), spread, measured, row["verdict"])
        lines.append(f"| {row['stage']} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def panels(found: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one panel of bars: how far beyond what was wanted each number is, 1 being just reached.

    Of numbers that differ in nothing but sizes the worst is drawn; exponents of growth have a figure of their own.
    """
    reached: dict[str, float] = {}
    for row in found:
        margin = _margin(row)
        if margin is not None and not row["curve"]:
            name = f"{row['stage']}: {row['what'].partition(',')[0]} ({row['case'].split(',')[0].split(' of ')[0]})"
            reached[name] = min(margin, reached.get(name, FAR))
    ordered = sorted(reached, key=lambda name: reached[name])
    return [
        {
            "names": ordered,
            "values": [reached[name] for name in ordered],
            "xlabel": f"found over wanted, or wanted over found ({FAR} and more are drawn alike)",
            "xlog": True,
            "xticks": [0.5, 1, 2, 4, FAR],
            "base": 1,
            "title": "How far beyond what was wanted (1: just reached), or short of it (hatched)",
        }
    ]


def curves(found: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one panel of time and one of peak memory for every axis of growth, with the fitted exponents."""
    grown: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found:
        if row["curve"]:
            series = grown.setdefault((row["what"].removeprefix("exponent of "), row["curve"]["axis"]), {})
            series[row["curve"]["name"]] = {"x": row["curve"]["x"], "y": row["curve"]["y"], "exponent": row["value"]}
    return [
        {
            "series": series,
            "title": "\n".join(f"{name}: exponent {one['exponent']:.2f}" for name, one in series.items()),
            "xlabel": axis,
            "ylabel": "seconds" if kind == "time" else "peak memory (MiB)",
            "ylim": [0, 1.1 * max(max(one["y"]) for one in series.values())],
        }
        for (kind, axis), series in sorted(grown.items(), key=lambda item: item[0][0], reverse=True)
    ]


def _margin(row: Row) -> float | None:
    if not row["value"] or row["value"] <= 0:
        return None
    if row["at_least"]:
        return float(row["value"] / row["at_least"])
    return float(row["at_most"] / row["value"]) if row["at_most"] else None


def compare(old: Row, new: Row) -> Iterator[str]:
    """Yield a line per finding of either file: the new number over the old one, and what became of its verdict.

    Args:
        old: Content of an earlier result file.
        new: Content of the present one.
    """
    before, after = ({_key(row): row for row in content["data"]["found"]} for content in (old, new))
    machines = [content["data"]["machine"]["name"] for content in (old, new)]
    if machines[0] != machines[1]:
        yield f"different machines: {machines[0]} then, {machines[1]} now; only ratios compare"
    for key in dict.fromkeys([*before, *after]):
        one, other = before.get(key), after.get(key)
        row = other or one
        assert row is not None, "the key comes from one of the two"
        yield f"{_change(one, other):>12}  {row['stage']}: {row['what']} -- {row['case']}{_fallen(one, other)}"


def _key(row: Row) -> tuple[str, str, str]:
    return row["stage"], row["case"], row["what"]


def _change(one: Row | None, other: Row | None) -> str:
    if one is None:
        return "new"
    if other is None:
        return "gone"
    if one["value"] is None or other["value"] is None:
        return "not measured"
    return f"x {other['value'] / one['value']:.2f}" if one["value"] else f"{one['value']:g} -> {other['value']:g}"


def _fallen(one: Row | None, other: Row | None) -> str:
    if one is None or other is None or one["verdict"] == other["verdict"]:
        return ""
    return f" ({one['wanted']}: {one['verdict'] or 'nothing'} then, {other['verdict'] or 'nothing'} now)"
