"""The book holds together: structure, metadata, prose, exercises, pins and imports."""

import ast
import base64
import importlib
import inspect
import math
import pkgutil
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from nbformat import NotebookNode
from packaging.requirements import Requirement

import pinnlib
from chapters import CHAPTERS, ROOT, cells, solutions, text_outputs

every_chapter = pytest.mark.parametrize("notebook", CHAPTERS.values(), ids=CHAPTERS)


# Structure and metadata

TAGS = {"nbval-ignore-output", "hide-input"}


def test_toc_has_every_chapter_in_order() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert [f for f in files if f.startswith("chapters/")] == [f"chapters/{n}" for n in CHAPTERS]
    assert all(list(ROOT.glob(f"{file}.*")) for file in [toc["root"], *files])


@every_chapter
def test_no_stray_metadata(notebook: NotebookNode) -> None:
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "mystnb"}, cell.source
        assert set(cell.metadata.get("tags", [])) <= TAGS, cell.source


@every_chapter
def test_executed_in_order_from_a_fresh_kernel(notebook: NotebookNode) -> None:
    counts = [cell.execution_count for cell in cells(notebook, "code")]
    assert counts == list(range(1, len(counts) + 1))


@every_chapter
def test_outputs_are_clean(notebook: NotebookNode) -> None:
    for cell in cells(notebook, "code"):
        kinds = [output.get("name", output.output_type) for output in cell.outputs]
        assert not {"stderr", "error"} & set(kinds), cell.source
        text = text_outputs(cell)
        assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|work|Users)\b|[A-Z]:\\", text), text
        assert "Warning" not in text


@every_chapter
def test_every_figure_has_alt_text_and_caption(notebook: NotebookNode) -> None:
    for cell in cells(notebook, "code"):
        images = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        if images:
            meta = cell.metadata.get("mystnb", {})
            assert len(images) == 1, cell.source
            assert len(meta.get("image", {}).get("alt", "")) > 40, cell.source
            assert len(meta.get("figure", {}).get("caption", "")) > 20, cell.source
            assert meta["figure"]["name"].startswith("fig:"), cell.source


@every_chapter
def test_outputs_that_are_not_compared_are_asserted(notebook: NotebookNode) -> None:
    for cell in cells(notebook, "code"):
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source))), (
                f"neither compared nor asserted:\n{cell.source}"
            )


@every_chapter
def test_seeds_stand_in_one_line(notebook: NotebookNode) -> None:
    code = "\n".join(cell.source for cell in cells(notebook, "code"))
    lines = re.findall(r"^SEEDS\b.*", code, flags=re.MULTILINE)
    assert len(lines) == 1 or not (lines or "import train" in code), "it trains, on which seeds?"
    assert all(re.fullmatch(r"SEEDS = \[0, 1, 2(, \d+)*\]", line) for line in lines)


def test_cover_figure_is_the_one_of_the_chapter() -> None:
    (png,) = (
        output.data["image/png"]
        for notebook in CHAPTERS.values()
        for cell in cells(notebook, "code")
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == "fig:before-after"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    )
    assert (ROOT / "_static" / "before-after.png").read_bytes() == base64.b64decode(png)


def test_set_up_cell_is_the_same_everywhere() -> None:
    first_cells = {cells(notebook, "code")[0].source for notebook in CHAPTERS.values()}
    assert len(first_cells) == 1
    assert 'find_spec("pinnlib") is None' in first_cells.pop()


@every_chapter
def test_anatomy(notebook: NotebookNode) -> None:
    text = "\n".join(cell.source for cell in cells(notebook, "markdown"))
    headings = re.findall(r"^#+ .*$", prose(text), flags=re.MULTILINE)
    assert sum(h.startswith("# ") for h in headings) == 1
    for part in ("## What could go wrong", "## Exercises", "## Recap"):
        assert part in headings
    for row in ("**You will learn**", "**You need**", "**Runtime**"):
        assert row in text
    assert 2 <= len(solutions(notebook)) <= 4


# Prose


def prose(markdown: str) -> str:
    """Markdown without code, mathematics, links and tags (these last: a formula may hold <)."""
    for pattern in (
        r"```.*?```",
        r"\$\$.*?\$\$",
        r"\$[^$]*\$",
        r"`[^`]*`",
        r"\]\([^)]*\)",
        r"</?[a-z][^>]*>",
    ):
        markdown = re.sub(pattern, " ", markdown, flags=re.DOTALL)
    return re.sub(r"\*\*Exercise [\d.]+\*\*", " ", markdown)


@every_chapter
def test_no_escape_was_lost(notebook: NotebookNode) -> None:
    r"""Where a string was not raw, ``\text`` is a tab and ``ext``, and no formula."""
    for cell in notebook.cells:
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", cell.source), repr(cell.source)


RESULT = re.compile(r"\d+\.\d+(?:e-?\d+)?|\d+e-?\d+|\d+(?=\s*%)|\d+(?=\s*(?:×|times\b|seconds\b))")


def test_pattern_of_result_numbers() -> None:
    text = "error 0.04, 31 times, 12 %, 1e-5, 3 × worse; 5000 steps, 3 layers, `0.9`, $0.5$"
    assert RESULT.findall(prose(text)) == ["0.04", "31", "12", "1e-5", "3"]


@every_chapter
def test_numbers_in_prose_are_computed(notebook: NotebookNode) -> None:
    code = cells(notebook, "code")
    computed = "\n".join(cell.source + "\n" + text_outputs(cell) for cell in code)
    for cell in cells(notebook, "markdown"):
        for number in RESULT.findall(prose(cell.source)):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", computed), (
                f"{number} is typed, not computed:\n{cell.source}"
            )


