"""Notebooks, guides and the README are valid, hold no output, name only what is public, and link to what there is.

That they run, deploy/notebooks/check shows.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import daskgmm
import daskgmm.plotting
from daskgmm.cli import main

HERE = Path(__file__).parents[1] / "notebooks"
README = HERE.parent / "README.md"
NOTEBOOKS, GUIDES = sorted(HERE.glob("*.ipynb")), [README, *sorted(HERE.glob("*.md"))]
PUBLIC = {
    "daskgmm": set(daskgmm.__all__),
    "daskgmm.plotting": {name for name in vars(daskgmm.plotting) if name.startswith("plot_")},
}
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:\s]*)(#[^)\s]*)?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def cells(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def prose(path: Path) -> str:
    return "\n\n".join(cells(path, "markdown")) if path.suffix == ".ipynb" else path.read_text()


def snippets(path: Path, language: str) -> list[str]:
    """Code of a notebook or guide, also such as is only shown."""
    shown = [code for name, code in _FENCED.findall(prose(path)) if name == language]
    run = cells(path, "code") if path.suffix == ".ipynb" else []
    bash = [code.partition("\n")[2] for code in run if code.startswith("%%bash")]
    return shown + (bash if language == "bash" else [code for code in run if not code.startswith("%%")])


def anchors(path: Path) -> set[str]:
    """The fragments that GitHub gives the headings of a page."""
    headings = _HEADING.findall(_FENCED.sub("", path.read_text()))
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def misused(code: str) -> Iterator[str]:
    """What of daskgmm a piece of Python names that is not public, and arguments that there are not."""
    tree = ast.parse(re.sub(r"^%.*$", "", code, flags=re.MULTILINE))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "daskgmm":
            yield from (f"{node.module}.{a.name}" for a in node.names if a.name not in PUBLIC.get(str(node.module), ()))
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("daskgmm.") and a.name not in PUBLIC)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            yield f".{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            known = next((module for module, names in PUBLIC.items() if name in names), None)
            if known is not None:
                accepted = inspect.signature(getattr(importlib.import_module(known), name)).parameters
                yield from (f"{name}({k.arg}=)" for k in node.keywords if k.arg and k.arg not in accepted)


def unknown(script: str) -> Iterator[str]:
    """Commands and options of daskgmm that there are not."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["daskgmm"]:
            continue
        command: Any = main.commands.get(words[1]) if len(words) > 1 else None
        if command is None:
            yield line
            continue
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        yield from (f"{words[1]} {w}" for w in words[2:] if w.startswith("--") and w.partition("=")[0] not in options)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_holds_no_output(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}  # no version of who ran it last
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        assert "".join(cell["source"]).strip()
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            assert set(cell) == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
        else:
            assert set(cell) == {"cell_type", "id", "metadata", "source"}
    assert prose(path).startswith("# ")
    assert any("assert" in code for code in cells(path, "code"))


@pytest.mark.parametrize("path", NOTEBOOKS + GUIDES, ids=lambda path: path.stem)
def test_only_what_is_public_is_named(path: Path) -> None:
    assert [name for code in snippets(path, "python") for name in misused(code)] == []
    assert [name for script in snippets(path, "bash") for name in unknown(script)] == []


@pytest.mark.parametrize("path", NOTEBOOKS + GUIDES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target, fragment in _LINK.findall(prose(path)):
        page = path.parent / target if target else path
        assert page.exists(), target
        if fragment and page.suffix == ".md":
            assert fragment in anchors(page), target + fragment


def test_the_readme_is_short_and_starts_with_its_two_commands() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    commands = [line for line in lines[:45] if line.startswith("python3 -m venv")]
    assert [command.rpartition("bin/")[2] for command in commands] == ["daskgmm demo", "pytest -n 2"]
    assert next(line for line in lines if "bin/pytest" in line) == commands[1]  # that .ci/run runs


def test_every_guide_is_listed() -> None:
    for page, folder in ((README, "notebooks/"), (HERE / "README.md", "")):
        linked = {target for target, _ in _LINK.findall(page.read_text())}
        assert {folder + guide.name for guide in GUIDES[1:]} - {"README.md"} <= linked


@pytest.mark.parametrize(
    "code",
    [
        "from daskgmm.fitting.fit import fit_mixture",
        "from daskgmm import fit_mixture",
        "import daskgmm.passes.graph",
        "gm._components()",
        "GaussianMixture(3, covariance='full')",
    ],
)
def test_what_is_not_public_would_be_found(code: str) -> None:
    assert list(misused(code))


def test_options_that_there_are_not_would_be_found() -> None:
    assert list(unknown("daskgmm fit x.zarr --components 3 --output y.zarr")) == []
    assert list(unknown("daskgmm fit x.zarr --clusters 3")) == ["fit --clusters"]
    assert list(unknown("daskgmm cluster x.zarr"))
