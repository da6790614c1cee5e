"""What a store says is not believed beyond numbers; no secret is shown; no path leads out of its directory."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from zarr.abc.store import Store
from zarr.storage import LocalStore, WrapperStore

import daskgmm.data.retry
from daskgmm import GaussianMixture, load, open_samples
from daskgmm.cli import main
from daskgmm.data.open import open_store
from daskgmm.fitting.checkpoint import Checkpoint
from daskgmm.prediction.predict import LABELS
from daskgmm.prediction.write import write_predictions
from daskgmm.storage import models
from daskgmm.storage.groups import Target, write_group
from daskgmm.urls import Hidden, presentable

Array = npt.NDArray[np.float64]

pytestmark = pytest.mark.filterwarnings("ignore:.*not recognized as a component of a Zarr hierarchy")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daskgmm.data.retry, "_PAUSES", (0.0,))


@pytest.fixture(scope="module")
def model(blobs: Array) -> GaussianMixture:
    return GaussianMixture(2, random_state=0, max_iter=5, tol=1e-2).fit(blobs)


# Codecs and dtypes


class Loaded:
    """What pickles as code."""

    done = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Loaded, "done", True)


def changed(document: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    meta = json.loads(document.read_text())
    change(meta)
    document.write_text(json.dumps(meta))


def v2(path: Path) -> Path:
    zarr.create_array(path, data=np.ones((6, 2)), chunks=(3, 2), zarr_format=2, compressors=None)
    for chunk in path.glob("?.?"):
        chunk.write_bytes(pickle.dumps(Loaded()))
    return path / ".zarray"


def v3(path: Path) -> Path:
    zarr.create_array(path, data=np.ones((6, 2)), chunks=(3, 2), compressors=None)
    return path / "zarr.json"


def sharded(path: Path) -> Path:
    zarr.create_array(path, data=np.ones((6, 2)), chunks=(3, 2), shards=(6, 2), compressors=None)
    return path / "zarr.json"


HOSTILE: dict[str, tuple[Callable[[Path], Path], Callable[[dict[str, Any]], Any]]] = {
    "compressor": (v2, lambda m: m.update(compressor={"id": "pickle"})),
    "filter": (v2, lambda m: m.update(filters=[{"id": "pickle"}], dtype="|O")),
    "filter behind others": (v2, lambda m: m.update(filters=[{"id": "delta", "dtype": "<f8"}, {"id": "pickle"}])),
    "two names": (v2, lambda m: m.update(filters=[{"id": "pickle", "name": "zlib"}], codecs=[])),
    "objects": (v2, lambda m: m.update(dtype="|O", filters=[{"id": "json2"}])),
    "records": (v2, lambda m: m.update(dtype=[["a", "<f8"]])),
    "codec": (v3, lambda m: m["codecs"].append({"name": "numcodecs.pickle", "configuration": {"id": "pickle"}})),
    "codec by name": (v3, lambda m: m["codecs"].append("pickle")),
    "unknown codec": (v3, lambda m: m["codecs"].append({"name": "os.system"})),
    "transformer": (v3, lambda m: m.update(storage_transformers=[{"name": "x"}])),
    "structured": (v3, lambda m: m.update(data_type={"name": "structured", "configuration": {"fields": []}})),
    "inside a shard": (sharded, lambda m: m["codecs"][0]["configuration"]["codecs"].append({"name": "pickle"})),
    "of its index": (sharded, lambda m: m["codecs"][0]["configuration"]["index_codecs"].append({"name": "pickle"})),
}
REFUSED = r"(names the codec '[\w.]+', which is not known|has values of dtype .* which are not numbers)"


@pytest.mark.parametrize("member", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_store_that_would_run_something_is_refused_before_it_is_read(kind: str, member: bool, tmp_path: Path) -> None:
    make, change = HOSTILE[kind]
    path = tmp_path / "x.zarr"
    if member:
        zarr.create_group(path, zarr_format=2 if make is v2 else 3)
    changed(make(path / "a" if member else path), change)
    with pytest.raises(ValueError, match=REFUSED):
        open_samples(path)
    with pytest.raises(ValueError, match=REFUSED):
        GaussianMixture(2).fit(path)
    assert not Loaded.done


def test_an_array_that_somebody_opened_is_checked_too(tmp_path: Path) -> None:
    changed(v2(tmp_path / "x.zarr"), lambda m: m.update(filters=[{"id": "base64"}]))
    with pytest.raises(ValueError, match=REFUSED):
        open_samples(zarr.open_array(tmp_path / "x.zarr", mode="r"))


@pytest.mark.parametrize("dims", [None, ("x", "y")])
def test_consolidated_metadata_are_no_way_around(dims: tuple[str, ...] | None, tmp_path: Path) -> None:
    """Neither what stands there nor, where xarray reads it, what they hide."""
    group = zarr.create_group(tmp_path / "x.zarr")
    group.create_array("a", data=np.ones((6, 2)), chunks=(3, 2), dimension_names=dims)
    zarr.consolidate_metadata(group.store)
    bad = {"name": "pickle"}
    document = tmp_path / "x.zarr/a/zarr.json"
    changed(document, lambda m: m["codecs"].append(bad))
    if dims is None:  # as these are never read
        samples = open_samples(tmp_path / "x.zarr")
        assert (samples.source.read(samples.blocks[0].regions[0])[0] == 1).all()
    else:
        with pytest.raises(ValueError, match=REFUSED):
            open_samples(tmp_path / "x.zarr")
    changed(document, lambda m: m["codecs"].pop())
    consolidated = tmp_path / "x.zarr/zarr.json"
    changed(consolidated, lambda m: m["consolidated_metadata"]["metadata"]["a"]["codecs"].append(bad))
    with pytest.raises(ValueError, match=REFUSED):
        open_samples(tmp_path / "x.zarr")


def test_attributes_may_say_what_they_like(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"codecs": [{"name": "pickle"}], "dtype": "|O"})
    group.create_array("a", data=np.ones((6, 2)), chunks=(3, 2), attributes={"filters": [{"id": "pickle"}]})
    assert open_samples(tmp_path / "x.zarr").n == 6


@pytest.mark.filterwarnings("ignore")
def test_names_and_times_beside_the_numbers_are_no_harm(tmp_path: Path) -> None:
    coords = {"station": np.array(["a", "bc"], dtype=object), "time": np.array(["2020-01-01", "2020-01-02"], "M8[ns]")}
    dims = ("station", "time")
    ds = xr.Dataset({"t": (dims, np.arange(4.0).reshape(2, 2)), "s": (dims, np.ones((2, 2)))}, coords=coords)
    for version in (2, 3):
        ds.to_zarr(tmp_path / f"{version}.zarr", zarr_format=version)
        samples = open_samples(tmp_path / f"{version}.zarr")
        assert samples.names == ("s", "t")
        assert samples.coords is not None
        assert samples.coords["station"].values.tolist() == ["a", "bc"]


# Models


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_model_of_the_first_schema_is_still_read(model: GaussianMixture, tmp_path: Path) -> None:
    """It has no checksum; one of the second that lost its own is refused."""
    write_group(str(tmp_path / "1.zarr"), model.to_xarray(), {"kind": "model", "schema": 1}, overwrite=False)
    assert np.array_equal(load(tmp_path / "1.zarr").means_, model.means_)
    write_group(str(tmp_path / "2.zarr"), model.to_xarray(), {"kind": "model", "schema": 2}, overwrite=False)
    with pytest.raises(ValueError, match=r"2\.zarr' does not hold a valid model \(there is no 'sha256'\)"):
        load(tmp_path / "2.zarr")


def test_a_model_that_another_program_rewrote_is_the_same(model: GaussianMixture, tmp_path: Path) -> None:
    """The checksum is of what it says, not of how it is stored."""
    model.save(tmp_path / "m.zarr")
    ds = xr.open_zarr(tmp_path / "m.zarr").load()
    for variable in ds.variables.values():
        variable.encoding = {}
    ds.chunk(component=1).to_zarr(tmp_path / "n.zarr", consolidated=False)
    assert files(tmp_path / "m.zarr").keys() != files(tmp_path / "n.zarr").keys()
    assert np.array_equal(load(tmp_path / "n.zarr").means_, model.means_)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ds: ds.assign(weights=ds.weights * 2), "weights, which add up to 2"),
        (lambda ds: ds.assign(weights=-ds.weights), "weights, which add up to -1"),
        (lambda ds: ds.assign(means=ds.means * np.nan), "means are not all finite"),
        (lambda ds: ds.assign(means=ds.means.astype("i8")), "means are not all finite numbers"),
        (lambda ds: ds.assign(covariances=-ds.covariances), "covariances are not positive definite"),
        (
            lambda ds: ds.assign(precisions_cholesky=ds.precisions_cholesky * 1.001),
            "precisions_cholesky is not",
        ),
        (lambda ds: ds.assign(means=ds.means.T), r"means has dimensions \('feature', 'component'\)"),
        (lambda ds: ds.drop_vars("covariances"), "there is no 'covariances'"),
        (lambda ds: ds.assign_attrs(params='{"tol": "x"}'), "'tol' parameter of GaussianMixture must be a float"),
        (lambda ds: ds.assign_attrs(params='{"callbacks": []}'), "'callbacks' is not a parameter that is kept"),
        (lambda ds: ds.assign_attrs(params='{"tol": NaN}'), "NaN is not a finite number"),
        (lambda ds: ds.assign_attrs(fit='{"converged": 1}'), "is too much or missing"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(
    change: Callable[[xr.Dataset], xr.Dataset], words: str, model: GaussianMixture, tmp_path: Path
) -> None:
    models.write(change(model.to_xarray()), tmp_path / "m.zarr", overwrite=False)
    with pytest.raises(ValueError, match=rf"m\.zarr' does not hold a valid model \(.*{words}.*\): take a copy"):
        load(tmp_path / "m.zarr")


def test_a_model_does_not_take_more_memory_than_its_files_can_fill(model: GaussianMixture, tmp_path: Path) -> None:
    """Sizes that are declared, and one that a compressed chunk says it has."""
    import tracemalloc

    def larger(meta: dict[str, Any]) -> None:
        meta["shape"][0] = meta["chunk_grid"]["configuration"]["chunk_shape"][0] = 2**31

    model.save(tmp_path / "a.zarr")
    changed(tmp_path / "a.zarr/means/zarr.json", larger)
    model.save(tmp_path / "b.zarr")
    chunk = tmp_path / "b.zarr/means/c/0/0"
    chunk.write_bytes(b"\x28\xb5\x2f\xfd\xe0" + (2**33).to_bytes(8, "little") + b"\x01\x00\x00")
    tracemalloc.start()
    for name, words in (("a", r"arrays of \d+ bytes cannot be in the \d+"), ("b", "has 8589934592 bytes, not 48")):
        with pytest.raises(ValueError, match=words):
            load(tmp_path / f"{name}.zarr")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_store_that_does_not_answer_is_not_a_model_that_is_wrong(model: GaussianMixture, tmp_path: Path) -> None:
    class Silent(WrapperStore[Store]):
        def __init__(self, store: Store, most: int = 0) -> None:
            super().__init__(store)
            self.left = most

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            self.left -= 1
            if self.left < 0:
                raise ConnectionResetError("the other side has gone")
            return await self._store.get(key, prototype, byte_range)

    model.save(tmp_path / "m.zarr")
    store = LocalStore(tmp_path / "m.zarr", read_only=True)
    for answers in (0, 1, 10, 30):
        with pytest.raises(OSError, match=r"^cannot read '.*' of .*m\.zarr \(the other side has gone\): try it again"):
            load(Silent(store, answers))
    assert np.array_equal(load(Silent(store, 1000)).means_, model.means_)


# Paths


@pytest.mark.parametrize("name", ["../y.zarr", "/etc", "a/../../y.zarr", ".."])
def test_no_name_leads_out_of_a_group(name: str, model: GaussianMixture, blobs: Array, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "y.zarr", data=blobs)
    group = zarr.create_group(tmp_path / "x.zarr")
    group.create_array("a", data=blobs)
    for options in ({"array": name}, {"variables": [name]}, {"sample_weight": name}):
        with pytest.raises(ValueError, match="there are a"):
            open_samples(tmp_path / "x.zarr", **options)
    model.save(tmp_path / "m.zarr")
    document = tmp_path / "m.zarr/zarr.json"
    meta = json.loads(document.read_text())
    manifest = json.loads(meta["attributes"]["daskgmm"])
    manifest["arrays"].append(name)
    meta["attributes"]["daskgmm"] = json.dumps(manifest)
    document.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="is not the name of an array in the group"):
        load(tmp_path / "m.zarr")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="daskgmm did not write it"):  # by these names it would delete
        model.save(tmp_path / "m.zarr", overwrite=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("inside", ["means", "means/c", "means/c/0", "means/c/0/0", "zarr.json.00.partial"])
def test_no_link_is_followed_out_of_a_group_and_none_is_deleted(
    inside: str, complete: bool, model: GaussianMixture, tmp_path: Path
) -> None:
    path, elsewhere = tmp_path / "m.zarr", tmp_path / "elsewhere"
    model.save(path)
    if (path / inside).exists():
        (path / inside).rename(elsewhere)
    else:
        elsewhere.write_bytes(b"mine")
    (path / inside).symlink_to(elsewhere)
    if not complete:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        (path / "daskgmm.json").write_text(attributes["daskgmm"])
        (path / "zarr.json").unlink()
    before = files(tmp_path)
    other = GaussianMixture(3, covariance_type="diag", random_state=0).fit(
        model.means_.repeat(9, axis=0) + np.eye(18, 3)
    )
    with pytest.raises(FileExistsError, match=rf"holds '{inside}/', which daskgmm did not write: move it away"):
        other.save(path, overwrite=True)
    assert files(tmp_path) == before
    assert (path / inside).is_symlink()


def test_a_directory_that_is_itself_a_link_is_where_its_user_wants_it(model: GaussianMixture, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "m.zarr").symlink_to(tmp_path / "disk")
    model.save(tmp_path / "m.zarr")
    model.save(tmp_path / "m.zarr", overwrite=True)
    assert np.array_equal(load(tmp_path / "disk").means_, model.means_)


# Secrets

SECRET = "hunter2"
URL = f"memory://user:{SECRET}@bucket"
QUERIED = f"s3://key:{SECRET}@bucket/x.zarr?token={SECRET}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{URL}/x.zarr", "memory://***@bucket/x.zarr"),
        (QUERIED, "s3://***@bucket/x.zarr?***"),
        (f"s3://key:{SECRET}/+{SECRET}@bucket/x", "s3://***@bucket/x"),
        (
            f"<FsspecStore(MemoryFileSystem, /user:{SECRET}@bucket/x.zarr)>",
            "<FsspecStore(MemoryFileSystem, /***@bucket/x.zarr)>",
        ),
        (f"key:{SECRET}@bucket/x.zarr?token={SECRET}", "***@bucket/x.zarr?***"),
        (f"https://h/x?sig={SECRET}&a=b' is not there", "https://h/x?***' is not there"),
        (f"S3FileSystem(key='k', secret='{SECRET}')", "S3FileSystem(key='k', secret=***)"),
        ("{'key': 'hunter2', 'aws_secret_access_key': \"hunter2\"}", "{'key': ***, 'aws_secret_access_key': ***}"),
        *(
            (text, text)
            for text in ("/data/x.zarr", "s3://bucket/a@2/x.zarr", "http://127.0.0.1:8787/status", "C:/a/b")
        ),
        *((text, text) for text in ("tcp://10.0.0.1:8786", "row 3, feature 1", "file:///home/me/x@y.zarr")),
    ],
)
def test_urls_are_shown_without_their_secrets(text: str, shown: str) -> None:
    assert presentable(text) == shown
    assert SECRET not in repr(Hidden(text))


def test_no_error_shows_a_secret(
    model: GaussianMixture, blobs: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that names a path; with its cause, as a log shows it."""
    import traceback

    from fsspec.implementations.memory import MemoryFileSystem

    def full(*_: Any, **__: Any) -> None:
        raise OSError(f"no room in /user:{SECRET}@bucket")

    array = zarr.create_array(f"{URL}/x.zarr", data=blobs, chunks=(100, 3))
    zarr.create_group(f"{URL}/g.zarr").create_array("a", data=blobs)
    zarr.open_group(f"{URL}/g.zarr").create_array("b", data=blobs)
    lost = zarr.create_array(f"{URL}/lost.zarr", data=blobs, chunks=(100, 3))
    model.save(f"{URL}/m.zarr")
    bad = model.to_xarray()
    write_group(f"{URL}/bad.zarr", bad, {"kind": "model", "schema": 2}, overwrite=False)
    write_group(f"{URL}/new.zarr", bad, {"kind": "model", "schema": 9}, overwrite=False)
    write_group(f"{URL}/what.zarr", bad.assign_attrs(family="X"), {"kind": "model", "schema": 1}, overwrite=False)
    zarr.create_group(f"{URL}/foreign")
    samples = open_samples(f"{URL}/lost.zarr")
    MemoryFileSystem().rm_file(f"/user:{SECRET}@bucket/lost.zarr/{lost.metadata.encode_chunk_key((2, 0))}")

    def unwritable() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "pipe_file", full)
            model.save(f"{URL}/full.zarr")

    def predicted(target: str) -> None:
        write_predictions(open_samples(f"{URL}/x.zarr"), model._components(), (LABELS,), target, origin=QUERIED)

    def unwritable_block() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("daskgmm.prediction.write._put", full)
            predicted(f"{URL}/torn.zarr")

    actions: list[Callable[[], Any]] = [
        lambda: open_store(f"{URL}/nothing.zarr"),
        lambda: open_store(QUERIED),
        lambda: load(f"{URL}/nothing.zarr"),
        lambda: load(f"{URL}/x.zarr"),
        lambda: load(f"{URL}/bad.zarr"),
        lambda: load(f"{URL}/new.zarr"),
        lambda: load(f"{URL}/what.zarr"),
        lambda: load(QUERIED),
        lambda: open_samples(f"{URL}/g.zarr"),
        lambda: open_samples(f"{URL}/g.zarr", array="c"),
        lambda: open_samples(f"{URL}/lost.zarr"),
        lambda: [samples.source.read(region) for block in samples.blocks for region in block.regions],
        lambda: model.save(f"{URL}/m.zarr"),
        lambda: model.save(f"{URL}/foreign", overwrite=True),
        unwritable,
        unwritable_block,
    ]
    for action in actions:
        with pytest.raises((ValueError, OSError)) as caught:
            action()
        assert SECRET not in "".join(traceback.format_exception(caught.value)), action
        assert "***" in str(caught.value) or "there are" in str(caught.value) or "is missing" in str(caught.value)
    predicted(f"{URL}/out.zarr")
    written = {key: data.getvalue() for key, data in MemoryFileSystem.store.items() if "out.zarr/" in key}
    assert len(written) == 3
    assert not [key for key, data in written.items() if SECRET.encode() in data]
    assert SECRET not in repr(open_samples(f"{URL}/x.zarr"))
    assert SECRET not in repr(Target.at(f"{URL}/x.zarr"))
    assert array.shape == blobs.shape


