"""Would the present tree make a recorded file again?

Whatever goes into numbers is compared with the record: configuration, code, data, versions, machine, device, threads; a
figure also with the numbers beside it and with the result that it shows. "No" says that something is not the same, and
what; the numbers may come out all the same, and ``zspag reproduce`` is the way to see.

Invariant: "yes" is said only where everything could be looked at and nothing differs. Neither torch nor a checkout of
git is needed; what cannot be known without them is named.
"""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from zspag.config import Profile, from_dict, to_dict
from zspag.profiles import PROFILES, for_pair
from zspag.report import files, provenance

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn")  # those that compute
OPTIONS = (  # of `zspag run` and `zspag sweep`
    "classes",
    "seeds",
    "forget_samples",
    "retain_samples",
    "folder",
    "recorded_models",
    "test_half",
    "retrained",
)
NO_NETS = ("building", "layers", "user_files", "weights")  # of zspag.lab.models: what all architectures share
NAMED = 4  # differences of one kind that are listed

# A finding is whether something is known to differ (or else cannot be known), and what.
Finding = tuple[bool, str]
DIFFERS, UNKNOWN = True, False


def verdict(path: Path) -> str:
    """Say in a line whether the present tree would make a file again, and if not, what differs.

    Args:
        path: A result, figure, notebook or checkpoint that carries provenance.

    Returns:
        "this tree reproduces it: yes", "...: no: <what differs>" or "...: cannot tell: <why>".

    Raises:
        ValueError: If the file carries no record; see ``provenance.read_record``.
    """
    parts = (_configuration, _code, _data, _environment, _figure)
    findings = dict.fromkeys(finding for part in parts for record in _records(path) for finding in part(path, record))
    for kind, word in ((DIFFERS, "no"), (UNKNOWN, "cannot tell")):
        if said := [text for known, text in findings if known is kind]:
            return f"this tree reproduces it: {word}: {'; '.join(said)}"
    return "this tree reproduces it: yes"


def _records(path: Path) -> list[dict[str, Any]]:
    """Return the record of a file, and those of methods that were swept at another time, each but once."""
    own = provenance.read_record(path)
    parts = files.read_json(path).get("data", {}).get("made", {}) if path.suffix == ".json" else {}
    records = [own, *(own | part for part in parts.values())]
    when = ("started", "seconds")
    return list(
        {provenance.digest({name: one[name] for name in one if name not in when}): one for one in records}.values()
    )


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{what} ({', '.join(names[:NAMED])}{more})"


