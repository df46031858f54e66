"""Parameters rearranged for decoding are the same model."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxllm import models, parallel
from tests.models.random_params import random_params

TOKENS = np.random.default_rng(2).integers(0, 256, (2, 12))
MASK = np.arange(12) >= np.array([[0], [3]])
DECODE = jax.jit(models.decode, static_argnums=0)


@functools.cache
def model(name, dtype):
    """Return (config, params, hidden states as decoded from the parameters as they are)."""
    config = dataclasses.replace(models.get_preset(name), dtype=dtype)
    params = random_params(config, scale=0.05)
    return config, params, decoded(config, params, apart=False)


def decoded(config, params, apart):
    cache = models.init_cache(config, 2, 12, apart=apart)
    first, cache = DECODE(config, params, TOKENS[:, :9], cache, mask_BT=MASK[:, :9])
    steps = []
    for t in range(9, 12):
        hidden, cache = DECODE(config, params, TOKENS[:, t : t + 1], cache)
        steps.append(hidden)
    return np.concatenate([first, *steps], axis=1).astype(np.float32)


@pytest.mark.parametrize("name, dtype, tolerance", [
    ("gpt2-nano", "bfloat16", 2e-2), ("gpt-neo-nano", "float32", 1e-5), ("llama-nano", "bfloat16", 2e-2),
    pytest.param("gpt2-nano", "float32", 1e-5, marks=pytest.mark.slow),
    pytest.param("gpt-neo-nano", "bfloat16", 2e-2, marks=pytest.mark.slow),
    pytest.param("llama-nano", "float32", 1e-5, marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize("apart", [True, False])
def test_decodes_the_same_hidden_states(name, dtype, tolerance, apart, monkeypatch):
    config, params, expected = model(name, dtype)
    if not apart:
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    arranged = models.for_decoding(config, params)
    monkeypatch.undo()
    assert isinstance(arranged["layers"], tuple) == apart

    ours = decoded(config, arranged, apart)
    difference = np.abs(ours - expected)[MASK].max()
    assert difference <= tolerance * np.abs(expected).max(), difference


def test_matrices_are_cast_once_and_gains_are_not():
    config = dataclasses.replace(models.get_preset("llama-nano"), dtype="bfloat16")
    arranged = models.for_decoding(config, random_params(config))
    layer = arranged["layers"][0]
    assert layer["mlp"]["gate"].dtype == "bfloat16"
    assert layer["attn_norm"]["scale"].dtype == "float32"


@pytest.mark.parametrize("apart", [True, False])
def test_laying_out_again_returns_the_same_arrays(apart, monkeypatch):
    if not apart:
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    config = dataclasses.replace(models.get_preset("llama-nano"), dtype="bfloat16")
    params = random_params(config)
    once = models.for_decoding(config, params)
    again = models.for_decoding(config, once)
    assert jax.tree.structure(once) == jax.tree.structure(again)
    assert all(a is b for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True))
    assert again["embed"]["tokens"] is params["embed"]["tokens"]  # never copied


def test_layers_that_are_apart_are_laid_out_as_stacked_ones_are():
    config = models.get_preset("gpt2-nano")
    params = random_params(config)
    stacked = models.for_decoding(config, params)
    apart = models.for_decoding(config, models.layers_apart(params))
    assert jax.tree.structure(stacked) == jax.tree.structure(apart)
    jax.tree.map(np.testing.assert_array_equal, stacked, apart)


@pytest.mark.parametrize("place", ["by itself", "as a run leaves it"])
def test_a_stack_that_needs_no_cast_is_not_copied_and_outlives_a_step_that_takes_it(place):
    config = models.get_preset("gpt2-nano")
    params = jax.tree.map(jax.numpy.array, random_params(config))
    if place == "as a run leaves it":
        mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[1:2])
        params = jax.device_put(params, parallel.shardings(models.axes(config), params, mesh))
    stack = params["layers"]["mlp"]["in"]
    before = np.array(stack)
    laid_out = models.for_decoding(config, params)
    for layer, w in enumerate(laid_out["layers"]):
        offset = w["mlp"]["in"].unsafe_buffer_pointer() - stack.unsafe_buffer_pointer()
        assert offset == layer * stack[0].nbytes
        assert w["mlp"]["in"].devices() == stack.devices()
    step = jax.jit(lambda layers: jax.tree.map(lambda w: w + 1, layers), donate_argnums=0)
    jax.block_until_ready(step(step(params["layers"])))
    del params, stack
    for layer, w in enumerate(laid_out["layers"]):
        np.testing.assert_array_equal(w["mlp"]["in"], before[layer])


def test_a_model_in_numpys_arrays_does_not_change_with_them():
    config = models.get_preset("gpt2-nano")
    params = jax.tree.map(np.array, random_params(config))
    laid_out = models.for_decoding(config, params)
    before = np.array(laid_out["layers"][1]["mlp"]["in"])
    params["layers"]["mlp"]["in"][:] = 7
    np.testing.assert_array_equal(laid_out["layers"][1]["mlp"]["in"], before)
