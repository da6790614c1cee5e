"""A model's file, whatever has become of it: an error of ours in a sentence, or a valid model. Nothing is run."""

from __future__ import annotations

import json
import pickle
import resource
import sys
import tracemalloc
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from length import at_length
from numcodecs.pickles import Pickle
from numcodecs.zstd import Zstd
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

import daskgmm
from daskgmm import load
from daskgmm.storage.models import _digest
from daskgmm.storage.safe_read import read_arrays

Files = dict[str, bytes]

MIXTURES: dict[str, dict[str, Any]] = {
    "GaussianMixture": {},
    "GaussianMixture tied": {"covariance_type": "tied"},
    "GaussianMixture diag": {"covariance_type": "diag", "prior": "default"},
    "GaussianMixture VEE": {"covariance_type": "VEE", "prior": daskgmm.Prior(scale=[1.0, 2.0, 3.0])},
    "BayesianGaussianMixture": {"mean_prior": [0.0, 0.0, 0.0]},
    "BayesianGaussianMixture spherical": {
        "covariance_type": "spherical",
        "weight_concentration_prior_type": "dirichlet_distribution",
    },
    "BernoulliMixture": {},
    "CategoricalMixture": {},
    "PoissonMixture": {"alpha": 0.5},
}
CORES = ("weights_", "means_", "n_features_in_", "lower_bound_", "n_samples_")


@pytest.fixture(scope="module")
def models(blobs: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """Each family's files."""
    found = {}
    for name, options in MIXTURES.items():
        rows = blobs if "Gaussian" in name else (blobs > 1) if "Ber" in name else np.abs(blobs).round() % 3
        mixture = getattr(daskgmm, name.partition(" ")[0])(2, random_state=0, max_iter=5, tol=1e-2, **options)
        path = tmp_path_factory.mktemp("model") / "m.zarr"
        mixture.fit(np.asarray(rows, dtype=float)).save(path)
        found[name] = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return found


def store_of(files: Files) -> MemoryStore:
    buffer = default_buffer_prototype().buffer
    return MemoryStore({key: buffer.from_bytes(data) for key, data in files.items()})


# What may become of a file

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**40, 2**63, -(2**70), 0.5, 1e-320, 1e300, float("nan"), float("inf")),
    *("", "x", "NaN", "../x", "/etc", "numcodecs.pickle", "pickle", "object", "|O", "float16", "complex128", "string"),
    *([], {}, [1], [[]], ["a"], {"name": "x"}, {"id": "pickle"}, [2**40, 2**40], [{"name": "numcodecs.pickle"}]),
]


def mutated(files: Files, rng: np.random.Generator) -> Files:
    """One to three changes, of bytes, of JSON and of numbers."""
    files = dict(files)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        key = str(rng.choice(sorted(files)))
        if rng.random() < 0.2 and "zarr.json" in files:
            key = "zarr.json"
        document, kind = key.endswith(".json"), rng.random()
        if kind < 0.3:
            files[key] = bytes_changed(files[key], rng)
        elif kind < 0.35:
            del files[key]
        elif kind < 0.4:
            other = str(rng.choice(sorted(files)))
            files[key], files[other] = files[other], files[key]
        elif document:
            files[key] = json_changed(files[key], rng)
        else:
            files[key] = numbers_changed(files[key], rng)
    return files


def bytes_changed(data: bytes, rng: np.random.Generator) -> bytes:
    found, at = bytearray(data), int(rng.integers(len(data) + 1)) if data else 0
    match rng.integers(6):
        case 0:
            for _ in range(rng.integers(1, 9)):
                if found:
                    found[int(rng.integers(len(found)))] ^= 1 << int(rng.integers(8))
        case 1:
            del found[at:]
        case 2:
            del found[:at]
        case 3:
            found[at:at] = rng.bytes(int(rng.integers(1, 40)))
        case 4:
            found = found * 2
        case _:
            other = int(rng.integers(len(data) + 1)) if data else 0
            a, b = sorted((at, other))
            found = found[:a] + found[b:] + found[a:b]
    return bytes(found)


def json_changed(data: bytes, rng: np.random.Generator) -> bytes:
    try:
        tree = json.loads(data)
    except ValueError:
        return data
    return json.dumps(tree_changed(tree, rng)).encode()


