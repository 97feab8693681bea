"""Subpackages import each other in one direction, and every imported distribution is a declared requirement."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from helpers import ROOT, run

# Other subpackages that each subpackage may import; all may import reward_model/__init__.py and html.py.
ALLOWED = {
    "data": set(),
    "model": {"data"},
    "training": {"data", "model"},
    "scoring": {"data", "model"},
    "evaluation": {"data", "model", "scoring"},
}
PACKAGE = [file.relative_to(ROOT) for file in sorted((ROOT / "reward_model").rglob("*.py"))]
SCRIPTS = [file.relative_to(ROOT) for file in sorted(ROOT.glob("*.py"))]
DIRECTORIES = ("benchmarks", "data", "docs", "tests")
OTHERS = [file.relative_to(ROOT) for name in DIRECTORIES for file in (ROOT / name).rglob("*.py")]


def imported(file: Path, only_at_top: bool = False) -> set[str]:
    """Return the modules that a file imports, at its top or in functions. `from a import b` gives a and a.b."""
    found = set()
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for node in tree.body if only_at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative imports are not supported by this test"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("file", PACKAGE, ids=str)
def test_subpackages_import_in_one_direction(file: Path) -> None:
    subpackage = file.parts[1] if len(file.parts) > 2 else ""
    used = {module.split(".")[1] for module in imported(file) if module.startswith("reward_model.")} & set(ALLOWED)
    assert used <= {subpackage} | ALLOWED.get(subpackage, set())
    assert not {module.split(".")[0] for module in imported(file)} & {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("file", SCRIPTS, ids=str)
def test_scripts_import_no_script_but_the_client(file: Path) -> None:
    modules = {module.split(".")[0] for module in imported(file)}
    assert modules & {script.stem for script in SCRIPTS} <= {"client"}
    assert file.name != "client.py" or "reward_model" not in {module.split(".")[0] for module in imported(file, True)}


def test_imported_packages_are_requirements() -> None:
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    helpers = {test.stem for test in (ROOT / "tests").rglob("*.py")}
    declared, distributions = {line.split("==")[0].lower() for line in lines}, packages_distributions()
    known = {
        "reward_model",
        "triton",  # a dependency of torch for CUDA
        *DIRECTORIES,
        *helpers,
        *(script.stem for script in SCRIPTS),
        *sys.stdlib_module_names,
    }
    for file in (*PACKAGE, *SCRIPTS, *OTHERS):
        for module in {module.split(".")[0] for module in imported(file)} - known:
            assert {name.lower() for name in distributions[module]} & declared, f"{file} imports {module}"


def test_launcher_does_not_import_transformers() -> None:
    """The import takes seconds, for which train.sh would wait before the ranks start."""
    run(sys.executable, "-c", "import sys, reward_model.training.launch; sys.exit('transformers' in sys.modules)")
