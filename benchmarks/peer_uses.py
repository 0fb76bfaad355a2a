"""What a user writes to make a net forget a class with each package, and the process that runs one of these uses.

A use takes the net, the forget set, the retained set and a rate, and returns the net that has forgotten. The lines of
its body are counted. ``rate`` has the package's own default, or that of its front page.

Invariant: nothing but torch is imported before a use is called, so time and memory are those of the package.
"""

import ast
import copy
import importlib
import inspect
import itertools
import json
import math
import statistics
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset, default_collate

from zspag.process.allocator import peak_bytes

Data = Dataset[tuple[Tensor, ...]]
FORGOTTEN = 0.01  # accuracy on the forget set that counts as forgotten, as in ``UpdateConfig``
FACTOR = 3.0  # between neighbouring rates of a ladder
SLOW, REPEATS = 10.0, 3  # seconds up to which a run is repeated, and runs
INPUTS = ("NaN in an image", "label out of range", "empty forget set")


def zspag_suppress(model: nn.Module, forget: Data, retain: Data, rate: None = None) -> nn.Module:
    """Forget with zspag's defaults; compared by the net before its row is closed."""
    from zspag import zero_shot_unlearn

    return zero_shot_unlearn(model, forget).open_model


def zspag_remove(model: nn.Module, forget: Data, retain: Data, rate: None = None) -> nn.Module:
    """Take the class out of the features, too."""
    from zspag import UnlearnConfig, zero_shot_unlearn

    return zero_shot_unlearn(model, forget, config=UnlearnConfig(goal="remove")).open_model


def zspag_salun(model: nn.Module, forget: Data, retain: Data, rate: None = None) -> nn.Module:
    """SalUn as zspag's laboratory has it; it searches its rate on a ladder of its own."""
    from zspag import unlearn_by

    return unlearn_by("salun", model, forget).model


def zspag_neggrad(model: nn.Module, forget: Data, retain: Data, rate: None = None) -> nn.Module:
    """Gradient ascent (NegGrad) as zspag's laboratory has it."""
    from zspag import unlearn_by

    return unlearn_by("gradient_ascent", model, forget).model


def torchunlearn_uam(model: nn.Module, forget: Data, retain: Data, rate: float = 0.01) -> nn.Module:
    """Unlearning-aware minimization, the package's own method; its radius ``rho`` has no default."""
    from torchunlearn.optim import UAM
    from torchunlearn.utils.data import MergedLoaders

    def cost(batch: tuple[Tensor, Tensor], reduction: str | None = "mean") -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(model(images), labels, reduction=reduction or "none")

    model.train()
    sgd = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    uam, sets = UAM(model, sgd, rho=0.1), {"Retain": retain, "Forget": forget}
    loaders = MergedLoaders({name: DataLoader(one, batch_size=128, shuffle=True) for name, one in sets.items()})
    for _ in range(5):
        for batches in loaders:
            uam.step(cost, batches)
    return model


def erasus_ascent(model: nn.Module, forget: Data, retain: Data, rate: float = 1e-4) -> nn.Module:
    """The default strategy, on the forget set alone."""
    from erasus import ErasusUnlearner

    unlearner = ErasusUnlearner(model, strategy="gradient_ascent", strategy_kwargs={"lr": rate})
    return unlearner.fit(DataLoader(forget, batch_size=32, shuffle=True)).model


def erasus_coreset(model: nn.Module, forget: Data, retain: Data, rate: float = 1e-4) -> nn.Module:
    """The use on the package's front page: a tenth of the forget set, then a pass over the retained set, each epoch."""
    from erasus import ErasusUnlearner

    how = {"strategy": "gradient_ascent", "selector": "influence", "strategy_kwargs": {"lr": rate}}
    unlearner = ErasusUnlearner(model, **how)
    sets = [DataLoader(one, batch_size=32, shuffle=True) for one in (forget, retain)]
    return unlearner.fit(*sets).model


def supreme_ssd(model: nn.Module, forget: Data, retain: Data, rate: float = 10.0) -> nn.Module:
    """Selective synaptic dampening; the rate is its alpha, and smaller values change more."""
    from lightning.fabric import Fabric
    from supreme.methods.unlearning_methods.ssd import ssd

    def with_indices(rows: list[Any]) -> tuple[Tensor, None, Tensor]:
        images, labels = default_collate(rows)
        return images, None, labels

    everything = ConcatDataset([forget, retain])
    sets = [DataLoader(one, batch_size=64, collate_fn=with_indices) for one in (forget, everything)]
    fabric = Fabric(accelerator="cpu")
    return ssd(fabric, 0, False, model, *sets, dampening_constant=1, selection_weighting=rate).module


