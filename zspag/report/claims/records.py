"""Are the recorded files those that were recorded, and do their headline numbers follow from their rows?

``make readme`` accepts what lies in ``results/`` and writes two files beside it: ``SHA256SUMS``, which
``sha256sum -c SHA256SUMS`` checks as well, and ``claims.json``, the verdicts as they stand.

Invariant: an edit, a file cut short, one that is missing and one that nobody accepted are each named.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

from zspag.report import files
from zspag.report.claims.decisions import CONTRADICTED, SUPPORTED, UNDECIDED
from zspag.report.claims.evidence import grid
from zspag.report.claims.verdicts import judge, lines
from zspag.report.results import Result
from zspag.report.tables import REFERENCES, in_hindsight, over_classes, safe_rates, window

SUMS, VERDICTS = "SHA256SUMS", "claims.json"
NO_PROFILE = {"bench", "external", "peers", "published", "removal", "scenarios", "spread"}  # no claim stands on them
AGREE = 1e-4  # relative: rows of a sweep are kept with six digits, its numbers with all


def profiles(folder: Path) -> list[str]:
    """Return the profiles of which anything is recorded in ``results/``, or was when it was accepted."""
    return sorted({path.parent.name for path in folder.glob("*/*.json")} - NO_PROFILE | {*_accepted(folder)})


def accept(folder: Path) -> None:
    """Write the verdicts and the checksums of everything that is recorded in ``results/`` now."""
    names = sorted({path.parent.name for path in folder.glob("*/*.json")} - NO_PROFILE)
    verdicts = {
        profile: {verdict.claim: verdict.word for verdict in judge(folder / profile, profile=profile)}
        for profile in names
    }
    files.write_json(folder / VERDICTS, {"schema": 1, "verdicts": verdicts})
    files.write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in _digests(folder).items()))


def audit(root: Path, *, profile: str, fresh: bool) -> tuple[list[str], list[str]]:
    """Judge the claims of one profile, after its files have been verified.

    Args:
        root: Root of the repository.
        profile: Name of the profile.
        fresh: Judge ``runs/<profile>/results``, which nobody has accepted, instead of ``results/<profile>``.

    Returns:
        Lines for the reader, without a verdict where a file cannot be trusted; and what is wrong, if anything: files
        that are not as accepted, numbers that do not follow from their rows, claims that are supported no more.
    """
    recorded = root / "results"
    folder = root / "runs" / profile / "results" if fresh else recorded / profile
    troubles = ([] if fresh else list(_changed(recorded, profile))) or list(_unsupported(folder))
    if not troubles and not any(folder.glob("*.json")):
        troubles = [f"there is no result in {files.shown(folder)}"]
    if troubles:
        return [f"profile {profile}: no verdict, for its files cannot be trusted"], troubles
    verdicts = judge(folder, profile=profile)
    held = _accepted(recorded).get(profile, {})
    fallen = [one for one in verdicts if one.word in (CONTRADICTED, UNDECIDED) and held.get(one.claim) == SUPPORTED]
    return [f"profile {profile}", *lines(verdicts)], [
        f"{one.claim} was supported when the results were accepted, and is {one.word} now" for one in fallen
    ]


def _accepted(folder: Path) -> dict[str, dict[str, str]]:
    """Return the verdicts of the time when the results were accepted, by profile and claim."""
    try:
        found: dict[str, dict[str, str]] = files.read_json(folder / VERDICTS)["verdicts"]
    except (FileNotFoundError, ValueError):
        return {}  # the checksums say what is wrong with it
    return found


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file by its path, but of the sums and of unfinished files, which begin with a dot."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name[0] != "." and path.name != SUMS]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _changed(folder: Path, profile: str) -> Iterator[str]:
    if not (folder / SUMS).is_file():
        yield f"{SUMS} is missing from {folder.name}, so nothing can be verified; `make readme` writes it"
        return
    entries = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    accepted = {name: digest for digest, _, name in (entry.partition("  ") for entry in entries)}
    now = _digests(folder)
    for name in sorted({*accepted, *now}):
        if "/" in name and Path(name).parts[0] != profile:
            continue
        if name not in now:
            yield f"{name} is missing, although it was recorded"
        elif name not in accepted:
            yield f"{name} has not been accepted yet: look at it, then run `make readme`"
        elif now[name] != accepted[name]:
            yield f"{name} was edited or cut short after it was recorded: take it from the repository again"


def _unsupported(folder: Path) -> Iterator[str]:
    # Every file that cannot be read, and every headline number of a run or sweep that its rows do not give.
    headlines = {
        **dict.fromkeys(folder.glob("run_*.json"), _of_a_run),
        **dict.fromkeys(folder.glob("sweep_*.json"), _of_a_sweep),
    }
    for path in sorted(folder.glob("*.json")):
        try:
            content = files.read_json(path)
        except ValueError as error:
            yield str(error)
            continue
        if path not in headlines:
            continue
        result = Result.from_dict(content)
        for name, value in headlines[path](result):
            recorded = result.number(name) if name in result.numbers else math.nan
            if not math.isclose(recorded, value, rel_tol=AGREE, abs_tol=1e-9):
                yield f"{path.name}: {name} is recorded as {recorded:g}, but its rows give {value:g}"


def _of_a_run(result: Result) -> Iterator[tuple[str, float]]:
    for row in result.measurements["rows"]:
        tag = f"{row['class_name']} seed {row['seed']}"
        yield f"{tag} acc_forget", row["scores"]["unlearned"]["acc_forget"]
        yield f"{tag} over_unlearning", row["scores"]["unlearned"]["over_unlearning"]
        yield f"{tag} seconds", row["seconds"]["total"]


def _of_a_sweep(result: Result) -> Iterator[tuple[str, float]]:
    rows = grid(result)
    drift, lost = (over_classes(in_hindsight(rows), name) for name in ("drift", "over_unlearning"))
    for method in drift.keys() - {*REFERENCES}:
        if result.config.get("rates_of"):  # one rate has no window
            yield f"points lost {method}", 100 * lost[method]["mean"]
        else:
            yield f"safe window {method}", window(safe_rates(rows, method))
        yield f"drift in hindsight {method}", drift[method]["mean"]
