"""Are the recorded files those that were recorded, and do their headline numbers follow from their rows?

``make readme`` accepts what lies in ``results/`` and writes two files beside it: ``SHA256SUMS``, which
``sha256sum -c SHA256SUMS`` checks as well, and ``claims.json``, the verdicts as they stand.

Invariant: an edit, a file cut short, one that is missing and one that nobody accepted are each named.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zspag.report import files
from zspag.report.claims.checks import NO, YES, lines
from zspag.report.claims.evidence import grid
from zspag.report.claims.verdicts import judge
from zspag.report.tables import in_hindsight, over_classes, safe_rates, window

SUMS, VERDICTS = "SHA256SUMS", "claims.json"
NO_PROFILE = {"bench", "external"}  # times of the package's parts, and other people's nets: no claim stands on them
AGREE = 1e-4  # relative: rows of a sweep are kept with six digits, its numbers with all


def profiles(results: Path) -> list[str]:
    """Return the profiles of which anything is recorded, or was when the results were accepted."""
    return sorted(_folders(results) | {*_verdicts(results)})


def _folders(results: Path) -> set[str]:
    return {path.parent.name for path in results.glob("*/*.json")} - NO_PROFILE


def accept(results: Path) -> None:
    """Write the verdicts and the checksums of everything that is recorded now."""
    names = sorted(_folders(results))
    verdicts = {
        profile: {verdict.claim: verdict.word for verdict in judge(results / profile, profile=profile)}
        for profile in names
    }
    files.write_json(results / VERDICTS, {"schema": 1, "verdicts": verdicts})
    with files.replacing(results / SUMS) as temporary:
        temporary.write_text("".join(f"{digest}  {name}\n" for name, digest in _digests(results).items()))


def audit(root: Path, *, profile: str, fresh: bool) -> tuple[list[str], list[str]]:
    """Judge the claims of one profile, after its files have been verified.

    Args:
        root: Root of the repository.
        profile: Name of the profile.
        fresh: Judge ``runs/<profile>/results``, which nobody has accepted, instead of ``results/<profile>``.

    Returns:
        Lines for the reader, without a verdict where a file cannot be trusted; and what is wrong, if anything: files
        that are not as accepted, numbers that do not follow from their rows, claims that held and do not any more.
    """
    results = root / "results"
    folder = root / "runs" / profile / "results" if fresh else results / profile
    troubles = ([] if fresh else list(_changed(results, profile))) or list(_unsupported(folder))
    if not troubles and not any(folder.glob("*.json")):
        troubles = [f"there is no result in {files.shown(folder)}"]
    if troubles:
        return [f"profile {profile}: no verdict, for its files cannot be trusted"], troubles
    verdicts = judge(folder, profile=profile)
    held = _verdicts(results).get(profile, {})
    fallen = [one.claim for one in verdicts if one.word == NO and held.get(one.claim) == YES]
    return [f"profile {profile}", *lines(verdicts)], [
        f"{claim} held when the results were accepted, and does not hold any more" for claim in fallen
    ]


def _verdicts(results: Path) -> dict[str, dict[str, str]]:
    """Return the verdicts of the time when the results were accepted, by profile and claim."""
    try:
        found: dict[str, dict[str, str]] = files.read_json(results / VERDICTS)["verdicts"]
    except (FileNotFoundError, ValueError):
        return {}  # the checksums say what is wrong with it
    return found


def _digests(results: Path) -> dict[str, str]:
    """Return the SHA-256 of every file by its path; unfinished ones, which begin with a dot, and the sums are none."""
    found = {path.relative_to(results).as_posix(): path for path in sorted(results.rglob("*")) if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in found.items()
        if name != SUMS and not path.name.startswith(".")
    }


def _changed(results: Path, profile: str) -> Iterator[str]:
    if not (results / SUMS).is_file():
        yield f"{SUMS} is missing from {results.name}, so nothing can be verified; `make readme` writes it"
        return
    entries = (results / SUMS).read_text(encoding="utf-8").splitlines()
    accepted = {name: digest for digest, _, name in (entry.partition("  ") for entry in entries)}
    now = _digests(results)
    for name in sorted({*accepted, *now}):
        if "/" in name and not name.startswith(f"{profile}/"):
            continue
        if name not in now:
            yield f"{name} is missing, although it was recorded"
        elif name not in accepted:
            yield f"{name} has not been accepted yet: look at it, then run `make readme`"
        elif now[name] != accepted[name]:
            yield f"{name} was edited or cut short after it was recorded: take it from the repository again"


def _unsupported(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.json")):
        try:
            content = files.read_json(path)
        except ValueError as error:
            yield str(error)
            continue
        for name, value in _headline(path.stem, content):
            recorded = float(content["numbers"].get(name, [math.nan])[0])
            if not math.isclose(recorded, value, rel_tol=AGREE, abs_tol=1e-9):
                yield f"{path.name}: {name} is recorded as {recorded:g}, but its rows give {value:g}"


def _headline(stem: str, content: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    # What a file says at its head, computed again from its rows, where it has any.
    if stem.startswith("run_"):
        for row in content["data"]["rows"]:
            tag = f"{row['class_name']} seed {row['seed']}"
            yield from (
                (f"{tag} {name}", row["scores"]["unlearned"][name]) for name in ("acc_forget", "over_unlearning")
            )
            yield f"{tag} seconds", row["seconds"]["total"]
    if stem.startswith("sweep_"):
        rows = grid(content)
        drift = over_classes(in_hindsight(rows), "drift")
        for name in content["numbers"]:
            kind, _, method = name.rpartition(" ")
            if kind == "safe window":
                yield name, window(safe_rates(rows, method))
            elif kind == "drift in hindsight":
                yield name, drift[method]["mean"]
