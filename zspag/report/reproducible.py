"""Would the present tree make a recorded file again?

The file's record is compared with the tree: configuration, code, data, versions, machine, device and threads; a figure
also with the result that it shows. "No" names what is different. "Cannot tell" names what cannot be compared, and code
that has changed: whether a change moves a number, only ``zspag reproduce`` can show.

Invariant: "yes" is said only where everything was compared and nothing differs. torch is not needed.
"""

import ast
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from zspag.config import from_dict, to_dict
from zspag.profiles import PROFILES, Profile, for_pair
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
    "rates_of",
)
NO_NETS = ("building", "layers", "user_files", "weights")  # of zspag.lab.models: what all architectures share
NAMED = 4  # differences of one kind that are listed

Finding = tuple[bool, str]  # True if something differs, False if it cannot be known; and what
DIFFERS, UNKNOWN = True, False


def verdict(path: Path) -> str:
    """Say in a line whether the present tree would make a file again; a file without a record is a ValueError.

    Returns:
        "this tree reproduces it: yes", "...: no: <what differs>" or "...: cannot tell: <why>".
    """
    own = provenance.read_record(path)
    later = files.read_json(path).get("made", {}) if path.suffix == ".json" else {}
    records = [own, *(own | part for part in later.values())]  # methods that joined a sweep later have their own
    parts = (_configuration, _code, _data, _environment, _figure)
    findings = dict.fromkeys(finding for part in parts for record in records for finding in part(path, record))
    for kind, word in ((DIFFERS, "no"), (UNKNOWN, "cannot tell")):
        if reasons := [reason for known, reason in findings if known is kind]:
            return f"this tree reproduces it: {word}: {'; '.join(reasons)}"
    return "this tree reproduces it: yes"


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{what} ({', '.join(names[:NAMED])}{more})"


def _of_a_notebook(path: Path) -> bool:
    return path.stem[:2].isdigit()