def tree_changed(tree: Any, rng: np.random.Generator) -> Any:
    """Something in it is another value, is not there, or has another name; strings may hold JSON in turn."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        name = str(rng.choice(sorted(tree)))
        kind = rng.random()
        if kind < 0.1:
            return {key: value for key, value in tree.items() if key != name}
        if kind < 0.2:
            return {**{key: value for key, value in tree.items() if key != name}, f"{name}x": tree[name]}
        return {**tree, name: tree_changed(tree[name], rng)}
    if isinstance(tree, list) and tree and rng.random() < 0.8:
        at, kind = int(rng.integers(len(tree))), rng.random()
        if kind < 0.2:
            return tree[:at] + tree[at + 1 :]
        if kind < 0.4:
            return [*tree, tree[at]]
        return [*tree[:at], tree_changed(tree[at], rng), *tree[at + 1 :]]
    if isinstance(tree, str) and tree.startswith("{") and rng.random() < 0.9:
        return json_changed(tree.encode(), rng).decode()
    if isinstance(tree, int | float) and not isinstance(tree, bool) and rng.random() < 0.5:
        return tree * float(rng.choice([-1, 2, 1.01, 1e18])) if rng.random() < 0.5 else tree + int(rng.integers(-2, 3))
    return ODD[int(rng.integers(len(ODD)))]


def numbers_changed(data: bytes, rng: np.random.Generator) -> bytes:
    """What a chunk holds is other numbers, as many or others."""
    try:
        values = np.frombuffer(Zstd().decode(data), "f8").copy()
    except (RuntimeError, ValueError):
        return bytes_changed(data, rng)
    if len(values):
        at = int(rng.integers(len(values)))
        values[at] = rng.choice([np.nan, np.inf, -np.inf, 0, -1, 1e300, 1e-300, values[at] * -1, values[at] * 1.1, 0.5])
    if rng.random() < 0.2:
        values = np.resize(values, int(rng.integers(0, 2 * len(values) + 2)))
    return bytes(Zstd().encode(values))


def resealed(files: Files) -> Files:
    """With the checksum of what there is, if there is anything that has one."""
    try:
        document = json.loads(files["zarr.json"])
        attributes = dict(document["attributes"])
        manifest = json.loads(attributes.pop("daskgmm"))
        found = read_arrays(store_of(files), manifest["arrays"])
        manifest["sha256"] = _digest(attributes, found)
        document["attributes"]["daskgmm"] = json.dumps(manifest)
        return {**files, "zarr.json": json.dumps(document).encode()}
    except Exception:
        return files


# What must come of it


class Watch:
    """Sees what is run while it looks."""

    def __init__(self) -> None:
        self.looking, self.seen = False, set[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.looking and event in ("exec", "os.system", "subprocess.Popen", "pickle.find_class", "import", "open"):
            self.seen.add(f"{event} {args[:1]}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whoever unpickles is remembered."""
    found: list[str] = []

    def remembered(name: str, *_: Any, **__: Any) -> None:
        found.append(name)
        raise AssertionError(name)

    monkeypatch.setattr(pickle, "loads", partial(remembered, "loads"))
    monkeypatch.setattr(Pickle, "decode", partial(remembered, "decode"))
    return found


def outcome(files: Files) -> str:
    """ "" for a valid model, or what is said of another."""
    try:
        model = load(store_of(files))
    except ValueError as error:
        refusal = error
    else:
        check(model)
        return ""
    text = str(refusal)
    assert type(refusal) is ValueError
    assert "\n" not in text
    assert any(words in text for words in OURS), text
    return text


OURS = ("does not hold a valid model", "is not a model", "cannot open", "model schema", "which is not known here")


def check(model: Any) -> None:
    """Is it one that may be used?"""
    k, d = len(model.weights_), model.n_features_in_
    assert model.weights_.min() >= 0
    assert abs(model.weights_.sum() - 1) < 1e-5
    assert len(model.means_) == k
    assert np.isfinite(model.means_).all()
    if hasattr(model, "covariances_"):
        assert model.means_.shape == (k, d)
        whole = model._parameters().covariances
        assert ((np.linalg.eigvalsh(whole) if whole.ndim == 3 else whole) > 0).all()
        assert np.isfinite(model.precisions_).all()
    repr(model)


def fuzz(models: dict[str, Files], n: int, seed: int, watch: Watch, traced: int) -> tuple[int, int, int]:
    """How many of n were valid; the most memory that one in `traced` took; how much more the process has."""
    for files in models.values():
        assert outcome(files) == ""
        outcome({**files, "zarr.json": b"{"})
        outcome(mutated(files, np.random.default_rng(0)))
    names, valid, most = sorted(models), 0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        files = mutated(models[names[i % len(names)]], rng)
        if i % 2:
            files = resealed(files)
        if i % traced == 0:
            tracemalloc.start()
        watch.looking = True
        try:
            valid += outcome(files) == ""
        except BaseException as error:
            error.add_note(f"mutation {i} of {seed}")
            raise
        finally:
            watch.looking = False
        if i % traced == 0:
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    return valid, most, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_a_model_that_was_tampered_with_is_refused_or_valid(
    models: dict[str, Files], watch: Watch, unpickled: list[str]
) -> None:
    valid, most, _ = fuzz(models, 300, 1, watch, traced=3)
    assert 10 < valid < 200  # both are tested
    assert most < 2**24
    assert not watch.seen
    assert not unpickled


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_hundred_thousand_of_them(seed: int, models: dict[str, Files], watch: Watch, unpickled: list[str]) -> None:
    _, most, more = fuzz(models, at_length(10_000), seed, watch, traced=50)
    assert most < 2**24
    assert more < 2**28
    assert not watch.seen
    assert not unpickled
