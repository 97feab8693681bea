"""The notebook runs from top to bottom, and its stored outputs come from such a run."""

import re
import time

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient

FILE = ROOT / "notebooks/walkthrough.ipynb"


def notebook() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


@pytest.mark.server
@pytest.mark.slow
def test_notebook_runs(base_model, tmp_path, monkeypatch) -> None:
    """Use a tiny random model instead of the demo model, and a real server. Asserts in the cells check the figures."""
    monkeypatch.setenv("NOTEBOOK_MODEL", str(base_model))
    monkeypatch.setenv("NOTEBOOK_OUTPUT", str(tmp_path / "out"))
    start = time.perf_counter()
    resources = {"metadata": {"path": str(FILE.parent)}}  # the working directory in Jupyter
    ran = NotebookClient(notebook(), timeout=600, resources=resources).execute()
    print(f"the notebook took {time.perf_counter() - start:.0f} s")
    assert sum(cell.cell_type == "code" for cell in ran.cells) > 15
    assert (tmp_path / "out/model/model.safetensors").exists()


def test_stored_outputs_come_from_one_run_without_errors() -> None:
    cells = [cell for cell in notebook().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not run from top to bottom"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 12
    assert FILE.stat().st_size < 1_000_000
    assert str(ROOT) not in FILE.read_text(encoding="utf-8"), "an output contains a local path"


def test_each_section_starts_with_its_main_point_in_both_languages() -> None:
    sections = [
        cell.source for cell in notebook().cells if re.match(r"#+ ", cell.source) and cell.cell_type == "markdown"
    ]
    assert len(sections) == 11
    for section in sections:
        english, chinese = re.findall(r"^\*\*(.+)\*\*$", section, re.M)[:2]
        assert not re.search("[一-鿿]", english) and re.search("[一-鿿]", chinese), section[:80]