def _configuration(path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    config = record.get("config") or {}
    if record.get("config_sha256") != provenance.digest(config):
        yield DIFFERS, "the record's configuration does not have the hash that stands beside it"
    if "without" in config:  # a trained model: its record holds its whole recipe
        return
    if (name := config.get("name")) not in PROFILES:
        named = f"there is no profile {name!r}, which its record names"
        yield UNKNOWN, named if name else "the record names no profile"
        return
    try:
        recorded = from_dict(Profile, config)  # an option that is younger than the file had its default then
    except (TypeError, ValueError) as error:
        yield DIFFERS, f"configuration ({error})"
        return
    today = PROFILES[recorded.name]
    if not _of_a_notebook(path):  # the command line can choose other data, nets, options, rates and epochs
        today = for_pair(today, dataset=recorded.dataset, arch=recorded.arch)
        chosen: dict[str, Any] = {name: getattr(recorded, name) for name in OPTIONS}
        if recorded.ladders.low == recorded.ladders.middle == recorded.ladders.high:  # --rates
            chosen["ladders"] = recorded.ladders
        today = replace(today, **chosen, train=replace(today.train, epochs=recorded.train.epochs))
    recorded = replace(recorded, workers=today.workers)  # no number depends on how many processes share the work
    if found := provenance.differences(to_dict(recorded), to_dict(today), names=("recorded", "now")):
        yield DIFFERS, _listed("configuration", found)
    if record.get("threads") not in (today.threads, today.threads * today.workers):
        yield DIFFERS, f"threads ({record.get('threads')} recorded, {today.threads} now)"


def _code(path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    config, commit = record.get("config") or {}, record.get("commit")
    if "without" in config and "forget" not in config:  # the key of a trained model holds the hash of its code
        if config["code"] not in _training_hashes():
            yield UNKNOWN, "the code of its training has changed since"
    elif not commit:
        yield UNKNOWN, "it was not made from a checkout of git"
    elif record.get("dirty"):
        yield UNKNOWN, "it was made with uncommitted changes"
    elif (listed := provenance.git("diff", "--name-only", "--no-renames", commit, "--", "zspag", "notebooks")) is None:
        yield UNKNOWN, f"its code, commit {commit[:7]}, is not at hand here"
    elif changed := _changed([name for name in listed.splitlines() if _counts(name, path)], commit):
        yield UNKNOWN, _listed(f"code changed since {commit[:7]}", changed)


def _training_hashes() -> set[str]:
    """Return today's hash of the training code of every architecture; the user's own architecture adds no module."""
    models = Path(__file__).parents[1] / "lab" / "models"
    nets = {f"zspag.lab.models.{file.stem}" for file in models.glob("[a-z]*.py") if file.stem not in NO_NETS}
    training = ["zspag.lab.training", "zspag.lab.models.building"]
    every = [set[str](), *({name} for name in nets)]
    return {provenance.closure_hash([*training, *own], without=nets - own) for own in every}


def _counts(name: str, path: Path) -> bool:
    """Say whether a file of code may be in the numbers of ``path``: what computes, or the notebook that made it."""
    if name.startswith("notebooks/"):
        return _of_a_notebook(path) and name.startswith(f"notebooks/{path.stem[:2]}") and name.endswith(".ipynb")
    module = name.removesuffix(".py").replace("/", ".")
    return name.endswith(".py") and not any(f"{module}.".startswith(f"{known}.") for known in provenance.SHOWING)


def _changed(names: list[str], commit: str) -> list[str]:
    """Return the files whose code of ``commit`` is nowhere among the files of today: a moved file has not changed."""
    root = files.repository_root()
    today = {_essence(name, (root / name).read_text(encoding="utf-8")) for name in names if (root / name).is_file()}
    before = {name: provenance.git("show", f"{commit}:{name}") for name in names}
    return [name for name, text in before.items() if text is not None and _essence(name, text) not in today]


def _essence(name: str, text: str) -> str:
    """Return what a file of code does: neither comments and docstrings nor the text and outputs of a notebook."""
    if name.endswith(".py"):
        return provenance.normalized(ast.parse(text))
    return json.dumps(["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"])


def _data(path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    wanted, config = record.get("data_sha256"), record.get("config") or {}
    cached = [files.read_json(found) for found in sorted((files.data_root() / "cache").glob("*.json"))]
    if wanted is None or wanted in {manifest.get("sha256") for manifest in cached}:
        return
    name = Path(config.get("dataset", "")).name
    if config.get("share", 1.0) < 1:
        yield UNKNOWN, f"it was made on {100 * config['share']:g} % of {name}, of which no hash is kept"
    elif name and name in {manifest.get("name") for manifest in cached}:
        yield DIFFERS, f"data ({name} has another hash here)"
    else:
        yield UNKNOWN, f"its data are not cached here (`zspag data get {name or 'NAME'}`)"


def _environment(path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    versions, machine, device = record.get("versions", {}), record.get("platform", {}), record.get("device")
    pairs = {name: (versions.get(name), provenance.installed(name)) for name in PACKAGES}
    pairs["machine"] = (machine.get("machine"), platform.machine())
    pairs["system"] = (machine.get("system"), platform.system())
    for name, (then, now) in pairs.items():
        if then != now:
            yield DIFFERS, f"{name} ({then} recorded, {now} now)"
    gpu = shutil.which("nvidia-smi") is not None and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    if device != "cpu" and not gpu:
        yield DIFFERS, f"device ({device} recorded, the CPU here)"
    elif device == "cpu" and gpu:
        yield UNKNOWN, "it was made on the CPU, and only torch knows whether it would use the GPU here"


def _figure(path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    if path.suffix != ".png":
        return
    profile = path.resolve().parent.name
    result = path.resolve().parents[2] / "results" / profile / f"{path.stem}.json"
    if not result.is_file():
        yield UNKNOWN, f"no result of its name is recorded in results/{profile}"
    elif provenance.read_record(result) != record:
        yield DIFFERS, f"it was not drawn from results/{profile}/{result.name}"
