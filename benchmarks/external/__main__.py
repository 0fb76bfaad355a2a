"""``python -m benchmarks.external``: train the zoo, make its rows and those of variants, time it, write its tables."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.external.arms import ARMS
from benchmarks.external.choices import CHOSEN, VARIANTS
from benchmarks.external.nets import NETS
from zspag.runtime import pick_device, threads


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.external", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("train", "train every net once"),
        ("rows", "make the rows that are missing or older than the code"),
        ("time", "time the defaults against those of fa40f86, in turn"),
        ("choices", "make the rows of variants of the method, on development nets"),
        ("table", "write results/external from the rows"),
    ):
        command = commands.add_parser(name, help=help_text)
        if name == "table":
            continue
        command.add_argument("--nets", type=_names(NETS), default=None, help="comma-separated; all without it")
        command.add_argument("--data", help="folder of the data sets (else ZSPAG_DATA, or data/)")
        command.add_argument("--threads", type=int, default=2 if name == "time" else 1)
        command.add_argument("--device", default=None, help="cpu or cuda; the GPU where there is one")
        if name == "rows":
            command.add_argument("--arms", type=_names(ARMS), default=list(ARMS), help="comma-separated")
            command.add_argument("--counts", type=_counts, default=None, help="comma-separated, such as 20,200,all")
        if name == "choices":
            command.add_argument("--variants", type=_names(VARIANTS), default=list(VARIANTS), help="comma-separated")
        if name in ("rows", "choices"):
            command.add_argument("--workers", type=int, default=1, help="processes, each with --threads threads")
        if name == "time":
            command.add_argument("--repeats", type=int, default=3, help="runs of each side, in turn")
    return parser.parse_args(arguments)


def _names(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        listed = text.split(",")
        if unknown := sorted(set(listed) - set(known)):
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; known are {', '.join(known)}")
        return listed

    return names


def _counts(text: str) -> list[int | None]:
    return [None if part == "all" else int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 1 where a row or a training failed."""
    options = parsed(arguments)
    if options.command == "table":
        from benchmarks.external import choices
        from benchmarks.external.rows import load_rows
        from benchmarks.external.table import folder, recorded_timing, with_recorded, write_choices, write_table

        if compared := with_recorded(load_rows(choices.folder()), folder() / "choices.json"):
            write_choices(compared)
            say(f"wrote {folder() / 'CHOICES.md'}")
        write_table(with_recorded(load_rows(), folder() / "zoo.json"), timing=recorded_timing())
        say(f"wrote {folder() / 'README.md'}")
        return 0
    if options.data:
        os.environ["ZSPAG_DATA"] = options.data
    device = str(pick_device(options.device))
    if options.command == "time":
        from benchmarks.external.timing import DEFAULT, time_nets

        done = time_nets(options.nets or DEFAULT, threads_each=options.threads, repeats=options.repeats, device=device)
        for entry in done["nets"]:
            say(f"{entry['net']}: ours {entry['ours_seconds']} s, fa40f86 {entry['fa40f86_seconds']} s")
            for side, error in entry["errors"].items():
                say(f"  {side} failed: {error}")
        return 0
    names = options.nets or list(CHOSEN if options.command == "choices" else NETS)
    return _train(names, options.threads, device) if options.command == "train" else _rows(names, options, device)


def _train(names: Sequence[str], count: int, device: str) -> int:
    from benchmarks.external.originals import original

    failed = 0
    with threads(count):
        for name in names:
            try:
                say(f"{name}: {100 * original(name, device=device).test_accuracy:.2f} % of the test images")
            except (ValueError, OSError) as error:
                failed = 1
                say(f"{name}: failed, {error}")
    return failed


def _rows(names: Sequence[str], options: argparse.Namespace, device: str) -> int:
    from benchmarks.external import choices
    from benchmarks.external.originals import train_original
    from benchmarks.external.rows import Job, jobs, make_rows

    with threads(options.threads):
        for name in names:
            train_original(name, device=device)  # before the processes start, so that no two train the same net
    made_rows: Iterator[tuple[Job, bool | Exception]]
    if options.command == "choices":
        variants = choices.jobs(names, options.variants, device=device, threads=options.threads)
        made_rows = choices.make_choices(variants, workers=options.workers)
    else:
        todo = jobs(names, options.arms, counts=options.counts, device=device, threads=options.threads)
        made_rows = make_rows(todo, workers=options.workers)
    failed = 0
    for job, made in made_rows:
        if isinstance(made, Exception):
            failed = 1
            say(f"{job.path.stem}: no row, {type(made).__name__}: {made}")
        elif made:
            say(f"{job.path.stem}: made")
    return failed


if __name__ == "__main__":
    sys.exit(main())
