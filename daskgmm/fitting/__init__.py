"""A fit: survey, starts, EM on a sample, passes over all rows, checkpoints."""