def supreme_jit(model: nn.Module, forget: Data, retain: Data, rate: float = 0.001) -> nn.Module:
    """Just-in-time unlearning, on the forget set alone."""
    from lightning.fabric import Fabric
    from supreme.methods.unlearning_methods.jit import jit

    def with_indices(rows: list[Any]) -> tuple[Tensor, None, Tensor]:
        images, labels = default_collate(rows)
        return images, None, labels

    loader = DataLoader(forget, batch_size=64, shuffle=True, collate_fn=with_indices)
    return jit(Fabric(accelerator="cpu"), 0, False, model, loader, learning_rate=rate).module


@dataclass(frozen=True)
class Use:
    """One use of a package.

    Attributes:
        package: Name of the package, as ``pip`` knows it.
        call: ``module:function``.
        method: What it is called on the page.
        settings: "default", and "ladder" for the best rate of one; or "own search", which is one setting.
        factor: From one rate of the ladder to the next stronger one.
        again: Whether the method is zspag's own writing, since the package has none for a classifier.
    """

    package: str
    call: str
    method: str
    settings: tuple[str, ...] = ("default", "ladder")
    factor: float = FACTOR
    again: bool = False


_HERE, OWN = "benchmarks.peer_uses", ("own search",)
USES = {
    "zspag": Use("zspag", f"{_HERE}:zspag_suppress", "ZS-PAG", OWN),
    "zspag-remove": Use("zspag", f"{_HERE}:zspag_remove", "removal", OWN),
    "torchunlearn-uam": Use("torchunlearn", f"{_HERE}:torchunlearn_uam", "UAM"),
    "torchunlearn-neggrad": Use("torchunlearn", f"{_HERE}:zspag_neggrad", "NegGrad, written again", OWN, again=True),
    "erasus-ascent": Use("erasus", f"{_HERE}:erasus_ascent", "gradient ascent"),
    "erasus-coreset": Use("erasus", f"{_HERE}:erasus_coreset", "coreset ascent, retain pass"),
    "supreme-jit": Use("supreme-unlearning", f"{_HERE}:supreme_jit", "JiT"),
    "supreme-ssd": Use("supreme-unlearning", f"{_HERE}:supreme_ssd", "SSD", factor=1 / FACTOR),
    "vision-salun": Use("vision-unlearning", f"{_HERE}:zspag_salun", "SalUn, written again", OWN, again=True),
}


def function_of(call: str) -> Callable[..., nn.Module]:
    """Return the function that ``module:function`` names."""
    module, _, name = call.partition(":")
    found: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
    return found


def lines_of(call: str) -> int:
    """Count the lines of a function's body, without its docstring and blank lines.

    Example:
        >>> lines_of("benchmarks.peer_uses:zspag_suppress")
        2
    """
    source = textwrap.dedent(inspect.getsource(function_of(call)))
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    body = node.body[ast.get_docstring(node) is not None :]
    lines = source.splitlines()[body[0].lineno - 1 :]
    return sum(bool(line.strip()) for line in lines)


def default_of(call: str) -> float | None:
    """Return the rate that a use has by itself."""
    default: float | None = inspect.signature(function_of(call)).parameters["rate"].default
    return default


