"""The notebooks of the documents run from beginning to end, and show what they showed when they were written.

`python -m tests.test_notebooks` runs all of them and writes their outputs anew.
"""

import json
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LARGEST_BYTES = 120_000


def executed(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, run in `folder`; raises where a cell fails."""
    content = nbformat.read(notebook, as_version=4)
    NotebookClient(
        content,
        timeout=900,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    for cell in content.cells:
        cell.metadata.pop("execution", None)  # when it ran
    return content


def texts_of(outputs: list[nbformat.NotebookNode]) -> str:
    """All that a cell shows, pictures left out."""
    shown = [output.get("text", "") for output in outputs]
    for output in outputs:
        shown += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(shown)


def code_cells(notebook: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_the_same_kinds_of_things(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    new = [cell for cell in executed(notebook, tmp_path).cells if cell.cell_type == "code"]
    for cell, committed in zip(new, code_cells(notebook), strict=True):
        kinds = [sorted(output.get("data", {output.output_type: ""})) for output in cell.outputs]
        told = [sorted(output.get("data", {output.output_type: ""})) for output in committed.outputs]
        assert kinds == told, cell.source
        lines = [texts_of(one.outputs).count("\n") for one in (cell, committed)]
        assert lines[0] == lines[1], cell.source
    assert not list(ROOT.glob("docs/notebooks/runs/*")), "it writes where it runs"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_executed_and_says_that_its_data_are_simulated(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < LARGEST_BYTES
    first = nbformat.read(notebook, as_version=4).cells[0]
    assert "**simulated**" in first.source
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    shown = "\n".join(texts_of(cell.outputs) for cell in cells)
    assert shown.strip()
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users)/|Traceback|Warning", shown), "no paths"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_links_to_what_exists_and_uses_the_public_api(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    for cell in cells:
        for target in re.findall(r"\]\(([^)#:\s]+)\)", cell.source) if cell.cell_type == "markdown" else []:
            assert (notebook.parent / target).exists(), target
    ours = "ranking|embeddings|features|serving|experiments"
    imports = {
        line
        for cell in cells
        if cell.cell_type == "code"
        for line in cell.source.splitlines()
        if re.match(rf"(from|import) ({ours})\b", line)
    }
    assert imports == {"from experiments import api"}


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as scratch:
            found = executed(path, Path(scratch))
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
