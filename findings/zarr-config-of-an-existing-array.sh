#!/usr/bin/env bash
# zarr.open_array(path, config=...) ignores the configuration when the array exists.
#
# Expected: the array that comes back has write_empty_chunks=True, as asked, so that chunks of zeros are written.
# Seen: the argument is used for new arrays only; of an array that exists it is dropped without a warning, and chunks of
# the fill value are not stored. Whoever takes the presence of a chunk for "this block is done" loses blocks of zeros.
# Array.with_config does it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q zarr==3.1.6 numpy==2.4.6

cat >look.py <<'P'
import sys
import warnings

import numpy as np
import zarr

print("zarr", zarr.__version__, "numpy", np.__version__)
warnings.simplefilter("error")  # a warning would be news, too


def chunks_written(open_array):
    zarr.create_array("a.zarr", shape=(4,), chunks=(2,), dtype="int32", fill_value=0, overwrite=True)
    array = open_array()
    array[:] = 0
    return array.nchunks_initialized


ignored = chunks_written(lambda: zarr.open_array("a.zarr", mode="r+", config={"write_empty_chunks": True}))
honoured = chunks_written(lambda: zarr.open_array("a.zarr", mode="r+").with_config({"write_empty_chunks": True}))
print(f"chunks of zeros written, of 2: {ignored} by open_array(config=), {honoured} by with_config; expected 2 and 2")
sys.exit((ignored, honoured) != (0, 2))
P
venv/bin/python look.py
