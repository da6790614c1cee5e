"""The first pass: how many samples, how far they reach, what is wrong with them, and a sample of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.data.blocks import Block, Samples
from daskgmm.data.checks import first_marked
from daskgmm.families.encoding import PLAIN, FeatureEncoding
from daskgmm.families.frame import Array
from daskgmm.fitting.options import Options
from daskgmm.passes.graph import gather
from daskgmm.passes.reader import Reader, RowPiece, not_finite_error, outside_error, split_annotations


@dataclass(frozen=True)
class Survey:
    """What the survey learns of some rows."""

    n: int  # rows that can be used
    weight: float  # their total weight; n without weights
    low: Array  # (d,) range of those rows that weigh something
    high: Array  # (d,)
    sample: Array  # (m, d) the sampled ones of them, in the user's units
    sample_weight: Array  # (m,)
    bad: tuple[int, int, float] | None  # first value that is not finite: position of the row, feature, value
    wrong: tuple[int, int, float] | None  # first finite one that the family does not take
    bad_weight: tuple[int, float] | None  # first weight that is negative or not finite, but NaN of a row left out
    bad_label: tuple[int, float] | None  # first label that is not one of a component, nor -1
    sample_labels: npt.NDArray[np.intp]  # (m,) the components of the sampled rows, -1 where they are not known
    n_known: int  # rows whose component is known
    blocks: Array  # (b, 2 + d) of each block: rows used, their weight, and Σ w x; what is missing left out

    def check(self, d: int, n_blocks: int) -> None:
        """Refuse what cannot be the survey of d features in so many blocks.

        Raises
        ------
        ValueError
        """
        m = len(self.sample_weight)
        shapes = {"low": (d,), "high": (d,), "sample": (m, d), "sample_labels": (m,), "blocks": (n_blocks, 2 + d)}
        if any(getattr(self, name).shape != shape for name, shape in shapes.items()) or not 0 < m <= self.n:
            raise ValueError("the survey that was kept is not of these data: begin the fit in another directory")

    @property
    def sums(self) -> Array:
        """Σ w x: (d,)."""
        return self.blocks[:, 2:].sum(axis=0)

    @property
    def complete(self) -> bool:
        """Are the sampled rows all that there are?"""
        return len(self.sample) == self.n


def merge(surveys: Sequence[Survey]) -> Survey:
    """The survey of all rows together."""
    return Survey(
        sum(s.n for s in surveys),
        sum(s.weight for s in surveys),
        np.fmin.reduce([s.low for s in surveys]),  # NaN where a feature has no value: others may have
        np.fmax.reduce([s.high for s in surveys]),
        np.concatenate([s.sample for s in surveys]),
        np.concatenate([s.sample_weight for s in surveys]),
        min((s.bad for s in surveys if s.bad), default=None),
        min((s.wrong for s in surveys if s.wrong), default=None),
        min((s.bad_weight for s in surveys if s.bad_weight), default=None),
        min((s.bad_label for s in surveys if s.bad_label), default=None),
        np.concatenate([s.sample_labels for s in surveys]),
        sum(s.n_known for s in surveys),
        np.concatenate([s.blocks for s in surveys]),
    )


def draw(samples: Samples, size: int, rng: np.random.RandomState) -> list[npt.NDArray[np.int64]]:
    """Positions of a uniform random sample of rows, split by block: all rows if there are no more than ``size``."""
    if samples.n <= size:
        positions = np.arange(samples.n)
    else:
        seed = int(rng.randint(2**31))
        positions = np.sort(np.random.default_rng(seed).choice(samples.n, size, replace=False, shuffle=False))
    return np.split(positions, np.searchsorted(positions, [block.start for block in samples.blocks[1:]]))


def survey_block(
    block: Block,
    pieces: Iterator[RowPiece],
    positions: npt.NDArray[np.int64],
    encoding: FeatureEncoding = PLAIN,
    k: int = 0,
) -> Survey:
    """Survey one block; ``positions`` of the rows to sample, labels are to be those of k components."""
    found = []
    start = block.start
    for x, beside in pieces:
        inside = positions[(positions >= start) & (positions < start + len(x))] - start
        found.append(_survey(x, *split_annotations(beside), inside, start, encoding, k))
        start += len(x)
    survey = merge(found)
    return replace(survey, blocks=survey.blocks.sum(axis=0, keepdims=True))


def _survey(
    x: npt.NDArray[Any],
    weights: Array | None,
    labels: npt.NDArray[Any] | None,
    inside: npt.NDArray[np.int64],
    start: int,
    encoding: FeatureEncoding,
    k: int,
) -> Survey:
    w = np.ones(len(x)) if weights is None else weights.astype(np.float64)
    finite = np.isfinite(x)
    good = encoding.usable(finite)
    outside = encoding.outside(x)
    bad = None if encoding.skips else _first(~finite, x, start)
    wrong = None if outside is None else _first(outside, x, start)
    bad_weight = None
    w_good = np.isfinite(w) & (w >= 0)
    if not (w_allowed := w_good | (np.isnan(w) & ~good)).all():  # of a row that is left out, it may be missing, too
        row = int(np.argmin(w_allowed))
        bad_weight = (start + row, float(w[row]))
    used = good & w_good & (w > 0)
    kept = x if used.all() else x[used]
    d = x.shape[1]
    inside = inside[used[inside]]
    known, bad_label = (None, None) if labels is None else _components(labels, start, k)
    return Survey(
        int(used.sum()),
        float(w[used].sum()),
        np.fmin.reduce(kept, axis=0).astype(np.float64) if len(kept) else np.full(d, np.inf),
        np.fmax.reduce(kept, axis=0).astype(np.float64) if len(kept) else np.full(d, -np.inf),
        x[inside].astype(np.float64),
        w[inside],
        bad,
        wrong,
        bad_weight,
        bad_label,
        np.full(len(inside), -1) if known is None else known[inside],
        0 if known is None else int((known[used] >= 0).sum()),
        np.array([[used.sum(), w[used].sum(), *_sums(kept, None if weights is None else w[used])]]),
    )


def _sums(x: npt.NDArray[Any], w: Array | None) -> Array:
    """Σ w x of rows x (n, d), without what is missing: (d,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        if w is not None:
            return np.asarray(w @ np.nan_to_num(x.astype(np.float64)))
        sums = x.sum(axis=0, dtype=np.float64)
        return sums if np.isfinite(sums).all() else np.nansum(x, axis=0, dtype=np.float64)


def _components(labels: npt.NDArray[Any], start: int, k: int) -> tuple[npt.NDArray[np.intp], tuple[int, float] | None]:
    """Labels as numbers of k components, -1 where there is none, and the first one that is neither."""
    values = labels.astype(np.float64)
    good = (values >= -1) & (values < k) & (values == np.floor(values))
    found = np.where(good, values, -1).astype(np.intp)
    if good.all():
        return found, None
    row = int(np.argmin(good))
    return found, (start + row, float(values[row]))


def _first(mask: npt.NDArray[np.bool_], x: npt.NDArray[Any], start: int) -> tuple[int, int, float] | None:
    """The first value that is marked, with the position of its row."""
    found = first_marked(mask, x)
    return None if found is None else (start + found[0], *found[1:])


def nothing_left(samples: Samples, encoding: FeatureEncoding, gaps: bool) -> ValueError:
    """The error that no row can be used; ``gaps``: some have missing values."""
    fact = f"no row of {samples.n} {'has a value' if encoding.skips else 'is complete'}"
    if "weight" in samples.source.annotation_names:
        if not gaps:
            return ValueError(f"no row of {samples.n} weighs anything: sample_weight needs non-zero numbers")
        fact += " and weighs something"
    if samples.feature_dim is not None:
        return ValueError(
            f"{fact}, where the last dimension, {samples.feature_dim!r} of size {samples.n_features}, is taken as the "
            "features: transpose so that the features are last, or name the variables that are features"
        )
    if samples.names is None:
        return ValueError(
            f"{fact}, where the last axis, of size {samples.n_features}, is taken as the features: move the features "
            "there, or fill in what is missing first"
        )
    return ValueError(f"{fact}: leave out the variables that lack most, or fill them in first")


def survey_samples(reader: Reader, encoding: FeatureEncoding, options: Options, chosen: Sequence[Any]) -> Survey:
    """Look once at all samples, at chosen ones of each block for the sample, and refuse what cannot be fitted.

    Raises
    ------
    ValueError
        No rows, fewer than components, a value or weight that is not finite, a label that is not one of a component:
        the first one is named.
    """
    k, samples = options.n_components, reader.samples
    survey = merge(gather(reader, partial(survey_block, encoding=encoding, k=k), chosen))
    if survey.bad_weight is not None:
        position, value = survey.bad_weight
        raise ValueError(
            f"sample_weight is {value} at {samples.locate(position)}: weights must be finite and not negative"
        )
    if survey.bad_label is not None:
        position, value = survey.bad_label
        raise ValueError(
            f"labels is {value:g} at {samples.locate(position)}, but with n_components={k} a label is a whole number "
            f"from 0 to {k - 1}, or -1 where the component is not known: number them so"
        )
    if survey.wrong is not None:
        position, feature, value = survey.wrong
        raise outside_error(samples.locate(position, feature), value, encoding)
    if survey.bad is not None and options.missing != "drop":
        position, feature, value = survey.bad
        raise not_finite_error(samples.locate(position, feature), value, "pass missing='drop' to leave such rows out")
    if not survey.n:
        raise nothing_left(samples, encoding, survey.bad is not None or encoding.skips)
    return survey
