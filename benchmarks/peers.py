"""zspag beside the packages that a user may pick instead: one net, the same forget sets, one run.

``python -m benchmarks.peers run --record`` installs the packages apart, runs every use of ``benchmarks.peer_uses`` in
a process of its own, judges all nets alike, and writes ``results/peers``. ``python -m benchmarks.peers table`` writes
the page from the recorded file. Without ``--record`` everything goes to ``runs/peers-apart``.

Invariant: a package that does not install, crashes or hangs is a row that says so, and every comparison on the page is
computed from the rows.
"""

import argparse
import copy
import itertools
import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import peer_uses
from benchmarks.peer_page import PEERS, SCHEMA, Rows, table
from benchmarks.peer_uses import INPUTS, USES, Use
from zspag import zero_shot_unlearn
from zspag.lab.audit.bench import Bench
from zspag.lab.audit.features import penultimate
from zspag.lab.audit.measures import PENALTY
from zspag.lab.audit.probes import linear_probe
from zspag.lab.evaluation import Masked, score
from zspag.lab.experiment import Case, data_of, forget_set, guard_of, made_now, trained
from zspag.profiles import PROFILES, Profile
from zspag.report import files, provenance

CLASSES, SEED = (1, 5, 8), 0  # not 3, the class of trials, nor 0, which is what a ruined net answers
LIMIT = 600  # seconds that the process of one use may take
LONGEST = 160  # characters of a message that are kept


def place(*parts: str) -> Path:
    """Return where the packages and everything that a run leaves lie."""
    return files.repository_root().joinpath("runs", "peers-apart", *parts)


def install(package: str) -> dict[str, Any]:
    """Install a package into an environment of its own, which sees our packages behind its own, and say how it went.

    Our torch is a constraint. Where that cannot be, the package comes without its dependencies.
    """
    peer, folder = PEERS[package], place(package)
    wanted, kept = [f"{package}=={peer.version}", *peer.beside], place(package, "installed.json")
    if kept.is_file() and (old := files.read_json(kept))["wanted"] == wanted:
        return dict(old["found"])
    venv.create(folder, clear=True, symlinks=os.name != "nt")
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (folder / "constraints.txt").write_text(f"torch=={torch.__version__.partition('+')[0]}\n", encoding="utf-8")
    within = ("--constraint", str(folder / "constraints.txt"))
    clash, error = pip(folder, wanted[0], *within), None
    if clash is not None:
        error = pip(folder, wanted[0], "--no-deps")
        if error is None and peer.beside:
            error = pip(folder, *peer.beside, *within)
    found = {"version": peer.version, "clash": clash, "error": error}
    files.write_json(kept, {"wanted": wanted, "found": found})
    return found


def pip(folder: Path, *words: str) -> str | None:
    """Install into an environment; return None, or the first line of the error."""
    command = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet", "--no-input", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode == 0:
        return None
    errors = [line.removeprefix("ERROR:") for line in ended.stderr.splitlines() if line.startswith("ERROR:")]
    return plain((errors or ["pip failed and named no error"])[0])


