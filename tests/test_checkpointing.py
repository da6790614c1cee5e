"""Laws of a checkpoint: whenever a fit is left, the same call ends with the same bits; what differs is refused."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from length import at_length

import daskgmm.data.blocks
import daskgmm.fitting.checkpoint
from daskgmm import (
    BayesianGaussianMixture,
    BernoulliMixture,
    CategoricalMixture,
    GaussianMixture,
    GaussianMixtureIC,
    PoissonMixture,
)
from daskgmm.em.acceleration import Mixing
from daskgmm.em.loop import Bounds, EMState, Exactness, Extrapolation
from daskgmm.families.gaussian import CollapsedComponentError, GaussianParameters
from daskgmm.storage.groups import Target
from daskgmm.storage.serialize import pack, unpack

Array = npt.NDArray[np.float64]


class Killed(BaseException):
    """What no handler of errors catches."""


@pytest.fixture(autouse=True)
def _every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after each pass, and 200 rows a block."""
    monkeypatch.setattr(daskgmm.fitting.checkpoint, "_INTERVAL", 0)
    monkeypatch.setattr(daskgmm.data.blocks, "BLOCK_VALUES", 600)
    monkeypatch.setattr(daskgmm.data.blocks, "_REGION_VALUES", 300)


@pytest.fixture(scope="module")
def rows() -> Array:
    """800 rows of three groups that overlap, in three features."""
    rng = np.random.default_rng(3)
    means = rng.normal(size=(3, 3)) * 1.5
    return means[rng.integers(0, 3, 800)] + rng.normal(size=(800, 3)) @ rng.normal(size=(3, 3))


