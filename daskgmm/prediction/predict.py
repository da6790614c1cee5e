"""What a fitted model says of each sample: lazy for lazy input, in the input's own container."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.data.blocks import Block, RowLocator, Samples
from daskgmm.data.checks import first_marked
from daskgmm.em.estep import (
    compile_prediction,
    labels,
    log_certainties,
    log_densities,
    log_joint_of,
    probabilities,
)
from daskgmm.em.layout import DOUBLE, LEAST
from daskgmm.families.base import Components
from daskgmm.families.encoding import PLAIN, FeatureEncoding
from daskgmm.families.frame import Rows
from daskgmm.passes.graph import map_rows, total
from daskgmm.passes.reader import Kernel, Reader, not_finite_error, outside_error


@dataclass(frozen=True)
class Output:
    """One kind of result."""

    name: str
    long_name: str
    of: Callable[[npt.NDArray[np.float64]], npt.NDArray[Any]]  # log joint (k, n) -> (n,) or (n, k)
    dtype: type
    absent: float  # where a sample is missing
    per_component: bool = False
    least: float = LEAST[DOUBLE]  # responsibility that counts

    def attributes(self, k: int, dtype: npt.DTypeLike) -> dict[str, Any]:
        """What CF says of a variable of it, with k components: labels are flags (3.5), all else has no dimension."""
        if self is not LABELS:
            return {"long_name": self.long_name, "units": "1"}
        meanings = " ".join(f"component_{i}" for i in range(k))
        return {"long_name": self.long_name, "flag_values": np.arange(k, dtype=dtype), "flag_meanings": meanings}

    def encoding(self, missing: str, encoding: FeatureEncoding) -> dict[str, Any]:
        """What xarray writes for a missing value: of floats it is NaN anyway, of labels only where rows may be."""
        return {"_FillValue": self.absent} if self is LABELS and (missing == "drop" or encoding.skips) else {}


LABELS = Output("labels", "component of the mixture", labels, np.intp, -1)
PROBA = Output(
    "proba", "responsibility of the component", probabilities, np.float64, np.nan, per_component=True, least=0.0
)
LOG_DENSITY = Output("log_density", "natural logarithm of the density", log_densities, np.float64, np.nan)
LOG_CERTAINTY = Output("log_certainty", "log of the largest responsibility", log_certainties, np.float64, np.nan)


def predict(
    samples: Samples, model: Components, output: Output, missing: str, encoding: FeatureEncoding = PLAIN
) -> Any:
    """A result for each sample: ndarray for samples in memory, lazy dask array for any other.

    Raises
    ------
    ValueError
        A value is not finite and ``missing`` is not "drop"; for lazy results, when they are computed.
    """
    compile_prediction(model)
    kernel = block_kernel(samples, model, (output,), missing, encoding)
    extra = (len(model.means),) if output.per_component else ()
    return map_rows(samples, partial(_only, kernel), output.dtype, extra)


def totals(
    samples: Samples,
    model: Components,
    outputs: tuple[Output, ...],
    missing: str,
    encoding: FeatureEncoding = PLAIN,
) -> tuple[list[float], int]:
    """Sums of results over the samples that are not missing, and the number of those: one pass.

    Raises
    ------
    ValueError
        No sample, or a value that is not finite and ``missing`` is not "drop".
    """
    compile_prediction(model)
    kernel = block_kernel(samples, model, outputs, missing, encoding)
    *sums, n = total(Reader(samples), partial(_sums, kernel))
    if n == 0:
        raise ValueError("no sample without missing values: nothing to score")
    return sums, n


def _sums(kernel: Callable[..., tuple[Any, ...]], block: Block, pieces: Iterator[Rows]) -> tuple[float, ...]:
    results = kernel(block, pieces)
    present = ~np.isnan(results[0])
    return (*(float(result[present].sum()) for result in results), int(present.sum()))


def _only(kernel: Callable[..., tuple[Any, ...]], block: Block, pieces: Iterator[Rows]) -> Any:
    return kernel(block, pieces)[0]


def block_kernel(
    samples: Samples,
    model: Components,
    outputs: tuple[Output, ...],
    missing: str,
    encoding: FeatureEncoding = PLAIN,
) -> Kernel:
    """What a task does with a block: results of its rows in their order, (n,) or (n, k) each."""
    return partial(_predict, model=model, outputs=outputs, missing=missing, place=samples.locator, encoding=encoding)


def _predict(
    block: Block,
    pieces: Iterator[Rows],
    model: Components,
    outputs: tuple[Output, ...],
    missing: str,
    place: RowLocator,
    encoding: FeatureEncoding,
) -> tuple[npt.NDArray[Any], ...]:
    k = len(model.means)
    results: tuple[npt.NDArray[Any], ...] = tuple(
        np.empty((block.n, k) if output.per_component else block.n, dtype=output.dtype) for output in outputs
    )
    start, least = 0, min(output.least for output in outputs)
    for x, _ in pieces:
        finite = np.isfinite(x)
        good, outside = encoding.usable(finite), encoding.outside(x)
        if not (missing == "drop" or encoding.skips) and (found := first_marked(~finite, x)):
            row, feature, value = found
            raise not_finite_error(
                place(block, start + row, feature), value, "pass missing='drop' to mark such samples"
            )
        if outside is not None and (found := first_marked(outside, x)):
            row, feature, value = found
            raise outside_error(place(block, start + row, feature), value, encoding)
        for at, log_joint in log_joint_of(x, model, least, encoding):
            here = slice(start + at.start, start + at.stop)
            for output, result in zip(outputs, results, strict=True):
                result[here] = output.of(log_joint.copy() if len(outputs) > 1 else log_joint)
                result[here][~good[at]] = output.absent
        start += len(x)
    return results
