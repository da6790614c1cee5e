"""A fit in which the components of some rows are known: what these add to each pass, and where EM starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from daskgmm.data.blocks import Block, of_numpy
from daskgmm.data.checks import RowAnnotations
from daskgmm.em.estep import moments_from_responsibilities, stats_from_responsibilities
from daskgmm.em.labelled import Known, nothing, shifted
from daskgmm.em.layout import Precision
from daskgmm.em.loop import EM, EMState, look_again
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.encoding import PLAIN, FeatureEncoding
from daskgmm.families.frame import Array
from daskgmm.fitting.options import Options
from daskgmm.fitting.starts import Start, first_m_step, further
from daskgmm.fitting.survey import Survey
from daskgmm.passes.graph import total
from daskgmm.passes.reader import Reader, RowPiece, encode_pieces


def sum_labelled(reader: Reader, survey: Survey, em: EM, k: int) -> tuple[Known, int]:
    """The sums over the rows whose component is known, and the passes over all of the data that they took.

    Raises
    ------
    ValueError
        A component has no rows, and there are none for it.
    """
    rows = _labelled(reader, survey)
    encoding, rows = rows.encoding, replace(rows, encoding=PLAIN, unlabelled=False)
    n_passes = 0

    def one_pass(blanks: Sequence[Components], dtypes: Sequence[Precision] = ()) -> list[Stats]:
        nonlocal n_passes
        n_passes += 1
        return [total(rows, partial(_known, encoding=encoding, blank=blank))[0] for blank in blanks]

    blank = em.family.zero_components(k, em.frame)
    (blank,), (stats,) = look_again([blank], one_pass([blank]), one_pass)
    empty, others = np.flatnonzero(stats.moments[:, 0] == 0), survey.n - stats.n
    if len(empty) > others and em.family.restarts_empty_components:
        raise ValueError(
            f"no row is labelled {empty[0]}, and {others} rows without a label are left for {len(empty)} such "
            "components: lower n_components, or label fewer rows"
        )
    return Known(stats.n, stats.moments, blank, others == 0), 0 if survey.complete else n_passes


def start_from_labels(
    reader: Reader, survey: Survey, em: EM, known: Known, options: Options, given: Start, rng: np.random.RandomState
) -> tuple[EMState, int]:
    """A state to start from, and the passes.

    What is known classifies the others, if it is enough, as in Nigam et al. 2000: centres alone do not tell a long
    component from a round one. Else these belong to the nearest centre, or at random.
    """
    counts, d = known.moments[:, 0], survey.sample.shape[1]
    has_enough_rows = options.init_params != "random" and (counts > em.family.n_parameters(1, d)).all()
    if known.alone or has_enough_rows:
        moments = known.moments + (0 if known.alone else _typical(survey, em, known))
        return EMState(given.replace_in(em.family.maximize(known.blank, moments), em.frame)), 0
    found = None if options.init_params == "random" else _centres(survey, em, known, options, rng)
    rows = replace(_labelled(reader, survey), unlabelled=True)
    parameters, n_passes = first_m_step(
        rows, em.family, em.family.zero_components(options.n_components, em.frame), found, rng, known
    )
    return EMState(given.replace_in(parameters, em.frame)), 0 if survey.complete else n_passes


def _typical(survey: Survey, em: EM, known: Known) -> Array:
    """Moments of a row as sampled rows are on average, for each component: with one such, all rows are possible."""
    share = survey.sample_weight[None] / survey.sample_weight.sum()
    blank = em.family.zero_components(1, em.frame)
    moments = moments_from_responsibilities(em.frame.apply(survey.sample), share, blank)
    return shifted(np.repeat(moments, len(known.moments), axis=0), -known.blank.centres, blank.products)


def _known(block: Block, pieces: Iterator[RowPiece], encoding: FeatureEncoding, blank: Components) -> tuple[Stats, ...]:
    return labelled_stats(pieces, encoding, blank)


def _labelled(reader: Reader, survey: Survey) -> Reader:
    """All of the rows: in memory, where these are there."""
    if not survey.complete:
        return reader
    beside = RowAnnotations(survey.sample_weight, survey.sample_labels)
    return Reader(of_numpy([survey.sample], survey.sample.shape[:1], survey.sample.shape[1], beside))


def _centres(survey: Survey, em: EM, known: Known, options: Options, rng: np.random.RandomState) -> Array:
    """The means of what is known; of the other components, among or between sampled rows without a label."""
    counts, d = known.moments[:, :1], survey.sample.shape[1]
    means = known.blank.centres + known.moments[:, 1 : 1 + d] / np.where(counts > 0, counts, 1)
    found = em.frame.standardized(means.T).T.copy()
    empty, free = counts[:, 0] == 0, survey.sample_labels < 0
    if empty.any():
        free |= not free.any()  # so few that none is in the sample
        rows, weights = (em.sample / em.frame.scale)[free], survey.sample_weight[free]
        found[empty] = further(options.init_params, rows, weights, found[~empty], int(empty.sum()), rng)
    return found


def labelled_stats(pieces: Iterable[RowPiece], encoding: FeatureEncoding, blank: Components) -> tuple[Stats, ...]:
    """Moments of the rows with a label, each in its component."""
    total = nothing(blank)
    for x, (weights, labels) in pieces:
        for label in np.unique(labels[labels >= 0]).astype(np.intp):
            at = labels == label
            rows = [(x[at], None if weights is None else weights[at])]
            (stats,) = stats_from_responsibilities(
                encode_pieces(rows, encoding), blank.take(np.array([label])), _certain
            )
            total.moments[label] += stats.moments[0]
            total = replace(total, n=total.n + stats.n)
    return (total,)


def _certain(z: Array) -> Array:
    return np.ones((1, z.shape[1]))
