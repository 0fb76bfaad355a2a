"""Tables and numbers of README and docs, written from committed result files: ``make readme``.

The same command accepts what is recorded (``claims.accept``): ``zspag claims`` refuses what was changed afterwards.

Text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` belongs to this module, the rest to people. A test
fails when a block no longer says what the files say.

Invariant: no number is typed; a block without its files says that it was not measured.
"""

import re
from collections.abc import Callable
from pathlib import Path

from zspag.report import claims, files, notebook_heads, recorded_tables, results_page
from zspag.report.recorded_tables import NOT_YET, grid, read
from zspag.report.reproduce.report import TIMES

_BLOCK = re.compile(r"(<!-- begin (?P<name>[a-z0-9_]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)
CHAPTERS = {
    "00_quickstart": "What happens to a model that is made to forget a class?",
    "01_theory": "Why does projecting an update keep what is retained, and how far does the guarantee reach?",
    "02_proxy_generation": "What stands in for the retain data nobody has?",
    "03_subspace_construction": "Which directions are protected, and are they the right ones?",
    "04_pseudo_labeling": "What should a forgotten image become, and does the influence of a label matter?",
    "05_experiments": "Does it hold for every class and seed, and would something simpler have done?",
    "06_ablations": "Which of its many choices matter, and where does it break?",
    "07_audit": "Is the class gone, or only silent?",
    "08_removal": "What does it take to remove a class from the features, and what does that cost?",
    "09_your_own_model": "How do I use it on my model and my images, and when must I not trust it?",
    "10_appendix": "Which proofs and stricter looks are left?",
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


def chapters(folder: Path) -> str:
    """Return the table of notebooks: what each asks, minutes to read, seconds of the recorded run."""
    costs = (read(folder / "digits" / TIMES) or {}).get("notebooks", {})
    lines = []
    for name, question in CHAPTERS.items():
        seconds = f"{costs[name]['seconds']:.0f}" if name in costs else "not yet measured"
        content = read(folder.parent / "notebooks" / f"{name}.ipynb")
        minutes = "" if content is None else f"{notebook_heads.reading_minutes(content)}"
        lines.append([f"[{name}](notebooks/{name}.ipynb)", question, minutes, seconds])
    if costs:
        lines.append(["all", "", "", f"{sum(cost['seconds'] for cost in costs.values()):.0f}"])
    return grid(["chapter", "question", "minutes to read", "seconds to run"], lines)


def commands(folder: Path) -> str:
    """Return how long the README's commands took in a fresh clone, as ``make fresh-clone`` timed them."""
    if (found := read(folder / "commands.json")) is None:
        return NOT_YET
    spent = {name: _spent(seconds) for name, seconds in found["seconds"].items()}
    lines = [
        f"In a fresh clone of {found['provenance']['commit'][:7]} on {found['provenance']['threads']} cores, after the"
        f" set-up (mostly a download), `make figures` took {spent['make figures']},",
        f"typed again {spent['make figures, again']} (what has not changed does not run again), and `make test`"
        f" {spent['make test']}.",
    ]
    if "six lines" in spent:
        lines.append(
            f"The six lines below took {spent['six lines']}, `zspag demo` {spent['zspag demo']}, and notebook 00,"
            f" opened in JupyterLab and run to its end, {spent['a notebook in the browser']}."
        )
    return "\n".join(lines) + "\n"


def _spent(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.1f} minutes"


def verdicts(folder: Path) -> str:
    """Return the verdict on every claim in two words per profile, with what stands behind it."""
    judged = {profile: claims.judge(folder / profile, profile=profile) for profile in claims.profiles(folder)}
    lines = []
    for own in zip(*judged.values(), strict=True):
        cells = []
        for one in own:
            deciding = next((check for check in one.checks if check.word == one.word), None)
            cells.append(one.word if deciding is None else f"**{one.word}**, {deciding.n}")
        lines.append([f"{own[0].claim}: {own[0].statement}", *cells])
    older = recorded_tables.older_claims(folder, judged)
    return grid(["claim", *judged], lines) + (f"\n{older}" if older else "") if lines else NOT_YET


def lead(folder: Path) -> str:
    """Return what the figure at the top does not show: what came out over all classes and originals (claim C2)."""
    judged = {one.claim: one for one in claims.judge(folder / "digits", profile="digits")}
    if not judged["C2"].checks:
        return NOT_YET
    first = judged["C2"].checks[0]
    return (
        f"One class of digits and one original (notebook 00). Over {first.n} the ratio of the largest safe rate to the"
        f" smallest is\n{first.found}, with the projection against without: that it widens the safe rates is"
        f" **{first.word}** there (claim C2 below).\n"
    )


BLOCKS: dict[str, Callable[[Path], str]] = {
    "lead": lead,
    "commands": commands,
    "chapters": chapters,
    "verdicts": verdicts,
    "headline": recorded_tables.headline,
    "external": recorded_tables.external,
    "bench": recorded_tables.bench,
}


def main() -> None:
    """Accept the recorded results as they are, and write every page anew: README, docs, results, notebooks' heads."""
    root = files.repository_root()
    notebook_heads.write(root)
    pages = {root / "results" / "README.md": results_page.render(root)}
    pages |= {root / "results" / "TABLES.md": results_page.render_tables(root)}
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        pages[path] = render(path.read_text(encoding="utf-8"), root)
    for path, text in pages.items():
        files.write_text(path, text)
    claims.accept(root / "results")  # last: it hashes what lies there


if __name__ == "__main__":
    main()
