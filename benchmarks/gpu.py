"""What one card does, in one call of at most twelve minutes: ``make gpu``; TINY=1 shows that every line runs, anywhere.

Each step is a process with a time box of its own, and leaves one JSON file in ``runs/gpu``, whole or not at all. These
files and two figures are copied to the folder that ``OUT`` names, if it names one.

``python -m benchmarks.gpu pack`` writes an archive that travels to a machine without a network: a half of CIFAR-10, in
JPEG. Where it lies in ``runs/gpu/data``, it is the data of all steps, and every file says so.

Invariant: a step that is finished is not run again. One that failed is recorded as failed, and the others go on.
"""

import argparse
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.stages import settings, timing, trace
from benchmarks.stages.findings import compared
from benchmarks.stages.machine import Machine, processor
from zspag import proxies, runtime
from zspag.config import ProxyConfig
from zspag.lab import cache, checkpoints, experiment, runs
from zspag.lab.data import load
from zspag.process.surroundings import plain_layout
from zspag.profiles import PROFILES, Profile
from zspag.proxies import Attacked, attack, margins_of
from zspag.report import files, plots, provenance, results
from zspag.speedups.conv_bn import conv_bn_pairs, fuse_conv_bn

CHECKOUT = Path(__file__).parents[1]
HALF = "a half of CIFAR-10 (every second image of each class), JPEG-coded"
QUALITY = 92  # of the JPEGs, without subsampling of colours: 30,000 images are about 32 MiB
EPS = 8 / 255
FORGET = 3
LATEST = 80  # seconds after which no further way to attack is begun: to compile one takes long
NO_CARD = "make gpu takes a CUDA card, and there is none here; TINY=1 runs every line without one"


def folder_of(*, tiny: bool) -> Path:
    """Return where the files of the steps lie."""
    return files.repository_root() / "runs" / "gpu" / ("tiny" if tiny else "")


def profile_of(*, tiny: bool) -> Profile:
    """Return the experiment: one class of the paper's ResNet-18 on CIFAR-10, or the smallest there is."""
    return PROFILES["smoke"] if tiny else replace(PROFILES["paper"], classes=(FORGET,))


# The steps


def tests(*, tiny: bool) -> dict[str, Any]:
    """Run the tests of a card.

    Raises:
        RuntimeError: If one fails; the message is the end of pytest's output.
    """
    # Another torch or matplotlib may warn of what it will drop: no reason to fail here.
    options = ["-q", "-W", "ignore", "-p", "no:cacheprovider", "-k", "on_a_card", "-m", "slow or not slow"]
    command = [sys.executable, "-m", "pytest", *options, str(CHECKOUT / "tests" / "test_gpu.py")]
    outside = {name: value for name, value in os.environ.items() if name not in ("ZSPAG_ROOT", "ZSPAG_DATA")}
    ended = subprocess.run(command, cwd=CHECKOUT, env=outside, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"pytest: {_last(ended.stdout + ended.stderr, 15)}")
    return {"pytest": _last(ended.stdout, 1)}


