"""Compute a graph with the threads of this process, or on the cluster of the active client.

A cluster may lose workers, results or its scheduler: `Cluster` submits a graph again as long as that can help, and
otherwise raises an error that says what to do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.base
import dask.config
import dask.local
import dask.threaded
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT
from dask.utils import format_time, parse_timedelta

from daskgmm.data.blocks import Samples
from daskgmm.passes.reader import Reader


@dataclass(frozen=True)
class Graph:
    """Tasks under keys that no other graph has."""

    tasks: dict[Any, Any]
    wanted: Sequence[Any]  # keys of the results
    blocks: Sequence[Any]  # the key of each block's task


def compute(reader: Reader, build: Callable[[], Graph]) -> Any:
    """Compute the wanted results of a graph where the samples are.

    On a cluster, the graph is built and submitted again when workers die too often for Dask (its ``KilledWorker``) and
    when results are lost or cancelled, as when the connection to the scheduler breaks; ten times at most. A block that
    lost its workers in two tries in a row is then run alone: if it loses them once more, it is named, and that is the
    end. So a block that ends its process ends the work, and one that runs where workers are killed does not. An error
    that a task raises is raised at once. Kept rows that are lost or failed are read from the store.

    Parameters
    ----------
    reader : Reader
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
    cluster = None if reader.samples.in_memory else _active_cluster()
    if cluster is None:
        graph = build()
        return _local_get(reader)(graph.tasks, graph.wanted)
    try:
        with _seceded():
            return cluster.compute(reader.samples, build)
    except BaseException:
        for _, rows in reader.kept:
            rows.release()  # so that no task of ours goes on, even where a traceback holds the samples
        raise


# -----------------------------------------------------------------------------
# The client of now
# -----------------------------------------------------------------------------

_pinned: ContextVar[Cluster | None] = ContextVar("_pinned", default=None)


@contextlib.contextmanager
def pinned_client() -> Iterator[None]:
    """Stay with the active client: if it is lost, the threads of this process must not silently take over.

    All passes are of one span: Dask opens a span for each that has none, and workers keep the times of every span.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_pinned.reset, _pinned.set(cluster := _active_cluster()))
        if cluster is not None:
            from distributed import span

            stack.enter_context(span("daskgmm"))
        yield


def _active_cluster() -> Cluster | None:
    """Return the pinned cluster or, if there is none, that of the active client."""
    if (cluster := _pinned.get()) is not None:
        return cluster
    if "distributed" not in sys.modules:
        return None
    client: Any = getattr(dask.base.get_scheduler(), "__self__", None)
    return Cluster(client, client.scheduler.address) if hasattr(client, "scheduler_info") else None


def worker_limits() -> list[tuple[int, int]] | None:
    """Return memory limit in bytes (0: none) and threads of each worker of the active client; None without one."""
    cluster = _active_cluster()
    workers = None if cluster is None else cluster.workers(worker_timeout()).values()
    return None if workers is None else [(w["memory_limit"] or 0, w["nthreads"]) for w in workers]


def worker_timeout() -> float:
    """Return the seconds for which a cluster may do nothing: by default twice Dask's wait for a frozen worker."""
    return float(parse_timedelta(dask.config.get("daskgmm.worker-timeout", "10 minutes")))


def is_usable(rows: Any) -> bool:
    """Whether kept rows exist or are being read: on a cluster they are futures, which may be lost or have failed."""
    return getattr(rows, "status", "finished") in ("finished", "pending")


# -----------------------------------------------------------------------------
# The threads of this process
# -----------------------------------------------------------------------------

# Tasks that a thread of this process takes at a time, where there are enough: as short as those on rows in memory may
# be, a pass takes 4 to 9 % less (measured: 2 cores, tasks of 2 to 6 ms).
_BATCH = 2


def scheduler_for(samples: Samples) -> str | None:
    """Return the name of the scheduler that Dask must use: threads for data in this process, even with a client."""
    return "threads" if samples.in_memory and _active_cluster() is not None else None


