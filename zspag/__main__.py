"""The command line: ``zspag COMMAND``, from ``reproduce`` to ``provenance``; ``zspag --help`` lists them.

Invariant: thin; every sub-command imports what it needs when it is called, so that ``zspag --help`` answers at once.
"""

import argparse
import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TypeVar

from zspag import __version__, profiles
from zspag.config import GOALS
from zspag.process.allocator import keep_freed_memory
from zspag.profiles import FolderConfig, Ladders, Profile

GONE = 141  # what a shell reports of a program that writes where nobody reads any more
# Turns that a thread waits for the others before it lets another program have its core; read as torch is loaded. With
# the library's own 300,000, a net of small layers on two threads took 5 to 12 times as long beside another busy
# program; with these it takes twice as long, and no longer than before where nothing else runs.
WAITING = "10000"
REMEDIES = {
    errno.EACCES: "change its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within your quota",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "a file stands where a folder is needed",
}
# What a plain installation lacks, by the name of its module: the package, and the extra that brings it.
EXTRAS = {
    name: (name, "notebooks") for name in ("pandas", "scipy", "seaborn", "jinja2", "papermill", "nbformat", "ipykernel")
}
EXTRAS |= dict.fromkeys(("sklearn", "scikit-learn"), ("scikit-learn", "notebooks"))
EXTRAS |= dict.fromkeys(("distributed", "dask"), ("distributed", "cluster"))
PLACES = """\
environment:
  ZSPAG_ROOT            folder of runs/, results/, figures/ and data/ (default: the
                        checkout, or the current folder where zspag was installed)
  ZSPAG_DATA            folder of the data sets (default: data/ of that folder)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code.

    0: done. 1: some runs failed. 2: the input cannot work, which is said in one sentence. 3: the model is written, but
    part of the forget set is still recognized. 130: interrupted.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", WAITING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal lacks is no reason to end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _act(arguments)
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:  # closed by whoever started this
                    stream.flush()
    except BrokenPipeError:  # `zspag claims | head`: the reader has seen enough
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(nowhere, stream.fileno())  # or Python complains when it flushes at its end
        return GONE


def _reader_gone() -> bool:
    """Tell whether what is printed goes into a pipe that nobody reads; a pipe to another process may break as well."""
    watched = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # a stream without a file: closed, or a test's
            watched.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))


def _act(arguments: Sequence[str] | None) -> int:
    chosen = _parser().parse_args(arguments)
    keep_freed_memory()
    action: Callable[[argparse.Namespace], int] = chosen.action
    try:
        return action(chosen)
    except ModuleNotFoundError as error:
        package, extra = EXTRAS.get((error.name or "").partition(".")[0], (None, None))
        if package is None:
            raise
        print(f"zspag {chosen.command} needs {package}: pip install 'zspag[{extra}]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():
            raise
        sentence = str(error)
        if isinstance(error, OSError) and error.errno is not None:
            remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
            file = "" if error.filename is None else f": {error.filename}"
            sentence = f"{error.strerror or error}{file}{remedy}"
        print(f"zspag {chosen.command}: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "what was finished is kept, the same command goes on"
        if chosen.command == "unlearn":
            kept = "nothing was written"
        print(f"\nzspag {chosen.command}: interrupted; {kept}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from zspag.report import reproduce

    parser = argparse.ArgumentParser(
        prog="zspag",
        description="Zero-shot machine unlearning with proxy adversarial data.",
        epilog=PLACES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"zspag {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text)
        one.set_defaults(action=action)
        return one

    one = command("demo", _demo, "forget a digit with a small trained net that comes with the package")
    one.add_argument("--forget", type=int, default=3, metavar="DIGIT", help="0 to 9 (default: %(default)s)")
    one.add_argument("--out", default="zspag-demo.png", help="picture to write (default: %(default)s)")
    reproduce.add_arguments(command("reproduce", reproduce.run, "run the notebooks and draw every figure"))
    _add_profile(command("run", _run, "train, forget and evaluate; write result files, a figure and checkpoints"))

    one = command("sweep", _sweep, "run methods over their whole ladders; write every row and a figure")
    _add_profile(one)
    add = one.add_argument
    add("--methods", help="methods, comma-separated (default: all; zspag methods lists them)")
    add("--rates", help="learning rates of every method, comma-separated, or the file of a sweep whose rates are taken")
    add("--no-retrained", action="store_true", help="train no retrained models; comparisons with them stay empty")
    add("--scheduler", metavar="ADDRESS", help="dask scheduler of a running cluster (default: start workers)")

    one = command("audit", _audit, "attack, probe and relearn what was forgotten; write what was found")
    _add_profile(one)
    one.add_argument("--features", action="store_true", help="ask only whether the class is still in the features")

    _add_unlearn(command("unlearn", _unlearn, "make a model of your own forget the classes of a photo folder"))

    one = command("methods", _methods, "list the methods: what each reads, its reference, rates and constants")
    one.add_argument("--profile", default="cpu", choices=sorted(profiles.PROFILES), help="whose rates are printed")

    one = command("claims", _claims, "judge claims C1 to C7 on recorded results, and verify their files")
    one.add_argument("--profile", choices=sorted(profiles.PROFILES), help="whose results (default: all recorded)")
    one.add_argument("--fresh", action="store_true", help="judge what was computed here (runs/PROFILE/results) instead")

    one = command("data", _data, "list the data sets, get one, or check a cached one against its source")
    tasks = one.add_subparsers(dest="task", required=True, metavar="TASK")
    tasks.add_parser("list", help="print the data sets, where they are looked for and what is cached")
    for task, text in (("get", "fetch or read a data set and cache it"), ("check", "compare the cache and the source")):
        each = tasks.add_parser(task, help=text)
        each.add_argument("name", metavar="NAME", help="data set, or the path of an image folder")
        _add_folder(each)

    command("env", _env, "print versions, device and threads")
    one = command("provenance", _provenance, "print how a file was made, and whether it can be made again")
    one.add_argument("file", type=Path)
    return parser


def _add_unlearn(one: argparse.ArgumentParser) -> None:
    one.description = (
        "Make a model forget the classes of a folder of photos. Writes OUT, the new weights; beside it a report, .json,"
        " and its figure, .png. Exit code 3: all is written, but part of the forget set is still recognized."
    )
    add = one.add_argument
    model = "function or class that builds the model; or torchvision.models:resnet18, or timm:NAME"
    add("--model", required=True, metavar="FILE.py:FACTORY", help=model)
    add("--weights", required=True, type=Path, metavar="FILE", help="its state dict: .safetensors, .pt, .pth, .bin")
    add("--forget", required=True, type=Path, metavar="FOLDER", help="photos to forget: FOLDER/<class>/*")
    add("--out", required=True, type=Path, help="the new state dict: .safetensors, .pt or .pth")
    add("--num-classes", type=int, metavar="K", help="width of the logits (default: the model tells)")
    names = "class names, one a line in the order of the logits (default: a folder's name is its class's number)"
    add("--classes-file", type=Path, metavar="FILE", help=names)
    add("--label", metavar="CLASS", help="the class of all photos, which lie directly in FOLDER then")
    add("--image-size", type=int, metavar="N", help="resize the photos to N x N pixels, cropping the middle")
    most = "most photos that are used, equally many of each class (default: what fits in 1 GiB)"
    add("--limit", type=int, metavar="N", help=most)
    add("--mean", metavar="M,M,M", help="mean per channel, for a model that takes normalized images")
    add("--std", metavar="S,S,S", help="standard deviation per channel, beside --mean")
    add("--already-forgotten", metavar="CLASSES", help="classes of earlier requests, numbers, comma-separated")
    goals = (
        "suppress: the class is answered no more (the paper); remove: it is taken out of the features too, which takes"
        " longer and may cost retained accuracy (default: suppress)"
    )
    add("--goal", default="suppress", choices=GOALS, help=goals)
    page = "a readable page of the result beside the report: one .html file"
    add("--report", dest="page", type=Path, metavar="PAGE.html", help=page)
    add("--keep-open", action="store_true", help="do not close the logit rows of the forgotten classes")
    add("--seed", type=int, default=0, help="seed of everything random (default: 0)")


def _add_folder(one: argparse.ArgumentParser) -> None:
    one.add_argument("--image-size", type=int, help="resize the images of a folder to this many pixels")
    one.add_argument("--test-share", type=float, help="share of a folder without train/ and test/ that is tested")
    one.add_argument("--split-seed", type=int, help="seed of that split")
    one.add_argument("--min-per-class", type=int, help="fewest images of a class in such a folder")


def _add_profile(one: argparse.ArgumentParser) -> None:
    add, one.epilog = one.add_argument, "An option that is left out keeps the profile's value."
    add("--profile", default="cpu", choices=sorted(profiles.PROFILES))
    add("--dataset", help="data set, or the path of an image folder")
    add("--arch", help="architecture, or file.py:factory for a model of your own")
    add("--classes", help="forget classes, names or numbers, comma-separated")
    add("--seeds", help="seeds, comma-separated")
    add("--epochs", type=int, help="training epochs")
    add("--forget-samples", type=int, help="forget images that a method gets")
    add("--retain-samples", type=int, help="images per retained class that an oracle gets")
    add("--test-half", metavar="HALF", help="judge on every second test image: first or second")
    _add_folder(one)
    add("--recorded-models", action="store_true", help="take committed checkpoints instead of training")
    add("--record", action="store_true", help="write results, figure and checkpoints to results/PROFILE")


def _folder(chosen: argparse.Namespace) -> FolderConfig:
    return FolderConfig(**{option.name: getattr(chosen, option.name) for option in fields(FolderConfig)})


def _profile(chosen: argparse.Namespace) -> Profile:
    # The chosen profile with what the command line changes.
    from zspag.lab import runs

    profile = profiles.for_pair(profiles.PROFILES[chosen.profile], dataset=chosen.dataset, arch=chosen.arch)
    if profile.trial and chosen.record:
        raise ValueError(f"{profile.name} is a trial, its numbers mean nothing: leave out --record")
    profile = replace(
        profile,
        recorded_models=chosen.recorded_models,
        folder=_folder(chosen),
        test_half=chosen.test_half,
        seeds=profile.seeds if chosen.seeds is None else _numbers("--seeds", chosen.seeds),
        train=profile.train if chosen.epochs is None else replace(profile.train, epochs=chosen.epochs),
        forget_samples=profile.forget_samples if chosen.forget_samples is None else chosen.forget_samples,
        retain_samples=profile.retain_samples if chosen.retain_samples is None else chosen.retain_samples,
    )
    if chosen.classes is not None:
        profile = replace(profile, classes=runs.class_numbers(profile, chosen.classes.split(",")))
    return profile


def _announced(profile: Profile) -> Profile:
    # Print which folder became which class, where the data set is an image folder.
    from zspag.lab import runs

    _print(runs.folder_lines(profile))
    return profile


def _print(lines: Iterable[str]) -> int:
    for line in lines:
        print(line, flush=True)
    return 0


def _demo(chosen: argparse.Namespace) -> int:
    from zspag.lab.demo.command import run

    picture = Path(chosen.out)
    if picture.suffix != ".png" or picture.is_dir():
        raise ValueError(f"--out must be a file that ends in .png, got {picture}: {picture.with_suffix('.png')} is one")
    return _print(run(chosen.forget, picture))


def _run(chosen: argparse.Namespace) -> int:
    from zspag.lab import runs

    return _print_runs(chosen, runs.run(_announced(_profile(chosen)), record=chosen.record))


def _sweep(chosen: argparse.Namespace) -> int:
    from zspag.lab import sweep
    from zspag.lab.methods import METHODS
    from zspag.report.files import repository_root

    profile = replace(_profile(chosen), retrained=not chosen.no_retrained)
    if chosen.rates is not None and chosen.rates.endswith(".json"):
        file, root = Path(chosen.rates).resolve(), repository_root().resolve()
        profile = replace(profile, rates_of=str(file.relative_to(root) if file.is_relative_to(root) else file))
    elif chosen.rates is not None:
        rates = _each_once("--rates", _decimals("--rates", chosen.rates))
        profile = replace(profile, ladders=Ladders(low=rates, middle=rates, high=rates))
    methods = tuple(METHODS) if chosen.methods is None else _each_once("--methods", chosen.methods.split(","))
    lines = sweep.sweep(_announced(profile), methods, record=chosen.record, scheduler=chosen.scheduler)
    return _print_runs(chosen, lines)


def _audit(chosen: argparse.Namespace) -> int:
    from zspag.lab import audit

    lines = audit.publish(_announced(_profile(chosen)), record=chosen.record, features_only=chosen.features)
    return _print_runs(chosen, lines)


def _print_runs(chosen: argparse.Namespace, lines: Iterable[str]) -> int:
    from zspag.lab.experiment import RunsFailed

    try:
        return _print(lines)
    except RunsFailed as error:
        print(f"zspag {chosen.command}: {error}", file=sys.stderr)
        return 1


Item = TypeVar("Item", int, float, str)


def _decimals(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(f"{option} takes numbers, comma-separated, got {text!r}") from error


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} takes whole numbers, comma-separated, got {text!r}") from error
    return _each_once(option, numbers)


def _each_once(option: str, items: Sequence[Item]) -> tuple[Item, ...]:
    # A value that is given twice would only be computed and counted twice.
    twice = [item for position, item in enumerate(items) if item in items[:position]]
    if twice:
        raise ValueError(f"{option} names {twice[0]} twice: give each value once")
    return tuple(items)


def _unlearn(chosen: argparse.Namespace) -> int:
    from zspag.lab.unlearn_files import GoalNotReached, Task, unlearn_files

    given = {field.name: getattr(chosen, field.name) for field in fields(Task)}
    for name in ("mean", "std"):
        if given[name] is not None:
            given[name] = _decimals(f"--{name}", given[name])
    before = given["already_forgotten"]
    given["already_forgotten"] = () if before is None else _numbers("--already-forgotten", before)
    try:
        return _print(unlearn_files(Task(**given)))
    except GoalNotReached as short:
        print(f"zspag unlearn: {short}", file=sys.stderr)
        return 3


def _methods(chosen: argparse.Namespace) -> int:
    from zspag.lab.methods import METHODS, listing

    return _print(listing(METHODS, ladders=profiles.PROFILES[chosen.profile].ladders))


def _claims(chosen: argparse.Namespace) -> int:
    from zspag.report import claims
    from zspag.report.files import repository_root

    root = repository_root()
    named = [chosen.profile] if chosen.profile else claims.profiles(root / "results")
    found = [claims.audit(root, profile=profile, fresh=chosen.fresh) for profile in named]
    for lines, _ in found:
        print("\n".join([*lines, ""]))
    troubles = [trouble for _, some in found for trouble in some]
    for trouble in troubles or ["nothing is recorded"] * (not found):
        print(f"zspag claims: {trouble}", file=sys.stderr)
    return 1 if troubles or not found else 0


def _data(chosen: argparse.Namespace) -> int:
    from zspag.lab.data import inventory

    if chosen.task == "list":
        return _print(inventory.listing())
    options = asdict(_folder(chosen))
    if chosen.task == "get":
        print(inventory.get(chosen.name, **options))
        return 0
    agrees, line = inventory.check(chosen.name, **options)
    print(line)
    return 0 if agrees else 1


def _env(_chosen: argparse.Namespace) -> int:
    import time

    import torch

    from zspag.report import provenance
    from zspag.runtime import pick_device

    device, threads = pick_device().type, torch.get_num_threads()
    record = provenance.record(
        config={}, seed=None, data_sha256=None, device=device, threads=threads, started=time.time()
    )
    print(provenance.describe(record))
    return 0


def _provenance(chosen: argparse.Namespace) -> int:
    from zspag.report import provenance, reproducible

    print(provenance.describe(provenance.read_record(chosen.file)))
    print(reproducible.verdict(chosen.file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
