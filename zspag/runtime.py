"""What a run stands on: seeds, device, threads, a pool of one-thread processes, and models given back as found.

Invariant: whatever these context managers change they restore, also after an exception.
"""

import copy
import hashlib
import itertools
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from zspag.process.allocator import keep_freed_memory
from zspag.process.surroundings import layout_is_plain

# Samples per pass: bounds memory, changes no result. Without ``keep_freed_memory``, a pass of 512
# images takes nearly twice as long per image as one of 128 (``zspag.process.allocator`` says why).
CHUNK = 128
CHUNK_GPU = 1024

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that is a function of ``parts`` alone, so that no stream depends on what ran before it.

    Example:
        >>> derive_seed(0, "proxies") == derive_seed(0, "proxies") != derive_seed(1, "proxies")
        True
    """
    digest = hashlib.sha256("/".join(map(repr, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*parts: object) -> torch.Generator:
    """Return a CPU generator seeded by ``parts``; draw on the CPU and move: all devices then see the same numbers."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def seed_of(generator: torch.Generator) -> int:
    """Draw the seed of a method's streams: each rate starts them anew, so that all rates see the same batches."""
    return int(torch.randint(2**31, (1,), generator=generator))


def pick_device(name: str | None = None) -> torch.device:
    """Return the device called ``name``, or the first CUDA device if there is one, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter (the CPU for a model without parameters)."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def sent(drawn: Tensor, device: torch.device) -> Tensor:
    """Return what was drawn on the CPU on ``device``, without waiting for the work that a GPU still has to do.

    A plain copy to a GPU first lets it finish all that it was given, so that a loop which draws at every step keeps it
    idle between its steps. From pinned memory the copy queues behind that work.
    """
    if device.type == "cuda":
        drawn = drawn.pin_memory()
    return drawn.to(device, non_blocking=True)  # a copy from the CPU only: the other way it would be read too early


def channels_last(images: Tensor) -> Tensor:
    """Return (n, C, H, W) images with channels innermost in memory, where a CPU convolves faster; others unchanged.

    Within ``surroundings.plain_layout`` all come in plain order, for models that rely on it.

    Note:
        On processors with AVX2 but not AVX-512, oneDNN's gradient of a 1x1 convolution of stride 2 and fewer than 8
        input channels writes past its end in this layout: training a residual net of width 4 can end the process.
    """
    if layout_is_plain():
        return images.contiguous()
    if images.dim() != 4:
        return images
    if images.shape[1] == 1:  # the same memory in both orders; the strides tell a convolution which one to go on in
        height, width = images.shape[2:]
        return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))
    return images.contiguous(memory_format=torch.channels_last)


def copied(model: nn.Module) -> nn.Module:
    """Return a copy to be changed, its weights laid channels innermost; bring what is handed on back into plain order.

    Plain order is what optimizers with a flat view of the weights and file formats ask for. Within
    ``surroundings.plain_layout`` the weights keep the order they have.

    Note:
        A tensor that the last pass left on a module, part of its graph (the masked weight of a pruned layer, a kept
        feature), is copied without the graph, which ``copy.deepcopy`` refuses to copy.
    """
    changed = copy.deepcopy(model, without_graph(model))
    if layout_is_plain():
        return changed
    for tensor in itertools.chain(changed.parameters(), changed.buffers()):
        if tensor.dim() == 4:  # ``Module.to`` would refuse a volumetric layer, whose weights have five
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return changed


def without_graph(model: nn.Module) -> dict[int, Tensor]:
    """Return the memory of ``copy.deepcopy`` in which tensors that are part of a graph were already copied without."""
    kept: list[Any] = [vars(part) for part in model.modules()]
    for value in kept:  # it grows while it is read
        if isinstance(value, dict):
            kept += [part for part in value.values() if isinstance(part, Tensor | dict | list | tuple)]
        elif isinstance(value, list | tuple):
            kept += [part for part in value if isinstance(part, Tensor | dict | list | tuple)]
    tensors = (value for value in kept if isinstance(value, Tensor))
    return {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf}


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one length along their first axis into pieces for one pass each; yield the pieces side by side.

    Example:
        >>> [len(x) for x, _ in chunks(torch.zeros(200, 3), torch.zeros(200))]
        [128, 72]
    """
    size = CHUNK if tensors[0].device.type == "cpu" else CHUNK_GPU
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Put ``model`` in eval mode and give every submodule its own mode back afterwards."""
    was_training = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, mode in was_training.items():
            part.training = mode


@contextmanager
def frozen(model: nn.Module) -> Generator[None, None, None]:
    """Eval mode and no parameter requires grad: gradients reach the input only. Both are restored afterwards."""
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with evaluating(model):
        try:
            for parameter in required:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in required.items():
                parameter.requires_grad_(flag)


def spread_evenly(indices: Tensor, limit: int | None) -> Tensor:
    """Return at most ``limit`` of the indices, evenly spaced: images sorted by name come in kinds."""
    if limit is None or limit >= len(indices):
        return indices
    return indices[torch.arange(limit) * len(indices) // limit]


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's logits (n, K) for images (n, C, H, W), in eval mode, chunk by chunk."""
    with frozen(model):
        return torch.cat([model(x) for (x,) in chunks(images)])


