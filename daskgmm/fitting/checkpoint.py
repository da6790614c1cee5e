"""Fits that can be killed: the same call goes on from what was found, and ends with the same bits.

A checkpoint is a directory, or a prefix of an object store, of files that are written once, whole, and named by the
digest of what they hold. Of the data, a pass that the start needs is kept as soon as it is made, then where EM begins,
and from there the state of all running models after each pass, the last two. Nothing in them is run when they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib.metadata import version
from itertools import count
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from daskgmm.data.blocks import Samples
from daskgmm.em.acceleration import Mixing
from daskgmm.em.info import Info
from daskgmm.em.labelled import Known
from daskgmm.em.loop import EM, Bounds, EMState, Exactness, Extrapolation
from daskgmm.em.stats import Stats
from daskgmm.families.frame import Frame
from daskgmm.families.gaussian import CollapsedComponentError, GaussianParameters
from daskgmm.families.gaussian_components import DenseComponents, DiagonalComponents
from daskgmm.families.product import LinearComponents, ProductParameters
from daskgmm.families.variational import VariationalParameters
from daskgmm.fitting.survey import Survey
from daskgmm.storage.groups import Target
from daskgmm.storage.serialize import pack, unpack

T = TypeVar("T")

SCHEMA = 2  # 1: the fields of a state are not grouped
_INTERVAL = 1.0  # seconds, at least, between two that are kept: of passes that take less, so much may be lost
_KEPT = 2
_OWNER = "owner"
_ENTRY = re.compile(r"(fit|survey|pass-\d+-\d+|start-\d+|em-\d+)-[0-9a-f]{32}\.safetensors")
_PARTIAL = re.compile(r"\.[0-9a-f]+\.partial$")


@dataclass(frozen=True)
class _Fit:
    """What is fitted to what."""

    schema: int
    version: str
    identity: str  # JSON
    stamp: str | None
    random: tuple[str, npt.NDArray[np.uint32], int, int, float]  # RandomState.get_state()


@dataclass(frozen=True)
class Begun:
    """Where the passes of EM start, for one candidate."""

    states: tuple[EMState, ...]
    history: tuple[Info, ...]  # of the sample
    n_passes: int  # over all of the data
    rows_known: Known | None  # those whose component is


@dataclass(frozen=True)
class Progress:
    """How far the passes of EM are."""

    states: tuple[EMState, ...]
    history: tuple[Info, ...]
    n_passes: int
    tol: float  # under which states have converged

    def under(self, tol: float) -> Progress:
        """Return the progress under another tolerance: converged states go on if that is lower."""
        if tol >= self.tol:
            return replace(self, tol=tol)
        return replace(self, tol=tol, states=tuple(replace(state, converged=False) for state in self.states))


_KINDS = (
    *(_Fit, Begun, Progress, EMState, Bounds, Extrapolation, Exactness, Mixing, Info, Survey, Stats, Known),
    *(GaussianParameters, VariationalParameters, ProductParameters),
    *(DenseComponents, DiagonalComponents, LinearComponents, Frame),
    *(ValueError, CollapsedComponentError),
)


class Journal:
    """What a fit has found so far: kept nowhere."""

    progress: Progress | None = None  # of an earlier run
    trusted = False  # are the data surely those of that run?

    def ended(self, tol: float, max_iter: int) -> bool:
        """Is there nothing left to do?"""
        progress = self.progress
        return progress is not None and not any(state.goes_on(max_iter) for state in progress.under(tol).states)

    def random(self, rng: np.random.RandomState) -> np.random.RandomState:
        """The random numbers that the fit began with."""
        return rng

    def once(self, name: str, compute: Callable[[], T], check: Callable[[T], None] = lambda found: None) -> T:
        """What ``compute`` returns; or what it did in an earlier run, once that is checked."""
        return compute()

    def recorder(self, i: int) -> Callable[[Callable[[], Any]], Any] | None:
        """Return a hook that keeps or restores the passes of the i-th candidate's start, in their order."""
        return None

    def keep(self, progress: Progress, last: bool) -> None:
        """Keep how far the fit is."""


NOWHERE = Journal()


