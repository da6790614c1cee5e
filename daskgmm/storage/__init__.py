"""The stores that daskgmm writes and reads back: Zarr groups, models, and trees of dataclasses."""
