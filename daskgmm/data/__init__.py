"""Rows: where samples come from and what a result needs to have their shape and names; knows no mixture."""
