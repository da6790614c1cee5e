"""A saved model is the model; and what daskgmm writes never costs anything that it did not write."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr

import daskgmm.storage.groups
from daskgmm import GaussianMixture, load
from daskgmm.storage.groups import Target, prepare, write_group

Array = npt.NDArray[np.float64]

FITTED = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "lower_bounds_")
COUNTS = ("converged_", "n_iter_", "n_passes_", "n_samples_", "lower_bound_", "n_features_in_")
SHAPES = {
    "full": ("component", "feature", "feature_"),
    "tied": ("feature", "feature_"),
    "diag": ("component", "feature"),
    "spherical": ("component",),
    "EEI": ("component", "feature", "feature_"),
    "VVE": ("component", "feature", "feature_"),
}


@pytest.fixture(scope="module")
def model(blobs: Array) -> GaussianMixture:
    return GaussianMixture(3, random_state=0).fit(blobs)


# A group with a file that is no part of it makes zarr warn, which is as it should be.
pytestmark = pytest.mark.filterwarnings("ignore:.*not recognized as a component of a Zarr hierarchy")


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# The model


@pytest.mark.parametrize(
    ("covariance_type", "where"),
    [*((name, "path") for name in SHAPES), *(("full", form) for form in ("Path", "file URL", "memory URL"))],
)
def test_a_loaded_model_is_the_saved_one(covariance_type: str, where: str, blobs: Array, tmp_path: Path) -> None:
    path = {
        "path": str(tmp_path / "m.zarr"),
        "Path": tmp_path / "m.zarr",
        "file URL": f"file://{tmp_path}/m.zarr",
        "memory URL": f"memory://{tmp_path.name}/m.zarr",
    }[where]
    saved = GaussianMixture(3, covariance_type=covariance_type, random_state=0, tol=1e-4).fit(blobs)
    saved.save(path)
    loaded = load(path)
    for name in FITTED:
        assert np.array_equal(getattr(loaded, name), getattr(saved, name)), name
    for name in COUNTS:
        assert getattr(loaded, name) == getattr(saved, name), name
    assert loaded.get_params() == saved.get_params()
    for method in ("predict", "predict_proba", "score_samples"):
        assert np.array_equal(getattr(loaded, method)(blobs), getattr(saved, method)(blobs))
    assert loaded.bic(blobs) == saved.bic(blobs)
    assert not hasattr(loaded, "feature_names_in_")


@pytest.mark.parametrize("changes", [{"n_components": 1}, {"max_iter": 0}, {"random_state": np.random.RandomState(0)}])
def test_models_at_the_edge(changes: dict[str, Any], blobs: Array, tmp_path: Path) -> None:
    """One component; no step of EM; a random state that cannot be written."""
    saved = GaussianMixture(**{"n_components": 2, "random_state": 0, **changes}).fit(blobs)
    saved.save(tmp_path / "m.zarr")
    loaded = load(tmp_path / "m.zarr")
    for name in FITTED:
        assert np.array_equal(getattr(loaded, name), getattr(saved, name)), name
    assert loaded.random_state == (0 if saved.random_state == 0 else None)


def test_a_loaded_model_goes_on(blobs: Array, tmp_path: Path) -> None:
    model = GaussianMixture(3, random_state=0).fit(blobs)
    model.save(tmp_path / "m.zarr")
    warm = load(tmp_path / "m.zarr").set_params(warm_start=True).fit(blobs)
    np.testing.assert_allclose(warm.means_, model.set_params(warm_start=True).fit(blobs).means_, rtol=1e-12)


def test_feature_names_are_kept(blobs: Array, tmp_path: Path) -> None:
    names = ["temperature", "ψ", "a/b c"]
    ds = xr.Dataset({name: ("x", blobs[:, i]) for i, name in enumerate(names)})
    saved = GaussianMixture(3, random_state=0).fit(ds)
    saved.save(tmp_path / "m.zarr")
    loaded = load(tmp_path / "m.zarr")
    assert loaded.feature_names_in_.tolist() == names
    assert loaded.to_xarray()["feature"].values.tolist() == names
    xr.testing.assert_identical(loaded.predict(ds[names[::-1]]), saved.predict(ds))


@pytest.mark.parametrize("covariance_type", SHAPES)
def test_xarray_opens_a_model_with_its_labels_and_without_a_warning(
    covariance_type: str, blobs: Array, tmp_path: Path
) -> None:
    model = GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(blobs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(tmp_path / "m.zarr")
        with xr.open_zarr(tmp_path / "m.zarr") as opened:
            ds = opened.load()
        load(tmp_path / "m.zarr")
    xr.testing.assert_equal(ds, model.to_xarray())
    assert ds["weights"].dims == ("component",)
    assert ds["means"].dims == ("component", "feature")
    assert ds["covariances"].dims == SHAPES[covariance_type]
    assert set(ds.coords) >= {"component", "feature"}
    assert json.loads(ds.attrs["params"])["covariance_type"] == covariance_type
    assert json.loads(ds.attrs["fit"])["n_samples"] == 600


def test_reading_a_model_needs_neither_dask_array_nor_scikit_learn(model: GaussianMixture, tmp_path: Path) -> None:
    """It is a Zarr group: another program reads it too."""
    model.save(tmp_path / "m.zarr")
    program = (
        "import sys, zarr; g = zarr.open_group(sys.argv[1], mode='r'); print(g['means'][:].sum());"
        "assert 'sklearn' not in sys.modules and 'daskgmm' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "m.zarr"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(model.means_.sum())


def test_a_model_that_is_not_fitted_writes_nothing(tmp_path: Path) -> None:
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        GaussianMixture().save(tmp_path / "m.zarr")
    assert not list(tmp_path.iterdir())


# What is no model


def a_group(path: Path) -> None:
    zarr.create_group(str(path), attributes={"title": "mine"})


def an_array(path: Path) -> None:
    zarr.create_array(str(path), data=np.ones(3))


def another_kind(path: Path) -> None:
    write_group(str(path), xr.Dataset({"means": ("x", np.ones(3))}), {"kind": "samples", "schema": 1}, overwrite=False)


@pytest.mark.parametrize("make", [a_group, an_array, another_kind])
def test_what_is_no_model_is_not_loaded(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x.zarr")
    with pytest.raises(ValueError, match=r"x.zarr' is not a model that daskgmm wrote: give the path"):
        load(tmp_path / "x.zarr")


def test_nothing_there_and_a_model_of_the_future(model: GaussianMixture, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot open"):
        load(tmp_path / "x.zarr")
    write_group(str(tmp_path / "x.zarr"), model.to_xarray(), {"kind": "model", "schema": 99}, overwrite=False)
    with pytest.raises(
        ValueError, match="has model schema 99, but this version of daskgmm reads 1 and 2: use the version"
    ):
        load(tmp_path / "x.zarr")


# What is there already


@pytest.mark.parametrize("covariance_type", SHAPES)
def test_an_existing_model_is_replaced_only_on_demand(
    covariance_type: str, blobs: Array, model: GaussianMixture, tmp_path: Path
) -> None:
    path = tmp_path / "m.zarr"
    model.save(path)
    before = files(path)
    small = GaussianMixture(1, covariance_type=covariance_type).fit(blobs[:, :2])
    with pytest.raises(FileExistsError, match=r"m.zarr' exists: choose another path, or overwrite it"):
        small.save(path)
    assert files(path) == before
    small.save(path, overwrite=True)
    assert np.array_equal(load(path).covariances_, small.covariances_)
    small.save(tmp_path / "fresh.zarr")
    assert files(path) == files(tmp_path / "fresh.zarr")  # nothing is left of the other
    model.save(path, overwrite=True)
    assert np.array_equal(load(path).covariances_, model.covariances_)


FOREIGN = {
    "a directory of another program": {"notes.txt": b"mine", "sub/x.bin": b"1"},
    "a Zarr group of another program": {"zarr.json": b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'},
    "another program's daskgmm.json": {"daskgmm.json": b'{"kind": "model"}'},
    "daskgmm.json that is no JSON": {"daskgmm.json": b"{"},
    "daskgmm.json that is a list": {"daskgmm.json": b"[1]"},
    "odd metadata": {"zarr.json": b"[]"},
    "odd attributes": {"zarr.json": b'{"attributes": {"daskgmm": 3}}'},
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_daskgmm_did_not_write_is_never_touched(
    kind: str, overwrite: bool, model: GaussianMixture, tmp_path: Path
) -> None:
    path = tmp_path / "m.zarr"
    for name, data in FOREIGN[kind].items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    with pytest.raises(FileExistsError, match="exists and daskgmm did not write it: choose another path"):
        model.save(path, overwrite=overwrite)
    assert files(path) == FOREIGN[kind]


def test_a_file_in_place_of_the_group(model: GaussianMixture, tmp_path: Path) -> None:
    (tmp_path / "m.zarr").write_text("mine")
    with pytest.raises(FileExistsError, match="daskgmm did not write it"):
        model.save(tmp_path / "m.zarr", overwrite=True)
    assert (tmp_path / "m.zarr").read_text() == "mine"


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    "name", ["notes.txt", "means/notes.txt", "means/c/notes", "means/c/0/0.bak", "mine/c/0", "x.partial", ".hidden"]
)
def test_a_foreign_file_inside_a_group_is_never_deleted(
    name: str, complete: bool, blobs: Array, model: GaussianMixture, tmp_path: Path
) -> None:
    """At whatever depth: overwriting is refused; and finishing a group, or giving one up, leaves it where it is."""
    path = tmp_path / "m.zarr"
    model.save(path)
    if not complete:
        unfinish(path)
    foreign = path / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("mine")
    before = files(path)
    with pytest.raises(FileExistsError, match=rf"holds '{name}', which daskgmm did not write: move it away"):
        write_group(str(path), model.to_xarray(), {"kind": "model", "schema": 2}, overwrite=True)
    assert files(path) == before
    if not complete:
        model.save(path)
        assert foreign.read_text() == "mine"
        assert np.array_equal(load(path).means_, model.means_)
        unfinish(path)
        manifest = json.loads((path / "daskgmm.json").read_text())
        prepare(str(path), model.to_xarray(), {}, manifest, overwrite=False).discard()
        assert list(files(path)) == [name]


def unfinish(path: Path) -> None:
    """Put a model's group into the state before its metadata are written."""
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    (path / "daskgmm.json").write_text(attributes["daskgmm"])
    (path / "zarr.json").unlink()


