"""The grid on a dask cluster: another way to carry the same jobs to processes, of one machine or of many.

Without an address a cluster of this machine is started: one worker process per GPU where there are any, else as many
as the profile says, each with the profile's threads. On other machines the package, the folder that ``ZSPAG_ROOT``
names and the data must be there under the same paths, as on the shared file system of a cluster.

Why not joblib: its dask backend needs the same client and workers that are set up here. Tried with joblib 1.6.0 and
distributed 2026.8.0, two worker processes, one killed: on dask all jobs ended, as here, but a job that raised an error
ended the whole map; joblib's own pool ended with the worker (``TerminatedWorkerError``), half of the jobs not begun.
Here each job that failed is named, and the others go on.

Invariant: a job's result is a file that it writes itself, so a worker that dies costs its own unfinished job, which
another worker does again. Nothing here knows what a job computes.
"""

import importlib.util
import logging
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from zspag.runtime import Answer, Job, pool_map, progress

if TYPE_CHECKING:
    from distributed import Client

ANSWERS_WITHIN = 10.0  # seconds that a scheduler somewhere else is given
HERE = "127.0.0.1"  # no other machine can send jobs to workers started here
# Dask has workers give freed memory back to the system at once, to be asked for again at the next pass, and looks at
# the stack of what works a hundred times a second: together half of a job's time, where page faults are dear.
_WORKERS = {
    "distributed.admin.tick.limit": "1h",  # a job holds its worker for minutes, and that is fine
    "distributed.worker.profile.enabled": False,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**32,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**32,
}


@contextmanager
def spread_over(scheduler: str | None, *, workers: int, threads_each: int) -> Generator[Any, None, None]:
    """Hand out what carries jobs to a cluster, with the signature of ``runtime.pool_map``.

    Args:
        scheduler: Address of a running dask scheduler such as "tcp://host:8786"; None starts workers here.
        workers: Worker processes on this machine, where it has no GPU.
        threads_each: Intra-op threads of torch in each.

    Yields:
        A function that carries jobs, for as long as the cluster is open.

    Raises:
        ValueError: If nobody answers at the address; the message names it.
        ModuleNotFoundError: If dask is not installed and there is something to spread.
    """
    if scheduler is None and workers == 1 and torch.cuda.device_count() <= 1:
        yield pool_map  # one after the other in this process: there is nothing to spread
        return
    if importlib.util.find_spec("distributed") is None:  # said now, and not after the trainings
        raise ModuleNotFoundError("a sweep over processes needs dask.distributed", name="distributed")
    with ExitStack() as opened:

        @cache
        def client() -> "Client":
            return opened.enter_context(_client(scheduler, workers=workers, threads_each=threads_each))

        def carry(
            function: Callable[[Job], Answer], jobs: Sequence[Job], *, title: str, threads_each: int, **_: Any
        ) -> Iterator[tuple[Job, Answer | Exception]]:
            if not jobs:
                return
            from distributed import as_completed

            futures = {client().submit(_with_threads, function, job, threads_each, pure=False): job for job in jobs}
            try:
                for future in progress(as_completed(futures, loop=client().loop), total=len(jobs), title=title):
                    error = future.exception()
                    yield futures[future], error if error is not None else future.result()
            finally:
                client().cancel(list(futures))

        if scheduler is not None:
            client()  # whether anybody answers is known at once; workers here are started for the first job
        yield carry


def _with_threads(function: Callable[[Job], Answer], job: Job, threads_each: int) -> Answer:
    torch.set_num_threads(threads_each)
    return function(job)


@contextmanager
def _client(scheduler: str | None, *, workers: int, threads_each: int) -> Generator["Client", None, None]:
    """Connect to a scheduler, or start one here with workers that do one job at a time, one per GPU if there are GPUs.

    Yields:
        The client.

    Raises:
        ValueError: If nobody answers at the address.
    """
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=ANSWERS_WITHIN, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no dask scheduler answers at {scheduler!r} ({error}); start one, or leave the address out"
            ) from error
        with client:
            yield client
        return
    dask.config.set(_WORKERS)
    gpus, quiet = torch.cuda.device_count(), logging.CRITICAL
    with tempfile.TemporaryDirectory(prefix="zspag-workers-") as folder:
        shared = {"nthreads": 1, "memory_limit": 0, "local_directory": folder, "host": HERE, "silence_logs": quiet}
        spec = {}
        for index in range(gpus or workers):
            env = {"OMP_NUM_THREADS": str(threads_each)} | ({"CUDA_VISIBLE_DEVICES": str(index)} if gpus else {})
            spec[index] = {"cls": Nanny, "options": shared | {"env": env}}
        options = {"dashboard": False, "dashboard_address": f"{HERE}:0", "host": HERE}
        place = {"cls": Scheduler, "options": options}
        with (
            SpecCluster(workers=spec, scheduler=place, silence_logs=quiet) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