def thread_count(reader: Reader) -> int:
    """Return the number of threads of this process that take blocks: ``num_workers`` of Dask's configuration.

    By default one more than cores where a store is read, as a thread has nothing to do before its block's first rows.
    """
    samples = reader.samples
    reading = not samples.in_memory and not samples.graph and not reader.kept
    return int(dask.config.get("num_workers", None) or CPU_COUNT + reading)


def _local_get(reader: Reader) -> Callable[[dict[Any, Any], Any], Any]:
    """Return Dask's function that computes keys of a graph in this process."""
    samples = reader.samples
    get = dask.base.get_scheduler(scheduler=scheduler_for(samples)) or dask.threaded.get
    if get is not dask.threaded.get:
        return get
    if not samples.in_memory:
        return partial(get, num_workers=thread_count(reader))
    return partial(get, chunksize=_BATCH) if len(samples.blocks) > 1 else dask.local.get_sync


# -----------------------------------------------------------------------------
# A cluster
# -----------------------------------------------------------------------------

_TRIES = 10  # of a graph
_POLL = 5.0  # s between two looks at a cluster that has not finished: by then its workers have sent a heartbeat
_RELEASE = 1.0  # s for the results' coroutine to end once the futures are released

_Workers = dict[str, dict[str, Any]]  # the scheduler's description of each worker, by address


@dataclass(eq=False)
class _Lost(Exception):
    """A try failed by no fault of its tasks; ``blocks`` lost their workers."""

    blocks: Sequence[int] = ()


