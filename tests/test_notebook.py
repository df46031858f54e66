"""The notebooks run from top to bottom, and show what they promise."""

import importlib
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import jax
import nbclient
import nbformat
import pytest

from jaxllm import models
from jaxllm.pretrained import from_pretrained, save_pretrained
from jaxllm.report import Claim
from jaxllm.train.writers import heldout_curve
from tests.data.test_examples import chat_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def kernels_trace_for_this_cpu(tmp_path_factory):
    """As tests do by conftest.py: implementations for other machines are a third of tracing."""
    startup = tmp_path_factory.mktemp("ipython") / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "cpu.py").write_text("from jaxllm_kernels import dispatch\ndispatch._WRITTEN_FOR.clear()\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(startup.parents[1]))
        yield


@pytest.fixture
def start_from(tmp_path, monkeypatch):
    """Return what writes a tiny chat model for a notebook to begin with, and returns its tokenizer."""

    def write(context_length, **options):
        tokenizer = chat_tokenizer(**options)
        sizes = dict(vocab_size=tokenizer.vocab_size, context_length=context_length)
        config = models.get_preset("llama-nano", **sizes)
        save_pretrained(tmp_path / "base", config, models.init(config, jax.random.key(0)), tokenizer)
        monkeypatch.setenv("JAXLLM_BASE", str(tmp_path / "base"))
        monkeypatch.setenv("JAXLLM_PRESET", "debug")
        monkeypatch.setenv("JAXLLM_OUT", str(tmp_path / "out"))
        return tokenizer

    return write


def run(name, monkeypatch, devices=1):
    """Run a notebook of colab/; return its printed text after checking that it drew a plot."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")
    flags = re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"])
    monkeypatch.setenv("XLA_FLAGS", flags)
    notebook = nbformat.read(ROOT / "colab" / name, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT / "colab"}}
    ).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    return "".join(o.get("text", "") for o in outputs)


def install_cell(path) -> str:
    [cell] = [c.source for c in nbformat.read(path, as_version=4).cells if "REPOSITORY = " in c.source]
    return cell


def test_notebooks_find_the_repository_from_any_folder(tmp_path, monkeypatch):
    """All begin with the same cell, which clones nothing where jaxllm is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    [cell] = {install_cell(path) for path in (ROOT / "colab").glob("*.ipynb")}
    shown = {}
    exec(cell, shown)
    assert shown["root"] == ROOT and sys.path[:2] == [str(ROOT), str(ROOT / "kernels")]
    assert not list(tmp_path.iterdir())


def test_a_notebook_without_the_library_clones_and_installs_it_and_leaves_jax_alone(tmp_path, monkeypatch):
    """A folder that happens to be called jaxllm is not the library; a clone that is there is used again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    hidden = lambda name: None if name == "jaxllm" else importlib.machinery.PathFinder.find_spec(name)
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    called = []
    monkeypatch.setattr("subprocess.run", lambda command, check: called.append(command))
    cell = install_cell(ROOT / "colab" / "quickstart.ipynb")
    exec(cell, {})
    (tmp_path / "jaxllm").mkdir()
    exec(cell, {})
    assert [command[0] for command in called] == ["git", sys.executable, sys.executable]
    assert f"jax=={jax.__version__}" in (tmp_path / "constraints.txt").read_text()
    assert called[1][-2:] == ["-e", str(tmp_path / "jaxllm")] and "constraints.txt" in called[1]


@pytest.mark.slow
def test_quickstart_shows_what_the_experiment_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_PRESET", "debug")
    monkeypatch.setenv("JAXLLM_OUT", str(tmp_path / "run"))
    text = run("quickstart.ipynb", monkeypatch)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert f"held-out bits per byte {report['metrics']['heldout_bits_per_byte']:.3f}" in text
    for claim in report["claims"]:
        assert f"{Claim(**claim).verdict} | {claim['claim']} | " in text
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
    for claim in report["claims"]:
        verdict = Claim(**claim).verdict
        assert f"{verdict} | {claim['claim']} | {round(claim['measured'], 3)}" in text
    # By hand: 2 layers, width 64, 32 tokens of 257 in 16 groups of 17; 8 of 15 steps train one layer.
    layer, head, grouped = 12 * 64**2 + 2 * 64 * 32, 64 * 257, 64 * (16 + 17)
    flops = (8 / 15 * 0.5 + 7 / 15) * 2 * layer + grouped
    assert shares["est+groups+sr: petaflops below plain's"] == pytest.approx(flops / (2 * layer + head))


@pytest.mark.slow
def test_finetune_learns_the_answers_and_exports_them(tmp_path, monkeypatch, start_from):
    tokenizer = start_from(192)
    text = run("finetune.ipynb", monkeypatch)
    curve = heldout_curve(tmp_path / "out" / "run")
    assert curve[-1][1] < 0.99 * curve[0][1] and f"held-out loss {curve[-1][1]:.4f}" in text
    assert "'README.md', 'adapter_config.json'" in text and "'chat_template" not in text
    exported = from_pretrained(tmp_path / "out" / "merged").tokenizer.companions
    assert exported.chat_template == tokenizer.companions.chat_template


@pytest.mark.slow
def test_understand_calibrates_and_keeps_the_order(monkeypatch, start_from):
    start_from(512, choices="ABCDE")
    text = run("understand.ipynb", monkeypatch)
    [(before, after)] = re.findall(r"as given: .*AUROC ([\d.]+)\ncalibrated: .*AUROC ([\d.]+)", text)
    assert before == after
    first, second, count = re.search(r"prior: ([\d.]+) ±[^,]*, ([\d.]+) ± .* \((\d+) inputs", text).groups()
    assert abs(float(first) + float(second) - 1) < 2e-3 and count == "4"
    suppressed = re.findall(r"log p (-[\d.]+), log p~ (-[\d.]+) to (-[\d.]+)", text)
    assert len(suppressed) == 4 and any(most != alone for alone, _, most in suppressed)
    for alone, never, _ in suppressed:
        assert abs(float(alone) - float(never)) < 2e-3
    assert re.search(r"^said: +A \d+% .*\nright: A 29% B 29% C 21% D 14% E 7%$", text, re.MULTILINE)
    gap, left = re.search(r"mean preference: (-?[\d.]+) logits, then (-?[\d.]+)", text).groups()
    assert abs(float(left)) < abs(float(gap))
    assert re.search(r"median error [\d,]+ km, R2 -?[\d.]+", text)
    names = re.findall(r"(\w+) +the other country's name: [+-][\d.]+ nats$", text, re.MULTILINE)
    assert names == ["gradient", "another", "shuffled", "orthogonal", "random"]
    assert re.search(r"copies: [\d.]+, by chance [\d.]+\nrandom tokens: [\d.]+ .*\nThe [\d.]+ key", text)


@pytest.mark.slow
def test_adapt_learns_from_neighbours(monkeypatch, start_from):
    start_from(192)
    text = run("adapt.ipynb", monkeypatch)
    for kind in ("code", "addresses"):
        curve = re.search(rf"{kind}: ([\d.]+) bits per byte, ([\d.]+) after 4 neighbours", text)
        assert float(curve[2]) < float(curve[1])
    assert re.search(r"copies of a document among its neighbours: \d+%", text)
    assert len(re.findall(r"^(?:0\.\d\d|1\.00) good: ", text, re.MULTILINE)) == 4  # TART's section


@pytest.mark.slow
def test_texts_compare_populations_by_models_and_count_copies(monkeypatch, start_from):
    start_from(64)
    text = run("texts.ipynb", monkeypatch)
    rows = re.findall(r"(\w+): north ([\d.]+) positive, south ([\d.]+); h -?[\d.]+ \(.* q ([\d.]+)", text)
    assert [row[0] for row in rows] == ["soup", "bread", "cheese", "salad", "rain", "wind"]
    assert all(0 <= float(share) <= 1 for row in rows for share in row[1:])
    assert re.search(r"copied: \d+% are whole texts, \d+% hold 5 words", text)
    assert re.search(r"punctuated: my\W+fellow\W.* met\W+3\.5\W+million", text)
    assert re.search(r"4 words behind: my\W+fellow\W", text)


@pytest.mark.slow
def test_hybrids_mix_two_models(monkeypatch):
    monkeypatch.setenv("JAXLLM_PRESET", "debug")
    text = run("hybrids.ipynb", monkeypatch)
    assert float(re.search(r"one-hot against the component: ([\d.e+-]+)", text)[1]) <= 1e-6
    assert re.search(r"block by block: \[\[0\.\d+, 0\.\d+\], \[", text)
    before, tuned = re.search(r"held-out loss ([\d.]+) before, ([\d.]+) tuned", text).groups()
    assert float(tuned) < float(before)


@pytest.mark.slow
def test_write_suggests_and_counts_what_that_saves(monkeypatch, start_from):
    start_from(192)
    text = run("write.ipynb", monkeypatch)
    assert re.search(r"^'My fellow Amer' [01]\.\d\d 'icans", text, re.MULTILINE)
    shares = [float(share) for share in re.findall(r": (0\.\d{3}) (?:of the keys )?saved", text)]
    assert len(shares) == 4 and min(shares) > 0.05
    assert "http://127.0.0.1:" in text or "pip install starlette" in text
    assert "polynomials: a'_k = a_(k-1) * 1/k" in text and "x^10+2/7cos(7x)-2/7" in text


@pytest.mark.slow
def test_tpu_trains_on_all_devices_and_goes_on_with_another_split(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_PRESET", "debug")
    monkeypatch.setenv("JAXLLM_OUT", str(tmp_path / "run"))
    text = run("tpu.ipynb", monkeypatch, devices=8)
    assert re.search(r"\['mlp'\]\['in'\] +\(2, 64, 256\) +on each device \(2, 8, 256\)", text)
    assert "10 steps more" in text


def test_each_notebook_opens_itself_in_colab():
    for path in (ROOT / "colab").glob("*.ipynb"):
        top = nbformat.read(path, as_version=4).cells[0].source
        assert f"https://colab.research.google.com/github/jaxllm/jaxllm/blob/main/colab/{path.name})" in top


@pytest.mark.smoke
def test_notebooks_are_stored_without_outputs():
    for path in (ROOT / "colab").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells), path.name
