"""The grid on dask workers: the same answers, one job at a time, and a worker that dies costs its own job alone."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from zspag.lab import cluster
from zspag.lab.cluster import spread_over
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