@contextmanager
def plain_attention() -> Generator[None, None, None]:
    """Switch attention to its plain math form, in which forward mode and double backward work; restored afterwards.

    Note:
        Both switches are needed: the fused path of ``nn.MultiheadAttention`` hides its projections, and the fused
        kernels of ``scaled_dot_product_attention`` have no forward-mode rule.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def threads(count: int) -> Generator[None, None, None]:
    """Run with ``count`` intra-op threads (different counts give different bits); the old count is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def progress(items: Iterable[Job], *, total: int | None = None, title: str, unit: str = "run") -> "tqdm[Job]":
    """Wrap ``items`` in a bar with an ETA; silent unless a terminal shows it (notebooks under test, logs)."""
    watched = sys.stderr.isatty() or os.environ.get("ZSPAG_PROGRESS") == "1"
    return tqdm(items, total=total, desc=title, unit=unit, disable=not watched, leave=False, dynamic_ncols=True)


def begin_worker(count: int) -> None:
    """Set up a process that works for this one: ``count`` threads, memory kept, and an end when this one ends."""
    keep_freed_memory()
    torch.set_num_threads(count)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # or it would wait for its next job for ever

    threading.Thread(target=end_with_parent, daemon=True).start()


def _sent_whole(function: Callable[[Job], Answer], job: Job) -> Answer:
    """Call the function for a pool, which an exception that cannot be unpickled would end.

    Raises:
        RuntimeError: In place of such an exception, with its words.
    """
    try:
        return function(job)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001  whatever a class of the user's raises while it is made anew
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise


def pool_map(
    function: Callable[[Job], Answer],
    jobs: Sequence[Job],
    *,
    workers: int,
    threads_each: int,
    title: str,
) -> Iterator[tuple[Job, Answer | Exception]]:
    """Apply ``function`` to every job on a pool of processes, each with ``threads_each`` threads; yield as they finish.

    Args:
        function: A module-level function (it is pickled by name).
        jobs: Picklable jobs.
        workers: Processes; 1 runs in this process.
        threads_each: Intra-op threads per process.
        title: Title of the progress bar.

    Yields:
        Each job with its answer, or with the exception it raised; the other jobs go on.
    """
    if workers == 1 or len(jobs) <= 1:
        with threads(threads_each):
            for job in progress(jobs, total=len(jobs), title=title):
                answer: Answer | Exception
                try:
                    answer = function(job)
                except Exception as error:  # noqa: BLE001  the caller decides what a failed job means
                    answer = error
                yield job, answer
        return
    context = multiprocessing.get_context("spawn")  # a forked child inherits torch's thread pools in a broken state
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=begin_worker, initargs=(threads_each,)
    ) as executor:
        futures = {executor.submit(_sent_whole, function, job): job for job in jobs}
        try:
            for future in progress(as_completed(futures), total=len(jobs), title=title):
                failure = future.exception()
                yield futures[future], failure if isinstance(failure, Exception) else future.result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