# Exercises, and the example of the README


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{name}-{i}")
        for name, notebook in CHAPTERS.items()
        for i, code in enumerate(solutions(notebook), start=1)
    ],
)
@pytest.mark.usefixtures("capfd")
def test_solution(code: str) -> None:
    assert "assert " in code
    exec(compile(code, "solution", "exec"), {"__name__": "solution"})


def test_example_of_the_readme_trains() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile("import torch; torch.manual_seed(0)\n" + code, "README", "exec"), namespace)
    assert namespace["weights"]["data"] == 1.0
    assert 0.05 < namespace["weights"]["pde"] != 1.0, "the weight sinks, or does not move"
    (u,) = namespace["model"](torch.ones(1, 1))
    assert u.item() == pytest.approx(math.exp(-1), rel=0.02)


def test_front_page_shows_the_call_of_the_readme() -> None:
    readme, front = ((ROOT / name).read_text() for name in ("README.md", "index.md"))
    (balancer,) = re.findall(r"^balancer = .*$", front, flags=re.MULTILINE)
    assert balancer in readme


# Pins


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        r.name.lower().replace("_", "-"): str(r.specifier).removeprefix("==") for r in requirements
    }


def direct_dependencies() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in sum(extras, project["dependencies"])]


@pytest.mark.parametrize("requirement", direct_dependencies(), ids=str)
def test_direct_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    pin = pins()[requirement.name]
    assert requirement.specifier.contains(pin)
    assert version(requirement.name).partition("+")[0] == pin


def test_runtime_dependencies_stay_few_and_loose() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(line) for line in project["dependencies"]]
    assert {r.name for r in requirements} == {
        "torch",
        "numpy",
        "matplotlib",
        "tabulate",
        "tqdm",
    }
    assert all(s.operator == ">=" for r in requirements for s in r.specifier)


def test_conda_environment_takes_its_versions_from_the_constraints() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip["pip"] == ["--constraint constraints.txt", "--editable .[book,test]"]


# The package, seen from the book

MODULES = {
    info.name: importlib.import_module(info.name)
    for info in pkgutil.walk_packages(pinnlib.__path__, "pinnlib.")
}


def names_of(module: ModuleType) -> list[str]:
    """Names that a module offers: those in its ``__all__``, or all that it defines."""
    defined = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    ]
    return getattr(module, "__all__", defined)


@cache
def public() -> dict[str, object]:
    """Functions and classes that their module, and the package it lies in, both offer, by name."""
    return {
        name: value
        for module in MODULES.values()
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and name in names_of(module)
        and name in getattr(MODULES.get(module.__name__.rpartition(".")[0]), "__all__", [name])
    }


def public_names() -> list[str]:
    return list(public())


@pytest.mark.parametrize("name", public_names())
def test_api_page_shows_every_public_name(name: str) -> None:
    page = (ROOT / "reference" / "api.md").read_text()
    shown = re.findall(r"automodule:: ([\w.]+)\n", page)
    assert [module for module in shown if name in names_of(MODULES[module])]


def test_import_lines_of_the_api_page_bring_every_name() -> None:
    page = (ROOT / "reference" / "api.md").read_text()
    imported: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(code, imported)
    for name in public_names():
        assert name in imported


@pytest.mark.parametrize("name", public_names())
def test_public_name_is_documented(name: str) -> None:
    assert inspect.getdoc(public()[name]), f"{name} has no docstring, so the API page leaves it out"


FLOORS = {
    "trees": "trees",
    "stacked": "stacked",
    "networks": "networks",
    "coefficients": "coefficients",
    "jets": "derivatives",
    "derivatives": "derivatives",
    "residuals": "residuals",
    "parameters": "parameters",
    "gradients": "gradients",
    "problems": "problems",
    "evaluation": "evaluation",
    "weighting": "weighting",
    "watching": "recording",
    "recording": "recording",
    "distributed": "distributed",
    "measuring": "measuring",
    "step": "step",
    "optimizers": "optimizers",
    "history": "history",
    "loop": "loop",
    "training": "training",
    "adaptive": "adaptive",
    "slips": "diagnosis",
    "inspecting": "diagnosis",
    "findings": "diagnosis",
    "diagnosis": "diagnosis",
    "plotting": "plotting",
    "film": "plotting",
}
"""The modules, each above those that use it, with the test file of each."""

SOURCES = pytest.mark.parametrize(
    "path", sorted((ROOT / "pinnlib").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix()
)


@SOURCES
def test_imports_go_downwards(path: Path) -> None:
    floors = list(FLOORS)
    floor = path.relative_to(ROOT / "pinnlib").parts[0].removesuffix(".py")
    if floor == "__init__":
        return
    lines = re.findall(r"^\s*(?:from|import) pinnlib\.?(\w*)", path.read_text(), flags=re.MULTILINE)
    for imported in lines:
        assert floors.index(imported) <= floors.index(floor), f"{floor} imports {imported}"
        if floor in ("plotting", "film"):
            assert imported in ("derivatives", "problems", "evaluation")


@SOURCES
def test_source_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 250


def test_every_module_has_a_floor_and_a_test_file() -> None:
    assert {name.split(".")[1] for name in MODULES} == set(FLOORS)
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    for name in FLOORS.values():  # or, for a folder, a file for each module
        assert any(t == name or t.startswith(f"{name}_") for t in tested), name
    assert sys.version_info >= (3, 11)