def nets(*, tiny: bool) -> dict[str, Any]:
    """Train the net, retrain it without a class, unlearn that class: seconds, and the scores of each."""
    profile = profile_of(tiny=tiny)
    for line in runs.run(profile, record=False):
        sys.stdout.write(f"{line}\n")
    name = f"run_{experiment.case_name(profile)}.json"
    (row,) = results.read(files.repository_root() / "runs" / profile.name / "results" / name).measurements["rows"]
    trainings = {"trained": _training(profile, None), "retrained": _training(profile, profile.classes[0])}
    spent = {name: sum(epoch["seconds"] for epoch in one["history"]) for name, one in trainings.items()}
    rates = sorted(epoch["images_per_second"] for epoch in trainings["trained"]["history"])
    return {
        "net": {"dataset": profile.dataset, "arch": profile.arch, "width": profile.width},
        "epochs": profile.train.epochs,
        "images": len(experiment.data_of(profile).train.labels),
        "precision of training": trainings["trained"]["precision"],
        "images per second, median epoch": rates[len(rates) // 2],
        "seconds": spent | {"unlearned": row["seconds"]["total"]},
        "seconds of unlearning": row["seconds"],
        "unlearning as a share of training": row["seconds"]["total"] / spent["trained"],
        "scores": row["scores"],
        "retain samples read": row["retain_samples_read"],
    }


def _training(profile: Profile, without: int | None) -> dict[str, Any]:
    """Return the record of a trained net: its epochs and their seconds."""
    kind = "original" if without is None else "retrained"
    key = experiment.training_key(profile, profile.seeds[0], without)
    return checkpoints.load(cache.tensors_path(profile, kind, key))[1]


def attacks(*, tiny: bool) -> dict[str, Any]:
    """Time the attack in every way that may pay, and compare what it finds with float32 without TF32.

    Whether an image hits is judged by the net in float32. A way that a card or torch refuses is recorded with the
    reason.
    """
    profile, device = profile_of(tiny=tiny), runtime.pick_device()
    case = experiment.Case(profile, profile.seeds[0], profile.classes[0])
    model = experiment.trained(profile, case.seed)
    images, _ = experiment.forget_set(case, experiment.guard_of(case))
    images = images[: 60 if tiny else 1024]  # one pass on a card
    others = torch.tensor([label for label in range(experiment.data_of(profile).num_classes) if label != case.forget])
    targets = others.to(device)[torch.arange(len(images), device=device) % len(others)]
    ways = ways_of(model, images, targets, config=ProxyConfig(random_start=False))
    found, refused, first, begun = {}, {}, {}, time.perf_counter()
    for name, way in ways.items():
        started = time.perf_counter()
        if started - begun > LATEST:
            refused[name] = f"not begun: the ways before it took {started - begun:.0f} s"
            continue
        try:
            found[name] = way()
            found[name].margins.sum().item()  # waits for the card
            first[name] = time.perf_counter() - started
        except Exception as error:  # noqa: BLE001  compilers and cards fail with errors of any kind
            refused[name] = f"{type(error).__name__}: {_last(str(error), 1)}"
    exact = found["float32"]
    timings = timing.interleaved({name: ways[name] for name in found}, repeats=1 if tiny else 7)
    rows = {}
    for name, one in found.items():
        hits = margins_of(_without_tf32(lambda one=one: runtime.logits_of(model, one.images)), targets) > 0
        moved, reference = (one.images - images).flatten(1), (exact.images - images).flatten(1)
        apart = (moved - reference).norm(dim=1) / reference.norm(dim=1).clamp_min(1e-12)
        rows[name] = {
            "seconds": timings[name].spread,
            "times as fast as TF32": compared("attack", "", "", timings, "TF32", name).value,
            "seconds of the first call": first[name],
            "hits": hits.double().mean().item(),
            "hits that float32 denies": (one.hits & ~hits).double().mean().item(),
            "distance from float32's, as a share of the change, median": apart.median().item(),
        }
    return {"images": len(images), "eps": EPS, "ways": rows, "refused": refused}


def ways_of(
    model: nn.Module, images: Tensor, targets: Tensor, *, config: ProxyConfig
) -> dict[str, Callable[[], Attacked]]:
    """Return the ways to attack: precisions, plain layout, compiled, and as one CUDA graph. TF32 is torch's default."""

    def usual() -> Attacked:
        generator = runtime.generator_for("gpu")
        return attack(model, images, targets, eps=EPS, config=config, generator=generator)

    def bfloat16() -> Attacked:
        with torch.autocast(images.device.type, torch.bfloat16):
            return usual()

    def plain() -> Attacked:
        with plain_layout():
            generator = runtime.generator_for("gpu")
            return attack(model, images.contiguous(), targets, eps=EPS, config=config, generator=generator)

    on_card = images.device.type == "cuda"
    compiled = torch.compile(model, backend="inductor" if on_card else "eager")

    def chunk(net: nn.Module) -> Attacked:
        return Attacked(*proxies._attack_chunk(net, images, images, targets, eps=EPS, config=config))

    def compiled_chunk() -> Attacked:
        with runtime.frozen(model):  # the compiler does what folded norms are for
            return chunk(compiled)

    def compiled_in_bfloat16() -> Attacked:
        with torch.autocast(images.device.type, torch.bfloat16):
            return compiled_chunk()

    graphs: list[tuple[torch.cuda.CUDAGraph, Attacked]] = []

    def graph() -> Attacked:
        if not on_card:
            raise RuntimeError("a CUDA graph takes a card")
        if not graphs:
            graphs.append(_captured(model, images, lambda: chunk(model)))
        graphs[0][0].replay()
        return graphs[0][1]

    return {
        "float32": lambda: _without_tf32(usual),
        "TF32": usual,
        "bfloat16": bfloat16,
        "TF32, channels outermost": plain,
        "TF32, one CUDA graph": graph,
        "bfloat16, compiled": compiled_in_bfloat16,
        "TF32, compiled": compiled_chunk,
    }


def _without_tf32(work: Callable[[], Any]) -> Any:
    convolutions = torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        return work()
    finally:
        convolutions.fp32_precision = before


def _captured(model: nn.Module, images: Tensor, chunk: Callable[[], Attacked]) -> tuple[torch.cuda.CUDAGraph, Attacked]:
    """Capture a whole attack; its first runs, on a stream beside, choose kernels and must not be part of it."""
    pairs, beside, made = conv_bn_pairs(model, images), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside), runtime.frozen(model), fuse_conv_bn(pairs):
        for _ in range(3):
            chunk()
    torch.cuda.current_stream().wait_stream(beside)
    with runtime.frozen(model), fuse_conv_bn(pairs), torch.cuda.graph(made):  # the scaled weights are made inside
        kept = chunk()
    return made, kept