@pytest.fixture(scope="module")
def store(rows: Array, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("data") / "x.zarr"
    zarr.create_array(str(path), data=rows, chunks=(100, 3))
    return path


OPTIONS: dict[str, Any] = {"n_components": 2, "random_state": 0, "subsample": 300, "tol": 1e-4, "max_iter": 12}


def killed_at(n: int) -> Callable[..., None]:
    """A `Target.write` that ends the process, as far as it can tell, in place of the n-th."""
    write, done = Target.write, iter(range(n))

    def killing(self: Target, key: str, data: bytes) -> None:
        if next(done, None) is None:
            raise Killed
        write(self, key, data)

    return killing


def kept(model: Any) -> dict[str, Any]:
    """What has to be the same."""
    best = getattr(model, "best_estimator_", model)
    names = (*("weights_", "means_", "covariances_"), *("lower_bounds_", "n_iter_", "n_passes_", "converged_"))
    found = {name: getattr(best, name) for name in names if hasattr(best, name)}
    history = [(info.stage, info.n_iter, info.lower_bound, info.n_models) for info in model.history_]
    return {**found, "history": history}


def assert_same(found: Any, expected: Any) -> None:
    for name, value in kept(expected).items():
        assert np.array_equal(kept(found)[name], value), name


def on_store(mixture: Callable[..., Any], **changes: Any) -> Callable[..., Any]:
    def fit(path: Path, rows: Array, **more: Any) -> Any:
        return mixture(**{**OPTIONS, **changes, **more}).fit(path)

    return fit


def on_rows(mixture: Callable[..., Any], **changes: Any) -> Callable[..., Any]:
    def fit(path: Path, rows: Array, **more: Any) -> Any:
        return mixture(**{**OPTIONS, **changes, **more}).fit(rows)

    return fit


def on_dask(path: Path, rows: Array, **more: Any) -> Any:
    return GaussianMixture(**OPTIONS, **more).fit(da.from_array(rows, chunks=(250, 3)))


def labelled(path: Path, rows: Array, **more: Any) -> Any:
    labels = np.where(np.arange(len(rows)) % 10 == 0, np.arange(len(rows)) // 400, -1)
    return GaussianMixture(**OPTIONS, **more).fit(path, labels=labels, sample_weight=np.linspace(1, 2, len(rows)))


def binary(path: Path, rows: Array, **more: Any) -> Any:
    gaps = np.where(np.arange(rows.size).reshape(rows.shape) % 7 == 0, np.nan, rows > 0)
    return BernoulliMixture(**OPTIONS, missing="skip", **more).fit(gaps)


def counts(mixture: Any) -> Callable[..., Any]:
    def fit(path: Path, rows: Array, **more: Any) -> Any:
        return mixture(**OPTIONS, **more).fit(np.floor(np.abs(rows)))

    return fit


def random_state(path: Path, rows: Array, **more: Any) -> Any:
    """An instance: its state is what the fit goes on from, wherever the one that is given stands."""
    return GaussianMixture(**{**OPTIONS, "random_state": np.random.RandomState(5)}, **more).fit(path)


FITS = {
    "store": on_store(GaussianMixture),
    "textbook": on_store(GaussianMixture, accelerate=False, persist=False),
    "tied": on_store(GaussianMixture, covariance_type="tied", n_init=2),
    "starts in passes": on_store(GaussianMixture, subsample=None, n_init=3),
    "at random": on_store(GaussianMixture, subsample=None, init_params="random", covariance_type="EVE"),
    "prior": on_store(GaussianMixture, prior="default", covariance_type="diag"),
    "rows": on_rows(GaussianMixture, subsample=None),
    "rows, moved": on_rows(GaussianMixture, n_components=3, subsample=2000, covariance_type="spherical"),
    "rows, given": on_rows(GaussianMixture, means_init=np.eye(3)[:2], weights_init=[0.2, 0.8]),
    "dask": on_dask,
    "labels": labelled,
    "bernoulli": binary,
    "categorical": counts(CategoricalMixture),
    "poisson": counts(PoissonMixture),
    "bayesian": on_store(BayesianGaussianMixture),
    "search": on_store(GaussianMixtureIC, n_components=(1, 2), covariance_type=("full", "EEV"), tol=1e-3),
    "random state": random_state,
}


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_killed_before_any_write_the_same_call_ends_with_the_same_bits(
    fit: Callable[..., Any], store: Path, rows: Array, tmp_path: Path
) -> None:
    """Each run adds one write to what the one before left, so that each of them is gone on from."""
    expected = fit(store, rows)
    for n in range(100):
        try:
            with mock.patch.object(Target, "write", killed_at(2 + (n > 0))):
                found = fit(store, rows, checkpoint=tmp_path / "kept")
        except Killed:
            continue
        break
    assert n > 2
    assert_same(found, expected)
    assert_same(fit(store, rows, checkpoint=tmp_path / "kept"), expected)


def after(n: int, do: Callable[[], Any]) -> list[Callable[[Any], None]]:
    """Callbacks of a fit: something is done once, after n passes over the data."""

    def callback(info: Any) -> None:
        if info.stage == "data" and info.n_iter == n:
            do()

    return [callback]


def kill() -> None:
    raise Killed


def begun(path: Path, data: Any, n: int = 3, **changes: Any) -> Path:
    """A checkpoint of a fit that was killed after n passes."""
    options = {**OPTIONS, "persist": False, **changes}
    with pytest.raises(Killed):
        GaussianMixture(**options, checkpoint=path, callbacks=after(n, kill)).fit(data)
    return path


def go_on(path: Path, data: Any, **changes: Any) -> GaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GaussianMixture(**{**OPTIONS, "persist": False, **changes}, checkpoint=path).fit(data)


def entries(path: Path, kind: str) -> list[Path]:
    return sorted(path.glob(f"{kind}-*.safetensors"))


def test_no_pass_that_was_kept_is_made_again(store: Path, tmp_path: Path, reads: Any) -> None:
    begun(tmp_path / "kept", store, n=4)
    reads.rows = 0
    model = go_on(tmp_path / "kept", store)
    assert reads.rows == 800 * (model.n_passes_ - 5)  # the survey and four passes of EM
    reads.rows = 0
    go_on(tmp_path / "kept", store, persist=True)
    assert reads.rows == 0


def test_the_last_two_are_kept(store: Path, tmp_path: Path) -> None:
    begun(tmp_path / "kept", store, n=5, tol=0)
    assert [path.name[:11] for path in entries(tmp_path / "kept", "em")] == ["em-00000004", "em-00000005"]


def test_in_a_second_no_more_than_one_pass_and_the_last_are_kept(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daskgmm.fitting.checkpoint, "_INTERVAL", 1e6)
    model = go_on(tmp_path / "kept", store)
    numbers = [int(path.name[3:11]) for path in entries(tmp_path / "kept", "em")]
    assert numbers == [1, sum(info.stage == "data" for info in model.history_)]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"n_components": 3}, "n_components 2 and not 3"),
        ({"random_state": 1}, "random_state 0 and not 1"),
        ({"covariance_type": "tied"}, "covariance_type 'full' and not 'tied'"),
        ({"subsample": 500}, "subsample 300 and not 500"),
        ({"means_init": np.zeros((2, 3))}, "start None and not '[0-9a-f]+'"),
    ],
)
def test_another_fit_is_refused(changes: dict[str, Any], difference: str, store: Path, tmp_path: Path) -> None:
    begun(tmp_path / "kept", store)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=difference):
        go_on(tmp_path / "kept", store, **changes)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_data_are_refused(store: Path, rows: Array, tmp_path: Path) -> None:
    begun(tmp_path / "kept", store)
    with pytest.raises(ValueError, match=r"data of the shape \[800, 3\] and not \[799, 3\]"):
        go_on(tmp_path / "kept", rows[1:])
    with pytest.raises(ValueError, match="data of the type 'float64' and not 'float32'"):
        go_on(tmp_path / "kept", rows.astype(np.float32))
    with pytest.raises(ValueError, match="mixture 'GaussianMixture' and not 'BernoulliMixture'"):
        BernoulliMixture(**OPTIONS, checkpoint=tmp_path / "kept").fit(rows > 0)


