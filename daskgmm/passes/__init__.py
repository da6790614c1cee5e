"""Passes over blocks on Dask: what is mapped, read, added up and kept; nothing here knows of EM."""