class Checkpoint(Journal):
    """Keep what a fit has found in a directory.

    Of two fits that write to one, the one that came later goes on, and the other ends: so may a scheduler start again
    what only seems to be dead.

    Parameters
    ----------
    path : str or path-like
        Local path or fsspec URL; made if it is not there.
    identity : mapping
        What decides over the result, beside the data: a fit goes on only from one of the same.
    samples : Samples
    rng : RandomState

    Raises
    ------
    ValueError
        There is something else, or a fit of other data or another mixture.
    """

    def __init__(
        self, path: str | os.PathLike[str], identity: Mapping[str, Any], samples: Samples, rng: np.random.RandomState
    ) -> None:
        self._target, self._owner = Target.at(os.fspath(path)), uuid.uuid4().hex
        self._called = f"the checkpoint {self._target.shown!r}"
        self._last = -np.inf
        keys = self._target.listing()
        whole = [_PARTIAL.sub("", key) for key in keys]
        if foreign := [key for key in whole if key != _OWNER and not _ENTRY.fullmatch(key)]:
            fact = f"holds {foreign[0]!r}, which is not of a checkpoint" if foreign[0] else "is a file"
            raise ValueError(f"{self._called} {fact}: give another path")
        text = json.dumps({**identity, **_described(samples)}, default=_plain)
        fit = _Fit(SCHEMA, version("daskgmm"), text, samples.source.stamp(), _state(rng))
        found = None
        if any(_ENTRY.fullmatch(key) for key in keys):
            found = self._read("fit")
            self._check(found, fit)
            self.trusted = fit.stamp is not None and fit.stamp == found.stamp
            fit = found
        self._target.write(_OWNER, self._owner.encode())
        if found is None:
            self._write("fit", fit)
        self._random = fit.random
        for name in self._names("em", reverse=True):
            if (progress := self._read(name)) is not None:
                self.progress = progress
                break

    def random(self, rng: np.random.RandomState) -> np.random.RandomState:
        begun = np.random.RandomState()
        begun.set_state(self._random)
        return begun

    def once(self, name: str, compute: Callable[[], T], check: Callable[[T], None] = lambda found: None) -> T:
        found: T | None = self._read(name)
        if found is None:
            found = compute()
            self._write(name, found)
        else:
            check(found)
        return found

    def recorder(self, i: int) -> Callable[[Callable[[], Any]], Any]:
        passes = count()
        return lambda compute: self.once(f"pass-{i}-{next(passes)}", compute)

    def keep(self, progress: Progress, last: bool) -> None:
        if not last and time.monotonic() < self._last + _INTERVAL:
            return
        self._write(f"em-{len(progress.history):08d}", progress)
        self._last = time.monotonic()
        names = self._names("em")
        with suppress(FileNotFoundError):  # another fit's by now
            self._target.remove(key for name in names[:-_KEPT] for key in self._keys(name))

    def _check(self, found: _Fit | None, fit: _Fit) -> None:
        """Refuse to go on from another fit, and say what differs."""
        if found is None:
            raise ValueError(f"{self._called} is damaged where it says what is fitted: remove it")
        if found.schema not in (1, SCHEMA):
            raise ValueError(
                f"{self._called} is of daskgmm {found.version}, from which {fit.version} cannot go on: "
                "use that version, or remove it to start again"
            )
        before, now = json.loads(found.identity), json.loads(fit.identity)
        for name in now:
            if before.get(name) != now[name]:
                raise ValueError(
                    f"{self._called} is of another fit, with {name} {before.get(name)!r} and not "
                    f"{now[name]!r}: give another path, or fit what was begun"
                )

    def _names(self, kind: str, reverse: bool = False) -> list[str]:
        """The entries of a kind, in order."""
        names = {key.rpartition("-")[0] for key in self._target.listing() if key.startswith(f"{kind}-")}
        return sorted(names, reverse=reverse)

    def _keys(self, name: str) -> list[str]:
        return [key for key in self._target.listing() if key.startswith(f"{name}-")]

    def _read(self, name: str) -> Any:
        """An entry; None if there is none that is whole."""
        for key in self._keys(name):
            if key.endswith(".partial"):
                continue
            data = self._target.read(key)
            try:
                if _named(name, data) != key:
                    raise ValueError("its digest is another")
                return unpack(data, _KINDS, _upgraded)
            except ValueError as error:
                warnings.warn(
                    f"{key!r} in {self._called} is damaged ({error}): what is older is used",
                    stacklevel=2,
                )
        return None

    def _write(self, name: str, entry: Any) -> None:
        try:
            owner = self._target.read(_OWNER).decode()
        except FileNotFoundError:
            owner = ""
        if owner != self._owner:
            fact = "is now another fit's" if owner else "was removed"
            raise RuntimeError(f"{self._called} {fact}, so this fit ends: run one at a time, or give each its own path")
        data = pack(entry)
        self._target.write(_named(name, data), data)


def _upgraded(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Turn the fields of a dataclass as schema 1 has them into those of today."""
    if kind == "LinearComponents":
        return {name: fields[name] for name in ("theta", "frame")}
    if kind != "EMState" or "bounds" in fields:
        return fields
    bounds = Bounds(
        *(fields[name] for name in ("lower_bounds", "previous_bound", "floor", "log_likelihood", "log_certainty"))
    )
    return {
        **{name: fields[name] for name in ("parameters", "n_iter", "converged", "failure")},
        "n_restarted": fields["n_reseeded"],
        "bounds": bounds,
        "extrapolation": Extrapolation(fields["mixing"], fields["point"], fields["plain"]),
        "exactness": Exactness(fields["exact"], fields["stepped"]),
    }


def _described(samples: Samples) -> dict[str, Any]:
    """What data are, without a look at them."""
    regions = repr([block.regions for block in samples.blocks]).encode()
    return {
        "data of the shape": [*samples.shape, samples.n_features],
        "data of the type": str(samples.dtype),
        "features": samples.names,
        "chunks": hashlib.sha256(regions).hexdigest(),
        "levels": samples.categories,
        "arrays beside": samples.source.annotation_names,
    }


def _plain(value: Any) -> Any:
    """What else identities hold, as JSON knows it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return np.asarray(value).tolist()


def _state(rng: np.random.RandomState) -> Any:
    return rng.get_state(legacy=True)


def _named(name: str, data: bytes) -> str:
    return f"{name}-{hashlib.sha256(data).hexdigest()[:32]}.safetensors"


def check_states(ems: Sequence[EM], states: Sequence[EMState], ks: Sequence[int]) -> None:
    """Refuse states that are not of mixtures of so many components.

    Raises
    ------
    ValueError
    """
    if len(ems) != len(states) or not all(map(_sound, ems, states, ks)):
        raise ValueError("the checkpoint holds what is not of this mixture: begin the fit in another directory")


def _sound(em: EM, state: EMState, k: int) -> bool:
    blank = em.family.zero_components(k, em.frame)
    try:
        thetas = [em.family.components(some.parameters, em.frame).theta for some in (state, state.settled)]
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError):
        return False
    mixing, point = state.extrapolation.mixing, state.extrapolation.point
    moments = (*mixing.points, *mixing.images, *([] if point is None else [point]))
    sound = (array.size == blank.theta.size and np.isfinite(array).all() for array in moments)
    return all(theta.shape == blank.theta.shape and (theta < np.inf).all() for theta in thetas) and all(sound)
