"""Bad input: one sentence on stderr, exit code 2, nothing compiled, nothing left behind."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.adapt import Lora, LoraConfig, save_adapter
from jaxllm.cli import _main as jaxllm_command
from jaxllm.cli.parse import run
from jaxllm.data import load_tokenizer
from jaxllm.pretrained import save_pretrained
from jaxllm.train.checksum import checksums


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("It was the best of times, it was the worst of times. " * 40)
    return path


CASES = {
    "missing file": (["--data", "nowhere.txt"], ["nowhere.txt"]),
    "short text": (["--data", "SHORT", "--seq-len", "64"], ["shorter than one sequence", "64"]),
    "empty file": (["--data", "EMPTY"], ["empty"]),
    "ids beyond the vocabulary": (
        ["--model.vocab-size", "100"], ["tokenizer 'bytes'", "256", "vocab_size=100", "at least 257"]),
    "heads and width": (["--model.num-heads", "5"], ["num_heads=5", "embed_dim=64"]),
    "batch and devices": (["--batch-size", "6"], ["batch_size 6", "8 devices", "multiple of 8"]),
    "batch and parts": (["--batch-size", "16", "--accumulate", "3"], ["16", "accumulate=3"]),
    "mesh and devices": (["--mesh.fsdp", "3"], ["fsdp=3", "8 devices"]),
    "preset": (["--preset", "gtp2"], ["unknown preset 'gtp2'", "did you mean 'gpt2'"]),
    "no preset": (["--preset"], ["unknown preset"]),
    "field": (["--model.num-layer", "3"], ["'--model.num-layer'", "did you mean '--model.num-layers'"]),
    "value": (["--steps", "many"], ["--steps", "many"]),
    "number": (["--steps", "0"], ["steps is 0", "at least 1"]),
    "choice": (["--optim.schedule", "cosin"], ["cosin", "cosine"]),
    "precision": (["--precision", "fp32"], ["unknown precision 'fp32'", "float32"]),
    "optimizer": (["--optim.name", "adamm"], ["unknown optimizer 'adamm'", "did you mean 'adam"]),
    "optimizer module": (["--optim.name", "nowhere:make"], ["nowhere:make", "package.module:function"]),
    "tokenizer": (["--tokenizer", "bpe:many"], ["bpe:many"]),
    "long sequence": (["--seq-len", "4096"], ["seq_len 4096", "128"]),
    "field of another architecture": (
        ["--preset", "mamba-nano", "--model.sink-logit", "0"], ["architecture mamba has no 'sink-logit'"]),
    "norm": (["--model.norm", "layernrom"], ["layernrom", "did you mean 'layernorm'"]),
    "subnetwork schedule": (
        ["--subnetwork", "est-gpt2"], ["unknown subnetwork 'est-gpt2'", "did you mean 'est-gpt2-like'"]),
    "subnetwork sizes": (
        ["--subnetwork", "est-gpt2-like", "--model.num-layers", "3"], ["rates.layers=0.5", "1/3 or 2/3"]),
    "stray word": (["train.txt"], ["train.txt"]),
}  # fmt: skip


def fails(argv, capsys):
    """Run the command; return its one sentence after checking that it is one, and the exit code."""
    with pytest.raises(SystemExit) as stop:
        run(jaxllm_command, argv)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_nothing_left_behind(case, text, tmp_path, capsys, monkeypatch):
    flags, expected = CASES[case]
    (tmp_path / "short.txt").write_text("Call me Ishmael.")
    (tmp_path / "empty.txt").write_text("")
    names = {"SHORT": str(tmp_path / "short.txt"), "EMPTY": str(tmp_path / "empty.txt")}
    flags = [names.get(word, word) for word in flags]
    monkeypatch.setattr(jax._src.compiler, "compile_or_get_cached", _must_not_compile)
    out = tmp_path / "run"
    argv = ["train", "--preset", "gpt2-nano", "--data", str(text), "--tokenizer", "bytes",
            "--seq-len", "16", "--batch-size", "8", "--out", str(out), *flags]  # fmt: skip
    sentence = fails(argv, capsys)
    for part in expected:
        assert part in sentence
    assert not out.exists()
    assert not list(tmp_path.rglob(".partial-*"))


BASE = models.get_preset("gpt2-nano", vocab_size=257, num_layers=1, context_length=32)
ROW = {"prompt": "1+1=", "completion": "2"}
ROWS = [ROW, ROW | {"prompt": "one and one is "}]
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}
# What fine-tuning refuses: (rows of the data, flags, parts of the sentence).
FINE_TUNING = {
    "target": (ROWS, ["--lora.rank", "4", "--lora.targets", "quer"], ["'quer'", "did you mean 'query'"]),
    "name": (ROWS, ["--train-only", "final_nrom"], ["'final_nrom'", "did you mean 'final_norm'"]),
    "dropout alone": (ROWS, ["--lora.dropout", "0.1"], ["lora.dropout is set and lora.rank is not"]),
    "no template": ([TALK, TALK], [], ["holds messages", "no chat template", "prompt and completion"]),
    "long completion": (
        [ROW, ROW | {"completion": "2" * 40}], [], ["1 of 2 examples", "longer than seq_len 16", "least 44"]),
    "beyond the context": (ROWS, ["--seq-len", "64"], ["seq_len 64", "32 positions"]),
    "empty completion": ([ROW, ROW | {"completion": ""}], [], ["line 2 of", "empty completion"]),
    "tokenizer": (ROWS, ["--tokenizer", "gpt2"], ["--tokenizer changes nothing", "leave out one"]),
    "preset": (ROWS, ["--model.remat", "full", "--preset=gpt2"], ["--preset changes nothing", "base'"]),
    "size": (ROWS, ["--model.num_layers", "2"], ["--model.num-layers changes nothing", "decides the model"]),
    "groups": (ROWS, ["--vocab-groups", "random"], ["vocab_groups makes a head anew", "brings its own"]),
    "padded text": (
        [{"text": "words " * n} for n in range(9, 19)], ["--no-packed"], ["packed=False is of examples"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A pretrained folder, and an adapter that remembers another base of its shape."""
    folder, lora = tmp_path_factory.mktemp("bases"), Lora(BASE, LoraConfig(rank=2))
    zeros = lambda shapes: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    save_pretrained(folder / "base", BASE, zeros(models.shapes(BASE)), load_tokenizer("bytes"))
    ones = jax.tree.map(lambda x: x + 1, zeros(models.shapes(BASE)))
    about = {"param_dtype": "float32", "frozen": checksums(ones)}
    adapter = zeros(jax.eval_shape(lora.init, jax.random.key(0)))
    save_adapter(folder / "adapter", lora, adapter, about=about)
    return folder


