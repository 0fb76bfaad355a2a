"""What holds a few cores back: each setting alone, in processes of their own, forward pass and input gradient.

What helps is set: freed memory is kept by every program of the package (``process.allocator``), images are
channels-last where the method takes them in (``runtime.channels_last``), the attack folds batch norms into convolutions
(``speedups.conv_bn``), a pool's processes have one thread each (``runtime.pool_map``). What does not help is
listed, and left alone.
"""

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from benchmarks.stages.findings import Finding
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes, images, net
from zspag.process.allocator import keep_freed_memory
from zspag.runtime import channels_last, frozen
from zspag.speedups.conv_bn import conv_bn_pairs, fuse_conv_bn

STAGE = "throttles"


@dataclass(frozen=True)
class Setting:
    """One way to run: batch size, threads, processes at once, and what is switched on."""

    batch: int = 128
    threads: int = 2
    processes: int = 1
    keep: bool = True
    last: bool = True
    flush: bool = False
    fold: bool = False
    compiled: bool = False


def measure(sizes: Sizes, machine: Machine, _device: torch.device) -> Iterator[Finding]:
    """Yield each setting over the one it departs from, all settings in turns."""
    cores = machine.threads
    usual = Setting(threads=cores) if not sizes.tiny else Setting(batch=4, threads=1)
    large, single = replace(usual, batch=4 * usual.batch), replace(usual, threads=1, processes=cores)
    pairs = {
        f"freed memory is kept, batches of {usual.batch}": (usual, replace(usual, keep=False)),
        f"batches of {large.batch} instead of {usual.batch}, freed memory kept": (large, usual),
        "channels-last images": (usual, replace(usual, last=False)),
        "batch norms are folded into convolutions": (replace(usual, fold=True), usual),
        "denormals are flushed to zero": (replace(usual, flush=True), usual),
        f"{cores} processes of one thread instead of one of {cores}": (single, usual),
    }
    if not sizes.tiny:
        pairs["torch.compile, its compilation not counted"] = (replace(usual, compiled=True), usual)
    settings = dict.fromkeys(setting for pair in pairs.values() for setting in pair)
    rounds = [{setting: _rate(setting, sizes) for setting in settings} for _ in range(1 if sizes.tiny else 2)]
    for what, (with_it, without) in pairs.items():
        gains = tuple(rates[with_it] / rates[without] for rates in rounds)
        note = "images per second: " + "; ".join(f"{one[with_it]:.0f} against {one[without]:.0f}" for one in rounds)
        case = f"{sizes.nets[-1][0]} of width {sizes.nets[-1][1]}: {what}"
        what = "times the images per second"
        yield Finding(STAGE, case, what, statistics.median(gains), rounds=gains, note=note)


def _rate(setting: Setting, sizes: Sizes) -> float:
    """Return images per second, all processes together."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(setting.processes, mp_context=context) as pool:
        return sum(pool.map(_images_per_second, [setting] * setting.processes, [sizes] * setting.processes))


def _images_per_second(setting: Setting, sizes: Sizes) -> float:
    if setting.keep:
        keep_freed_memory()
    torch.set_flush_denormal(setting.flush)
    torch.set_num_threads(setting.threads)
    device = torch.device("cpu")
    model, x = net(*sizes.nets[-1], sizes, device=device), images(setting.batch, sizes, device=device)
    x = channels_last(x) if setting.last else x.contiguous()
    targets = torch.zeros(len(x), dtype=torch.long)
    done, passes, started = 0.0, -2, time.perf_counter()  # two passes to warm up
    with frozen(model), fuse_conv_bn(conv_bn_pairs(model, x)) if setting.fold else nullcontext():
        run = torch.compile(model) if setting.compiled else model
        while passes < 2 or done < (0.05 if sizes.tiny else 1.0):
            if passes == 0:
                started = time.perf_counter()
            moving = x.detach().requires_grad_(True)
            torch.autograd.grad(F.cross_entropy(run(moving), targets), moving)
            passes += 1
            done = time.perf_counter() - started if passes > 0 else 0.0
    return passes * len(x) / done