def plain(text: str) -> str:
    """Return one line of a program, cut to ``LONGEST``, with file names in place of this machine's paths.

    Example:
        >>> plain("no file '/somewhere/deep/a.txt' or b/c")
        "no file a.txt' or b/c"
    """
    words = [word.rpartition("/")[2] if word.lstrip("'\"(").startswith("/") else word for word in text.split()]
    line = " ".join(words)
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def run_use(name: str, use: Use, cases: Sequence[Case], *, trials: int) -> tuple[Rows, str | None]:
    """Run one use in a process of its own; return its answers, and what ended it before all were there."""
    folder, foreign = place("work", name), use.package in PEERS and not use.again
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    job = {
        "call": use.call,
        "module": PEERS[use.package].module if foreign else "zspag" if use.again else use.package,
        "model": trained(cases[0].profile, cases[0].seed).cpu(),
        "cases": [_data(case) for case in cases],
        "settings": {one: trials if one == "ladder" else 1 for one in use.settings},
        "default": peer_uses.default_of(use.call),
        "factor": use.factor,
        "classes": data_of(cases[0].profile).num_classes,
    }
    torch.save(job, folder / "job.pt")
    scripts = Path(sysconfig.get_path("scripts", "venv", {"base": str(place(use.package))}))
    python = str(scripts / Path(sys.executable).name) if foreign else sys.executable
    sources = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sources))}
    command = [python, "-m", "benchmarks.peer_uses", str(folder)]
    said, trouble = folder / "stderr.txt", None
    with said.open("wb") as errors:
        try:
            code = subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=errors, env=env, timeout=LIMIT, check=False
            ).returncode
            last = (said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
            trouble = None if code == 0 else plain(last) or f"the process ended with {code}"
        except subprocess.TimeoutExpired:
            trouble = f"no answer within {LIMIT} s"
    answers = folder / "answers.jsonl"
    lines = answers.read_text(encoding="utf-8").splitlines() if answers.is_file() else []
    return [json.loads(line) for line in lines], trouble


def _data(case: Case) -> dict[str, Any]:
    guard = guard_of(case)
    images, labels = forget_set(case, guard)
    return {"class": case.forget, "forget": (images.cpu().contiguous(), labels.cpu()), "retain": guard.retain_train()}


def run(profile: Profile, uses: Mapping[str, Use] = USES) -> dict[str, Any]:
    """Return everything that the page shows, as JSON holds it: the classes of a profile, its first seed."""
    started, cases = time.time(), [Case(profile, profile.seeds[0], forget) for forget in profile.classes]
    packages = {
        name: install(name)
        if name in PEERS
        else {"version": provenance.installed(name) or "", "clash": None, "error": None}
        for name in dict.fromkeys(use.package for use in uses.values())
    }
    benches = {case.forget: _bench(case) for case in cases}
    sets = {case.forget: _data(case) for case in cases}
    original = benches[cases[0].forget].networks["original"]
    trials = len(zero_shot_unlearn(original, *sets[cases[0].forget]["forget"]).report.tried)
    rows = [
        {"use": name, "class": forget} | judged(bench, net)
        for forget, bench in benches.items()
        for name, net in bench.networks.items()
    ]
    bad: Rows = []
    for name, use in uses.items():
        trouble = None if use.again else packages[use.package]["error"]
        answers, trouble = ([], trouble) if trouble else run_use(name, use, cases, trials=trials)
        given = {(one["class"], one["setting"]): one for one in answers if "setting" in one}
        for forget, setting in itertools.product(benches, use.settings):
            row = {"use": name, "setting": setting, "class": forget, "error": trouble} | given.get(
                (forget, setting), {}
            )
            if row["error"] is None:
                net = copy.deepcopy(original)
                net.load_state_dict(torch.load(place("work", name, f"{forget}-{setting}.pt")))
                row |= judged(benches[forget], net)
            rows.append(row)
        seen = {one["input"]: one | {"said": plain(one["said"])} for one in answers if "input" in one}
        if not use.again:
            bad += [{"use": name} | seen.get(one, {"input": one, "kind": "did not run", "said": ""}) for one in INPUTS]
    found = {
        "schema": SCHEMA,
        "trials": trials,
        "forget_samples": {str(forget): len(one["forget"][1]) for forget, one in sets.items()},
        "retain_samples": {str(forget): len(one["retain"][1]) for forget, one in sets.items()},
        "packages": packages,
        "uses": {name: asdict(use) | {"lines": peer_uses.lines_of(use.call)} for name, use in uses.items()},
        "rows": rows,
        "bad": bad,
        "provenance": made_now(profile, seed=profile.seeds[0], started=started),
    }
    return dict(files.plain(found, "peers"))


def _bench(case: Case) -> Bench:
    original, retrained = trained(case.profile, case.seed), trained(case.profile, case.seed, case.forget)
    masked = Masked(original, forget=(case.forget,), num_classes=data_of(case.profile).num_classes)
    return Bench(case, {"original": original, "masked": masked, "retrained": retrained})


def judged(bench: Bench, net: nn.Module) -> dict[str, Any]:
    """Return forget accuracy, points lost, drift, and the recall of a linear probe, None on a ruined net."""
    found = score(bench.references.images.map_logits(net.eval()), bench.references)
    fitted, tested = (penultimate(net, images) for images in (bench.fitted[0], bench.test[0]))
    probe = None
    if bool(fitted.isfinite().all()) and bool(tested.isfinite().all()):
        forget = (bench.case.forget,)
        labels, truth = bench.fitted[1], bench.test[1]
        probe = linear_probe(fitted, labels, tested, truth, forget=forget, penalty=PENALTY).forget
    return {
        "acc_forget": found.acc_forget,
        "lost": 100 * found.over_unlearning,
        "drift": found.drift,
        "probe": probe,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0: done, 2: the input cannot work."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument(
        "--tiny", action="store_true", help="one class of a small net: every line runs, no number counts"
    )
    parser.add_argument("--record", action="store_true", help="write to results/peers instead of runs/peers-apart")
    chosen = parser.parse_args(arguments)
    if chosen.tiny and chosen.record:
        parser.error("numbers of --tiny are not recorded")
    recorded = files.repository_root() / "results" / "peers"
    folder = recorded if chosen.record or chosen.command == "table" else place()
    try:
        if chosen.command == "run":
            profile = replace(PROFILES["smoke" if chosen.tiny else "digits"], seeds=(SEED,))
            profile = replace(profile, classes=CLASSES[:1] if chosen.tiny else CLASSES)
            files.write_json(folder / "peers.json", run(profile))
        sys.stdout.write(f"wrote {files.shown(table(folder))}\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"python -m benchmarks.peers: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
