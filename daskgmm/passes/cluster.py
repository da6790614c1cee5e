"""Where the command line computes: its own local workers, or a scheduler that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

_ENDING = "daskgmm-ending"


@contextlib.contextmanager
def workers(scheduler: str | None, n_workers: int | None, memory_limit: str) -> Iterator[Any]:
    """A Dask client, closed with its workers at the end; None for ``n_workers=0``: threads of this process.

    Parameters
    ----------
    scheduler : str or None
        Address of a running scheduler, which is used and left running.
    n_workers : int or None
        Local worker processes of one thread each; None: one a core.
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
    # Workers import what this process does, even where the directory holds a daskgmm: they share its compiled kernel.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    with _signals_kept():
        cluster: Any = SubprocessCluster(
            n_workers=n_workers or CPU_COUNT,
            threads_per_worker=1,
            worker_class="daskgmm.passes.cluster.nanny",
            # Should this process be killed before it is connected, what it started ends by itself. A worker keeps the
            # profiles of 3,600 cycles: of seconds, some 90 MB.
            worker_kwargs={"memory_limit": memory_limit, "death_timeout": "30s", "profile_cycle_interval": "1m"},
            scheduler_kwargs={"idle_timeout": "1 day"},
            dashboard_address="127.0.0.1:0",
        )
    with cluster, Client(cluster) as client:
        reading = asyncio.run_coroutine_threadsafe(_read(cluster.scheduler.process.stderr), cluster.loop.asyncio_loop)
        client.register_plugin(_ending_with(client.id))
        try:
            client.wait_for_workers(n_workers or CPU_COUNT, timeout=60)
            yield client
        finally:  # the cluster ends in order
            reading.cancel()
            if client.status == "running":
                client.unregister_scheduler_plugin(_ENDING)


def nanny(*args: Any, **options: Any) -> Any:
    """What a local worker's process runs: a Nanny that no signal to this process's group reaches."""
    from distributed import Nanny

    os.setpgrp()
    return Nanny(*args, **options)


async def _read(log: asyncio.StreamReader) -> None:
    """What the scheduler says: once 190 kB of it had not been read, as where workers die, it would wait for ever."""
    while await log.read(2**16):
        pass


def _ending_with(client: str) -> Any:
    """What closes the scheduler once this process is gone: it may leave it idle for long, but not behind."""
    from distributed import SchedulerPlugin

    class Ending(SchedulerPlugin):
        name = _ENDING

        def remove_client(self, scheduler: Any, client: str, gone: str = client) -> None:
            if client == gone:
                scheduler.loop.add_callback(scheduler.close)

    return Ending()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ctrl-C and SIGTERM, which often go to the whole group, wait until all has started, and do not reach what has.

    A process inherits that they are blocked; but a nanny's are not once it has started its worker.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
