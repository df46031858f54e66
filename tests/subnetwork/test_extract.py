"""A subnetwork against the whole model with everything else masked, and against its own definition."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.subnetwork import Rates, extract, extract_in_turn, sample, shrink
from tests.models.random_params import random_params

HALF = Rates(0.5, 0.5, 0.5)
TINY = dict(embed_dim=32, vocab_size=64, attention_implementation="reference")
MODELS = {
    "gpt2": (models.get_preset("gpt2-nano", num_layers=4, num_heads=4, **TINY), HALF),
    # All biases, so that this is GPT-2 too.
    "gpt-neo": (
        models.get_preset("gpt-neo-nano", num_layers=4, num_heads=4, windows=(0, 3), qkv_bias=True, **TINY),
        HALF,
    ),
    # Groups of two heads, and a sink logit for each head.
    "llama": (
        models.get_preset(
            "llama-nano", num_heads=8, num_kv_heads=4, mlp_dim=40, sink_logit="learned", **TINY
        ),
        Rates(0.5, 0.25, 0.4),
    ),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12))


def make(name):
    config, rates = MODELS[name]
    return config, rates, random_params(config), models.axes(config)


def kept(config, indices, name, size):
    """Return [L, units]: 1 where a unit was drawn, else 0."""
    layers = np.arange(config.num_layers) if "layers" not in indices else np.asarray(indices["layers"])
    mask = np.zeros((config.num_layers, size), np.float32)
    for row, layer in enumerate(layers):
        if name not in indices:
            mask[layer] = 1
            continue
        parts = np.asarray(indices[name][row])
        for part, units in enumerate(parts):
            mask[layer, part * (size // len(parts)) + units] = 1
    return mask


def masked(config, params, indices):
    """Return the whole model's parameters with what was not drawn switched off, what was scaled up."""
    heads = kept(config, indices, "heads", config.num_heads)
    mlp = kept(config, indices, "mlp", config.mlp_dim)
    layer = heads.max(1)
    layers = {part: dict(arrays) for part, arrays in params["layers"].items()}
    layers["attn"]["out"] = (
        layers["attn"]["out"] * (heads / heads.sum(1).max() * config.num_heads)[..., None, None]
    )
    layers["mlp"]["out"] = layers["mlp"]["out"] * (mlp / mlp.sum(1).max() * config.mlp_dim)[..., None]
    for part in ("attn", "mlp"):
        if "out_bias" in layers[part]:
            layers[part]["out_bias"] = layers[part]["out_bias"] * layer[:, None]
    return params | {"layers": layers}


@pytest.mark.parametrize(
    "name",
    [pytest.param("gpt-neo", marks=pytest.mark.slow), pytest.param("llama", marks=pytest.mark.smoke)],
)
def test_logits_and_gradient_are_those_of_the_whole_model_with_the_rest_switched_off(name):
    """In float32, logits and gradients up to about 1: 1e-5."""
    config, rates, params, axes = make(name)
    indices = jax.device_get(jax.jit(partial(sample, config, rates))(jax.random.key(3)))
    weights = np.random.default_rng(1).normal(scale=0.03, size=(2, 12, 64)).astype(np.float32)

    def of_small(params):
        logits = models.apply(shrink(config, rates), extract(params, axes, indices), TOKENS)
        return jnp.sum(weights * logits), logits

    def of_masked(params):
        logits = models.apply(config, masked(config, params, indices), TOKENS)
        return jnp.sum(weights * logits), logits

    @jax.jit
    def both(params):
        return [jax.grad(f, has_aux=True)(params) for f in (of_small, of_masked)]

    (grads, logits), (expected_grads, expected) = both(params)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    leaves = zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True)
    for (path, g), other in leaves:
        np.testing.assert_allclose(g, other, atol=1e-5, err_msg=jax.tree_util.keystr(path))
        assert np.abs(other).max() > 1e-3 or path[-1].key == "key_bias", path  # to which softmax is blind


def test_half_the_layers_and_neurons_leave_a_quarter_of_the_gradient():
    config, rates, params, axes = make("gpt2")
    indices = jax.jit(partial(sample, config, rates))(jax.random.key(0))
    ones = jax.jit(jax.grad(lambda p: sum(map(jnp.sum, jax.tree.leaves(extract(p, axes, indices))))))(params)
    entries = np.asarray(ones["layers"]["mlp"]["in"])
    assert np.mean(entries != 0) == 0.25
    assert set(np.unique(entries)) == {0.0, 1.0}
    # Of the projections that lead out: twice as much.
    assert set(np.unique(ones["layers"]["attn"]["out"])) == {0.0, 2.0}
    assert set(np.unique(ones["layers"]["attn"]["out_bias"])) == {0.0, 1.0}
    assert np.all(np.asarray(ones["embed"]["tokens"]) == 1)


