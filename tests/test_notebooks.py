"""Every notebook runs from top to bottom, and what is committed of it reads on a web page."""

import os
import pathlib
import re

import pytest

os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # before Jupyter is imported, which warns of its old folders
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 400_000
SECONDS = 240  # two cores take about 25; shared ones several times as long

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_from_top_to_bottom(path):
    """With the installed kernel of this interpreter; an error in any cell is raised here with its traceback."""
    notebook = nbformat.read(path, as_version=4)
    committed = [len(cell.outputs) > 0 for cell in code_cells(notebook)]
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert [len(cell.outputs) > 0 for cell in code_cells(notebook)] == committed


@each_notebook
def test_a_committed_notebook_was_run_from_top_to_bottom_and_shows_its_results(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@each_notebook
def test_a_committed_notebook_is_small_and_tells_a_story(path):
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    assert 2 * len(notebook.cells) >= 3 * len(code_cells(notebook))  # words between the code


@each_notebook
def test_a_committed_notebook_names_no_place_on_the_machine_that_ran_it(path):
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not re.findall(r"(?:/(?:home|root|tmp|usr|opt|work|Users)/|[A-Z]:\\)[\w.-]*", text)
