"""Arrows between folders point down, and no modules import each other in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import ROOT

# From the ground up: a folder imports from those before it, and from itself.
FLOORS = (
    "metalearn.runtime",
    "metalearn.kernels",
    "metalearn.network",
    "metalearn.padding",
    "metalearn.episodes",
    "metalearn.data",
    "metalearn.tasks",
    "metalearn.engine",
    "metalearn.algorithms",
    "metalearn.evaluation",
    "metalearn.training",
    "metalearn.models",
    "metalearn.training.regularisers",
    "metalearn.analysis.checks",
    "metalearn.analysis.scales",
    "metalearn.analysis.plotting",
    "metalearn.analysis.measures",
    "metalearn.analysis.networks",
    "metalearn.analysis.adaptation",
    "metalearn.analysis",
    "metalearn.reinforcement",
    "metalearn.experiments",
    "metalearn.studies",
    "metalearn.compat",
    "metalearn",
    "transfer.initialisation",
    "transfer.models",
    "transfer.experts.votes",
    "transfer.finetuning",
    "transfer.comparison",
    "transfer.experts",
    "transfer.continual",
    "transfer",
    "benchmarks",
)


def module_name(path: Path) -> str:
    """The dotted name of a file, that of the folder for its `__init__.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_name(path): path
    for top in ("metalearn", "transfer", "benchmarks")
    for path in (ROOT / top).rglob("*.py")
}


def imported(module: str) -> set[str]:
    """The modules of this project that a module imports anywhere, for type checking too."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            source = ".".join([*parents, *([node.module] if node.module else [])])
            names.update(
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in FILES else source
                for alias in node.names
            )
    return (names & FILES.keys()) - {module}


def floor(module: str) -> int:
    """The floor of the longest prefix that has one."""
    inside = [name for name in FLOORS if module == name or module.startswith(f"{name}.")]
    return FLOORS.index(max(inside, key=len))


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    upward = [name for name in imported(module) if floor(name) > floor(module)]
    assert not upward, f"{module} imports {', '.join(upward)}, which stands above it"


def test_no_modules_import_each_other_in_a_circle() -> None:
    order = list(
        TopologicalSorter({module: imported(module) for module in FILES}).static_order()
    )  # raises CycleError
    assert len(order) == len(FILES)


@pytest.mark.parametrize("test", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.stem)
def test_tests_import_shared_helpers_only(test: Path) -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(test.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{test} has a relative import in line {node.lineno}"
            names.add(node.module or "")
    tests = {name for name in names if name.partition(".")[0] in ("tests", "conftest")}
    assert tests <= {"tests.helpers"}, f"{test} imports {tests}; put what is shared in helpers.py"
