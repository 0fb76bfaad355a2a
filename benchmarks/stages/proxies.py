"""Proxies: targeted PGD against torchattacks and foolbox, and against nothing but its forward and backward passes.

A step is one forward pass and the gradient in the input, 2 + 2 operations per weight and position (no gradient in the
weights), and moves the image about 12 times: sign or length, step, ball, range. The bare passes are those of the model
as it is; the attack folds batch norms into convolutions, so that it may be faster than they are.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.stages.findings import Finding, compared
from benchmarks.stages.machine import Machine
from benchmarks.stages.peers import foolbox_pgd, torchattacks_pgd
from benchmarks.stages.settings import Sizes, images, net
from benchmarks.stages.timing import interleaved
from zspag.config import ProxyConfig
from zspag.proxies import attack
from zspag.runtime import CHUNK, chunks, frozen, generator_for

STAGE = "proxies"
EPS = 8 / 255


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield every net under both norms; the larger net takes the default norm alone."""
    for index, (arch, width) in enumerate(sizes.nets):
        model = net(arch, width, sizes, device=device)
        x = images(min(CHUNK, sizes.forget), sizes, device=device)
        targets = torch.arange(len(x), device=device) % sizes.classes
        for norm in ("linf", "l2")[min(index, 1) :]:
            case = f"{arch} of width {width}, {norm}, {sizes.steps} steps, {len(x)} images"
            config = ProxyConfig(norm=norm, steps=sizes.steps, random_start=False)
            # The L2 attacks of the peers do not run on channels-last images, so all ways take others there.
            given = x.contiguous() if norm == "l2" else x
            yield from _against(model, given, targets, case, config, repeats=sizes.repeats)


def _against(
    model: nn.Module, x: Tensor, targets: Tensor, case: str, config: ProxyConfig, *, repeats: int
) -> Iterator[Finding]:
    def ours() -> Tensor:
        return attack(model, x, targets, eps=EPS, config=config, generator=generator_for("bench")).images

    ways = {"ours": ours, "bare passes": lambda: _bare(model, x, targets, config.steps)}
    peers = {"torchattacks": torchattacks_pgd, "foolbox": foolbox_pgd}
    for name, make in peers.items():
        peer = make(model, config, eps=EPS)
        if peer is not None:
            ways[name] = lambda peer=peer: peer(x, targets)
    timings = interleaved(ways, repeats=repeats)
    what = "share of the rate of bare forward and input-gradient passes"
    yield compared(STAGE, case, what, timings, "bare passes", "ours", at_least=0.9)
    for name in peers:
        what = f"time over that of the PGD of {name}, same model, steps and batches"
        yield compared(STAGE, case, what, timings, "ours", name, at_most=1)


def _bare(model: nn.Module, x: Tensor, targets: Tensor, steps: int) -> None:
    with frozen(model):
        for part, wanted in chunks(x, targets):
            moving = part.detach().requires_grad_(True)
            for _ in range(steps):
                torch.autograd.grad(F.cross_entropy(model(moving), wanted, reduction="sum"), moving)