@pytest.mark.parametrize("block, rates", [("attn_out", Rates(heads=0.5)), ("mlp_out", Rates(mlp=0.5))])
def test_the_mean_over_all_subnetworks_is_the_whole_sublayer(block, rates):
    """All six ways to keep 2 of 4 heads, and of 4 neurons; biases too, which are not scaled. 1e-6."""
    config = models.get_preset("gpt2-nano", num_layers=1, num_heads=4, mlp_dim=4, **TINY)
    params, axes = random_params(config), models.axes(config)
    subsets = np.array(list(itertools.combinations(range(4), 2)))[:, None, None]  # [6, layer, part, 2]
    names = ("heads", "kv_heads") if block == "attn_out" else ("mlp",)

    def output(config, params):
        return models.capture(config, params, TOKENS, models.Sites(capture=(block,)))[1][block]

    each = jax.vmap(
        lambda units: output(shrink(config, rates), extract(params, axes, dict.fromkeys(names, units)))
    )
    both = jax.jit(lambda units, params: (each(units), output(config, params)))
    outputs, whole = jax.device_get(both(subsets, params))
    assert outputs.std(axis=0).max() > 1e-2
    np.testing.assert_allclose(outputs.mean(0), whole, atol=1e-6)


def test_all_units_are_the_model_bit_for_bit():
    """Without indices nothing is touched; with all of them values and gradients are those that came."""
    config, _, params, axes = make("llama")
    assert all(
        a is b for a, b in zip(*map(jax.tree.leaves, (params, extract(params, axes, {}))), strict=True)
    )
    units = {"heads": config.num_heads, "kv_heads": config.num_kv_heads, "mlp": config.mlp_dim}
    indices = {unit: np.tile(np.arange(size), (config.num_layers, 1, 1)) for unit, size in units.items()}
    indices["layers"] = np.arange(config.num_layers)
    gradient = jax.tree.map(lambda w: 3 * np.asarray(w), params)

    @jax.jit
    def there_and_back(params):
        small, pull_back = jax.vjp(lambda p: extract(p, axes, indices), params)
        return small, pull_back(gradient)[0]

    jax.tree.map(np.testing.assert_array_equal, there_and_back(params), (params, gradient))


def test_layers_are_scaled_by_what_is_given_and_types_stay():
    config, rates, params, axes = make("llama")
    params = jax.tree.map(lambda w: np.asarray(w).astype(jnp.bfloat16), params)
    indices = jax.jit(partial(sample, config, rates))(jax.random.key(0))
    cut = jax.jit(partial(extract, axes=axes))
    plain = cut(params, indices=indices)
    scaled = cut(params, indices=indices, branch_scale=np.array([4.0, 8.0], np.float32))
    factor = [4.0, 8.0][int(indices["layers"][0])]
    for (path, a), b in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(scaled), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        out = path[-1].key == "out"
        np.testing.assert_array_equal(np.float32(b), np.float32(a) * (factor if out else 1))


def test_parts_of_an_axis_are_read_part_by_part():
    """The same units, given as 2 parts and as one."""
    config, _, params, axes = make("gpt2")
    L = config.num_layers
    in_parts = np.broadcast_to([[0, 3], [1, 2]], (L, 2, 2))
    at_once = np.broadcast_to([[0, 3, 65, 66]], (L, 1, 4))  # of 128 neurons
    cut = jax.jit(partial(extract, params, axes))
    jax.tree.map(np.testing.assert_array_equal, cut({"mlp": in_parts}), cut({"mlp": at_once}))


def test_layers_cut_in_turn_capture_what_a_subnetwork_does_unless_some_are_skipped():
    config, _, params, axes = make("gpt2")
    sites = models.Sites(capture=("attn_probs",))
    capture = jax.jit(partial(models.capture, config, tokens_BT=TOKENS, sites=sites))
    indices = sample(config, Rates(heads=0.5, mlp=0.5), jax.random.key(1))
    (wanted, inside), (found, in_turn) = (
        jax.jit(lambda params, cut=cut: capture(cut(params, axes, indices)))(params)
        for cut in (extract, extract_in_turn)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(in_turn["attn_probs"], inside["attn_probs"], atol=1e-6)
    assert inside["attn_probs"].shape[:3] == (4, 2, 2)  # layers, batch, half of the heads
    skipping = extract_in_turn(params, axes, sample(config, HALF, jax.random.key(1)))
    with pytest.raises(UserError, match="activations cannot be captured in layers that are skipped"):
        jax.eval_shape(capture, skipping)