# What was not finished


class _Killed(BaseException):
    pass


def test_a_group_opens_only_once_it_is_complete(
    model: GaussianMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any number of writes: it does not open, and the same call again completes it."""
    model.save(tmp_path / "whole.zarr")
    expected = files(tmp_path / "whole.zarr")
    for survived in range(len(expected)):
        path = tmp_path / f"{survived}.zarr"
        with monkeypatch.context() as patch:
            patch.setattr(daskgmm.storage.groups.Target, "write", killed_after(survived))
            with pytest.raises(_Killed):
                model.save(path)
        with pytest.raises(ValueError, match="cannot open"):
            load(path)
        with pytest.raises((OSError, ValueError, KeyError)):
            xr.open_zarr(path)
        model.save(path)
        assert files(path) == expected


def killed_after(survived: int) -> Callable[[Target, str, bytes], None]:
    write, done = Target.write, itertools.count()

    def limited(target: Target, key: str, data: bytes) -> None:
        if next(done) == survived:
            raise _Killed
        write(target, key, data)

    return limited


def test_nothing_old_shines_through_in_a_group_that_another_run_began(blobs: Array, tmp_path: Path) -> None:
    """A chunk of zeros alone is not written: one that an unfinished model left must not take its place."""
    path = tmp_path / "m.zarr"
    GaussianMixture(5, covariance_type="diag", random_state=0).fit(blobs).save(path)
    unfinish(path)
    small = GaussianMixture(1, covariance_type="spherical").fit(blobs)
    small.means_ = np.zeros((1, 3))
    small.save(path)
    for name in FITTED:
        assert np.array_equal(getattr(load(path), name), getattr(small, name)), name
    assert load(path).to_xarray()["component"].values.tolist() == [0]


def test_a_model_that_cannot_be_written_costs_nothing(
    model: GaussianMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one stays until the new one is ready to be written."""
    path = tmp_path / "m.zarr"
    model.save(path)
    before = files(path)
    bad = model.to_xarray().assign(odd=("x", np.array([object()], dtype=object)))
    with pytest.raises((TypeError, ValueError)):
        write_group(str(path), bad, {"kind": "model", "schema": 1}, overwrite=True)
    assert files(path) == before


def test_a_moved_model_is_a_model(model: GaussianMixture, tmp_path: Path) -> None:
    model.save(tmp_path / "a.zarr")
    shutil.move(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert np.array_equal(load(tmp_path / "b.zarr").means_, model.means_)


def test_a_model_that_is_all_but_singular_is_read_again(tmp_path: Path) -> None:
    """One feature is another, but for 1e-3 to 1e-10 of it, and units are as different."""
    rng = np.random.default_rng(0)
    for i in range(8):
        d = int(rng.integers(2, 7))
        rows = rng.normal(size=(60, d)) * 10.0 ** rng.integers(-6, 7, size=d)
        rows[:, 1] = rows[:, 0] * (1 + 10.0 ** -rng.integers(3, 11) * rng.normal(size=60))
        for name in ("full", "tied", "VEE"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = GaussianMixture(2, covariance_type=name, random_state=0, reg_covar=0, max_iter=20).fit(rows)
            model.save(tmp_path / f"{i}{name}")
            load(tmp_path / f"{i}{name}")
