"""The main job on real data, from pixels to pictures: what `daskgmm demo` runs."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskgmm.demo.photographs import CHANNELS, SIDE, Photographs, build_patches, build_pixels, stored_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from daskgmm.estimators.gaussian import GaussianMixture

# What rounding to whole grey levels adds to any variance: no covariance is worth less.
_ROUNDING = 1 / 12
_OF_PIXELS = {"n_components": 10, "max_iter": 200}
_OF_PATCHES = {"n_components": 16, "tol": 0.1, "subsample": 50_000}  # 0.0016 nats a pixel
_SOFTWARE = "daskgmm demo"  # in the metadata of its pictures
_SEGMENTATION, _CONVERGENCE, _EIGENVECTORS = "segmentation.png", "convergence.png", "eigenvectors.png"


def run(
    output: str,
    echo: Callable[[str], None],
    *,
    workers: int = 2,
    memory_limit: str = "384MiB",
    photographs: Photographs | None = None,
) -> None:
    """Build the stores, fit, label and draw; say what was done, in figures.

    Stores that an earlier run completed are used again; models, labels and pictures are made anew.

    Parameters
    ----------
    output : str
        Local directory, made if it is not there.
    echo : callable
        Told what was done, a few lines at a time.
    workers : int
        Local worker processes, of one thread each; 0: threads of this process.
    memory_limit : str
        Of each worker.
    photographs : Photographs, optional
        Default: those that scikit-learn brings along.

    Raises
    ------
    ImportError
        matplotlib or Pillow is missing, to draw and to read photographs.
    OSError
        The directory cannot be written to, or holds something of that name which daskgmm did not write.
    """
    from daskgmm.passes import cluster

    begin = time.perf_counter()
    check(output)
    root = Path(output)
    photographs = photographs or Photographs.bundled()
    echo(f"{len(photographs.names)} photographs: {', '.join(photographs.names)}")
    _build(root / "pixels.zarr", build_pixels, photographs, f"{photographs.n_pixels:,} pixels, red, green, blue", echo)
    what = f"{photographs.n_patches:,} patches of {SIDE} × {SIDE}, each colour by itself"
    _build(root / "patches.zarr", build_patches, photographs, what, echo)
    with cluster.workers(None, workers, memory_limit) as client:
        before = _processes(client)
        colours = _fit(root, "pixel", "pixels.zarr", CHANNELS, _OF_PIXELS, echo)
        patches = _fit(root, "patch", "patches.zarr", None, _OF_PATCHES, echo)
        memory = _memory(client, before)
    _draw(root, photographs, colours, patches)
    echo(f"\n{memory}\nAll of it: {time.perf_counter() - begin:.0f} s\n")
    echo(_NEXT.format(root=shlex.quote(output), stem=output, image=photographs.names[0]))


def check(output: str) -> None:
    """Refuse, before any work, what could not be finished.

    Raises
    ------
    ImportError
        matplotlib or Pillow is missing.
    OSError
        The directory cannot be written to, or holds something of that name which daskgmm did not write.
    """
    from daskgmm.storage.groups import check_free

    for module, name in (("matplotlib", "matplotlib"), ("PIL", "Pillow")):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"the demo needs {name}, to read photographs and draw: pip install 'daskgmm[plot]'")
    try:
        os.makedirs(output, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise OSError(f"cannot write to {output!r} ({error.strerror}): choose another directory") from error
    for name in ("pixels", "pixel-model", "pixel-labels", "patch-model", "patch-labels"):
        check_free(os.path.join(output, f"{name}.zarr"), overwrite=True)
    for name in (_SEGMENTATION, _CONVERGENCE, _EIGENVECTORS):
        _check_picture(Path(output, name))


def _check_picture(path: Path) -> None:
    from PIL import Image

    if not path.exists():
        return
    try:
        with Image.open(path) as picture:
            drawn = picture.info.get("Software") == _SOFTWARE
    except OSError:
        drawn = False
    if not drawn:
        raise FileExistsError(f"{str(path)!r} exists and the demo did not draw it: choose another directory")


def _build(
    path: Path,
    build: Callable[[Path, Photographs], bool],
    photographs: Photographs,
    what: str,
    echo: Callable[[str], None],
) -> None:
    from daskgmm.data.open import open_samples

    begin = time.perf_counter()
    written = build(path, photographs)
    how = f"written in {time.perf_counter() - begin:.1f} s" if written else "found there"
    samples = open_samples(str(path))
    size = samples.n * samples.n_features * samples.dtype.itemsize / 1e6
    echo(f"  {path}: {what}: {size:,.1f} MB, {stored_bytes(path) / 1e6:,.1f} MB on disk, {how}")


def _fit(
    root: Path,
    kind: str,
    store: str,
    variables: Sequence[str] | None,
    options: dict[str, Any],
    echo: Callable[[str], None],
) -> GaussianMixture:
    """What `daskgmm fit` and `daskgmm predict` do, and its figures."""
    from sklearn.exceptions import ConvergenceWarning

    from daskgmm.data.open import open_samples
    from daskgmm.estimators.gaussian import GaussianMixture
    from daskgmm.prediction.predict import LABELS
    from daskgmm.prediction.write import write_predictions

    begin = time.perf_counter()
    source, labels = str(root / store), str(root / f"{kind}-labels.zarr")
    samples = open_samples(source, variables=variables)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below
        gm = GaussianMixture(reg_covar=_ROUNDING, random_state=0, verbose=2, **options).fit(samples)
    gm.save(root / f"{kind}-model.zarr", overwrite=True)
    fitted = time.perf_counter() - begin
    write_predictions(samples, gm._components(), [LABELS], labels, origin=source, overwrite=True)
    labelled = time.perf_counter() - begin - fitted
    passes = [info for info in gm.history_ if info.stage == "data"]
    rate = sum(info.n_samples for info in passes) / sum(info.seconds for info in passes)
    on_sample = len(gm.history_) - len(passes)
    echo(
        f"\n{gm.n_components} components, of {gm.n_samples_:,} rows and {gm.n_features_in_} features in {store}\n"
        f"  fit    {fitted:5.1f} s  {gm.n_passes_} passes over all rows, {len(passes)} of them EM's, "
        f"at {rate:,.0f} rows/s{f'; {on_sample} over a sample before' if on_sample else ''}\n"
        f"                 log-likelihood {gm.lower_bound_:.4f} nats a {kind}, "
        f"{'converged' if gm.converged_ else 'not converged'} (tol {gm.tol:g})\n"
        f"  label  {labelled:5.1f} s  {samples.n / labelled:,.0f} rows/s, to {labels}"
    )
    return gm


def _processes(client: Any) -> dict[str, int]:
    return dict(client.run(os.getpid)) if client else {}


def _memory(client: Any, before: dict[str, int]) -> str:
    """Peak resident memory of each process, and what became of the workers."""
    import resource

    def mebibytes(usage: resource.struct_rusage) -> str:
        return f"{usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024) / 2**20:.0f} MiB"

    here = f"{mebibytes(resource.getrusage(resource.RUSAGE_SELF))} in the driver (this process)"
    if client is None:
        return f"Peak memory: {here}"
    used = client.run(resource.getrusage, resource.RUSAGE_SELF).values()
    limit = max(worker["memory_limit"] or 0 for worker in client.scheduler_info(n_workers=-1)["workers"].values())
    allowed = f"of {limit / 2**20:.0f} MiB each" if limit else "without a limit"
    paused = sum(
        isinstance(event, dict) and event.get("action") == "worker-status-change" and event.get("status") == "paused"
        for address in before
        for _, event in client.get_events(address)
    )
    lost = len(before.items() - _processes(client).items())
    fate = f"pauses: {paused}, killed: {lost}" if paused or lost else "none was paused or killed"
    return f"Peak memory: {here}; {', '.join(map(mebibytes, used))} in the workers, {allowed}: {fate}"


def _draw(root: Path, photographs: Photographs, colours: GaussianMixture, patches: GaussianMixture) -> None:
    import xarray as xr

    from daskgmm.plotting import plot_convergence, plot_eigenvectors, plot_segmentation

    images, names = list(photographs.images), photographs.names
    with xr.open_zarr(root / "pixel-labels.zarr", chunks=None) as ds:
        labels = list(ds["labels"].values)
    _save(root / _SEGMENTATION, plot_segmentation(images, labels, colours.means_, colours.weights_, names=names))
    title = f"EM on {patches.n_samples_:,} image patches, {patches.n_components} components"
    _save(root / _CONVERGENCE, plot_convergence(patches, title=title))
    title = f"What the {SIDE} × {SIDE} patches of each component vary in"
    figure = plot_eigenvectors(patches.weights_, patches.covariances_, (SIDE, SIDE), unit="grey levels", title=title)
    _save(root / _EIGENVECTORS, figure)


def _save(path: Path, figure: Figure) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    figure.savefig(unfinished, format="png", dpi=150, metadata={"Software": _SOFTWARE})
    unfinished.replace(path)


_NEXT = f"""Look at:
  {{root}}/{_SEGMENTATION}   the photographs, and each pixel in the mean colour of its component
  {{root}}/{_CONVERGENCE}    the log-likelihood of each pass over the patches
  {{root}}/{_EIGENVECTORS}   what the patches of each component vary in

Try next:
  daskgmm show {{root}}/pixel-model.zarr
  daskgmm score {{root}}/pixel-model.zarr {{root}}/pixels.zarr
  daskgmm predict {{root}}/pixel-model.zarr {{root}}/pixels.zarr --proba --output {{root}}/pixel-proba.zarr
  daskgmm fit {{root}}/patches.zarr --components 32 --covariance diag --tol 0.1 --output {{root}}/patch-diag.zarr

Or in Python:
  import daskgmm, xarray
  pixels = xarray.open_zarr("{{stem}}/pixels.zarr")
  labels = daskgmm.load("{{stem}}/pixel-model.zarr").predict(pixels)
  labels.sel(image="{{image}}").plot()"""