def _configuration(path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    config = record.get("config") or {}
    if record.get("config_sha256") != provenance.digest(config):
        yield DIFFERS, "the record's configuration does not have the hash that stands beside it"
    if "without" in config:  # a trained model: its recipe is complete in its record
        return
    if config.get("name") not in PROFILES:
        yield UNKNOWN, f"the record names no profile that there is, but {config.get('name')!r}"
        return
    try:
        recorded = from_dict(Profile, config)  # an option that is younger than the file had its default then
    except (TypeError, ValueError) as error:
        yield DIFFERS, f"configuration ({error})"
        return
    today = _today(recorded, options=not _of_a_notebook(path))
    same = replace(recorded, workers=today.workers)  # processes share the work and are in no number
    if found := provenance.differences(to_dict(same), to_dict(today), names=("recorded", "now")):
        yield DIFFERS, _listed("configuration", found)
    if record.get("threads") not in (today.threads, today.threads * today.workers):
        yield DIFFERS, f"threads ({record.get('threads')} recorded, {today.threads} now)"


def _of_a_notebook(path: Path) -> bool:
    return path.stem[:2].isdigit()


def _today(recorded: Profile, *, options: bool) -> Profile:
    """Return the profile of this name as it is now, with what the command line had changed where it could have."""
    base = PROFILES[recorded.name]
    if not options:
        return base
    base = for_pair(base, dataset=recorded.dataset, arch=recorded.arch)
    given: dict[str, Any] = {name: getattr(recorded, name) for name in OPTIONS}
    if recorded.ladders.low == recorded.ladders.middle == recorded.ladders.high:  # --rates
        given["ladders"] = recorded.ladders
    return replace(base, **given, train=replace(base.train, epochs=recorded.train.epochs))


def _code(path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    config = record.get("config") or {}
    if "without" in config and "forget" not in config:  # a trained model has the hash of its code in its key
        if config["code"] not in _training_hashes():
            yield DIFFERS, f"code ({', '.join(provenance.TRAINING_CODE)} or the architecture's module)"
        return
    commit = record.get("commit")
    if not commit or record.get("dirty"):
        yield UNKNOWN, "it was made with uncommitted changes" if commit else "it was not made from a checkout of git"
        return
    names = provenance.git("diff", "--name-only", "--no-renames", commit, "--", "zspag", "notebooks")
    if names is None and not provenance.git_is_installed():
        yield UNKNOWN, f"git is not installed here, so the code of commit {commit[:7]} cannot be compared"
    elif names is None:
        yield UNKNOWN, f"commit {commit[:7]}, which made it, is not at hand here"
    elif changed := [name for name in names.splitlines() if _counts(name, path) and _differs(name, commit)]:
        yield DIFFERS, _listed(f"code since {commit[:7]}", changed)


def _training_hashes() -> set[str]:
    """Return the hash of the code of every architecture's training; one of the user's adds no module.

    A checkpoint of before keys held all that is imported has the hash of a list of modules.
    """
    files_there = (Path(__file__).parents[1] / "lab" / "models").glob("[a-z]*.py")
    nets = {f"zspag.lab.models.{file.stem}" for file in files_there if file.stem not in NO_NETS}
    hashes = set()
    for own in ([], *([name] for name in sorted(nets))):
        code = ["zspag.lab.training", "zspag.lab.models.building", *own]
        hashes.add(provenance.closure_hash(code, without=nets.difference(own)))
        hashes.add(provenance.code_hash([*provenance.TRAINING_CODE, *own]))
    return hashes


def _counts(name: str, path: Path) -> bool:
    """Say whether a changed file may be in the numbers: code that computes, or the notebook of the same number."""
    folder, _, rest = name.partition("/")
    if folder == "notebooks":
        return _of_a_notebook(path) and rest.startswith(path.stem[:2]) and rest.endswith(".ipynb")
    module = name.removesuffix(".py").replace("/", ".")
    shows = any(f"{module}.".startswith(f"{known}.") for known in provenance.SHOWING)
    return name.endswith(".py") and not shows


def _differs(name: str, commit: str) -> bool:
    """Compare what a file does, then and now; one that is new is in no number unless another one uses it."""
    then, now = provenance.git("show", f"{commit}:{name}"), files.repository_root() / name
    if then is None:
        return False
    return not now.is_file() or _essence(name, then) != _essence(name, now.read_text(encoding="utf-8"))


def _essence(name: str, text: str) -> Any:
    if name.endswith(".py"):
        return provenance.normalized(text)
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


def _data(path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    wanted, config = record.get("data_sha256"), record.get("config") or {}
    manifests = [files.read_json(found) for found in sorted((files.data_root() / "cache").glob("*.json"))]
    if wanted is None or wanted in {manifest.get("sha256") for manifest in manifests}:
        return
    name = Path(config.get("dataset", "")).name
    if config.get("share", 1.0) < 1:
        yield UNKNOWN, f"it was made on {100 * config['share']:g} % of {name}, of which no hash is kept"
    elif name and name in {manifest.get("name") for manifest in manifests}:
        yield DIFFERS, f"data ({name} has another hash here)"
    else:
        yield UNKNOWN, f"its data are not cached here (`zspag data get {name or 'NAME'}`)"


def _environment(path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    recorded, machine = record.get("versions", {}), record.get("platform", {})
    pairs = {name: (recorded.get(name), provenance.installed(name)) for name in PACKAGES}
    pairs["machine"] = (machine.get("machine"), platform.machine())
    pairs["system"] = (machine.get("system"), platform.system())
    for name, (then, now) in pairs.items():
        if then != now:
            yield DIFFERS, f"{name} ({then} recorded, {now} now)"
    driver = shutil.which("nvidia-smi") is not None and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    if record.get("device") != "cpu" and not driver:
        yield DIFFERS, f"device ({record.get('device')} recorded, the CPU here)"
    elif record.get("device") == "cpu" and driver:
        yield UNKNOWN, "it was made on the CPU, and whether torch would take the GPU here is not known without torch"


def _figure(path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    if path.suffix != ".png":
        return
    path = path.resolve()
    result = path.parent.parent.parent / "results" / path.parent.name / f"{path.stem}.json"
    if not result.is_file():
        yield UNKNOWN, f"no result of its name is recorded in results/{path.parent.name}"
    elif provenance.read_record(result) != record:
        yield DIFFERS, f"it was not drawn from results/{path.parent.name}/{result.name}"
