"""The notebook runs from top to bottom, and what it shows is what the experiment reported."""

import json
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]


def test_quickstart_runs_and_shows_the_report(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_PRESET", "debug")
    monkeypatch.setenv("JAXLLM_OUT", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")
    notebook = nbformat.read(ROOT / "colab" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT / "colab"}}
    ).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    text = "".join(o.get("text", "") for o in outputs)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert f"held-out bits per byte {report['metrics']['heldout_bits_per_byte']:.3f}" in text
    assert text.count("hold") >= len(report["claims"])
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert "My fellow Americans, " in text.rstrip().splitlines()[-1]


@pytest.mark.smoke
def test_notebooks_are_stored_without_outputs():
    for path in (ROOT / "colab").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells), path.name
