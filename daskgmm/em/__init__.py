"""The EM algorithm. NumPy and SciPy only: no Dask, no Zarr, no scikit-learn."""
