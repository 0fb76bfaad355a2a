"""What a user waits for before anything begins: imports, the help text, and the first cell of every notebook."""

import ast
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.stages.findings import Finding
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes
from zspag.report.files import repository_root
from zspag.report.reproduce.execution import KERNEL, own_kernel

STAGE = "start-up"
_IMPORT = """
import time, torch
started = time.perf_counter()
import zspag
zspag.zero_shot_unlearn
print(time.perf_counter() - started)
"""
_HELP = """
import sys, time
started = time.perf_counter()
from zspag.__main__ import main
try:
    main(["--help"])
except SystemExit:
    pass
print(time.perf_counter() - started, sum(name.split(".")[0] == "torch" for name in sys.modules))
"""


def measure(sizes: Sizes, _machine: Machine, _device: torch.device) -> Iterator[Finding]:
    """Yield what fresh processes take, and every notebook in a fresh kernel."""
    repeats = min(3, sizes.repeats)
    seconds = tuple(float(_said(_IMPORT)[-1]) for _ in range(repeats))
    case, what = "import zspag, the method included", "seconds beyond torch's own import"
    yield Finding(STAGE, case, what, statistics.median(seconds), at_most=0.3, rounds=seconds)
    spent, loaded = _said(_HELP)[-2:]
    note = f"{float(spent):.2f} seconds"
    yield Finding(STAGE, "zspag --help", "modules of torch that are loaded", float(loaded), at_most=0, note=note)
    yield _notebooks(repository_root() / "notebooks", limit=1 if sizes.tiny else None)


def _said(program: str) -> list[str]:
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return ended.stdout.split()


def _notebooks(folder: Path, *, limit: int | None) -> Finding:
    """Start a kernel for every notebook and run its imports."""
    seconds = {path.stem: _until_imported(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))[:limit]}
    what = "seconds to start the kernel and import, slowest notebook"
    if not seconds:
        return Finding(STAGE, "notebooks", what, None, at_most=5, note=f"there is no notebook in {folder.name}/")
    return Finding(
        STAGE,
        "notebooks",
        what,
        max(seconds.values()),
        at_most=5,
        note="; ".join(f"{name[:2]}: {spent:.1f}" for name, spent in seconds.items()),
    )


def _until_imported(path: Path) -> float:
    from jupyter_client.manager import start_new_kernel

    imports = imports_of(json.loads(path.read_text(encoding="utf-8")))
    with own_kernel(KERNEL):
        started = time.perf_counter()
        manager, client = start_new_kernel(60, KERNEL, stderr=subprocess.DEVNULL)
        try:
            answer = client.execute_interactive(imports, timeout=60, store_history=False, output_hook=lambda _: None)
            spent = time.perf_counter() - started
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    if answer["content"]["status"] != "ok":
        raise ValueError(f"the imports of {path.name} fail: {answer['content'].get('evalue', '')}")
    return spent


def imports_of(notebook: dict[str, list[dict[str, object]]]) -> str:
    """Return all import statements of a notebook that stand at the top level of a cell, one per line."""
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = cell["source"]
            text = source if isinstance(source, str) else "".join(source)  # type: ignore[arg-type]
            found += [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(map(ast.unparse, found))