@pytest.mark.parametrize("n", [2, 12], ids=["unfinished", "finished"])
def test_an_edited_chunk_is_refused_and_its_place_named(n: int, store: Path, rows: Array, tmp_path: Path) -> None:
    path = tmp_path / "mine.zarr"
    array = zarr.create_array(str(path), data=rows, chunks=(100, 3))
    begun(tmp_path / "kept", path, n=n, tol=0)
    assert_same(go_on(tmp_path / "kept", path, tol=0), go_on(tmp_path / "other", path, tol=0))
    begun(tmp_path / "again", path, n=n, tol=0)
    array[730, 1] += 1e-3
    with pytest.raises(ValueError, match="changed since they were surveyed, first between row 600 and row 799 "):
        go_on(tmp_path / "again", path, tol=0)
    array[730] = rows[730]  # as it was: the store is newer, the data are the same
    assert_same(go_on(tmp_path / "again", path, tol=0), go_on(tmp_path / "other", path, tol=0))
    edited = rows.copy()
    edited[3] += 1
    begun(tmp_path / "rows", rows, n=n, tol=0)
    with pytest.raises(ValueError, match="changed since they were surveyed"):
        go_on(tmp_path / "rows", edited, tol=0)


def test_another_tolerance_or_length_goes_on(store: Path, tmp_path: Path) -> None:
    short = go_on(tmp_path / "kept", store, max_iter=2, tol=0)
    longer = go_on(tmp_path / "kept", store, max_iter=9, tol=0)
    assert (short.n_iter_, longer.n_iter_) == (2, 9)
    assert longer.lower_bounds_[:2] == short.lower_bounds_
    loose = go_on(tmp_path / "loose", store, tol=1e-2)
    assert loose.converged_
    tight = go_on(tmp_path / "loose", store, tol=1e-9, max_iter=40)
    assert tight.n_iter_ > loose.n_iter_
    assert tight.lower_bounds_[: loose.n_iter_] == loose.lower_bounds_


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty])
@pytest.mark.parametrize("n", [1, 2], ids=["newest", "all"])
def test_of_damaged_states_the_older_one_is_used(damage: Any, n: int, store: Path, tmp_path: Path) -> None:
    expected = go_on(tmp_path / "whole", store)
    kept = begun(tmp_path / "kept", store, n=4)
    for path in entries(kept, "em")[-n:]:
        damage(path)
    with pytest.warns(UserWarning, match="'em-00000004.* is damaged .*: what is older is used"):
        found = GaussianMixture(**OPTIONS, persist=False, checkpoint=kept).fit(store)
    assert_same(found, expected)


def test_what_was_kept_of_the_start_may_be_lost(store: Path, tmp_path: Path) -> None:
    expected = go_on(tmp_path / "whole", store)
    kept = begun(tmp_path / "kept", store, n=4)
    flip(*entries(kept, "start"))
    truncate(*entries(kept, "survey"))
    assert_same(go_on(kept, store), expected)


