"""The grid on dask workers: the same answers, one job at a time, and a worker that dies costs its own job alone."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
import torch

from zspag.lab import cluster
from zspag.lab.cluster import spread_over
from zspag.report import files
from zspag.runtime import pool_map

pytestmark = pytest.mark.slow  # processes of their own


def _square(number):
    if number == 3:
        raise ArithmeticError("no threes")
    return number**2, torch.get_num_threads(), os.getpid()


def _dies_once(job):
    """Write a result file if there is none, as runs of a grid do; the doomed job's first try kills its own worker."""
    folder, number, doomed = job
    result = Path(folder) / f"{number}.json"
    if not result.exists():
        tries = len(list(Path(folder).glob(f"{number}-*")))
        (Path(folder) / f"{number}-{tries}").touch()
        if number == doomed and tries == 0:
            os.kill(os.getpid(), signal.SIGKILL)  # as a full memory would
        time.sleep(0.05)
        result.touch()
    return number


def test_one_worker_stays_in_this_process():
    with spread_over(None, workers=1, threads_each=1) as carry:
        assert carry is pool_map


def test_nothing_is_started_for_a_grid_that_is_finished(monkeypatch):
    def explode(*_args, **_options):
        raise AssertionError("this would start workers")

    monkeypatch.setattr(cluster, "_client", explode)
    with spread_over(None, workers=2, threads_each=1) as carry:
        assert list(carry(_square, [], workers=2, threads_each=1, title="")) == []
        with pytest.raises(AssertionError, match="would start workers"):
            next(carry(_square, [1], workers=2, threads_each=1, title=""))


def test_two_workers_answer_as_a_pool_does_and_name_what_failed(capfd):
    with spread_over(None, workers=2, threads_each=3) as carry:
        answers = dict(carry(_square, list(range(8)), workers=2, threads_each=3, title=""))
        assert list(carry(_square, [], workers=2, threads_each=3, title="")) == []
    assert {job: answer[0] for job, answer in answers.items() if job != 3} == {n: n**2 for n in range(8) if n != 3}
    assert isinstance(answers[3], ArithmeticError)
    assert {answer[1] for job, answer in answers.items() if job != 3} == {3}
    assert os.getpid() not in {answer[2] for job, answer in answers.items() if job != 3}
    assert "distributed" not in capfd.readouterr().err  # workers that start and stop as they should say nothing


def test_a_worker_killed_in_the_middle_costs_its_own_job_alone(tmp_path):
    jobs = [(str(tmp_path), number, 4) for number in range(10)]
    with spread_over(None, workers=2, threads_each=1) as carry:
        answers = {job[1]: answer for job, answer in carry(_dies_once, jobs, workers=2, threads_each=1, title="")}
    assert answers == {number: number for number in range(10)}
    tries = {number: len(list(tmp_path.glob(f"{number}-*"))) for number in range(10)}
    assert tries == {number: 2 if number == 4 else 1 for number in range(10)}


def test_an_address_where_nobody_answers_is_named(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWERS_WITHIN", 0.5)
    with (
        pytest.raises(ValueError, match=r"no dask scheduler answers at 'tcp://127.0.0.1:9'.*start one"),
        spread_over("tcp://127.0.0.1:9", workers=2, threads_each=1),
    ):
        pass


METHODS = ("zs_pag", "delete", "head_only")
SWEEP = ("-m", "zspag", "sweep", "--profile", "smoke", "--methods", ",".join(METHODS), "--no-retrained")


def _swept(root, *options):
    """Start a sweep whose files lie in ``root``."""
    command = [sys.executable, *SWEEP, *options]
    return subprocess.Popen(command, env=os.environ | {"ZSPAG_ROOT": str(root)}, stderr=subprocess.PIPE, text=True)


def _rows(root):
    content = files.read_json(root / "runs" / "smoke" / "results" / "sweep_digits_digits_3_no-retrained.json")
    return pd.DataFrame(content["measurements"]["rows"]).drop(columns="seconds")


@pytest.fixture
def scheduler(tmp_path):
    """A dask scheduler and two workers, all processes that a cluster of this machine could have started elsewhere.

    Yields:
        The scheduler's address and the processes of the workers.
    """
    file = tmp_path / "scheduler.json"
    common = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    env = os.environ | {"ZSPAG_ROOT": str(tmp_path / "spread"), "OMP_NUM_THREADS": "1"}
    alone = ("--scheduler-file", str(file), "--no-dashboard")
    roles = [("scheduler", "--host", "127.0.0.1", "--port", "0"), *[("worker", "--nthreads", "1", "--no-nanny")] * 2]
    with ExitStack() as started:
        processes = []
        for role, *options in roles:
            command = [sys.executable, "-m", "dask", role, *options, *alone]
            process = subprocess.Popen(command, env=env, cwd=tmp_path, **common)
            started.callback(process.wait)
            started.callback(process.kill)
            processes.append(process)
        _wait_for(file.is_file)
        yield files.read_json(file)["address"], processes[1:]


def _wait_for(condition, seconds=600):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.05)


def test_a_sweep_over_two_workers_of_which_one_is_killed_has_the_rows_of_a_serial_one(scheduler, tmp_path):
    address, (doomed, other) = scheduler
    running = _swept(tmp_path / "spread", "--scheduler", address)
    grid = tmp_path / "spread" / "runs" / "smoke" / "grid"
    _wait_for(lambda: running.poll() is not None or any(len(list(grid.glob(f"{name}-*"))) for name in METHODS))
    doomed.kill()  # while both do the other methods
    _, said = running.communicate()
    assert running.returncode == 0, said
    assert (doomed.wait(), other.poll()) == (-signal.SIGKILL, None)
    serial = _swept(tmp_path / "serial")
    _, said = serial.communicate()
    assert serial.returncode == 0, said
    spread_rows, serial_rows = (_rows(tmp_path / name) for name in ("spread", "serial"))
    assert set(serial_rows["method"]) >= set(METHODS)
    pd.testing.assert_frame_equal(spread_rows, serial_rows, check_exact=True)