@dataclass(frozen=True)
class Cluster:
    """A distributed client, and the address of its scheduler, which the client forgets when the scheduler is gone."""

    client: Any
    address: str

    def compute(self, samples: Samples, build: Callable[[], Graph]) -> Any:
        """Submit a graph until a try succeeds, an error is final, or all tries have failed."""
        before: Sequence[int] = ()
        failure: BaseException | None = None
        for _ in range(_TRIES):
            graph = build()
            try:
                return self._submit(graph, graph.wanted)
            except _Lost as lost:
                failure = lost.__cause__
                for i in set(before).intersection(lost.blocks):
                    self._run_alone(samples, build(), i)
                before = lost.blocks
        raise RuntimeError(
            f"{_TRIES} tries of one pass failed on the cluster at {self.address}, the last with: {failure}; "
            "look into its workers' logs, and run again where they stay"
        ) from failure

    def workers(self, limit: float) -> _Workers:
        """Ask the scheduler to describe its workers, for at most ``limit`` seconds."""
        return self._ask("identity", limit, n_workers=-1)["workers"]

    def _run_alone(self, samples: Samples, graph: Graph, i: int) -> None:
        """Run block i alone, and raise an error that names it if it loses its workers again."""
        try:
            self._submit(graph, [graph.blocks[i]])
        except _Lost as lost:
            if not lost.blocks:
                return
            block = samples.blocks[i]
            first, last = (samples.locator(block, row, None) for row in (0, block.n - 1))
            raise RuntimeError(
                f"block {block.index} ({first} to {last}) ended each worker that ran it, at last when alone: give "
                "workers more memory, or fit without a cluster to see what it is in these rows"
            ) from lost.__cause__

    def _submit(self, graph: Graph, wanted: Sequence[Any]) -> Any:
        """Try once, and leave nothing on the cluster, however the try ends."""
        from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

        if self.client.status not in ("running", "connecting"):
            raise self._gone()
        # Dask would hash a plain dict, which takes 0.1 ms a task and more; a layer has a name.
        layers = HighLevelGraph.from_collections(f"daskgmm-{uuid.uuid4().hex}", graph.tasks)
        futures = self.client.get(layers, wanted, sync=False)
        results = self.client.gather(futures, asynchronous=True)
        coming = asyncio.run_coroutine_threadsafe(results, self.client.loop.asyncio_loop)
        try:
            self._wait(coming)
            try:
                return coming.result()
            except KilledWorker as error:
                raise _Lost(self._blocks_that_died(graph.blocks)) from error
            except (NoWorkerError, NoValidWorkerError) as error:
                raise TimeoutError(f"{error}: start workers that take the tasks, and run again") from error
            except (concurrent.futures.CancelledError, OSError) as error:
                if any(future.status == "error" for future in futures):  # it is a task's own
                    raise
                raise _Lost from error
        finally:
            for future in futures:
                future.release()
            # Released futures end the coroutine; Dask complains if it is cancelled before.
            concurrent.futures.wait([coming], _RELEASE)
            coming.cancel()
            if comm := self.client.scheduler_comm:
                comm.recent_message_log.clear()  # the last thousand messages, each of which may be a graph

    def _wait(self, coming: concurrent.futures.Future[Any]) -> None:
        """Wait until the results are there, or have failed, or no worker has worked for too long."""
        limit = worker_timeout()
        step, since = min(_POLL, limit / 4), time.monotonic()
        before: _Workers = {}
        while not concurrent.futures.wait([coming], step).done:
            try:
                workers = self.workers(step)
            except ConnectionError:
                if self.client.status not in ("running", "connecting") or time.monotonic() - since > limit:
                    raise
                continue
            if _working(workers, before):
                since = time.monotonic()
            elif time.monotonic() - since > limit:
                raise TimeoutError(self._idle_message(workers, limit))
            before = workers

    def _idle_message(self, workers: _Workers, limit: float) -> str:
        """Say why nothing has been computed for ``limit`` seconds, and what to do."""
        span = format_time(limit)
        if not workers:
            return f"no worker came to {self.address} in {span}: start some with `dask worker {self.address}`"
        if all(worker["status"] == "paused" for worker in workers.values()):
            return (
                f"all {len(workers)} workers at {self.address} were paused for {span}, since their memory is nearly "
                "full: give them more, or read without keeping rows (persist=False)"
            )
        return (
            f"none of {len(workers)} workers at {self.address} worked on anything for {span}: look whether they hang, "
            "and whether tasks are bound to workers or resources that are not there"
        )

    def _blocks_that_died(self, blocks: Sequence[Any]) -> Sequence[int]:
        """Return the indices of all blocks that lost their workers, of which Dask's error names one."""
        states = self._ask("get_task_status", worker_timeout(), keys=list(blocks))
        return [i for i, key in enumerate(blocks) if states[key] == "erred"]

    def _ask(self, what: str, limit: float, **arguments: Any) -> Any:
        """Call a function of the scheduler, which has to answer within ``limit`` seconds."""
        try:
            return self.client.sync(getattr(self.client.scheduler, what), callback_timeout=limit, **arguments)
        except (AttributeError, OSError, RuntimeError) as error:  # there is no address, answer or event loop
            raise self._gone() from error

    def _gone(self) -> ConnectionError:
        return ConnectionError(
            f"the Dask scheduler at {self.address} does not answer: start one, with workers, and run again"
        )


def _working(workers: _Workers, before: _Workers) -> bool:
    """Whether a worker with a heartbeat since ``before`` computes, or holds other tasks than then."""

    def counts(worker: dict[str, Any]) -> Any:
        return worker["metrics"].get("task_counts", {})

    return any(
        worker["last_seen"] != before.get(address, {}).get("last_seen")
        and (counts(worker).get("executing") or (address in before and counts(worker) != counts(before[address])))
        for address, worker in workers.items()
    )


@contextlib.contextmanager
def _seceded() -> Iterator[None]:
    """Within a task of a worker, leave its thread to the tasks that this one waits for."""
    from distributed import rejoin, secede
    from distributed.worker import thread_state

    with contextlib.ExitStack() as stack:
        if getattr(thread_state, "key", False):
            secede()
            stack.callback(rejoin)
        yield
