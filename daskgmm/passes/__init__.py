"""Passes over blocks on Dask: read, map a kernel, combine with +, keep decoded rows; knows no EM."""
