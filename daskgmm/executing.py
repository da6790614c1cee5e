"""What runs a graph: this process's threads, or the workers of a client."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import dask.base
import dask.config
import dask.local
import dask.threaded
from dask.system import CPU_COUNT

from daskgmm.data.blocks import Samples
from daskgmm.submission import Cluster, Graph, worker_timeout

# Tasks that a thread of this process takes at a time, where there are enough: as short as those on rows in memory may
# be, a pass takes 4 to 9 % less (measured: 2 cores, tasks of 2 to 6 ms).
_BATCH = 2


def compute(samples: Samples, build: Callable[[], Graph]) -> Any:
    """What is wanted of a graph, computed where the samples are.

    On a cluster, the graph is built and submitted again when workers die too often for Dask (its ``KilledWorker``) and
    when results are lost or cancelled, as when the connection to the scheduler breaks; ten times at most. A block that
    lost its workers in two tries in a row is then run alone: if it loses them once more, it is named, and that is the
    end. So a block that ends its process ends the work, and one that runs where workers are killed does not. An error
    that a task raises is raised at once. Rows that were kept, but are lost or failed, are read from the store.

    Parameters
    ----------
    samples : Samples
    build : callable
        Makes the graph.

    Raises
    ------
    TimeoutError
        No worker has worked on anything for ``daskgmm.worker-timeout`` of Dask's configuration, or ten minutes.
    ConnectionError
        The scheduler is gone, or has not answered for as long.
    RuntimeError
        A block ends each worker that runs it, or all tries failed.
    """
    cluster = None if samples.in_memory else _active()
    if cluster is None:
        graph = build()
        return _get(samples)(graph.tasks, graph.wanted)
    try:
        with _aside():
            return cluster.compute(samples, build)
    except BaseException:
        for _, rows in samples.kept:
            rows.release()  # nothing of ours goes on, even where a traceback holds the samples
        raise


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Stay with the client of now: where it was lost, the threads of this process would take over without a word.

    All passes are of one span: Dask opens one for each that has none, and workers keep the times of every span.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_settled.reset, _settled.set(cluster := _active()))
        if cluster is not None:
            from distributed import span

            stack.enter_context(span("daskgmm"))
        yield


def worker_limits() -> list[tuple[int, int]] | None:
    """Memory limit in bytes, 0 for none, and threads of each worker of the active client; None without one."""
    cluster = _active()
    workers = None if cluster is None else cluster.workers(worker_timeout()).values()
    return None if workers is None else [(w["memory_limit"] or 0, w["nthreads"]) for w in workers]


def scheduler_for(samples: Samples) -> str | None:
    """With a client, its workers; data that live in this process stay with its threads."""
    return "threads" if samples.in_memory and _active() is not None else None


def usable(rows: Any) -> bool:
    """Are kept rows there, or on their way? Those on a cluster are futures, which may be lost or have failed."""
    return getattr(rows, "status", "finished") in ("finished", "pending")


def threads(samples: Samples) -> int:
    """Threads of this process that take blocks: ``num_workers`` of Dask's configuration.

    By default one more than cores where a store is read, as a thread has nothing to do before its block's first rows.
    """
    reading = not samples.in_memory and not samples.graph and not samples.kept
    return int(dask.config.get("num_workers", None) or CPU_COUNT + reading)


def _get(samples: Samples) -> Callable[[dict[Any, Any], Any], Any]:
    """Dask's function that computes keys of a graph in this process."""
    get = dask.base.get_scheduler(scheduler=scheduler_for(samples)) or dask.threaded.get
    if get is not dask.threaded.get:
        return get
    if not samples.in_memory:
        return partial(get, num_workers=threads(samples))
    return partial(get, chunksize=_BATCH) if len(samples.blocks) > 1 else dask.local.get_sync


def _active() -> Cluster | None:
    if (cluster := _settled.get()) is not None:
        return cluster
    if "distributed" not in sys.modules:
        return None
    client: Any = getattr(dask.base.get_scheduler(), "__self__", None)
    return Cluster(client, client.scheduler.address) if hasattr(client, "scheduler_info") else None


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """In a task of a worker, leave its thread to the tasks that it waits for."""
    from distributed import rejoin, secede
    from distributed.worker import thread_state

    if not getattr(thread_state, "key", False):
        yield
        return
    secede()
    try:
        yield
    finally:
        rejoin()


_settled: ContextVar[Cluster | None] = ContextVar("_settled", default=None)
