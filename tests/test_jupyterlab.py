"""A reader opens a notebook in JupyterLab and runs all cells; another runs it by plain papermill from any folder."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import nbformat
import pytest
from tornado.websocket import websocket_connect

ROOT = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NOTEBOOK = "02_proxy_generation.ipynb"
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PATIENCE = 240  # seconds


@pytest.fixture
def place(tmp_path):
    """A folder with the notebooks, and the environment of a kernel that works there."""
    (tmp_path / "notebooks").mkdir()
    for name in NOTEBOOKS:
        shutil.copyfile(ROOT / "notebooks" / name, tmp_path / "notebooks" / name)
    for name in ("results", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    chosen = {"ZSPAG_ROOT": str(tmp_path), "ZSPAG_PROFILE": "smoke", "PYTHONPATH": str(ROOT)}
    return tmp_path, os.environ | chosen


class UnansweredError(RuntimeError):
    """The browser did not do what it was told: a page that is being loaded has nothing to evaluate a script in."""


class Tab:
    """One page of a browser, through its debugging protocol."""

    def __init__(self, connection):
        self.connection, self.sent = connection, 0

    async def call(self, method, **parameters):
        self.sent += 1
        await self.connection.write_message(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while True:
            answer = json.loads(await self.connection.read_message())
            if answer.get("id") == self.sent:
                if "error" in answer:
                    raise UnansweredError(answer["error"]["message"])
                return answer["result"]

    async def close(self):
        self.connection.close()
        while await self.connection.read_message() is not None:  # None says that the browser has closed it as well
            pass

    async def value(self, script):
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, script):
        last = "it was asked nothing"
        for _ in range(4 * PATIENCE):
            try:
                last = await self.value(script)
            except UnansweredError as error:  # the page was exchanged for another while it was asked
                last = error
            if last and not isinstance(last, UnansweredError):
                return
            await asyncio.sleep(0.25)
        raise TimeoutError(f"the page never came to {script}: {last}")


def line_with(stream, word):
    for line in stream:
        if word in line:
            return line
    raise AssertionError(f"the program ended without {word!r}")


READY = """(() => { const page = window.jupyterapp && jupyterapp.shell.currentWidget;
const kernel = page && page.sessionContext && page.sessionContext.session && page.sessionContext.session.kernel;
return Boolean(kernel && kernel.status === "idle" && page.context.isReady && page.content.widgets.length > 5); })()"""


async def run_all(debugger, address):
    """Open the address, run all cells, and return the notebook as the page holds it, and a picture."""
    port = debugger.split("//")[1].split("/")[0]
    request = urllib.request.Request(f"http://{port}/json/new?{address}", method="PUT")  # noqa: S310  our own browser
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        page = json.load(answer)["webSocketDebuggerUrl"]
    tab = Tab(await websocket_connect(page, max_message_size=2**28))
    try:
        await tab.until(READY)
        await asyncio.sleep(3)  # the page draws its cells after it is ready
        await tab.value("jupyterapp.commands.execute('notebook:run-all-cells')")
        await tab.until(READY)
        model = await tab.value("jupyterapp.shell.currentWidget.content.model.toJSON()")
        shot = await tab.call("Page.captureScreenshot", format="png")
    finally:
        await tab.close()
    return model, base64.b64decode(shot["data"])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_all_cells_run_in_jupyterlab_in_a_browser(place, name):
    folder, environment = place
    options = ["--no-browser", "--allow-root", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    lab = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder / 'notebooks'}"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    browser = subprocess.Popen(
        [BROWSER, "--headless=new", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={folder / 'user'}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = line_with(lab.stderr, "http://localhost").split()[-1].split("/lab")[0]
        debugger = line_with(browser.stderr, "DevTools listening on").split()[-1]
        model, picture = asyncio.run(run_all(debugger, f"{address}/lab/tree/{name}"))
    finally:
        for process in (browser, lab):
            process.terminate()
            process.stderr.close()
            process.wait()
    code = [cell for cell in model["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert [one for cell in code for one in cell["outputs"] if one["output_type"] == "error"] == []
    assert f"{name.removesuffix('.ipynb')}: " in str(code[-1]["outputs"])  # the seal
    assert len(picture) > 20_000
    assert list((folder / "figures" / "smoke").glob(f"{name[:2]}_*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("where", [".", "notebooks", "elsewhere"])
def test_plain_papermill_runs_it_from_any_folder_with_other_parameters(place, where):
    folder, environment = place
    (folder / where).mkdir(exist_ok=True)
    command = [sys.executable, "-m", "papermill", str(folder / "notebooks" / NOTEBOOK), str(folder / "out.ipynb")]
    parameters = ["-p", "forget", "5", "-p", "radius", "0.3", "-k", "python3", "--no-progress-bar"]
    done = subprocess.run(
        [*command, *parameters], cwd=folder / where, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (injected,) = [
        cell.source
        for cell in nbformat.read(folder / "out.ipynb", as_version=4).cells
        if "injected-parameters" in cell.metadata.get("tags", [])
    ]
    assert "radius = 0.3" in injected
    assert (folder / "figures" / "smoke" / "02_walk.png").is_file()
