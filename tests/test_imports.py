"""Imports run one way, through the rooms of the package, and everything that is imported from elsewhere is declared."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from helpers import ROOT

# What each room may import, beside itself, reward_model/__init__.py and html.py.
ROOMS = {
    "data": set(),
    "model": {"data"},
    "training": {"data", "model"},
    "scoring": {"data", "model"},
    "evaluation": {"data", "model", "scoring"},
}
PACKAGE = [file.relative_to(ROOT) for file in sorted((ROOT / "reward_model").rglob("*.py"))]
SCRIPTS = [file.relative_to(ROOT) for file in sorted(ROOT.glob("*.py"))]
FOLDERS = ("benchmarks", "data", "docs", "tests")
OTHERS = [file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]


def imported(file: Path, only_at_top: bool = False) -> set[str]:
    """The modules that a file imports, at its top or inside a function; `from a import b` counts as a and as a.b."""
    found = set()
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for node in tree.body if only_at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import, which this test does not follow"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("file", PACKAGE, ids=str)
def test_rooms_import_one_way(file: Path) -> None:
    room = file.parts[1] if len(file.parts) > 2 else ""
    entered = {module.split(".")[1] for module in imported(file) if module.startswith("reward_model.")} & set(ROOMS)
    assert entered <= {room} | ROOMS.get(room, set())
    assert not {module.split(".")[0] for module in imported(file)} & {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("file", SCRIPTS, ids=str)
def test_scripts_stand_on_top_and_the_client_alone(file: Path) -> None:
    modules = {module.split(".")[0] for module in imported(file)}
    assert modules & {script.stem for script in SCRIPTS} <= {"client"}
    assert file.name != "client.py" or "reward_model" not in {module.split(".")[0] for module in imported(file, True)}


def test_what_is_imported_is_declared() -> None:
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    helpers = {test.stem for test in (ROOT / "tests").rglob("*.py")}
    declared, distributions = {line.split("==")[0].lower() for line in lines}, packages_distributions()
    known = {
        "reward_model",
        "triton",  # torch for CUDA brings it along
        *FOLDERS,
        *helpers,
        *(script.stem for script in SCRIPTS),
        *sys.stdlib_module_names,
    }
    for file in (*PACKAGE, *SCRIPTS, *OTHERS):
        for module in {module.split(".")[0] for module in imported(file)} - known:
            assert {name.lower() for name in distributions[module]} & declared, f"{file} imports {module}"