class Counted(Dataset[tuple[Tensor, ...]]):
    """A data set that knows how many of its samples were read."""

    def __init__(self, *tensors: Tensor) -> None:
        self.samples, self.read = TensorDataset(*tensors), set[int]()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return a sample and remember it."""
        self.read.add(int(index))
        return self.samples[index]


@dataclass(frozen=True)
class Trial:
    """What one rate makes: the net, the share of the forget set that it still recognizes, retained samples read."""

    net: nn.Module
    rate: float | None
    left: float  # infinity for a ruined net
    retain_read: int

    @property
    def forgot(self) -> bool:
        """Whether the forget set is forgotten, by a net that is not ruined."""
        return self.left <= FORGOTTEN


def tried(call: Callable[..., nn.Module], model: nn.Module, case: Mapping[str, Any], rate: float | None) -> Trial:
    """Run a use at one rate, on a copy of the net."""
    (images, labels), retain = case["forget"], Counted(*case["retain"])
    torch.manual_seed(0)
    net = call(copy.deepcopy(model), TensorDataset(images, labels), retain, rate)
    with torch.no_grad():
        logits = net.eval()(images)
    left = (logits.argmax(1) == labels).double().mean().item() if bool(logits.isfinite().all()) else math.inf
    return Trial(net, rate, left, len(retain.read))


def walked(at: Callable[[float | None], Trial], start: float | None, *, factor: float, trials: int) -> Trial:
    """Walk a ladder of rates, by the forget set alone.

    From the default the rates grow until one forgets, or fall as long as they forget (or while the net is ruined).

    Args:
        at: Makes the trial of a rate.
        start: The default; None for a use that has no rate.
        factor: From one rate to the next stronger one; below 1 where a smaller number is stronger.
        trials: Most rates that are tried.

    Returns:
        The gentlest that forgets, else the one that forgets most.
    """
    found = [at(start)]
    gentler = found[0].forgot or math.isinf(found[0].left)
    while len(found) < trials and start is not None and found[-1].forgot == found[0].forgot:
        start = start / factor if gentler else start * factor
        found.append(at(start))
    forgetting = [one for one in found if one.forgot]
    return forgetting[-1] if forgetting else min(found, key=lambda one: one.left)


def measured(search: Callable[[], Trial]) -> tuple[nn.Module, dict[str, Any]]:
    """Return the net that a search comes to, and its cost: the median of ``REPEATS`` runs, or one that is slow."""
    seconds: list[float] = []
    peak_bytes(anew=True)
    while len(seconds) < REPEATS and max(seconds, default=0) <= SLOW:
        started = time.perf_counter()
        made = search()
        seconds.append(time.perf_counter() - started)
    cost = {"seconds": statistics.median(seconds), "peak_mib": peak_bytes() / 2**20}
    return made.net, {"rate": made.rate, "retain_read": made.retain_read} | cost


def bad_inputs(case: Mapping[str, Any], classes: int) -> Iterator[tuple[str, Data]]:
    """Yield each of ``INPUTS`` with a forget set that is bad in this one way."""
    images, labels = case["forget"]
    holed, strange = images.clone(), labels.clone()
    holed[0, ..., 0], strange[0] = torch.nan, classes
    sets = (TensorDataset(holed, labels), TensorDataset(images, strange), TensorDataset(images[:0], labels[:0]))
    yield from zip(INPUTS, sets, strict=True)


def outcome(call: Callable[[], nn.Module], package: str) -> dict[str, str]:
    """Say what a bad input leads to: a "message" of the package's own, another "error", or silence.

    An error is a message where it is a ``ValueError`` or ``TypeError`` that the package's own code raised: only then
    has somebody thought of this input.
    """
    try:
        made = call()
    except Exception as error:  # noqa: BLE001  whatever a package raises is the answer
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        own = frame.f_globals.get("__name__", "").partition(".")[0] == package
        meant = own and isinstance(error, ValueError | TypeError)
        return {"kind": "message" if meant else "error", "said": first_line(error)}
    ruined = not all(bool(part.isfinite().all()) for part in made.state_dict().values())
    return {"kind": "silent, ruined" if ruined else "silent", "said": ""}


def first_line(error: Exception) -> str:
    """Return the name of an error and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def main(arguments: Sequence[str]) -> int:
    """Run a job: every class at every setting, then the bad inputs; each answer is written as soon as it is there."""
    folder = Path(arguments[0])
    job = torch.load(folder / "job.pt", weights_only=False)  # of our own parent process
    call, model = function_of(job["call"]), job["model"]
    torch.set_num_threads(1)
    walk = partial(walked, start=job["default"], factor=job["factor"])
    with suppress(Exception):  # a warm-up: what the package imports comes with its first call
        tried(call, model, job["cases"][0], job["default"])
    with (folder / "answers.jsonl").open("w", encoding="utf-8", buffering=1) as answers:
        for case, (setting, trials) in itertools.product(job["cases"], job["settings"].items()):
            answer = {"class": case["class"], "setting": setting, "error": None}
            try:
                made, found = measured(partial(walk, partial(tried, call, model, case), trials=trials))
                torch.save(made.state_dict(), folder / f"{case['class']}-{setting}.pt")
                answer |= found
            except Exception as error:  # noqa: BLE001  whatever a package raises is the answer
                answer["error"] = first_line(error)
            answers.write(json.dumps(answer) + "\n")
        case = job["cases"][0]
        for name, bad in bad_inputs(case, job["classes"]):
            use = partial(call, copy.deepcopy(model), bad, TensorDataset(*case["retain"]), job["default"])
            answers.write(json.dumps({"input": name, **outcome(use, job["module"])}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
