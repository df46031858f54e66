"""Every tensor of a file is used, or is what the model has without it, or is refused."""

import dataclasses
import json

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.models import huggingface
from jaxllm.pretrained import from_pretrained, save_pretrained
from jaxllm.pretrained.gguf_file import GgufFile
from jaxllm.pretrained.gguf_model import gguf_tensors
from jaxllm.pretrained.safetensors_file import open_safetensors, write_safetensors
from jaxllm.pretrained.tensors import StoredTensor

from .conftest import FAMILIES, assert_same, make_params

GPT2, NEO, LLAMA, NEOX = (FAMILIES[name] for name in ("gpt2", "gpt_neo", "llama", "gpt_neox"))
ATTENTION, NEO_ATTENTION = "transformer.h.1.attn.", "transformer.h.1.attn.attention."
CAUSAL = np.tril(np.ones((1, 1, 32, 32), bool))
NEAR = CAUSAL & ~np.tril(CAUSAL, -5)  # the second layer of NEO sees five keys
FREQUENCIES = (5e4 ** (-np.arange(0, 16, 2) / 16)).astype(np.float32)
HELD = {
    "a mask in bytes": (GPT2, {ATTENTION + "bias": CAUSAL.astype(np.uint8)}),
    "a mask's fill": (GPT2, {ATTENTION + "masked_bias": np.float32(-1e4)}),
    "a mask of a window": (NEO, {NEO_ATTENTION + "bias": NEAR}),
    "frequencies": (LLAMA, {"model.layers.1.self_attn.rotary_emb.inv_freq": FREQUENCIES}),
    "frequencies of a part": (NEOX, {
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": np.float32([1, 0.01]),
    }),
    "NeoX's mask and fill": (NEOX, {
        "gpt_neox.layers.1.attention.bias": CAUSAL,
        "gpt_neox.layers.1.attention.masked_bias": np.float32(-1e9),
    }),
    "frequencies in half": (LLAMA, {"model.rotary_emb.inv_freq": FREQUENCIES.astype(np.float16)}),
}
REFUSED = {
    "a mask that hides less": (GPT2, {ATTENTION + "bias": np.ones_like(CAUSAL)}, "a causal mask"),
    "a mask without its window": (NEO, {NEO_ATTENTION + "bias": CAUSAL}, "window=5"),
    "a fill that hides nothing": (GPT2, {ATTENTION + "masked_bias": np.float32(0)}, "-10000 or below"),
    "scaled frequencies": (LLAMA, {"model.rotary_emb.inv_freq": FREQUENCIES / 4}, "rope_theta=50000"),
    "a layer too many": (LLAMA, {"model.layers.2.mlp.up_proj.weight": np.ones(3, np.float32)}, "no place"),
    "a head's bias": (GPT2, {"lm_head.bias": np.zeros(300, np.float32)}, "no place"),
    "one parameter twice": (GPT2, {"ln_f.bias": np.zeros(64, np.float32)}, "are one parameter"),
}


def model_with(folder, config, more):
    """Write a model of this config with more tensors; return its parameters."""
    params = make_params(config)
    save_pretrained(folder, config, params)
    path = folder / "model.safetensors"
    tensors = {name: tensor.read().copy() for name, tensor in open_safetensors(path).items()}
    write_safetensors(path, tensors | {name: np.asarray(x) for name, x in more.items()})
    return params


@pytest.mark.parametrize("case", HELD)
def test_a_buffer_that_the_model_computes_itself_is_left_out(case, tmp_path):
    config, more = HELD[case]
    params = model_with(tmp_path / "model", config, more)
    assert_same(from_pretrained(tmp_path / "model").params, params)


@pytest.mark.parametrize("case", REFUSED)
def test_a_tensor_that_is_neither_is_refused(case, tmp_path):
    config, more, sentence = REFUSED[case]
    model_with(tmp_path / "model", config, more)
    with pytest.raises(UserError, match=sentence):
        from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_head_that_is_not_the_table_it_is_said_to_be_tied_to_is_used(config, tmp_path):
    assert config.tie_embeddings
    head = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    params = model_with(tmp_path / "model", config, {"lm_head.weight": head})
    found = from_pretrained(tmp_path / "model")
    assert found.config == dataclasses.replace(config, tie_embeddings=False)
    np.testing.assert_array_equal(found.params["head"]["kernel"], head.T)
    assert_same(found.params["embed"], params["embed"])
    family = "llama" if config is LLAMA else "gpt2"
    state = huggingface.state_dict_from_params(config, family, params)
    with pytest.raises(UserError, match="'lm_head.weight' differs from .*tie_embeddings=False"):
        huggingface.params_from_state_dict(config, family, state | {"lm_head.weight": head})


def test_a_head_that_equals_its_table_is_tied(tmp_path):
    params = make_params(GPT2)
    table = np.asarray(params["embed"]["tokens"])
    model_with(tmp_path / "model", GPT2, {"lm_head.weight": table})
    found = from_pretrained(tmp_path / "model")
    assert found.config == GPT2
    assert_same(found.params, params)


def test_a_tensor_that_the_index_does_not_know_is_refused(tmp_path):
    folder = tmp_path / "model"
    save_pretrained(folder, GPT2, make_params(GPT2), max_shard_size=50_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].pop("lm_head.weight", None)
    del index["weight_map"]["transformer.ln_f.bias"]
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="holds the tensor .* which model.safetensors.index"):
        from_pretrained(folder)


def test_a_folder_with_an_adapter_is_refused(tmp_path):
    model_with(tmp_path / "model", GPT2, {})
    write_safetensors(tmp_path / "model" / "adapter_model.safetensors", {"a": np.ones(2, np.float32)})
    with pytest.raises(UserError, match="holds an adapter .*merge it"):
        from_pretrained(tmp_path / "model")


def test_gguf_rotary_factors_are_left_out_only_where_they_are_ones():
    def file(factors):
        tensor = StoredTensor("rope_freqs.weight", factors.shape, "F32", "model.gguf", lambda: factors)
        return GgufFile("model.gguf", {"general.architecture": "llama"}, {"rope_freqs.weight": tensor})

    assert not list(gguf_tensors(file(np.ones(8, np.float32)), LLAMA))
    scaled = gguf_tensors(file(np.full(8, 4, np.float32)), LLAMA)
    with pytest.raises(UserError, match="'rope_freqs.weight' has no place in a llama model"):
        huggingface.check_left_over(LLAMA, "llama", scaled)


@pytest.mark.parametrize("bad", [np.nan, 1e200])
def test_numbers_that_are_not_finite_or_overflow_are_refused(bad):
    tensors = huggingface.state_dict_from_params(GPT2, "gpt2", make_params(GPT2))
    name = "transformer.h.1.mlp.c_fc.weight"
    tensors[name] = tensors[name].astype(np.float64)
    tensors[name][3, 5] = bad
    with pytest.raises(UserError, match=f"the tensor '{name}' holds NaN or numbers beyond float32"):
        huggingface.params_from_state_dict(GPT2, "gpt2", tensors)
