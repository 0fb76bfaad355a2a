"""The machine's own limits, in the run that is measured against them: matrix products, and copies from memory.

A product of two s x s matrices is 2 s^3 operations. A copy reads and writes every byte once; its block is larger than
any cache.
"""

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.stages.timing import interleaved


@dataclass(frozen=True)
class Machine:
    """Processor or GPU, threads, and rates: operations per second by precision, bytes per second of a copy."""

    name: str
    threads: int
    products: dict[str, float]
    copy: float


def measure(device: torch.device, *, side: int, copied: int, repeats: int) -> Machine:
    """Measure the machine.

    Args:
        device: The device that is measured.
        side: Side of the square matrices.
        copied: Bytes of the block that is copied.
        repeats: Repetitions of each.
    """
    squares = {
        str(kind).removeprefix("torch."): torch.ones(side, side, dtype=kind, device=device)
        for kind in (torch.float32, torch.float64)
    }
    block = torch.ones(copied // 4, device=device)
    target = torch.empty_like(block)
    ways = {name: (lambda square=square: square @ square) for name, square in squares.items()}
    timings = interleaved({**ways, "copy": lambda: target.copy_(block)}, repeats=repeats)
    rates = {name: 2 * side**3 / timings[name].median for name in squares}
    return Machine(processor(device), torch.get_num_threads(), rates, 2 * block.nbytes / timings["copy"].median)


def processor(device: torch.device) -> str:
    """Return the name that the processor or GPU gives itself."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        told = []
    names = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