def test_damage_where_it_says_what_is_fitted_is_refused(store: Path, tmp_path: Path) -> None:
    kept = begun(tmp_path / "kept", store)
    flip(*entries(kept, "fit"))
    with pytest.raises(ValueError, match="is damaged where it says what is fitted: remove it"):
        go_on(kept, store)


def test_another_version_is_refused(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daskgmm.fitting.checkpoint, "SCHEMA", 0)
    kept = begun(tmp_path / "kept", store)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"is of daskgmm .*, from which .* cannot go on: use that version"):
        go_on(kept, store)


@pytest.mark.parametrize("foreign", ["notes.txt", "em-1.safetensors", "deeper/fit.json"])
def test_a_directory_of_other_things_is_refused_and_left_as_it_is(foreign: str, store: Path, tmp_path: Path) -> None:
    kept = begun(tmp_path / "kept", store)
    (kept / foreign).parent.mkdir(exist_ok=True)
    (kept / foreign).write_text("mine")
    with pytest.raises(ValueError, match=f"holds '{foreign}', which is not of a checkpoint: give another path"):
        go_on(kept, store)
    assert (kept / foreign).read_text() == "mine"


def test_a_file_is_no_directory(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        go_on(tmp_path / "file", store)


def test_of_two_fits_in_one_directory_the_later_goes_on(store: Path, tmp_path: Path) -> None:
    expected = go_on(tmp_path / "other", store)
    later: list[GaussianMixture] = []
    first = after(3, lambda: later.append(go_on(tmp_path / "kept", store)))
    with pytest.raises(RuntimeError, match="is now another fit's, so this fit ends"):
        GaussianMixture(**OPTIONS, checkpoint=tmp_path / "kept", callbacks=first).fit(store)
    assert_same(*later, expected)
    assert_same(go_on(tmp_path / "kept", store), expected)


def test_a_fit_whose_checkpoint_is_removed_ends(store: Path, tmp_path: Path) -> None:
    def remove() -> None:
        for path in (tmp_path / "kept").iterdir():
            path.unlink()

    with pytest.raises(RuntimeError, match="was removed, so this fit ends"):
        GaussianMixture(**OPTIONS, checkpoint=tmp_path / "kept", callbacks=after(3, remove)).fit(store)


def test_a_fit_that_fails_fails_again(store: Path, tmp_path: Path) -> None:
    """And data that are refused are looked at again: they may have been mended."""
    path = tmp_path / "mine.zarr"
    array = zarr.create_array(str(path), data=np.ones((300, 3)), chunks=(100, 3))
    array[7, 1] = np.nan
    for _ in range(2):
        with pytest.raises(ValueError, match="Input X contains NaN: row 7, feature 1"):
            go_on(tmp_path / "kept", path, reg_covar=0)
    array[7, 1] = 1
    for _ in range(2):
        with pytest.raises(ValueError, match="only 1 of"):
            go_on(tmp_path / "kept", path, reg_covar=0)


def test_object_stores(store: Path, rows: Array, tmp_path: Path) -> None:
    url = "memory://checkpoints/of/this"
    begun(url, store)  # type: ignore[arg-type]
    assert_same(go_on(url, store), go_on(tmp_path / "kept", store))  # type: ignore[arg-type]


# Data that change while they are fitted


@pytest.mark.parametrize("mixture", [GaussianMixture, BayesianGaussianMixture, BernoulliMixture, PoissonMixture])
@pytest.mark.parametrize("missing", ["raise", "drop"])
def test_data_that_change_between_passes_are_refused(mixture: Any, missing: str, rows: Array, tmp_path: Path) -> None:
    """One value of one row, in 800; or a row that is gone."""
    data = np.floor(np.abs(rows)) if mixture is PoissonMixture else rows > 0 if mixture is BernoulliMixture else rows
    path = tmp_path / "x.zarr"
    array = zarr.create_array(str(path), data=data.astype(np.float64), chunks=(100, 3))
    dropped = missing == "drop" and mixture in (GaussianMixture, BayesianGaussianMixture)

    def edit() -> None:
        array[450, 2] = np.nan if dropped else 1 - array[450, 2]

    options = {**OPTIONS, "tol": 1e-8, "max_iter": 60, "missing": missing if dropped else "raise"}
    with pytest.raises(ValueError, match=r"changed .*, first between row 400 and row 599|row 450"):
        mixture(**options, persist=False, callbacks=after(1, edit)).fit(path)


# Reading


@given(st.permutations(range(3)), st.sampled_from([np.float64, np.float32, np.int64, bool]), st.lists(st.floats()))
@settings(deadline=None, max_examples=50)
def test_a_record_is_what_was_packed(order: list[int], dtype: Any, numbers: list[float]) -> None:
    """Bits and the order of axes in memory too: how matrices are multiplied follows from it."""
    array = np.arange(24.0).reshape(2, 3, 4).transpose(order).astype(dtype, order="K")
    point = np.array(numbers)
    state = EMState(
        GaussianParameters(point, point, point, point),
        failure=CollapsedComponentError("component 3"),
        bounds=Bounds(tuple(numbers)),
        extrapolation=Extrapolation(
            Mixing((point,), (point, point)),
            plain=EMState(None if not numbers else GaussianParameters(point, point, point, point)),
        ),
    )
    kinds = (EMState, Bounds, Extrapolation, Exactness, Mixing, GaussianParameters, CollapsedComponentError)
    if not numbers:
        with pytest.raises(ValueError, match="parameters of EMState is NoneType"):
            unpack(pack(state), kinds)
        return
    found, other, nothing = unpack(pack((state, array, None)), kinds)
    assert nothing is None
    assert repr(found) == repr(state)
    assert other.dtype == array.dtype
    assert other.strides == array.strides
    assert np.array_equal(other, array)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A record with bytes flipped, cut, doubled or put elsewhere, or a number of its JSON replaced."""
    changed = bytearray(data)
    at = int(rng.integers(len(data)))
    match rng.integers(5):
        case 0:
            changed[at] ^= 1 << int(rng.integers(8))
        case 1:
            del changed[at:]
        case 2:
            changed[at:at] = changed[at : at + int(rng.integers(1, 40))]
        case 3:
            del changed[at : at + int(rng.integers(1, 40))]
        case 4:
            digits = [i for i, byte in enumerate(data[:4000]) if 48 <= byte < 58] or [at]
            changed[digits[int(rng.integers(len(digits)))]] = int(rng.choice([48, 57, 45, 101, 34, 91]))
    return bytes(changed)


@pytest.fixture(scope="module")
def kept_entries(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daskgmm.fitting.checkpoint, "_INTERVAL", 0)
        return begun(tmp_path_factory.mktemp("kept") / "kept", store, n=4)


@pytest.mark.parametrize("n", [1500, pytest.param(at_length(100_000), marks=pytest.mark.slow)])
def test_of_mutations_of_a_record_there_is_an_error_or_a_record(n: int, kept_entries: Path) -> None:
    rng = np.random.default_rng(0)
    records = [path.read_bytes() for kind in ("fit", "survey", "start", "em") for path in entries(kept_entries, kind)]
    with mock.patch("pickle.loads", side_effect=AssertionError):
        for i in range(n):
            with suppress(ValueError):
                unpack(mutated(records[i % len(records)], rng), daskgmm.fitting.checkpoint._KINDS)


@pytest.mark.parametrize("n", [60, pytest.param(at_length(2000), marks=pytest.mark.slow)])
def test_from_mutations_with_the_right_digest_a_fit_goes_on_or_says_what_is_wrong(
    n: int, store: Path, kept_entries: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    kept = [path for kind in ("survey", "start", "em") for path in entries(kept_entries, kind)]
    for i in range(n):
        shutil.rmtree(tmp_path / "kept", ignore_errors=True)
        shutil.copytree(kept_entries, tmp_path / "kept")
        path = tmp_path / "kept" / kept[i % len(kept)].name
        data = mutated(path.read_bytes(), rng)
        path.unlink()
        name = daskgmm.fitting.checkpoint._named(path.name.rpartition("-")[0], data)
        (tmp_path / "kept" / name).write_bytes(data)
        with suppress(ValueError):
            model = go_on(tmp_path / "kept", store, max_iter=6)
            assert np.isfinite(model.means_).all()
            assert np.isfinite(model.lower_bound_)