@pytest.mark.parametrize("case", FINE_TUNING)
def test_what_fine_tuning_refuses(case, bases, tmp_path, capsys, monkeypatch):
    rows, flags, expected = FINE_TUNING[case]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(jax._src.compiler, "compile_or_get_cached", _must_not_compile)
    out = tmp_path / "run"
    argv = ["train", "--start", str(bases / "base"), "--data", str(data), "--seq-len", "16",
            "--batch-size", "8", "--out", str(out), *flags]  # fmt: skip
    sentence = fails(argv, capsys)
    assert all(part in sentence for part in expected), sentence
    assert not out.exists()


def test_an_adapter_of_another_base(bases, capsys):
    for command in ("generate", "chat", "evaluate"):
        argv = [command, str(bases / "base"), "--adapter", str(bases / "adapter")]
        argv += ["--data", str(bases / "base" / "config.json")] * (command == "evaluate")
        assert "was trained on another model than" in fails(argv, capsys)
    assert "no chat template" in fails(["chat", str(bases / "base")], capsys)
    assert "there is no folder 'nowhere'" in fails(["convert", "nowhere", "written", "--adapter"], capsys)


def _must_not_compile(*args, **kwargs):
    raise AssertionError("compiled something before the input was checked")


def test_a_folder_that_cannot_be_written(text, tmp_path, capsys):
    out = text / "run"  # below a file: fails for root too, as a read-only folder does for others
    argv = ["train", "--preset", "gpt2-nano", "--data", str(text), "--tokenizer", "bytes",
            "--seq-len", "16", "--batch-size", "8", "--out", str(out)]  # fmt: skip
    assert "cannot write to the folder" in fails(argv, capsys)


def test_a_disk_without_room_for_the_checkpoints(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    argv = ["train", "--preset", "gpt2-nano", "--data", str(text), "--tokenizer", "bytes",
            "--seq-len", "16", "--batch-size", "8", "--out", str(tmp_path / "run")]  # fmt: skip
    assert "more checkpoints need" in fails(argv, capsys)


def test_unknown_command(capsys):
    assert "did you mean 'train'" in fails(["trian"], capsys)


def test_generate_without_a_run(tmp_path, capsys):
    assert "no trained model in" in fails(["generate", str(tmp_path)], capsys)
    assert not list(tmp_path.iterdir())
