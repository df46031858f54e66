"""Quantised models: which numbers change, and by what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import models
from jaxllm.quantize import (
    SCHEMES,
    absmax,
    activation_ranges,
    perplexity,
    quantization_penalties,
    quantize_weights,
    quantized_activations,
    shared_ranges,
)
from tests.models.random_params import random_params

FAMILIES = ["gpt2-nano", "gpt-neo-nano", "llama-nano"]
TOKENS = np.random.default_rng(1).integers(0, 256, (4, 16))
# Input axes of each linear weight of a layer, as einsum would write them: [in..., out...].
LINEAR = {"query": 1, "key": 1, "value": 1, "attn/out": 2, "in": 1, "gate": 1, "mlp/out": 1}


@functools.cache
def random_model(family):
    config = models.get_preset(family, tie_embeddings=family != "llama-nano", num_layers=4)
    return config, random_params(config)


def quantized(config, params, scheme):
    return jax.jit(lambda p: quantize_weights(p, models.axes(config), scheme))(params)


def linear_inputs(path):
    """Return how many input axes a parameter has, None if it is not a linear layer's weight."""
    *_, block, name = [part.key for part in path]
    return LINEAR.get(name, LINEAR.get(f"{block}/{name}")) if block in ("attn", "mlp") else None


def by_hand(weight, scheme, inputs):
    """Quantise one layer's weight [in..., out...] in float64, an output channel at a time."""
    matrix = np.asarray(weight, np.float64).reshape(np.prod(weight.shape[:inputs]), -1)
    groups = [matrix] if scheme.weights == "tensor" else np.split(matrix, matrix.shape[1], axis=1)
    rounded = []
    for group in groups:
        if scheme.method == "absmax":
            step = np.abs(group).max() / 127
            rounded.append(np.round(group / step) * step)
        else:
            step = (group.max() - group.min()) / 15
            zero = np.round(-group.min() / step)
            rounded.append((np.clip(np.round(group / step) + zero, 0, 15) - zero) * step)
    return np.concatenate(rounded, axis=1).reshape(weight.shape)


@pytest.mark.parametrize(
    "family, name", [("llama-nano", name) for name in SCHEMES] + [("gpt-neo-nano", "zeropoint4")]
)
def test_linear_weights_are_rounded_and_nothing_else(family, name):
    config, params = random_model(family)
    scheme = SCHEMES[name]
    found = quantized(config, params, scheme)
    count = 0
    for path, weight in jax.tree_util.tree_leaves_with_path(params):
        rounded = functools.reduce(lambda tree, part: tree[part.key], path, found)
        inputs = linear_inputs(path)
        if inputs is None:
            np.testing.assert_array_equal(rounded, weight, err_msg=str(path))
            continue
        count += 1
        for layer in range(config.num_layers):
            expected = by_hand(weight[layer], scheme, inputs)
            wrong = ~(np.abs(rounded[layer] - expected) <= 1e-5)
            assert wrong.mean() < 0.002, (path, wrong.mean())  # halves that float32 rounds the other way
    assert count == 6 + config.gated_mlp


@pytest.mark.parametrize("head", ["text_labels", "masked"])
def test_what_lies_outside_the_layers_is_left_alone(head):
    config = models.ModelConfig(num_layers=1, embed_dim=16, num_heads=2, vocab_size=32, context_length=16,
                                causal=False, head=head, labels=("a", "b") if head == "text_labels" else (),
                                num_token_types=2)  # fmt: skip
    params = random_params(config)
    found = quantized(config, params, SCHEMES["zeropoint4"])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, found)
    assert {name for name, tree in changed.items() if any(jax.tree.leaves(tree))} == {"layers"}


