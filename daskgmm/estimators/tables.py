"""What a fit found, as tables that a notebook shows."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from daskgmm.em.info import Info

if TYPE_CHECKING:
    import pandas as pd

_ROWS, _COLUMNS = 24, 12  # more are left out in the middle


class History(tuple[Info, ...]):
    """What each pass found; in a notebook a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        import pandas as pd

        shown = ("stage", "n_iter", "n_samples", "lower_bound", "change", "seconds")
        return _html(pd.DataFrame([asdict(info) for info in self], columns=list(shown)), index=False)


def components(weights: Any, means: Any, names: Any) -> pd.DataFrame:
    """Weights (k,) and means (k, d): a row a component."""
    import pandas as pd

    table = pd.DataFrame(means, columns=[str(name) for name in names])
    table.index.name = "component"
    table.insert(0, "weight", weights, allow_duplicates=True)
    return table


def summary(caption: str, table: pd.DataFrame) -> str:
    """A line of text and a table, as HTML with all texts escaped."""
    return f"<div><p>{escape(caption)}</p>{_html(table)}</div>"


def _html(table: pd.DataFrame, index: bool = True) -> str:
    html: str = table.to_html(
        index=index, border=0, max_rows=_ROWS, max_cols=_COLUMNS, float_format="{:.6g}".format, na_rep="–"
    )
    return html
