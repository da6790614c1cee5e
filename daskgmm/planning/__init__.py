"""The cost of a fit before it is started."""
