"""Time of the defaults beside those of fa40f86 and beside a training, and where it goes, stage by stage.

The two sides are two processes that take turns on one machine. Where the time goes is a further call, in this process,
under a profiler.

Invariant: both sides get the same weights and the same forget set; only the call itself is timed.
"""

import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.external import old
from benchmarks.external.nets import NETS
from benchmarks.external.originals import Original, dataset_of, forget_set, on, original, runs
from benchmarks.stages.trace import is_useful, traced
from zspag.lab.data import Split
from zspag.lab.training import train
from zspag.process.allocator import peak_bytes
from zspag.profiles import PROFILES, TrainConfig
from zspag.report.files import plain, read_json, repository_root, write_json
from zspag.report.provenance import git
from zspag.runtime import progress, threads
from zspag.unlearning import zero_shot_unlearn

LARGE = ["cifar10-conv7", "cifar10-resnet18", "cifar10-hf-vit"]
DEFAULT = [name for name, net in NETS.items() if net.norm == "none"] + LARGE
COUNTS = dict.fromkeys(LARGE, 200)  # forget images; 50 for all others
TRAINED_IMAGES = 2560  # of an epoch of training, which is timed and scaled to the whole
# Epochs of the whole training that ours is compared with: conv7's own recipe; three of a well-tuned one elsewhere.
YARDSTICK = {"cifar10-conv7": PROFILES["cpu"].train.epochs, "cifar10-resnet18": 3, "cifar10-hf-vit": 3}


def place() -> Path:
    """Return the file of the timings."""
    return repository_root() / "results" / "external" / "timing.json"


def time_nets(names: list[str], *, threads_each: int, repeats: int, device: str) -> dict[str, Any]:
    """Time both sides in turn on each net and write ``timing.json``; nets that were timed before keep their entry."""
    sides = {
        "ours": old.Child(repository_root(), repository_root(), threads=threads_each),
        "fa40f86": old.Child(old.old_package(runs(), repository_root()), repository_root(), threads=threads_each),
    }
    kept = {entry["net"]: entry for entry in read_json(place())["nets"]} if place().exists() else {}
    try:
        for name in progress(names, total=len(names), title="timing", unit="net"):
            kept[name] = time_net(name, sides, repeats=repeats, device=device, threads_each=threads_each)
            timing = {"schema": 1, "nets": [kept[known] for known in NETS if known in kept]}
            write_json(place(), plain(timing, "timing"))
    finally:
        for child in sides.values():
            child.close()
    return timing


def time_net(name: str, sides: dict[str, old.Child], *, repeats: int, device: str, threads_each: int) -> dict[str, Any]:
    """Return seconds of both sides on one net and its first class, in turn."""
    known = original(name, device=device)
    label = known.net.classes[0]
    forget = forget_set(known, label, COUNTS.get(name, 50))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    errors: dict[str, str] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        files = {part: str(Path(folder) / f"{part}.safetensors") for part in ("weights", "forget")}
        save_file(
            {key: part.detach().cpu().contiguous() for key, part in known.model.state_dict().items()}, files["weights"]
        )
        save_file({"images": forget.images.contiguous(), "labels": forget.labels.contiguous()}, files["forget"])
        for _ in range(repeats):
            for side, child in sides.items():
                job = {
                    "side": side,
                    "net": name,
                    "device": device,
                    "seed": 0,
                    "num_classes": known.num_classes,
                    **files,
                }
                try:
                    seconds[side].append(child(job | {"twin": side == "fa40f86"})["seconds"])
                except RuntimeError as error:
                    errors[side] = str(error)
    ours, before = (median(seconds[side]) if seconds[side] else None for side in ("ours", "fa40f86"))
    training = _training_seconds(known, YARDSTICK[name], threads_each, device) if name in YARDSTICK else None
    return {
        "net": name,
        "title": known.net.title,
        "norm": known.net.norm,
        "label": label,
        "samples": len(forget),
        "seconds": seconds,
        "errors": errors,
        "ours_seconds": ours,
        "fa40f86_seconds": before,
        "ratio": before / ours if ours and before else None,
        "training_epochs": YARDSTICK.get(name),
        "training_seconds": training,
        "training_share": ours / training if ours and training else None,
        **where_it_goes(known, forget, threads_each=threads_each, device=device),
        "threads": threads_each,
        "device": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else f"cpu {platform.machine()}",
        "torch": torch.__version__,
        "load_before": load,
        "commit": git("rev-parse", "--short", "HEAD"),
        "changed": bool(git("status", "--porcelain", "--", "zspag")),
        "weights": known.sha256,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }


def where_it_goes(known: Original, forget: Split, *, threads_each: int, device: str) -> dict[str, Any]:
    """Return seconds by stage, the share of convolutions and matrix products, and the peak of memory of one call."""
    images, reports = on(device, forget.images), []

    def call() -> None:
        made = zero_shot_unlearn(known.model, images, forget.labels, num_classes=known.num_classes)
        reports.append(made.report)

    with threads(threads_each):
        before = peak_bytes(anew=True)
        call()
        peak = peak_bytes() - before
        kernels = traced(call)
    useful = sum(seconds for kernel, seconds in kernels.items() if is_useful(kernel))
    return {"stages": reports[0].seconds, "useful_share": useful / sum(kernels.values()), "peak_mib": peak / 2**20}


def _training_seconds(known: Original, epochs: int, threads_each: int, device: str) -> float:
    """Return what so many epochs of training would take here.

    The yardstick is the whole training set, although CIFAR-10 nets of the zoo saw 20,000 images of it.
    """
    config = replace(PROFILES["cpu"].train, epochs=epochs)
    whole = len(dataset_of(known.net.data, known.net.image_size).train)
    with threads(threads_each):
        return training_seconds(known.twin, known.train, config=config, whole=whole, device=device)


def training_seconds(
    model: nn.Module, split: Split, *, config: TrainConfig, whole: int, device: str | None = None
) -> float:
    """Return what a training on ``whole`` images would take here, from a part of an epoch.

    Args:
        model: What is trained; a copy moves, and hardly.
        split: Images of which ``TRAINED_IMAGES`` are taken.
        config: The recipe; its epochs count.
        whole: Images of an epoch.
        device: As for ``train``.
    """
    part = split.select(torch.arange(TRAINED_IMAGES) * len(split) // TRAINED_IMAGES)
    done = train(model, part.images, part.labels, config=replace(config, epochs=2, lr=1e-6), seed=0, device=device)
    return done.history[-1].seconds * config.epochs * whole / len(part)
