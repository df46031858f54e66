"""The notebooks run from top to bottom, and show what they promise."""

import json
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]


def run(name, monkeypatch):
    """Run a notebook of colab/; return its printed text after checking that it drew a plot."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")
    notebook = nbformat.read(ROOT / "colab" / name, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT / "colab"}}
    ).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    return "".join(o.get("text", "") for o in outputs)


@pytest.mark.slow
def test_quickstart_shows_what_the_experiment_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_PRESET", "debug")
    monkeypatch.setenv("JAXLLM_OUT", str(tmp_path / "run"))
    text = run("quickstart.ipynb", monkeypatch)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert f"held-out bits per byte {report['metrics']['heldout_bits_per_byte']:.3f}" in text
    assert text.count("hold") >= len(report["claims"])
    assert "My fellow Americans, " in text.rstrip().splitlines()[-1]


@pytest.mark.slow
def test_stochastic_rounding_trains_where_rounding_to_nearest_stands_still(monkeypatch):
    text = run("stochastic_rounding.ipynb", monkeypatch)
    loss = {name: float(value) for name, value in re.findall(r"^(.+): loss ([\d.]+)$", text, re.MULTILINE)}
    assert loss["bfloat16, nearest"] > 10 * loss["float32"]
    assert loss["bfloat16, stochastic"] < 4 * loss["float32"]


@pytest.mark.slow
def test_cheaper_training_shows_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_PRESET", "debug")
    monkeypatch.setenv("JAXLLM_OUT", str(tmp_path))
    text = run("cheaper_training.ipynb", monkeypatch)
    report = json.loads((tmp_path / "report.json").read_text())
    shares = {claim["claim"]: claim["measured"] for claim in report["claims"]}
    for claim, measured in shares.items():
        assert f"hold | {claim} | {round(measured, 3)}" in text.replace("holds", "hold")
    # By hand: 2 layers, width 64, 32 tokens of 257 in 16 groups of 17; 8 of 15 steps train one layer.
    layer, head, grouped = 12 * 64**2 + 2 * 64 * 32, 64 * 257, 64 * (16 + 17)
    flops = (8 / 15 * 0.5 + 7 / 15) * 2 * layer + grouped
    assert shares["est+groups+sr: petaflops below plain's"] == pytest.approx(flops / (2 * layer + head))


@pytest.mark.slow
def test_tpu_trains_on_all_devices_and_goes_on_with_another_split(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_PRESET", "debug")
    monkeypatch.setenv("JAXLLM_OUT", str(tmp_path / "run"))
    text = run("tpu.ipynb", monkeypatch)  # 8 devices, as in all tests
    assert re.search(r"\['mlp'\]\['in'\] +\(2, 64, 256\) +on each device \(2, 8, 256\)", text)
    assert "10 steps more" in text


@pytest.mark.smoke
def test_notebooks_are_stored_without_outputs():
    for path in (ROOT / "colab").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells), path.name
