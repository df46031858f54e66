"""Our folders read back as they were written, and are written whole or not at all."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.pretrained import from_pretrained, save_pretrained
from jaxllm.pretrained import save as save_module
from jaxllm.pretrained.safetensors_file import open_safetensors, write_safetensors

from .conftest import FAMILIES, assert_same, make_params


@pytest.mark.smoke
@pytest.mark.parametrize("shard", ["5GB", "60KB"])
@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip_is_exact(name, shard, tmp_path, tokenizer):
    config = FAMILIES[name]
    params = make_params(config)
    save_pretrained(tmp_path / "model", config, params, tokenizer, max_shard_size=shard)
    again = from_pretrained(tmp_path / "model")
    assert (len(list((tmp_path / "model").glob("*.safetensors"))) > 1) == (shard == "60KB")
    assert again.config == config
    assert_same(again.params, params)
    assert again.tokenizer.encode("the people, 12").tolist() == tokenizer.encode("the people, 12").tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_round_trip_is_exact(dtype, tmp_path):
    config = dataclasses.replace(FAMILIES["llama"], param_dtype=dtype, dtype=dtype)
    params = make_params(config)
    save_pretrained(tmp_path / "model", config, params)
    again = from_pretrained(tmp_path / "model", param_dtype=dtype)
    assert again.config == config
    assert_same(again.params, params)
    assert again.tokenizer is None
    wider = from_pretrained(tmp_path / "model")
    assert_same(wider.params, jax.tree.map(lambda x: x.astype("float32"), params))


def test_params_are_on_the_device_and_run(tmp_path, tokens):
    config = FAMILIES["gpt2"]
    save_pretrained(tmp_path / "model", config, make_params(config))
    model = from_pretrained(tmp_path / "model", dtype="bfloat16")
    assert model.config.dtype == "bfloat16"
    assert model.config.param_dtype == "float32"
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.params))
    assert models.apply(model.config, model.params, tokens).shape == (3, 17, 300)


def test_a_single_file_is_a_source(tmp_path):
    config = FAMILIES["gpt2"]
    params = make_params(config)
    save_pretrained(tmp_path / "model", config, params)
    assert_same(from_pretrained(tmp_path / "model" / "model.safetensors").params, params)


def test_the_base_models_names_are_read_too(tmp_path):
    """GPT2Model and LlamaModel save without the prefix that the language models have."""
    config = FAMILIES["llama"]
    params = make_params(config)
    save_pretrained(tmp_path / "model", config, params)
    file = tmp_path / "model" / "model.safetensors"
    tensors = {name.removeprefix("model."): t.read() for name, t in open_safetensors(file).items()}
    write_safetensors(file, {name: tensor.copy() for name, tensor in tensors.items()})
    assert_same(from_pretrained(tmp_path / "model").params, params)


def test_a_tied_head_is_written_once_and_buffers_are_left_alone(tmp_path):
    config = FAMILIES["gpt2"]
    params = make_params(config)
    save_pretrained(tmp_path / "model", config, params)
    file = tmp_path / "model" / "model.safetensors"
    tensors = {name: t.read().copy() for name, t in open_safetensors(file).items()}
    assert "lm_head.weight" not in tensors
    tensors |= {
        "lm_head.weight": tensors["transformer.wte.weight"],
        "transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 8, 8), bool)),
    }
    write_safetensors(file, tensors)
    assert_same(from_pretrained(tmp_path / "model").params, params)


@pytest.mark.torch  # whose extra brings the package
def test_the_safetensors_package_reads_our_file_and_we_read_its(tmp_path):
    theirs = pytest.importorskip("safetensors.numpy")
    draw = np.random.default_rng(0)
    tensors = {"a": draw.random((3, 5), np.float32), "b": draw.random(7), "c": np.arange(4, dtype=np.int32),
               "odd": np.ones((3,), np.uint8), "empty": np.ones((0, 4), np.float16),
               "scalar": np.array(2.5, np.float32)}  # fmt: skip
    write_safetensors(tmp_path / "ours.safetensors", tensors)
    for name, tensor in theirs.load_file(tmp_path / "ours.safetensors").items():
        assert tensor.dtype == tensors[name].dtype
        assert np.array_equal(tensor, tensors[name])
    theirs.save_file(tensors, tmp_path / "theirs.safetensors")
    stored = open_safetensors(tmp_path / "theirs.safetensors")
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert np.array_equal(stored[name].read(), tensor)


def test_a_transposed_array_is_written_in_order(tmp_path):
    write_safetensors(tmp_path / "t.safetensors", {"t": np.arange(6.0).reshape(2, 3).T})
    assert open_safetensors(tmp_path / "t.safetensors")["t"].read().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    config = FAMILIES["gpt2"]
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="already exists"):
        save_pretrained(tmp_path, config, make_params(config))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_filled_through_a_link_and_one_that_cannot_be_replaced_is_named(
    tmp_path, monkeypatch
):
    config = FAMILIES["gpt2"]
    params = make_params(config)
    (tmp_path / "disk").mkdir()
    for link, target in (("link", "disk"), ("dangling", "nowhere")):
        (tmp_path / link).symlink_to(tmp_path / target)
        save_pretrained(tmp_path / link, config, params)
        assert (tmp_path / link).is_symlink()
        assert_same(from_pretrained(tmp_path / target).params, params)
    for name in ("stand", "mount"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "stand")
    monkeypatch.setattr("os.path.ismount", lambda path: str(path) == str(tmp_path / "mount"))
    for folder in (".", "", "../mount"):
        with pytest.raises(UserError, match="cannot be replaced; give a new folder in it"):
            save_pretrained(folder, config, params)
    assert not list((tmp_path / "stand").iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, tensors):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save_module, "write_safetensors", fail)
    config = FAMILIES["gpt2"]
    with pytest.raises(UserError, match="No space left"):
        save_pretrained(tmp_path / "model", config, make_params(config))
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_does_not_fit_is_not_written(tmp_path, tokenizer):
    config = dataclasses.replace(FAMILIES["gpt2"], vocab_size=299)
    with pytest.raises(UserError, match="ids up to 299, but the model's vocab_size is 299"):
        save_pretrained(tmp_path / "model", config, make_params(config), tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_model_no_family_holds_is_refused(tmp_path):
    config = dataclasses.replace(FAMILIES["gpt2"], sink_logit=0.0)
    with pytest.raises(UserError, match="no Hugging Face family"):
        save_pretrained(tmp_path / "model", config, make_params(config))


def test_a_shard_holds_no_more_than_asked_unless_one_tensor_does(tmp_path):
    config = FAMILIES["llama"]
    save_pretrained(tmp_path / "model", config, make_params(config), max_shard_size=30_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    for name in set(index["weight_map"].values()):
        stored = open_safetensors(tmp_path / "model" / name)
        sizes = [tensor.read().nbytes for tensor in stored.values()]
        assert sum(sizes) <= 30_000 or len(sizes) == 1
    assert index["metadata"]["total_size"] == 4 * config.num_params
