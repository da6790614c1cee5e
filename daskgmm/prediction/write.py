"""Results of a model written to Zarr, block by block, by the workers that compute them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from daskgmm.data.blocks import Block, Samples, Source, regular_blocks
from daskgmm.data.retry import cause, flush_to_disk, retried, write_error
from daskgmm.em.estep import compile_prediction
from daskgmm.families.base import Components
from daskgmm.families.encoding import PLAIN, FeatureEncoding
from daskgmm.families.frame import Rows
from daskgmm.passes.graph import assemble, gather
from daskgmm.passes.memory import check_memory
from daskgmm.passes.reader import Reader
from daskgmm.prediction.predict import LABELS, Output, block_kernel
from daskgmm.urls import Hidden, presentable

SCHEMA = 1
_BATCH = 64  # blocks between two words to the one who watches


def write_predictions(
    samples: Samples,
    model: Components,
    outputs: Sequence[Output],
    path: str,
    *,
    missing: str = "raise",
    encoding: FeatureEncoding = PLAIN,
    origin: str = "",
    overwrite: bool = False,
    watch: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write results for each sample to a Zarr group with the dims and coords of the samples.

    A run that is killed leaves a group that does not open; the same call again writes the blocks that are
    missing, and ends with the same group as a run that was not killed.

    Parameters
    ----------
    samples : Samples
        Of a store: on a regular grid.
    model : Components
        In the user's units.
    outputs : sequence of Output
    path : str
        Local path or fsspec URL.
    missing : {"raise", "drop", "fill"}
    encoding : FeatureEncoding
        Of the model's family.
    origin : str
        What the samples are: a run goes on only with an unfinished output of the same.
    overwrite : bool
        Replace what daskgmm wrote there before.
    watch : callable
        Told samples written, and samples in all.

    Raises
    ------
    FileExistsError
        There is something at the path that may not be replaced.
    ValueError
        A sample is not finite and ``missing`` is not "drop".
    """
    import dask.array as da  # not at the top: the kernel below is imported by workers, who need none of these
    import xarray as xr

    from daskgmm.storage.groups import prepare

    check_memory(samples)
    compile_prediction(model)
    dims = samples.dims or (
        ("sample",) if len(samples.shape) == 1 else tuple(f"axis_{i}" for i in range(len(samples.shape)))
    )
    extents = tuple(s.stop - s.start for s in samples.blocks[0].region)
    k = len(model.means)
    variables, encodings = {}, {}
    for output in outputs:
        extra = (k,) if output.per_component else ()
        dtype = _stored(output)
        empty = da.zeros(samples.shape + extra, chunks=extents + extra, dtype=dtype)
        variables[output.name] = (*dims, *(("component",) if extra else ())), empty, output.attributes(k, dtype)
        # The array's own fill value is what GDAL takes for nodata.
        encodings[output.name] = {"chunks": empty.chunksize, "fill_value": output.absent}
        encodings[output.name] |= output.encoding(missing, encoding)
        if samples.grid_mapping is not None:
            encodings[output.name]["grid_mapping"] = samples.grid_mapping[1]
    template = xr.Dataset(variables, coords=samples.coords, attrs={"Conventions": "CF-1.11"})
    for name, settings in encodings.items():
        template[name].encoding = settings  # lest xarray takes a grid mapping for a coordinate
    manifest = {
        "kind": "predictions",
        "schema": SCHEMA,
        "model": _digest(model),
        "data": [presentable(origin), list(samples.shape), samples.n_features, str(samples.dtype)],
        "missing": missing,
    }
    target = prepare(path, template, encodings, manifest, overwrite)

    def written(block: Block) -> bool:
        at = "/".join(str(s.start // e) for s, e in zip(block.region, extents, strict=True))
        return all(f"{o.name}/c/{at}{'/0' if o.per_component else ''}" in target.done for o in outputs)

    remaining = [block for block in samples.blocks if not written(block)]
    done = samples.n - sum(block.n for block in remaining)
    watch(done, samples.n)
    kernel = partial(
        _write_block,
        kernel=block_kernel(samples, model, tuple(outputs), missing, encoding),
        path=Hidden(path),
        names=[output.name for output in outputs],
    )
    for i in range(0, len(remaining), _BATCH):
        batch = remaining[i : i + _BATCH]
        refusals = gather(Reader(replace(samples, blocks=tuple(batch))), kernel)
        if refused := [message for message in refusals if message is not None]:
            target.discard()
            raise ValueError(refused[0])
        done += sum(block.n for block in batch)
        watch(done, samples.n)
    target.publish()


def _write_block(
    block: Block,
    pieces: Iterator[Rows],
    kernel: Callable[..., tuple[Any, ...]],
    path: Hidden,
    names: Sequence[str],
) -> str | None:
    """Write a block; or say why its data are refused, so that no other block is being written when all are removed."""
    try:
        results = kernel(block, pieces)
    except ValueError as error:
        return str(error)
    for name, result in zip(names, results, strict=True):
        _write(path, name, block, assemble(block, result))
    return None


def _write(path: Hidden, name: str, block: Block, result: Any) -> None:
    try:
        retried(partial(_put, f"{path.url}/{name}", block, result))
    except Exception as error:
        raise write_error(f"block {block.index} of {name!r} in {path}", error) from cause(error)


def _put(path: str, block: Block, result: Any) -> None:
    # An all-zero chunk is written too: its presence says that the block is done.
    array = zarr.open_array(path, mode="r+").with_config({"write_empty_chunks": True})
    array[block.region] = result
    if isinstance(array.store, LocalStore):
        at = [s.start // extent for s, extent in zip(block.region, array.chunks, strict=False)]
        flush_to_disk(array.store.root / array.metadata.encode_chunk_key((*at, *[0] * (array.ndim - len(at)))))


def _stored(output: Output) -> type:
    return np.int32 if output is LABELS else output.dtype


def _digest(model: Components) -> str:
    """A fingerprint of what the model says of any sample."""
    return hashlib.sha256(np.ascontiguousarray(model.theta).tobytes()).hexdigest()


def write_samples(
    family: Any,
    parameters: Any,
    n_samples: int,
    seed: int,
    path: str,
    *,
    overwrite: bool = False,
) -> None:
    """Draw samples to a Zarr group, block by block: `samples` (sample, feature) and `component` (sample,).

    Each block has a random stream of its own, so the same seed gives the same samples on any workers.
    """
    import dask.array as da
    import xarray as xr

    from daskgmm.storage.groups import prepare

    d = family.sample(parameters, 1, np.random.RandomState(0))[0].shape[1]
    blocks = regular_blocks((n_samples,), d, (1,))
    rows = blocks[0].n
    template = xr.Dataset(
        {
            "samples": (("sample", "feature"), da.zeros((n_samples, d), chunks=(rows, d))),
            "component": ("sample", da.zeros(n_samples, chunks=rows, dtype=np.int32)),
        }
    )
    encoding = {"samples": {"chunks": (rows, d)}, "component": {"chunks": (rows,)}}
    manifest = {"kind": "samples", "schema": SCHEMA, "seed": seed, "rows": n_samples}
    target = prepare(path, template, encoding, manifest, overwrite)
    nothing = Samples((n_samples,), d, np.dtype(np.float64), blocks, Source(()))
    gather(Reader(nothing), partial(_draw_block, family=family, parameters=parameters, seed=seed, path=Hidden(path)))
    target.publish()


def _draw_block(block: Block, _: Iterator[Rows], family: Any, parameters: Any, seed: int, path: Hidden) -> None:
    rng = np.random.RandomState(np.random.SeedSequence([seed, block.index]).generate_state(4))
    rows, component = family.sample(parameters, block.n, rng)
    order = rng.permutation(block.n)
    for name, result in (("samples", rows[order]), ("component", component[order])):
        _write(path, name, block, result)
