"""One page about a model, whole in itself: no script, nothing from elsewhere, every text escaped."""

from __future__ import annotations

import json
import time
import unicodedata
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from markupsafe import Markup

from daskgmm import plotting
from daskgmm.data.blocks import Samples
from daskgmm.estimators.mixture import load
from daskgmm.reporting import figures
from daskgmm.reporting.figures import HELD, SIZE
from daskgmm.reporting.grid import NO_GRID, Grid, grid_of
from daskgmm.reporting.seen import DataSummary, place, see
from daskgmm.reporting.svg import literal, svg
from daskgmm.storage import models
from daskgmm.urls import presentable

GENERATOR = "daskgmm report"
_CANDIDATE = "candidate_"  # begins the names of what `GaussianMixtureIC.save` writes of its search
_LONGEST = 120  # characters of a text from a file
_LABEL = 36  # characters beside an axis
_FEATURES = 40  # columns of a table, at most
_PARAMETERS = (  # those that a reader looks for, in this order; others are in the model
    *("covariance_type", "n_components", "tol", "max_iter", "n_init", "init_params", "subsample", "accelerate"),
    *("reg_covar", "alpha", "prior", "missing", "random_state"),
)


@dataclass(frozen=True)
class Drawn:
    """A figure, and what it shows, in words."""

    svg: Markup
    text: str


@dataclass(frozen=True)
class Looked:
    """What a pass over the data found, and in how many seconds."""

    seen: DataSummary
    seconds: float


def page(model: str, samples: Samples | None = None, store: str = "", missing: str | None = None) -> str:
    """The report of a model.

    Parameters
    ----------
    model : str
        Path or URL of a model.
    samples : Samples, optional
        The data to hold the model against: one pass over them, on the cluster where there is a client.
    store : str
        Where these come from.
    missing : {"raise", "drop", "skip", "fill"}, optional

    Returns
    -------
    str
        An HTML document.

    Raises
    ------
    ImportError
        matplotlib is not there.
    ValueError
        There is no model, or the data are not such as it takes.
    """
    from jinja2 import Environment, StrictUndefined

    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("a report draws figures, which needs matplotlib: pip install 'daskgmm[plot]'") from error
    ds = models.read(model)
    gm = load(model)
    fit, params = json.loads(ds.attrs["fit"]), json.loads(ds.attrs["params"])
    names = [clean(name) for name in getattr(gm, "feature_names_in_", range(gm.n_features_in_))]
    units = units_of(gm, samples)
    gaussian = hasattr(gm, "covariances_")
    grid = NO_GRID
    if gaussian:
        covariances = gm._parameters().covariances
        grid = grid_of(gm.weights_, gm.means_, covariances, np.float64 if samples is None else samples.dtype)
    looked = None
    if samples is not None:
        if missing is not None:
            gm.set_params(missing=missing)
        begin = time.perf_counter()
        found = see(samples, gm._components(), grid, gm.missing, gm._encoding())
        looked = Looked(found, time.perf_counter() - begin)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    template = environment.from_string(files("daskgmm.reporting").joinpath("page.html").read_text("utf-8"))
    seen = looked.seen if looked else None
    return template.render(
        generator=GENERATOR,
        title=clean(ds.attrs["title"]),
        model=clean(presentable(model), 400),
        source=clean(ds.attrs.get("source", "")),
        fit=fit,
        objective=gm._objective(),
        params={name: params[name] for name in _PARAMETERS if name in params},
        store=clean(presentable(store), 400),
        samples=samples,
        looked=looked,
        names=names,
        units=units,
        components=components(gm, ds, seen),
        columns=columns(ds, names, units),
        convergence=Drawn(_convergence(gm), "log-likelihood of each pass, and its change"),
        densities=_densities(gm, grid, seen, names, units) if gaussian else [],
        held=HELD,
        selection=selection(ds),
        inside=_inside(grid, seen),
        uncertainty=None
        if seen is None or len(gm.weights_) < 2
        else Drawn(svg(figures.plot_uncertainty(seen.uncertainty.sum(axis=0)), "uncertainty", *SIZE), "uncertainty"),
        doubtful=None if seen is None else _doubtful(seen),
        worst=[] if samples is None or seen is None else worst(samples, seen),
        most=_FEATURES,
    )


