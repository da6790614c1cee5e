"""The workers of a command: local ones that it starts, or those of a running scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

_CLOSER = "daskgmm-closer"


@contextlib.contextmanager
def workers(scheduler: str | None, n_workers: int | None, memory_limit: str) -> Iterator[Any]:
    """Yield a Dask client, closed with its workers at the end; None for ``n_workers=0``: threads of this process.

    Parameters
    ----------
    scheduler : str or None
        Address of a running scheduler, which is used and left running.
    n_workers : int or None
        Local worker processes of one thread each; None: one per core.
    memory_limit : str
        Of each local worker, as Dask writes it ("1GiB"; "auto": an equal share).

    Raises
    ------
    ConnectionError
        No scheduler answers at the address within Dask's ``distributed.comm.timeouts.connect``.
    """
    if n_workers == 0 and scheduler is None:
        yield None
        return
    from dask.system import CPU_COUNT
    from distributed import Client
    from distributed.deploy.subprocess import SubprocessCluster  # LocalCluster needs a __main__ guard

    if scheduler is not None:
        try:
            client = Client(scheduler)
        except (OSError, TimeoutError, ValueError) as error:
            raise ConnectionError(
                f"no Dask scheduler answers at {scheduler}: start one with `dask scheduler`, "
                "or leave --scheduler out to use local workers"
            ) from error
        with client:
            yield client
        return
    # Workers import this process's daskgmm even in a directory that holds another: they share its compiled kernel.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    n_workers = n_workers or CPU_COUNT
    with _signals_blocked():
        cluster: Any = SubprocessCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            worker_class="daskgmm.passes.cluster.nanny",
            # Workers end by themselves if this process is killed before its client is connected. A worker keeps the
            # profiles of 3,600 cycles: some 90 MB, if a cycle were a second.
            worker_kwargs={"memory_limit": memory_limit, "death_timeout": "30s", "profile_cycle_interval": "1m"},
            scheduler_kwargs={"idle_timeout": "1 day"},
            dashboard_address="127.0.0.1:0",
        )
    with cluster, Client(cluster) as client:
        reading = asyncio.run_coroutine_threadsafe(_drain(cluster.scheduler.process.stderr), cluster.loop.asyncio_loop)
        client.register_plugin(_scheduler_closer(client.id))
        try:
            client.wait_for_workers(n_workers, timeout=60)
            yield client
        finally:  # the cluster closes in order, without the plugin
            reading.cancel()
            if client.status == "running":
                client.unregister_scheduler_plugin(_CLOSER)


def nanny(*args: Any, **options: Any) -> Any:
    """Start the Nanny of a local worker, in a process group of its own that this process's signals do not reach."""
    from distributed import Nanny

    os.setpgrp()
    return Nanny(*args, **options)


async def _drain(log: asyncio.StreamReader) -> None:
    """Read the scheduler's log: once 190 kB of it are unread, as where workers die, the scheduler waits forever."""
    while await log.read(2**16):
        pass


def _scheduler_closer(client: str) -> Any:
    """Build a plugin that closes the scheduler once this process is gone; until then it may be idle for long."""
    from distributed import SchedulerPlugin

    class Closer(SchedulerPlugin):
        name = _CLOSER

        def remove_client(self, scheduler: Any, client: str, gone: str = client) -> None:
            if client == gone:
                scheduler.loop.add_callback(scheduler.close)

    return Closer()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM, which often go to the whole process group, until all processes have started.

    The processes inherit that the signals are blocked; but a nanny unblocks them once it has started its worker.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
