"""A graph submitted to a cluster, whatever becomes of its workers.

Dask itself makes again what a lost worker held, while its scheduler lives and no task has lost four workers. Beyond
that a graph is submitted again, with fresh keys; and no wait is without a bound.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.config
from dask.highlevelgraph import HighLevelGraph
from dask.utils import format_time, parse_timedelta

from daskgmm.data.blocks import Samples

_TRIES = 10  # of a graph
_LOOK = 5.0  # s between two looks at a cluster that has not finished: by then its workers have been heard of
_END = 1.0  # s for what waits for futures to end when they are released


@dataclass(frozen=True)
class Graph:
    """Tasks under keys that no others had before."""

    tasks: dict[Any, Any]
    wanted: Sequence[Any]  # keys
    blocks: Sequence[Any]  # the key of each block's task


def worker_timeout() -> float:
    """Seconds for which a cluster may do nothing: by default twice what Dask waits for a worker that froze."""
    return float(parse_timedelta(dask.config.get("daskgmm.worker-timeout", "10 minutes")))


class _Lost(Exception):
    """A try came to nothing by no fault of its tasks; ``blocks`` lost their workers."""

    def __init__(self, blocks: Sequence[int] = ()) -> None:
        super().__init__()
        self.blocks = blocks


@dataclass(frozen=True)
class Cluster:
    """A distributed client, and the address of its scheduler, which it forgets when that is gone."""

    client: Any
    address: str

    def compute(self, samples: Samples, build: Callable[[], Graph]) -> Any:
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
        """What the scheduler says of its workers, by address, within so many seconds."""
        workers: _Workers = self._ask("identity", limit, n_workers=-1)["workers"]
        return workers

    def _run_alone(self, samples: Samples, graph: Graph, i: int) -> None:
        try:
            self._submit(graph, [graph.blocks[i]])
        except _Lost as lost:
            if not lost.blocks:
                return
            block = samples.blocks[i]
            first, last = (samples.place(block, row, None) for row in (0, block.n - 1))
            raise RuntimeError(
                f"block {block.index} ({first} to {last}) ended each worker that ran it, at last when alone: give "
                "workers more memory, or fit without a cluster to see what it is in these rows"
            ) from lost.__cause__

    def _submit(self, graph: Graph, wanted: Sequence[Any]) -> Any:
        """Try once; nothing stays behind, however it ends."""
        from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

        if self.client.status not in ("running", "connecting"):
            raise self._gone()
        # Dask hashes all of a plain dict, 0.1 ms a task and more; a layer has a name.
        layers = HighLevelGraph.from_collections(f"daskgmm-{uuid.uuid4().hex}", graph.tasks)
        futures = self.client.get(layers, wanted, sync=False)
        results = self.client.gather(futures, asynchronous=True)
        coming = asyncio.run_coroutine_threadsafe(results, self.client.loop.asyncio_loop)
        try:
            self._wait(coming)
            try:
                return coming.result()
            except KilledWorker as error:
                raise _Lost(self._died(graph.blocks)) from error
            except (NoWorkerError, NoValidWorkerError) as error:
                raise TimeoutError(f"{error}: start workers that take the tasks, and run again") from error
            except (concurrent.futures.CancelledError, OSError) as error:
                if any(future.status == "error" for future in futures):  # it is a task's own
                    raise
                raise _Lost from error
        finally:
            for future in futures:
                future.release()
            concurrent.futures.wait([coming], _END)  # by that it ends; Dask complains if it is cancelled before
            coming.cancel()
            if comm := self.client.scheduler_comm:
                comm.recent_message_log.clear()  # the last thousand messages, each of which may be a graph

    def _wait(self, coming: concurrent.futures.Future[Any]) -> None:
        """Until the results are there, or have failed, or no worker has worked for too long."""
        limit = worker_timeout()
        step, since = min(_LOOK, limit / 4), time.monotonic()
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
                raise TimeoutError(self._idle(workers, limit))
            before = workers

    def _idle(self, workers: _Workers, limit: float) -> str:
        """What has been waited for, and what to do."""
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

    def _died(self, blocks: Sequence[Any]) -> Sequence[int]:
        """Those that lost their workers: Dask tells of one."""
        states = self._ask("get_task_status", worker_timeout(), keys=list(blocks))
        return [i for i, key in enumerate(blocks) if states[key] == "erred"]

    def _ask(self, what: str, limit: float, **arguments: Any) -> Any:
        """An answer of the scheduler's, within so many seconds."""
        try:
            return self.client.sync(getattr(self.client.scheduler, what), callback_timeout=limit, **arguments)
        except (AttributeError, OSError, RuntimeError) as error:  # without an address, an answer, an event loop
            raise self._gone() from error

    def _gone(self) -> ConnectionError:
        says = f"the Dask scheduler at {self.address} does not answer: start one, with workers, and run again"
        return ConnectionError(says)


_Workers = dict[str, dict[str, Any]]


def _working(workers: _Workers, before: _Workers) -> bool:
    """Does any worker that was heard of since compute, or hold other tasks than before?"""

    def counts(worker: dict[str, Any]) -> Any:
        return worker["metrics"].get("task_counts", {})

    return any(
        worker["last_seen"] != before.get(address, {}).get("last_seen")
        and (counts(worker).get("executing") or (address in before and counts(worker) != counts(before[address])))
        for address, worker in workers.items()
    )