def test_a_checkpoint_shows_no_secret(
    blobs: Array, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its errors with their causes, nor its warnings, nor a mixture that has one."""
    import traceback

    from fsspec.implementations.memory import MemoryFileSystem

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(f"no access to /user:{SECRET}@bucket")

    def fit(path: str, n_components: int = 2) -> GaussianMixture:
        return GaussianMixture(n_components, random_state=0, checkpoint=path).fit(blobs)

    def without(name: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, name, refused)
            fit(f"{URL}/kept")

    def taken() -> None:
        once = Checkpoint.once

        def late(self: Checkpoint, *args: Any) -> Any:
            MemoryFileSystem().pipe_file(f"/user:{SECRET}@bucket/taken/owner", b"another")
            return once(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "once", late)
            fit(f"{URL}/taken")

    monkeypatch.setattr("daskgmm.data.retry.time.sleep", lambda _: None)
    monkeypatch.setattr("daskgmm.fitting.checkpoint._INTERVAL", 0)
    mixture = fit(f"{URL}/kept")
    shown = [repr(mixture), mixture._repr_html_()]
    assert "***@bucket/kept" in shown[0]
    assert mixture.get_params()["checkpoint"] == f"{URL}/kept"
    MemoryFileSystem().pipe_file(f"/user:{SECRET}@bucket/foreign/x", b"")
    zarr.create_group(f"{URL}/group.zarr")
    for action in (
        lambda: fit(f"{URL}/kept", 3),
        lambda: fit(f"{URL}/foreign"),
        lambda: fit(f"{URL}/group.zarr"),
        lambda: without("find"),
        lambda: without("exists"),
        lambda: without("cat_file"),
        taken,
        lambda: without("pipe_file"),
    ):
        with pytest.raises((ValueError, OSError, RuntimeError), match=r"\*\*\*@bucket") as caught:
            action()
        shown += traceback.format_exception(caught.value)
    newest = max(key for key in MemoryFileSystem.store if "/kept/em-" in key)
    MemoryFileSystem().pipe_file(newest, b"torn")
    with pytest.warns(UserWarning, match="is damaged") as warned:
        fit(f"{URL}/kept")
    shown += [str(warning.message) for warning in warned]
    assert not [text for text in shown if SECRET in text]
    assert SECRET not in caplog.text


def test_neither_the_command_line_nor_the_log_of_a_worker_shows_a_secret(
    model: GaussianMixture, blobs: Array, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client, LocalCluster

    def full(*_: Any) -> None:
        raise OSError(f"no room in /user:{SECRET}@bucket")

    zarr.create_array(f"{URL}/y.zarr", data=blobs, chunks=(100, 3), overwrite=True)
    lost = open_samples(f"{URL}/y.zarr")
    model.save(f"{URL}/n.zarr", overwrite=True)
    for command in (
        ["fit", f"{URL}/z.zarr", "--components", "2", "--output", f"{URL}/o.zarr"],
        ["fit", QUERIED, "--components", "2", "--output", f"{URL}/o.zarr"],
        ["show", f"{URL}/z.zarr"],
        ["predict", f"{URL}/n.zarr", f"{URL}/z.zarr", "--output", f"{URL}/o.zarr"],
        ["predict", f"{URL}/n.zarr", f"{URL}/y.zarr", "--output", f"{URL}/n.zarr", "--workers", "0"],
        ["predict", f"{URL}/n.zarr", f"{URL}/y.zarr", "--output", f"{URL}/labels.zarr", "--workers", "0"],
        ["sample", f"{URL}/n.zarr", "--rows", "10", "--output", f"{URL}/s.zarr", "--workers", "0"],
    ):
        result = CliRunner().invoke(main, command)
        assert SECRET not in result.output, command
        assert result.stderr.count("Error: ") == (result.exit_code != 0)
    monkeypatch.setattr("daskgmm.prediction.write._put", full)
    with (
        caplog.at_level(logging.INFO),
        LocalCluster(1, processes=False, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(OSError, match="cannot write"):
            write_predictions(lost, model._components(), (LABELS,), f"{URL}/torn2.zarr", origin=URL)
        keys = client.run_on_scheduler(lambda dask_scheduler: [str(key) for key in dask_scheduler.tasks])
        assert SECRET not in str(keys)
    assert "Compute Failed" in caplog.text
    assert SECRET not in caplog.text
