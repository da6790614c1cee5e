"""The demonstration of `daskgmm demo`, and its data."""