def clean(text: Any, longest: int = _LONGEST) -> str:
    """A text from a file, without what is no letter, sign or space, such as what turns the direction of a line."""
    shown = "".join(c if unicodedata.category(c)[0] != "C" else "\ufffd" for c in str(text))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def number(value: Any, digits: int = 4) -> str:
    """For people: 1,234 and 0.001234, with a true minus."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace("-", "\N{MINUS SIGN}")
    if isinstance(value, float | np.floating):
        return f"{value:,.{digits}g}".replace("-", "\N{MINUS SIGN}")
    return clean("none" if value is None else value)


def units_of(gm: Any, samples: Samples | None) -> list[str]:
    """The unit of each feature, in the data or else in the fit; empty where there is none."""
    of_data = () if samples is None else samples.units
    found = of_data if any(of_data) else getattr(gm, "feature_units_in_", [""] * gm.n_features_in_)
    return [clean(units, 40) for units in found]


def columns(ds: Any, names: list[str], units: list[str]) -> list[str]:
    """What the means are of: features, or levels of them."""
    if ds["means"].dims[1] != "feature":
        return [clean(level) for level in ds["level"].values][:_FEATURES]
    return [_with(name, unit) for name, unit in zip(names, units, strict=True)][:_FEATURES]


def components(gm: Any, ds: Any, seen: DataSummary | None) -> list[dict[str, Any]]:
    """A row each, the heaviest first."""
    spread = None
    if hasattr(gm, "covariances_"):
        covariances = gm._parameters().covariances
        spread = np.sqrt(covariances if covariances.ndim == 2 else np.einsum("kii->ki", covariances))
    found = []
    for k in np.argsort(-gm.weights_, kind="stable"):
        of = ds["means"].values[k, :_FEATURES]
        deviations = [None] * len(of) if spread is None else spread[k, :_FEATURES].tolist()
        rows = None if seen is None else int(seen.counts[k])
        doubt = None if seen is None or not rows else float(seen.doubt[k] / rows)
        found.append(
            {
                "k": int(k),
                "weight": float(gm.weights_[k]),
                "bar": float(gm.weights_[k] / gm.weights_.max()),
                "rows": rows,
                "doubt": doubt,
                "means": list(zip(of.tolist(), deviations, strict=True)),
            }
        )
    return found


def worst(samples: Samples, seen: DataSummary) -> list[dict[str, Any]]:
    """The rows of the lowest densities, and where they stand."""
    of = seen.worst
    return [
        {
            "place": clean(place(samples, int(index))),
            "log_density": float(log_density),
            "label": int(label),
            "x": x[:_FEATURES].tolist(),
        }
        for log_density, index, label, x in zip(of.log_density, of.index, of.label, of.x, strict=True)
    ]


def selection(ds: Any) -> dict[str, Any] | None:
    """The criterion of all candidates, and why some failed; None where there was no search."""
    names = [name for name in ds.data_vars if name.startswith(_CANDIDATE)]
    results = ds[names].rename({name: name.removeprefix(_CANDIDATE) for name in names})
    criterion = results.attrs.get("criterion")
    if criterion not in results or not np.isfinite(results[criterion].values).any():
        return None
    values = results[criterion].to_series()
    model, k = values.idxmin()
    failures = results["failure"].to_series()
    text = f"Of {len(values)} candidates {clean(model)} with {k} components has the lowest {criterion.upper()}"
    return {
        "drawn": Drawn(svg(plotting.plot_selection(results), "selection", *SIZE), f"{criterion} of all candidates"),
        "text": f"{text}, {number(float(values.min()), 7)}.",
        "failures": [
            f"{clean(model)} with {k}: {clean(text, 300)}" for (model, k), text in failures[failures != ""].items()
        ],
    }


def _convergence(gm: Any) -> Markup:
    return svg(plotting.plot_convergence(gm), "convergence", SIZE[0], 4.2)


def _densities(gm: Any, grid: Grid, seen: DataSummary | None, names: list[str], units: list[str]) -> list[Drawn]:
    labels = [literal(clean(_with(name, unit), _LABEL)) for name, unit in zip(names, units, strict=True)]
    covariances = gm._parameters().covariances
    found = []
    for pair, places in enumerate(grid.pairs):
        features, of = figures.pair_of(grid, pair, covariances)
        figure = figures.plot_pair(
            gm.weights_,
            gm.means_[:, features],
            of,
            grid.edges[list(places)],
            None if seen is None else seen.joints[pair],
            (labels[features[0]], labels[features[1]]),
        )
        found.append(Drawn(svg(figure, f"pair{pair}", *SIZE), f"{names[features[0]]} and {names[features[1]]}"))
    diagonal = covariances if covariances.ndim == 2 else np.einsum("kii->ki", covariances)
    for at, feature in enumerate(grid.features):
        figure = figures.plot_marginal(
            gm.weights_,
            gm.means_[:, feature],
            np.sqrt(diagonal[:, feature]),
            grid.edges[at],
            None if seen is None else seen.marginals[at],
            0 if seen is None else seen.n,
            labels[feature],
        )
        found.append(Drawn(svg(figure, f"feature{at}", *SIZE), f"density of {names[feature]}"))
    return found


def _inside(grid: Grid, seen: DataSummary | None) -> float | None:
    """The least share of the rows that one of the histograms of a feature holds."""
    if seen is None or not grid.features or not seen.n:
        return None
    return float(seen.marginals.sum(axis=1).min() / seen.n)


def _doubtful(seen: DataSummary) -> dict[str, float]:
    """Shares of the rows whose component is not sure."""
    of = seen.uncertainty.sum(axis=0) / max(seen.n, 1)
    return {"10 %": float(of[5:].sum()), "50 %": float(of[25:].sum())}


def _with(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name