def sites_seen(config, params, sites):
    return jax.jit(lambda p: models.capture(config, p, TOKENS, sites)[1])(params)


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name == "gpt-neo-nano" else pytest.mark.slow) for name in FAMILIES],
)
def test_each_layer_s_inputs_lie_on_its_own_grid(family):
    config, params = random_model(family)
    # Calibrated on half of the text, so that some values exceed the grid and are clipped.
    ranges = activation_ranges(config, params, [{"tokens": TOKENS[:1]}, {"tokens": TOKENS[1:2]}])
    edits = quantized_activations(ranges, bits=8).edits
    assert set(edits) == {"attn_in", "head_out", "mlp_in", "mlp_hidden"}
    before = sites_seen(config, params, models.Sites(capture=tuple(edits)))
    after = sites_seen(config, params, models.Sites(capture=tuple(edits), edits=edits))
    for site in edits:
        largest = np.abs(before[site][:, :2]).max(axis=(1, 2))
        np.testing.assert_allclose(ranges[site], largest, rtol=1e-4, err_msg=site)
        for layer in range(config.num_layers):
            step = np.asarray(ranges[site][layer], np.float64) / 127
            steps = np.asarray(after[site][layer], np.float64) / np.where(step == 0, 1, step)
            assert np.abs(steps - np.round(steps)).max() < 1e-3
            assert np.abs(steps).max() < 127.001
        # What is clipped moves far, and later layers also see the errors of those before.
        error = np.linalg.norm(after[site] - before[site]) / np.linalg.norm(before[site])
        assert 0 < error < 0.5, (site, error)
    moved = np.abs(after["attn_in"][0] - absmax(before["attn_in"][0], 8, ranges["attn_in"][0]))
    assert (~(moved <= 1e-5)).mean() < 0.01  # nothing came before the first input


def test_a_shared_range_is_the_largest_of_a_layer():
    ranges = {"head_out": jnp.arange(24.0).reshape(2, 3, 4)}
    found = shared_ranges(ranges)["head_out"]
    np.testing.assert_array_equal(found, np.broadcast_to([[[11.0]], [[23.0]]], (2, 3, 4)))


def test_perplexity_counts_the_tokens_that_count():
    config, params = random_model("llama-nano")
    mask = np.random.default_rng(3).integers(0, 2, TOKENS.shape).astype(np.float32)
    targets = np.roll(TOKENS, -1, axis=1)
    segments = (np.arange(16) > 8) * np.ones((4, 1), int)
    rows = [dict(tokens=TOKENS[i : i + 2], targets=targets[i : i + 2], mask=mask[i : i + 2],
                 segment_ids=segments[i : i + 2]) for i in (0, 2)]  # fmt: skip
    read = jax.jit(lambda p: models.apply(config, p, TOKENS, segment_ids=segments))
    logits = np.asarray(read(params), np.float64)
    top = logits.max(-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    scores = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    expected = np.exp(-(scores * mask).sum() / mask.sum())
    assert perplexity(config, params, rows) == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def counting():
    """Return a small model that has learned to count, text for it, and what quantisation costs it."""
    config = models.get_preset("llama-nano", vocab_size=32)
    random = np.random.default_rng(0)

    def batch(rows):
        tokens = (random.integers(0, 32, (rows, 1)) + np.arange(17)) % 32
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}

    optimizer = optax.adam(1e-2)
    params = jax.jit(models.init, static_argnums=0)(config, jax.random.key(0))

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(lambda p: models.loss(config, p, batch["tokens"], batch["targets"])[0])(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(60):
        params, state = step(params, state, batch(8))
    text = dict(batches=[batch(16)], calibration=[batch(16)])
    return config, params, text, quantization_penalties(config, params, **text)


def with_an_outlier(params, by):
    """Make one channel of the MLP's middle layer large; the function stays as it was.

    The way in is multiplied by what the way out is divided by. Nothing else reads the channel.
    """
    mlp = params["layers"]["mlp"]
    mlp = mlp | {"in": mlp["in"].at[:, :, 5].multiply(by), "out": mlp["out"].at[:, 5].divide(by)}
    return params | {"layers": params["layers"] | {"mlp": mlp}}


def test_an_outlier_ruins_shared_activation_grids_and_spares_grids_of_channels(counting):
    config, params, text, whole = counting
    assert whole["perplexity"] < 1.5
    assert all(abs(whole[name]) < 0.05 for name in SCHEMES if name.startswith("absmax8"))

    ruined = quantization_penalties(config, with_an_outlier(params, 1e4), **text)
    assert ruined["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-3)
    assert ruined["absmax8_moderate"] > 1
    assert ruined["absmax8_coarse"] > 1
    assert abs(ruined["absmax8_fine"]) < 0.1


def test_weights_alone_are_scored_as_the_rounded_model(counting):
    config, params, text, found = counting
    for name in ("zeropoint4", "zeropoint4_tensor"):
        rounded = quantized(config, params, SCHEMES[name])
        expected = perplexity(config, rounded, text["batches"]) - found["perplexity"]
        assert found[name] == pytest.approx(expected, abs=1e-5)
    assert found["zeropoint4_tensor"] > found["zeropoint4"] > 0


def test_a_scheme_with_activations_needs_their_ranges(counting):
    config, params, text, _ = counting
    with pytest.raises(ValueError, match="give the ranges"):
        perplexity(config, params, text["batches"], SCHEMES["absmax8_fine"])