def traces(*, tiny: bool) -> dict[str, Any]:
    """Say which kernels an attack, the moments of a class and an epoch of the update spend their time in."""
    profile, device = profile_of(tiny=tiny), runtime.pick_device()
    sizes = settings.TINY if tiny else settings.Sizes(nets=((profile.arch, profile.width),), forget=1024)
    found = trace.measure(sizes, Machine(processor(device), torch.get_num_threads(), {}, 0.0), device)
    return {one.case: {one.what: one.value, "longest": one.note} for one in found}


def smoke(*, tiny: bool) -> dict[str, Any]:
    """Run the notebooks in the smoke profile by papermill, each in a process of its own, all at once.

    Raises:
        RuntimeError: If one fails; the message is the end of its output.
    """
    paths = sorted((CHECKOUT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    numbers = [path.name[:2] for path in (paths[:1] if tiny else paths)]
    # Roots of their own: none waits for, or reads, what another is about to train.
    roots = {number: rooted(files.repository_root() / f"smoke-{number}") for number in numbers}
    started = {number: subprocess.Popen(**_notebook("smoke", number, root)) for number, root in roots.items()}
    said = {number: process.communicate()[0] for number, process in started.items()}
    if failed := [number for number, process in started.items() if process.returncode]:
        raise RuntimeError("; ".join(f"notebook {number}: {_last(said[number], 4)}" for number in failed))
    seals = [path for root in roots.values() for path in (root / "runs" / "smoke" / "seals").glob("*.json")]
    return {"seconds, all at once": {path.stem: files.read_json(path)["seconds"] for path in seals}}


def paper(*, tiny: bool) -> dict[str, Any]:
    """Run the first notebook in the paper's profile by papermill, from the data to its figure.

    Raises:
        RuntimeError: If it fails; the message is the end of its output.
    """
    profile, root = profile_of(tiny=tiny), files.repository_root()
    process = subprocess.Popen(**_notebook(profile.name, "00", root))
    said = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(_last(said, 8))
    drawn = files.read_json(root / "runs" / profile.name / "results" / "00_rates.json")
    shutil.copyfile(root / "figures" / profile.name / "00_rates.png", root / "paper.png")
    return {"profile": profile.name, "numbers": {name: value for name, (value, _) in drawn["numbers"].items()}}


def _notebook(profile: str, number: str, root: Path) -> dict[str, Any]:
    """Return the arguments of the process that runs one notebook by papermill."""
    command = [sys.executable, "-m", "zspag", "reproduce", "--profile", profile, "--only", number]
    notebooks = ["--notebooks", str(CHECKOUT / "notebooks")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return {"args": [*command, *notebooks], "cwd": CHECKOUT, "env": os.environ | {"ZSPAG_ROOT": str(root)}, **streams}


@dataclass(frozen=True)
class Step:
    """One step, and the seconds that it may take."""

    work: Callable[..., dict[str, Any]]
    seconds: int


STEPS = {
    "tests": Step(tests, 100),
    "nets": Step(nets, 240),
    "attack": Step(attacks, 150),
    "trace": Step(traces, 90),
    "paper": Step(paper, 120),
    "smoke": Step(smoke, 180),
}


# All steps


def run(*, tiny: bool, minutes: float, only: Sequence[str] | None) -> int:
    """Run every step that is not finished, and draw the figure; 0: all are finished, 1: some failed.

    Raises:
        ValueError: If a step does not exist.
    """
    chosen = list(only or STEPS)
    if unknown := [name for name in chosen if name not in STEPS]:
        raise ValueError(f"there is no step {', '.join(unknown)}; steps are {', '.join(STEPS)}")
    folder, ends, failed = folder_of(tiny=tiny), time.monotonic() + 60 * minutes, 0
    folder.mkdir(parents=True, exist_ok=True)
    bar = runtime.progress((), total=sum(STEPS[name].seconds for name in chosen), title="gpu", unit="s")
    for name in chosen:
        path = folder / f"{name}.json"
        if not finished(path, tiny=tiny):
            started = time.monotonic()
            box = STEPS[name].seconds * (5 if tiny else 1)  # two cores are slow, whatever the sizes
            trouble = _boxed(name, min(box, ends - started), tiny=tiny, log=folder / f"{name}.log")
            if trouble is not None:
                files.write_json(
                    path, described(tiny=tiny) | {"failed": trouble, "seconds": time.monotonic() - started}
                )
        _say(f"{name}: {files.read_json(path)['failed'] or 'finished'} ({files.read_json(path)['seconds']:.0f} s)")
        failed += files.read_json(path)["failed"] is not None
        bar.update(STEPS[name].seconds)
        _hand_out(folder)
    bar.close()
    draw(folder)
    _hand_out(folder)
    _say(f"wrote {files.shown(folder)}")
    return 1 if failed else 0


def described(*, tiny: bool) -> dict[str, Any]:
    """Return what stands in the file of every step: card, versions, data."""
    device = runtime.pick_device()
    return {
        "device": processor(device),
        "torch": torch.__version__,
        "tiny": tiny,
        "data": data_words(profile_of(tiny=tiny).dataset),
    }


def data_words(dataset: str) -> str:
    """Say what the images are."""
    return HALF if dataset == "cifar10" and packed().is_file() else f"the whole of {dataset}"


def packed() -> Path:
    """Return where the archive that travels lies, or would lie."""
    return CHECKOUT / "runs" / "gpu" / "data" / "cifar10.zip"


def finished(path: Path, *, tiny: bool) -> bool:
    """Tell whether a step has ended well, on the same card with the same torch, data and sizes."""
    if not path.is_file():
        return False
    told, now = files.read_json(path), described(tiny=tiny)
    return told["failed"] is None and all(told[name] == now[name] for name in ("device", "torch", "tiny", "data"))


def _boxed(name: str, seconds: float, *, tiny: bool, log: Path) -> str | None:
    """Run a step in a process of its own, with all that it starts; return what went wrong, or None."""
    if seconds < 1:
        return "no time was left"
    command = [sys.executable, "-m", "benchmarks.gpu", "step", name, str(log.parent), *(["--tiny"] if tiny else [])]
    # A root of its own: results of half of the data must not lie beside those of all of it.
    env = os.environ | {"ZSPAG_ROOT": str(rooted(log.parent / "root")), "PYTHONUNBUFFERED": "1"}
    env["ZSPAG_DATA"] = str(packed().parent if packed().is_file() else files.data_root())
    with log.open("w", encoding="utf-8") as told:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=env, stdout=told, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None or code != 0:
                _end(process)
    if code is None:
        return f"it was not done after {seconds:.0f} s: {_last(log.read_text(encoding='utf-8'), 2)}"
    return None if code == 0 else _last(log.read_text(encoding="utf-8"), 6)


def rooted(root: Path) -> Path:
    """Return a folder for runs and figures, made if need be, in which the recorded results are found."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "results").is_symlink():
        (root / "results").symlink_to(CHECKOUT / "results")
    return root


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def step(name: str, folder: Path, *, tiny: bool) -> None:
    """Do one step in this process and write its file into ``folder``."""
    started = time.monotonic()
    found = STEPS[name].work(tiny=tiny)
    content = described(tiny=tiny) | {"failed": None, "seconds": time.monotonic() - started, "found": found}
    if torch.cuda.is_available() and (
        peak := torch.cuda.max_memory_allocated()
    ):  # 0 where processes below did the work
        content["peak memory of the card, GiB"] = peak / 2**30
    files.write_json(folder / f"{name}.json", files.plain(content, name))


def draw(folder: Path) -> None:
    """Draw what the finished steps found: seconds of the attack by way, and of training, retraining and unlearning."""
    told = {path.stem: files.read_json(path) for path in sorted(folder.glob("*.json"))}
    done = {name: one["found"] for name, one in told.items() if one.get("failed", "") is None}
    panels = []
    if "attack" in done:
        seconds = {name: row["seconds"][0] for name, row in done["attack"]["ways"].items()}
        label = f"seconds for one attack of {done['attack']['images']} images"
        panels.append({"names": list(seconds), "values": list(seconds.values()), "xlabel": label})
    if "nets" in done:
        seconds = done["nets"]["seconds"]
        panels.append({"names": list(seconds), "values": list(seconds.values()), "xlabel": "seconds"})
    if not panels:
        return
    one = told["attack" if "attack" in done else "nets"]
    panels[0]["title"] = caption = f"{one['device']}, torch {one['torch']}, {one['data']}"
    made = provenance.record(
        config={"trial": one["tiny"]}, seed=0, data_sha256=None, device="cuda", threads=1, started=time.time()
    )
    content = {"schema": 1, "name": "gpu", "profile": "bench", "draw": "ranked", "caption": caption, "numbers": {}}
    data = {"panels": panels, "columns": 1, "size": (8, 3)}
    plots.save(content | {"data": data, "provenance": made}, folder / "gpu.png")


def _hand_out(folder: Path) -> None:
    """Copy the small files to the folder that OUT names, if it names one."""
    if not (out := os.environ.get("OUT")):
        return
    for path in [*folder.glob("*.json"), folder / "gpu.png", folder / "root" / "paper.png"]:
        if path.is_file():
            with files.replacing(Path(out) / path.name) as temporary:
                shutil.copyfile(path, temporary)


def pack(target: Path) -> None:
    """Write every second image of each class of CIFAR-10 as a JPEG, as an archive of an image folder.

    Args:
        target: The archive.
    """
    from PIL import Image

    data = load("cifar10")
    with files.replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for part, split in (("train", data.train), ("test", data.test)):
            for label, name in enumerate(data.classes):
                kept = (split.labels == label).nonzero()[::2, 0].tolist()
                for index in runtime.progress(kept, title=f"{part}, {name}", unit="image"):
                    coded = io.BytesIO()
                    image = Image.fromarray(split.images[index].permute(1, 2, 0).numpy())
                    image.save(coded, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
                    archive.writestr(zipfile.ZipInfo(f"{part}/{name}/{index:05d}.jpg"), coded.getvalue())
    _say(f"wrote {files.shown(target)}, {target.stat().st_size / 2**20:.1f} MiB: {HALF}")


def _last(text: str, lines: int) -> str:
    """Return the last lines of a text, on one line."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0: all steps are finished, 1: some failed, 2: the input cannot work or there is no card.

    Raises:
        ValueError: If a step that runs alone finds its input wrong.
        OSError: If it finds a file missing.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("task", nargs="?", default="all", choices=["all", "pack", "step"])
    parser.add_argument("name", nargs="?", choices=list(STEPS), help="the step of the task 'step'")
    parser.add_argument("folder", nargs="?", type=Path, help="where its file goes")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on any machine: numbers mean nothing")
    parser.add_argument("--minutes", type=float, help="time for all steps together (default: 12, 60 with --tiny)")
    parser.add_argument("--only", help="steps, comma-separated (default: all)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.task == "pack":
            pack(packed())
            return 0
        if not (chosen.tiny or torch.cuda.is_available()):
            sys.stderr.write(f"{NO_CARD}\n")
            return 2
        if chosen.task == "step":
            step(chosen.name, chosen.folder, tiny=chosen.tiny)
            return 0
        only = chosen.only.split(",") if chosen.only else None
        return run(tiny=chosen.tiny, minutes=chosen.minutes or (60 if chosen.tiny else 12), only=only)
    except (ValueError, OSError) as error:
        if chosen.task == "step":
            raise
        sys.stderr.write(f"python -m benchmarks.gpu: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
