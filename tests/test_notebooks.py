"""Every notebook runs from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from running import NOTEBOOKS

pytestmark = pytest.mark.timeout(1500)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, notebooks: dict[str, nbformat.NotebookNode]) -> None:
    cells = notebooks[str(path)]["cells"]
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
