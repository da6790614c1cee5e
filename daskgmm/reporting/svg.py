"""Figures as SVG inside of a page: its colours, light or dark, and nothing from elsewhere."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours of `daskgmm.plotting`, by the names that the page's style gives them, light and dark.
_COLOURS = {
    "#222222": "var(--ink)",
    "#000000": "var(--ink)",
    "#8a8a8a": "var(--faint)",
    "#e6e6e6": "var(--line)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--orange)",
}
# Names of XML's languages, which HTML knows; what the page itself says of strokes; who drew it, and in which words.
_SUPERFLUOUS = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
_NAMESPACE = re.compile(r'\s+xmlns(:\w+)?="[^"]*"')
_REFERENCE = re.compile(r'(\sid="|\shref="#|url\(#)')


def literal(text: str) -> str:
    """Text for matplotlib, to which $ means mathematics."""
    return text.replace("$", r"\$")


def svg(figure: Figure, name: str, width: float, height: float) -> Markup:
    """A figure as an element of a page.

    Parameters
    ----------
    figure : Figure
    name : str
        Unlike that of any other figure of the page: begins each identifier.
    width, height : float
        Inches.
    """
    import matplotlib

    figure.set_size_inches(width, height)
    figure.suptitle("")  # the page has headings
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = _SUPERFLUOUS.sub("", text[text.index("<svg") :])
    # Only within tags: what a person wrote stands between them.
    return Markup(re.sub(r"<[^>]*>", lambda tag: _of_page(tag[0], name), text))


def _of_page(tag: str, name: str) -> str:
    tag = _NAMESPACE.sub("", tag).replace("xlink:href", "href")
    for colour, variable in _COLOURS.items():
        tag = tag.replace(colour, variable)
    return _REFERENCE.sub(rf"\g<1>{name}-", tag)
