"""Who does the chunks: this process, some of its children, or a cluster that is there. All do the same unit.

There is no scheduler here: Dask and Ray place, retry and replace by themselves; of this process's own
children, those that were killed are started again.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

from acq_isl.bulk.unit import Unit, do_chunk, open_engine
from acq_isl.bulk.work import Chunk, Done, Failed, Job
from acq_isl.errors import EngineError

Results = Generator[tuple[Chunk, Done]]
_TRIES = 3
_AHEAD = 2
"""Chunks a process has before it: one in work, one that waits."""
_CLUSTER_AHEAD = 512
"""Enough for a cluster to see that it should grow."""


@dataclass(frozen=True, slots=True)
class Here:
    """This process, one chunk after the other."""


@dataclass(frozen=True, slots=True)
class Processes:
    """So many child processes, each with an engine of its own."""

    count: int


@dataclass(frozen=True, slots=True)
class Dask:
    """A Dask cluster by its scheduler's address."""

    address: str


@dataclass(frozen=True, slots=True)
class Ray:
    """A Ray cluster by its address, or ``auto``."""

    address: str


Place = Here | Processes | Dask | Ray


def do_all(place: Place, job: Job, chunks: Iterable[Chunk]) -> Results:
    """Do all chunks, in any order; EngineError if the cluster cannot be reached or the engine not loaded."""
    match place:
        case Here():
            yield from _do_here(job, chunks)
        case Processes(count):
            yield from _do_in_processes(count, job, chunks)
        case Dask(address):
            yield from _do_on_dask(address, job, chunks)
        case Ray(address):
            yield from _do_on_ray(address, job, chunks)
        case _:
            assert_never(place)


def _do_here(job: Job, chunks: Iterable[Chunk]) -> Results:
    with ExitStack() as opened:
        engine = open_engine(job)
        opened.callback(engine.close)
        unit = Unit(job, engine)
        for chunk in chunks:
            yield chunk, unit.do(chunk)


def _do_in_processes(count: int, job: Job, chunks: Iterable[Chunk]) -> Results:
    """Chunks of a child that was killed are done by the next one."""
    left, tries = list(chunks), 0
    while left:
        tries += 1
        done: set[Chunk] = set()
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(count, mp_context=context)
        submit = partial(_submit, pool, job)
        try:
            for chunk, result in _in_turn(submit, left, _AHEAD * count):
                done.add(chunk)
                yield chunk, result
            return
        except BrokenProcessPool as error:
            tries = 1 if done else tries
            if tries == _TRIES:
                raise EngineError(
                    f"the worker processes ended {_TRIES} times before they had predicted anything",
                    got=str(error),
                    fix="look into the log; with too little memory use fewer --workers",
                ) from error
            left = [chunk for chunk in left if chunk not in done]
        finally:
            pool.shutdown(cancel_futures=True)


def _do_on_dask(address: str, job: Job, chunks: Iterable[Chunk]) -> Results:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise _missing("dask", error) from error
    with ExitStack() as opened:
        try:
            client = opened.enter_context(Client(address))
        except (OSError, ValueError) as error:
            raise _unreachable("Dask", address, error) from error
        executor = opened.enter_context(client.get_executor(pure=False, retries=_TRIES))
        yield from _on_cluster(partial(_submit, executor, job), chunks)


def _do_on_ray(address: str, job: Job, chunks: Iterable[Chunk]) -> Results:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise _missing("ray", error) from error
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise _unreachable("Ray", address, error) from error
    with ExitStack() as opened:
        opened.callback(ray.shutdown)
        # Ray hides GPUs from tasks that ask for none; one engine fills one.
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_TRIES)(do_chunk)
        yield from _on_cluster(lambda chunk: task.remote(job, chunk).future(), chunks)


def _submit(executor: Executor, job: Job, chunk: Chunk) -> Future[Done]:
    return executor.submit(do_chunk, job, chunk)


def _on_cluster(submit: Callable[[Chunk], Future[Done]], chunks: Iterable[Chunk]) -> Results:
    yield from _in_turn(submit, chunks, _CLUSTER_AHEAD, lost=Failed)


def _in_turn(
    submit: Callable[[Chunk], Future[Done]],
    chunks: Iterable[Chunk],
    most: int,
    lost: Callable[[str, str], Failed] | None = None,
) -> Results:
    """Results as they come; ``most`` chunks are handed out at a time. ``lost`` says what becomes of a chunk
    that a cluster gave up after its own retries; without it the error is raised."""
    waiting: dict[Future[Done], Chunk] = {}
    source = iter(chunks)
    more = True
    while more or waiting:
        while more and len(waiting) < most:
            chunk = next(source, None)
            more = chunk is not None
            if chunk is not None:
                waiting[submit(chunk)] = chunk
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            chunk = waiting.pop(future)
            error: Any = CancelledError("taken back") if future.cancelled() else future.exception()
            if error is None:
                yield chunk, future.result()
            elif lost is None:
                raise error
            else:
                why = f"the cluster gave it up: {type(error).__name__}: {error}"
                yield chunk, Done(lost(why, "look into its log"))


def _missing(extra: str, error: ModuleNotFoundError) -> EngineError:
    return EngineError(
        f"this needs a part of acq-isl that is not installed: {error.name}",
        wanted=f"the extra {extra!r}",
        fix=f'pip install "acq-isl[{extra}]"',
    )


def _unreachable(what: str, address: str, error: Exception) -> EngineError:
    return EngineError(
        f"there is no {what} cluster at {address}", got=str(error), fix="start it, or correct the address"
    )
