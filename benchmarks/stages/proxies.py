"""Proxies: targeted PGD against torchattacks, and against nothing but its forward and backward passes.

A step is one forward pass and the gradient in the input, 2 + 2 operations per weight and position (no gradient in the
weights), and moves the image about 12 times: sign or length, step, ball, range. The bare passes are those of the model
as it is; the attack folds batch norms into convolutions, so that it may be faster than they are.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.stages.findings import Finding, spread
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes, images, net
from benchmarks.stages.timing import interleaved
from zspag.config import ProxyConfig
from zspag.proxies import attack
from zspag.runtime import chunks, frozen, generator_for

STAGE = "proxies"
EPS = 8 / 255


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield every net under both norms, and what stopping early saves."""
    for arch, width in sizes.nets:
        model, x = net(arch, width, sizes, device=device), images(sizes.forget, sizes, device=device)
        targets = torch.arange(len(x), device=device) % sizes.classes
        for norm in ("linf", "l2"):
            case = f"{arch} of width {width}, {norm}, {sizes.steps} steps, {len(x)} images"
            config = ProxyConfig(norm=norm, steps=sizes.steps, random_start=False)
            # The peer's L2 attack does not run on channels-last images, so all ways take others there.
            given = x.contiguous() if norm == "l2" else x
            yield from _against(model, given, targets, case, config, repeats=3 * sizes.repeats)  # a matter of per cents


def _against(
    model: nn.Module, x: Tensor, targets: Tensor, case: str, config: ProxyConfig, *, repeats: int
) -> Iterator[Finding]:
    def ours() -> Tensor:
        return attack(model, x, targets, eps=EPS, config=config, generator=generator_for("bench")).images

    ways: dict[str, Callable[[], Any]] = {"ours": ours, "bare passes": lambda: _bare(model, x, targets, config.steps)}
    peer = _torchattacks(model, config)
    if peer is not None:
        ways["torchattacks"] = lambda: [peer(*part) for part in chunks(x, targets)]
    timings = interleaved(ways, repeats=repeats)
    yield Finding(
        STAGE,
        case,
        "share of the rate of bare forward and input-gradient passes",
        timings["bare passes"].over(timings["ours"]),
        at_least=0.9,
        seconds=spread(timings),
    )
    yield Finding(
        STAGE,
        case,
        "time over that of torchattacks' PGD, same model, steps and batches",
        timings["ours"].over(timings["torchattacks"]) if peer else None,
        at_most=1,
        seconds=spread(timings),
        note="" if peer else "torchattacks is not installed: make bench fetches it",
    )


def _bare(model: nn.Module, x: Tensor, targets: Tensor, steps: int) -> None:
    with frozen(model):
        for part, wanted in chunks(x, targets):
            moving = part.detach().requires_grad_(True)
            for _ in range(steps):
                torch.autograd.grad(F.cross_entropy(model(moving), wanted, reduction="sum"), moving)


def _torchattacks(model: nn.Module, config: ProxyConfig) -> Callable[[Tensor, Tensor], Tensor] | None:
    try:
        import torchattacks
    except ImportError:
        return None
    if config.norm == "linf":
        peer = torchattacks.PGD(model, eps=EPS, alpha=EPS * config.step_share, steps=config.steps, random_start=False)
    else:
        peer = torchattacks.PGDL2(model, eps=1.0, alpha=config.step_share, steps=config.steps, random_start=False)
    peer.set_mode_targeted_by_label(quiet=True)
    return peer
