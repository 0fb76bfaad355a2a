"""Time every stage of the method: ``python -m benchmarks``, or two recorded runs side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import stages
from zspag.process.allocator import keep_freed_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0: done, 2: the input cannot work."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help="stages, comma-separated (default: all)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: numbers mean nothing, but every line runs")
    parser.add_argument("--record", action="store_true", help="write results, figures and table to results/bench")
    parser.add_argument("--table", action="store_true", help="write results/bench/README.md from what is recorded")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="the last run beside an older one")
    chosen = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        if chosen.compare is not None:
            lines = stages.compare(chosen.compare)
        elif chosen.table:
            lines = stages.write_table()
        else:
            only = tuple(chosen.only.split(",")) if chosen.only else None
            lines = stages.run(tiny=chosen.tiny, only=only, record=chosen.record)
        for line in lines:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"python -m benchmarks: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
