"""What a fit would take, before it is started: from the layout of the data and a few seconds of trying.

What a pass has to do (`Work`) follows from the layout and the model, how fast that goes (`Rates`) is measured by
`daskgmm.planning.measure`, and `Plan` puts both together for any number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from daskgmm.data.blocks import Samples, joined
from daskgmm.data.stored import StoredArray
from daskgmm.families.base import Components
from daskgmm.passes.graph import FAN_IN
from daskgmm.passes.memory import worker_memory

PASSES = (4, 8, 20)  # EM's passes over all rows after a start on a sample: few, typical, many
# EM's passes over the sample, on all cores; moves from there, as passes on one core and as seconds a component. On
# eleven problems of 400,000 rows and more, 2 to 64 features and 6 to 32 components, most passes in single precision:
# least squares of the relative errors.
_SAMPLE_PASSES, _MOVE_PASSES, _MOVE_SECONDS = 40, 34, 0.07


@dataclass(frozen=True)
class Work:
    """What one pass has to do."""

    rows: int
    features: int
    components: int
    blocks: int  # tasks that read
    sums: int  # tasks that add up what they found, in a tree
    levels: int  # of the tree
    decoded_bytes: int
    stored_bytes: int | None  # None where the storage does not say without being read
    flops: int  # of the products with φ; a multiplication and an addition are two. Softmax and conversion come on top
    message_bytes: int  # parameters or statistics: 8 k p
    worker_bytes: float  # least memory limit of a worker
    sample_rows: int  # on which EM runs first, in the driver; 0: on all rows at once

    @staticmethod
    def of(samples: Samples, components: Components, subsample: int = 100_000) -> Work:
        k, d = components.means.shape
        samples = joined(samples)
        sums = list(_tree(len(samples.blocks)))
        p = 1 + d + (0 if components.shares_quadratic else len(components.products[0]))
        return Work(
            rows=samples.n,
            features=d,
            components=k,
            blocks=len(samples.blocks),
            sums=sum(sums),
            levels=len(sums),
            decoded_bytes=samples.n * d * samples.dtype.itemsize,
            stored_bytes=_stored_bytes(samples),
            flops=samples.n * flops_a_row(components),
            message_bytes=8 * k * p,
            worker_bytes=worker_memory(samples, 1),
            sample_rows=subsample if samples.n > subsample else 0,
        )


@dataclass(frozen=True)
class Rates:
    """How fast it goes. Seconds of one core; what `daskgmm.planning.measure` does not measure has a default."""

    decode: float  # s a row: read, decompress, join
    arithmetic: float  # s a row: E-step and moments, in single precision if that will do
    exact: float  # s a row: the same in double precision, as in the last pass
    scan: float  # s a row: the survey, less reading
    maximize: float  # s a pass: the driver's M-step
    combine: float  # s a sum: unpack the statistics of a fan-in, and add them
    submit: float = 0.03  # s a pass: a graph is made, sent and taken up (measured: 0.025 to 0.043)
    task: float = 5e-3  # s a block: a worker takes its task up and hands its result back (measured: 4 to 7 ms)
    dispatch: float = 1 / 400  # s a task: one distributed scheduler hands out so many (measured: 410 to 490 a second)
    latency: float = 5e-3  # s a level of the tree, or a step of the broadcast
    bandwidth: float = 1e9  # bytes/s between two workers
    start: float = 6.0  # s a fit: workers start (measured: 2.5 to 4.6), import and load the compiled code; k-means


@dataclass(frozen=True)
class Plan:
    """What a fit takes on some workers of one thread each. Times are in seconds.

    A pass takes::

        pass       = submit + broadcast + max(compute, scheduling) + reduction + maximize
        compute    = ⌈blocks / w⌉ × (rows / blocks × (decode + arithmetic) + task)
        scheduling = (blocks + sums) × dispatch
        reduction  = levels × (latency + fan-in × message / bandwidth + combine)
        broadcast  = ⌈log₂(w + 1)⌉ × (latency + message / bandwidth)

    where w is the number of workers, or of cores where more workers share those of this machine; a message is
    8 k p bytes, and whoever has the parameters hands them on. The last pass takes the exact arithmetic. A fit takes::

        fit        = start + survey + sample + (passes - 1) × pass + last pass
        survey     = max(⌈blocks / w⌉ × (rows / blocks × (decode + scan) + task), blocks × dispatch)
        sample     = (40 / cores of the driver + 55) × its rows × arithmetic + 0.055 s × k

    Not in it: other users of the cores, the disk or the network, and storage that is slower for many than for one.
    """

    work: Work
    rates: Rates
    workers: int
    cores: int  # of this machine
    remote: bool = False  # have the workers cores of their own?
    passes: int = PASSES[1]

    @property
    def at_once(self) -> int:
        return self.workers if self.remote else min(self.workers, self.cores)

    @property
    def compute(self) -> float:
        arithmetic = self.rates.arithmetic if self.work.sample_rows else self.rates.exact
        return self._blocks(self.rates.decode + arithmetic)

    @property
    def scheduling(self) -> float:
        return (self.work.blocks + self.work.sums) * self.rates.dispatch

    @property
    def reduction(self) -> float:
        return self.work.levels * (self._transfer(FAN_IN) + self.rates.combine)

    @property
    def broadcast(self) -> float:
        return math.ceil(math.log2(self.at_once + 1)) * self._transfer(1)

    @property
    def one_pass(self) -> float:
        around = self.rates.submit + self.broadcast + self.reduction + self.rates.maximize
        return max(self.compute, self.scheduling) + around

    @property
    def last_pass(self) -> float:
        return replace(self, rates=replace(self.rates, arithmetic=self.rates.exact)).one_pass

    @property
    def survey(self) -> float:
        return max(self._blocks(self.rates.decode + self.rates.scan), self.work.blocks * self.rates.dispatch)

    @property
    def sample(self) -> float:
        if not self.work.sample_rows:
            return 0.0
        passes = _SAMPLE_PASSES / self.cores + _MOVE_PASSES
        return passes * self.work.sample_rows * self.rates.arithmetic + _MOVE_SECONDS * self.work.components

    @property
    def most_workers(self) -> int:
        """From so many on, more of them change nothing: each has a block, or the scheduler is busy all the time."""
        rounds = int(self.scheduling / replace(self, workers=self.work.blocks, remote=True).compute)
        return math.ceil(self.work.blocks / max(1, rounds))

    def seconds(self, passes: int | None = None) -> float:
        """Of the whole fit."""
        passes = self.passes if passes is None else passes
        return self.rates.start + self.survey + self.sample + (passes - 1) * self.one_pass + self.last_pass

    def _blocks(self, seconds_a_row: float) -> float:
        a_block = self.work.rows / self.work.blocks * seconds_a_row + self.rates.task
        return math.ceil(self.work.blocks / self.at_once) * a_block

    def _transfer(self, messages: int) -> float:
        return self.rates.latency + messages * self.work.message_bytes / self.rates.bandwidth


def flops_a_row(components: Components) -> int:
    """Of the frame, φ, θ·φ and the moments: 2 d² + q + 4 k (1 + d + q), with q products of coordinates in φ.

    A component that is treated about its own mean takes 4 d² instead; with diagonal covariances, read d for d².
    """
    k, d = components.means.shape
    own = int(components.uses_distances.sum())
    square = int(components.factors[0].size)  # d², or d
    q = 0 if components.shares_quadratic or own == k else len(components.products[0])
    return 2 * square + q + 4 * (k - own) * (1 + d + q) + 4 * own * square


def _tree(n: int) -> Iterator[int]:
    """Sums that are tasks, in each level of the tree over n blocks."""
    few = n <= FAN_IN
    while n > 1 and not few:
        n = -(-n // FAN_IN)
        yield n


def _stored_bytes(samples: Samples) -> int | None:
    """Of local arrays, whose files need not be read for it."""
    arrays = samples.source.arrays
    if all(isinstance(array, StoredArray) and array.is_local for array in arrays):
        return sum(array.origin.nbytes_stored() for array in arrays)
    return None
