"""The same call in the package as it was at fa40f86: a child process with that package in front of everything.

The child runs ``python -m benchmarks.external.old``, reads jobs from its standard input, one JSON a line, and answers
each with one line. It measures nothing but its own seconds; its models come back as files.

Invariant: a child refuses to work if the package it imported is not the one it was started for.
"""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

COMMIT = "fa40f86"
WARM_UP = 2  # passes before the clock starts: a first pass sets up libraries


def old_package(runs: Path, repository: Path) -> Path:
    """Return a folder that holds the package of ``COMMIT``, taken out of git where it is not there yet.

    Raises:
        RuntimeError: If git does not have that commit.
    """
    folder = runs / COMMIT
    if (folder / "zspag" / "unlearning.py").exists():
        return folder
    answer = subprocess.run(
        ["git", "-C", str(repository), "archive", COMMIT, "zspag"], capture_output=True, check=False
    )
    if answer.returncode:
        raise RuntimeError(f"git cannot hand out {COMMIT}: {answer.stderr.decode().strip()}; unpack it into {folder}")
    with tarfile.open(fileobj=io.BytesIO(answer.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Child:
    """A process that runs ``zero_shot_unlearn`` of the package in ``package``, job by job.

    Args:
        package: Folder that holds ``zspag``.
        repository: Folder that holds ``benchmarks``.
        threads: Intra-op threads of the process.
    """

    def __init__(self, package: Path, repository: Path, *, threads: int) -> None:
        places = os.pathsep.join([str(package.resolve()), str(repository.resolve())])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.external.old", str(package.resolve()), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=package,
            env=os.environ | {"PYTHONPATH": places, "PYTHONSAFEPATH": "1"},
        )

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one job and return the child's answer.

        Raises:
            RuntimeError: If the child ended, or the job failed; the message is the child's.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process of {job['side']} ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("error"):
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()


def synchronize(device: str) -> None:
    """Wait for what a GPU still has to do."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def report_of(result: Any) -> dict[str, Any]:
    """Return the report as a dictionary, its own where it has one, with None for what is not finite."""
    report = result.report
    found: dict[str, Any] = finite(report.to_dict() if hasattr(report, "to_dict") else asdict(report))
    return found


def finite(value: Any) -> Any:
    """Return nested lists and dictionaries with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def unlearn(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job: load weights and forget set, unlearn with the defaults, save the open model.

    Args:
        job: ``net``, ``weights``, ``forget`` and ``output`` (files), ``device``, ``seed``, ``num_classes``, ``twin``.

    Returns:
        Seconds, and the report.
    """
    from safetensors.torch import load_file, save_file

    from benchmarks.external.nets import NETS
    from zspag import zero_shot_unlearn

    net = NETS[job["net"]]
    model = (net.twin if job["twin"] and net.twin is not None else net.build)()
    given = load_file(job["forget"])
    model.load_state_dict(load_file(job["weights"]))
    model = model.to(job["device"]).eval()
    images, labels = given["images"].to(job["device"]).float() / 255, given["labels"].to(job["device"])
    for _ in range(WARM_UP):
        model(images[:2].clone().requires_grad_(True))
    synchronize(job["device"])
    started = time.perf_counter()
    result = zero_shot_unlearn(model, images, labels, num_classes=job["num_classes"], seed=job["seed"])
    synchronize(job["device"])
    seconds = time.perf_counter() - started
    changed = getattr(result, "open_model", result.model)
    if job.get("output"):
        save_file(
            {name: part.detach().cpu().contiguous() for name, part in changed.state_dict().items()}, job["output"]
        )
    return {"seconds": seconds, "report": report_of(result)}


def main(package: str, threads: str) -> None:
    """Answer every line of the standard input.

    Raises:
        SystemExit: If ``zspag`` does not come from the folder ``package``.
    """
    import torch

    try:
        from zspag.report.files import plain
    except ModuleNotFoundError:  # fa40f86 has it at the top
        from zspag.files import plain

    import zspag

    found = Path(zspag.__file__).resolve().parents[1]
    if found != Path(package):
        raise SystemExit(f"zspag was imported from {found}, not from {package}")
    torch.set_num_threads(int(threads))
    for line in sys.stdin:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # whatever else prints must not mix with the answers
                answer = plain(unlearn(json.loads(line)), "answer")
        except Exception as error:  # noqa: BLE001  a failure is an answer too
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
