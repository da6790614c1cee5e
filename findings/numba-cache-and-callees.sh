#!/usr/bin/env bash
# Numba's cache does not notice an edit of a callee in another module.
#
# Expected: a function compiled with cache=True is compiled again when a function that it calls has changed.
# Seen: the cache is keyed by the file of the caller alone, so the next process loads the old code and gives the old
# answer, without a word. Who splits kernels over several modules, edits one and looks at numbers, looks at old numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q numba==0.68.1 numpy==2.4.6
export NUMBA_CACHE_DIR=$folder/cache PYTHONDONTWRITEBYTECODE=1

cat >callee.py <<'P'
from numba import njit


@njit(cache=True)
def answer():
    return 1
P
cat >caller.py <<'P'
from callee import answer
from numba import njit


@njit(cache=True)
def ask():
    return answer()
P

venv/bin/python -c 'import numba, numpy; print("numba", numba.__version__, "numpy", numpy.__version__)'
ask='import callee, caller; print(callee.answer.py_func(), callee.answer(), caller.ask())'
first=$(venv/bin/python -c "$ask")
echo "source, callee, caller before the edit: $first"
sed -i 's/return 1/return 22/' callee.py
second=$(venv/bin/python -c "$ask")
echo "source, callee, caller after the edit:  $second"
echo "expected: 22 22 22"
[ "$first" = "1 1 1" ] && [ "$second" = "22 22 1" ]
