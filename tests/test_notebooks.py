"""Every notebook runs from top to bottom."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

Runs = dict[Path, Future[nbformat.NotebookNode]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, address: str) -> Iterator[Runs]:
    """All of them at once: one waits for Ray while the others compute."""
    env = os.environ | {"RAY_ADDRESS": address}

    def run(path: Path) -> nbformat.NotebookNode:
        notebook = nbformat.read(path, as_version=4)
        assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
        place = {"metadata": {"path": str(tmp_path_factory.mktemp(path.stem))}}
        NotebookClient(notebook, timeout=240, resources=place).execute(env=env)
        return notebook

    with ThreadPoolExecutor(len(NOTEBOOKS)) as pool:
        yield {path: pool.submit(run, path) for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, runs: Runs) -> None:
    cells = runs[path].result().cells
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
