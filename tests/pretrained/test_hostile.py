"""Files that are broken, or lie: one clear sentence each, and no memory spent on them."""

import dataclasses
import json
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.fuzz_pretrained import FuzzPretrainedConfig, main, write_gguf
from jaxllm.cli import _main as jaxllm_command
from jaxllm.cli.parse import run
from jaxllm.errors import UserError
from jaxllm.models import huggingface
from jaxllm.pretrained import from_pretrained, save_pretrained
from jaxllm.pretrained.safetensors_file import open_safetensors, write_safetensors

from .conftest import FAMILIES, make_params


def edit_config(**values):
    def edit(folder):
        path = folder / "config.json"
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in content.items() if v != "GONE"}))

    return edit


def edit_tensors(change):
    def edit(folder):
        path = folder / "model.safetensors"
        tensors = {name: stored.read().copy() for name, stored in open_safetensors(path).items()}
        change(tensors)
        write_safetensors(path, tensors)

    return edit


def edit_header(change):
    def edit(folder):
        path = folder / "model.safetensors"
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return edit


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def long_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


def only_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def index(names):
    def edit(folder):
        (folder / "model.safetensors").unlink()
        content = {"weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return edit


UP = "transformer.h.1.mlp.c_fc.weight"
CASES = {
    "truncated weights": (cut, ["the tensor 'transformer.h.1.mlp.c_proj.weight' ends at byte", "cut short"]),
    "empty weights": (write("model.safetensors", b""), ["not a whole safetensors file", "0 bytes"]),
    "header longer than the file": (long_header, ["header claims 4611686018427387904"]),
    "header not JSON": (write("model.safetensors", struct.pack("<Q", 4) + b"{{{{"), ["is not JSON"]),
    "deep header": (write("model.safetensors", struct.pack("<Q", 10**5) + b"[" * 10**5), ["is not JSON"]),
    "trailing bytes": (
        lambda folder: (folder / "model.safetensors").open("ab").write(b"more"),
        ["4 bytes after its last tensor"]),
    "missing tensor": (edit_tensors(lambda t: t.pop(UP)), [f"has no tensor '{UP}'", "num_layers=2"]),
    "leftover tensor": (
        edit_tensors(lambda t: t.update({"transformer.h.2.ln_1.weight": np.ones(64)})),
        ["'transformer.h.2.ln_1.weight'", "has no place in a gpt2 model with num_layers=2"]),
    "transposed tensor": (
        edit_tensors(lambda t: t.update({UP: t[UP].T})), [f"'{UP}'", "[256, 64]", "asks for [64, 256]"]),
    "whole numbers": (
        edit_tensors(lambda t: t.update({UP: t[UP].astype(np.int32)})), [f"'{UP}'", "holds I32"]),
    "size and bytes differ": (
        edit_header(lambda h: h[UP].update(shape=[64, 257])), [f"'{UP}'", "[64, 257] of F32", "damaged"]),
    "dtype and bytes differ": (
        edit_header(lambda h: h[UP].update(dtype="F16")), [f"'{UP}'", "of F16", "damaged"]),
    "unknown dtype": (edit_header(lambda h: h[UP].update(dtype="F8_E4M3")), [f"'{UP}'", "F8_E4M3", "BF16"]),
    "negative size": (edit_header(lambda h: h[UP].update(shape=[-64, -256])), [f"'{UP}'", "[-64, -256]"]),
    "shared bytes": (
        edit_header(lambda h: h[UP].update(data_offsets=h[UP.replace("1", "0")]["data_offsets"])),
        ["mlp.c_fc.weight'", "damaged"]),
    "pickle": (only_pickle, ["pytorch_model.bin", "never read", "convert it to safetensors"]),
    "no weights": (no_weights, ["has 0 .safetensors files", "model.safetensors"]),
    "missing shards": (
        index({"a": "model-1.safetensors", "b": "model-2.safetensors"}),
        ["lacks 2 of its 2 shards: model-1.safetensors, model-2.safetensors"]),
    "shard with a name too long": (
        index({"a": "A" * 100_000 + ".safetensors"}), ["tensor 'a' in 'AAAA", "name of a .safetensors"]),
    "shard with a line in its name": (
        index({"a": "two\nlines.safetensors"}), ["in 'two\\nlines.safetensors'"]),
    "config too deep": (
        lambda folder: (folder / "config.json").write_text('{"a":' * 10**5), ["is not JSON"]),
    "shard elsewhere": (
        index({"a": "../../secret.safetensors"}),
        ["'../../secret.safetensors'", "same folder"]),
    "index without map": (index([]), ["no weight_map"]),
    "unsupported architecture": (
        edit_config(model_type="gpt_nox"), ["model_type 'gpt_nox'", "did you mean 'gpt_neox'"]),
    "no model type": (
        edit_config(model_type="GONE"), ["unknown model_type 'None'", "gpt2, gpt_neo, gpt_neox, llama"]),
    "remote code": (edit_config(model_type="mine", auto_map={"AutoModel": "m.py"}), ["model_type 'mine'"]),
    "config not JSON": (write("config.json", b"{"), ["config.json' is not JSON"]),
    "config a list": (write("config.json", b"[]"), ["holds no JSON object"]),
    "config missing": (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
    "huge config": (write("config.json", b" " * 2**21), ["more than 1,048,576 bytes"]),
    "missing field": (edit_config(n_layer="GONE"), ["no 'n_layer'"]),
    "text for a size": (edit_config(n_embd="64"), ["n_embd is '64'", "whole number"]),
    "huge size": (edit_config(vocab_size=10**15), ["vocab_size is 1000000000000000", "whole number"]),
    "many layers": (edit_config(n_layer=10**6), ["n_layer is 1000000", "at most 4096"]),
    "heads and width": (edit_config(n_head=5), ["num_heads=5", "embed_dim=64"]),
    "activation": (edit_config(activation_function="mish"), ["unknown activation 'mish'"]),
    "quantised": (edit_config(quantization_config={"bits": 4}), ["quantization_config", "not supported"]),
    "wrong size": (edit_config(vocab_size=400), ["transformer.wte.weight", "[300, 64]", "[400, 64]"]),
    "tokenizer too large": (
        edit_config(vocab_size=299), ["ids up to 299", "vocab_size is 299", "trained with"]),
    "tokenizer not JSON": (write("tokenizer.json", b"\x80\x04"), ["tokenizer.json' is not JSON"]),
    "deep tokenizer": (write("tokenizer.json", b"[" * 10**5), ["tokenizer.json' is not JSON"]),
    "tokenizer of nothing": (
        write("tokenizer.json", b'{"model": {}}'),
        ["not a Hugging Face tokenizer.json"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer):
    """A model's folder and its files' contents."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_pretrained(folder, FAMILIES["gpt2"], make_params(FAMILIES["gpt2"]), tokenizer)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def fails(argv, capsys):
    """Run the command; return its one sentence, after checking that it is one, and the exit code."""
    with pytest.raises(SystemExit) as stop:
        run(jaxllm_command, argv)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_nothing_written(case, whole, tmp_path, capsys, monkeypatch):
    damage, expected = CASES[case]
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    damage(folder)
    monkeypatch.setattr(huggingface.np, "empty", _must_not_allocate)
    sentence = fails(["convert", str(folder), str(tmp_path / "out")], capsys)
    for part in expected:
        assert part in sentence
    assert len(sentence) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def _must_not_allocate(*args, **kwargs):
    raise AssertionError("allocated parameters before the files were checked")


def test_rotary_scaling_is_refused(tmp_path):
    save_pretrained(tmp_path / "model", FAMILIES["llama"], make_params(FAMILIES["llama"]))
    for scaling in ({"rope_type": "llama3", "factor": 8.0}, {"type": "linear"}, "yarn", {"type": "yarn"},
                    {"type": "linear", "factor": 0}, {"rope_type": "llama3", "factor": "8"}, {"type": 3}):
        edit_config(rope_scaling=scaling, rope_parameters="GONE")(tmp_path / "model")
        with pytest.raises(UserError, match="not supported|which scaling by .* needs|it must be a number"):
            from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    "types", [[], [[["global"], 3]], [[["global", "sparse"], 1]], 7, [[["global"], 10**9]]]
)
def test_attention_types_that_do_not_make_the_layers(types, tmp_path):
    save_pretrained(tmp_path / "model", FAMILIES["gpt_neo"], make_params(FAMILIES["gpt_neo"]))
    edit_config(attention_types=types)(tmp_path / "model")
    with pytest.raises(UserError, match="attention_types is .* that make 2 layers"):
        from_pretrained(tmp_path / "model")


SOURCES = {
    "nowhere.gguf": "no model at 'nowhere.gguf'",
    "nowhere/at/all": "no model at 'nowhere/at/all'",
    "notes.txt": "expected a .safetensors or .gguf file",
    "model.bin": "never read",
    ".": "no config.json",
}


@pytest.mark.parametrize("source", SOURCES)
def test_sources_that_are_no_model(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "model.bin").write_bytes(pickle.dumps(1))
    with pytest.raises(UserError, match=SOURCES[source]):
        from_pretrained(source)


@pytest.mark.parametrize(
    "name, said", [("model.safetensors", "not a whole safetensors file"), ("pytorch_model.bin", "never read")]
)
def test_nothing_is_unpickled(name, said, whole, tmp_path):
    trace = tmp_path / "unpickled"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (trace,))

    folder = tmp_path / "model"
    folder.mkdir()
    for own, content in whole.items():
        (folder / own).write_bytes(content)
    no_weights(folder)
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=said):
        from_pretrained(folder)
    assert not trace.exists()
    pickle.loads((folder / name).read_bytes())
    assert trace.exists()  # it would have shown


def gguf_bytes(tmp_path):
    write_gguf(tmp_path / "model.gguf", FAMILIES["llama"], make_params(FAMILIES["llama"]))
    return (tmp_path / "model.gguf").read_bytes()


GGUF_CASES = {
    "truncated": (lambda c: c[:-2000], "the tensor 'blk.1.*' ends at byte .* cut short"),
    "truncated header": (lambda c: c[:900], "the header of .* cut short or damaged"),
    "empty": (lambda c: b"", "not a GGUF file"),
    "not GGUF": (lambda c: b"GGML" + c[4:], "does not begin with GGUF"),
    "version": (lambda c: c[:4] + struct.pack("<I", 1) + c[8:], "GGUF version 1; expected 2 or 3"),
    "many tensors": (lambda c: c[:8] + struct.pack("<Q", 2**63) + c[16:], "the header of"),
    "many values": (lambda c: c[:16] + struct.pack("<Q", 2**40) + c[24:], "the header of|unknown type"),
    "long string": (lambda c: c[:24] + struct.pack("<Q", 2**62) + c[32:], "asks for 46116860184\\d+ bytes"),
    "name cut in letters": (lambda c: c.replace(b"llama.block_count", b"llama.block\xff\xff\xff\xff\xff\xff"),
                            "not UTF-8"),
    "missing value": (lambda c: c.replace(b"llama.block_count", b"llama.block_coun_"), "'llama.block_count'"),
    "architecture": (lambda c: c.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma", 1),
                     "unknown architecture 'gemma'"),
    "leftover tensor": (lambda c: c.replace(b"output_norm.weight", b"outptt_norm.weight"),
                        "no tensor 'model.norm.weight'"),
}  # fmt: skip


@pytest.mark.parametrize("case", GGUF_CASES)
def test_broken_gguf(case, tmp_path):
    pytest.importorskip("gguf")
    damage, sentence = GGUF_CASES[case]
    content = gguf_bytes(tmp_path)
    damaged = damage(content)
    assert damaged != content
    (tmp_path / "model.gguf").write_bytes(damaged)
    with pytest.raises(UserError, match=sentence):
        from_pretrained(tmp_path / "model.gguf")


@pytest.mark.slow
def test_fuzzed_files_give_clean_errors(tmp_path):
    pytest.importorskip("gguf")
    report = main(FuzzPretrainedConfig(cases=40, seed=1, out=str(tmp_path)), preset="debug")
    assert [claim.claim for claim in report.claims if not claim.holds] == []
    assert report.metrics["clean_errors"] > 10
    assert report.metrics["cases"] == 40


def test_reading_needs_one_copy_of_the_parameters(tmp_path):
    config = dataclasses.replace(FAMILIES["llama"], embed_dim=256, head_dim=64, mlp_dim=1024, num_layers=6)
    save_pretrained(tmp_path / "model", config, make_params(config))
    size = 4 * config.num_params
    from_pretrained(tmp_path / "model")  # imports and compiles what is needed once
    tracemalloc.start()  # numpy reports to it; mapped files and jax's own arrays do not count
    from_pretrained(tmp_path / "model")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.9 * size < peak < 1.1 * size, (peak, size)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path) not in maps.read_text()  # nor do the files' pages stay with us
