"""The EM algorithm. NumPy, SciPy and Numba only: no Dask, no Zarr, no scikit-learn."""
