"""Progress of a fit, for people: one bar a stage, on the terminal or in a notebook."""

from __future__ import annotations

from math import isfinite
from typing import Any

from tqdm.auto import tqdm

from daskgmm.em.info import Info


class ProgressBar:
    """A callback that draws a bar: passes done, log-likelihood, its change, speed, and time left to max_iter.

    Parameters
    ----------
    interval : int
        Passes between two updates.
    """

    def __init__(self, interval: int = 1) -> None:
        self._interval = interval
        self._bar: Any = None
        self._stage = ""

    def __call__(self, info: Info) -> None:
        if info.stage != self._stage:
            self.close()
            self._stage = info.stage
            title = "EM on a sample" if info.stage == "sample" else "EM"
            self._bar = tqdm(total=info.max_iter, initial=info.n_iter - 1, desc=title, unit="pass", leave=True)
        if info.n_iter % self._interval == 0 or info.n_iter == 1:
            self._bar.set_postfix_str(
                f"log-likelihood {info.lower_bound:.6g}, "
                + (f"change {info.change:.2g}, " if isfinite(info.change) else "")
                + f"{info.samples_per_second:,.0f} rows/s",
                refresh=False,
            )
            self._bar.update(info.n_iter - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar, self._stage = None, ""
