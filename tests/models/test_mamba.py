"""Mamba against float64 NumPy, token by token; its cache, its meshes, what it refuses; no torch."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import from_plain
from jaxllm.errors import UserError
from jaxllm.optim import decay_mask
from jaxllm.parallel import MeshConfig, make_mesh, shardings
from jaxllm.text import TrainConfig
from jaxllm.text.config_file import config_from_dict
from jaxllm.text.presets import TRAIN_PRESETS
from jaxllm.train import to_dict
from tests.models.random_params import random_params

TOLERANCE = 1e-5  # float32 against float64
CONFIG = models.MambaConfig(
    vocab_size=37, num_layers=2, embed_dim=12, inner_dim=20, state_dim=5, conv_width=3, delta_rank=3,
    proj_bias=True, tie_embeddings=False,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 37, (2, 11))
TRUNK = jax.jit(models.trunk, static_argnums=0)
DECODE = jax.jit(models.decode, static_argnums=0)


@functools.cache
def params_of(config=CONFIG):
    return random_params(config, 0.3)


def silu(x):
    return x / (1 + np.exp(-x))


def normed(x, p):
    return x / np.sqrt((x**2).mean() + CONFIG.norm_eps) * p["scale"]


def block(p, xs):
    """Return what a layer adds to each token's stream; equations 2 and 3 of the paper."""
    W, R, N = CONFIG.conv_width, CONFIG.delta_rank, CONFIG.state_dim
    state, outs = np.zeros((CONFIG.inner_dim, N)), []
    inputs = xs @ p["in"] + p["in_bias"]
    for t, x in enumerate(xs):
        u = p["conv_shift"] + sum(
            inputs[t - back] * p["conv"][:, W - 1 - back] for back in range(W) if t - back >= 0
        )
        u = silu(u)
        low, B, C = np.split(u @ p["select"], [R, R + N])
        delta = np.log1p(np.exp(low @ p["delta"] + p["step_bias"]))
        state = np.exp(-delta[:, None] * np.exp(p["A_log"])) * state + np.outer(delta * u, B)
        y = state @ C + p["skip"] * u
        outs.append((y * silu(x @ p["gate"] + p["gate_bias"])) @ p["out"] + p["out_bias"])
    return np.stack(outs)


def by_hand(params, tokens):
    """Return the hidden states of one text, [T, D]."""
    params = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    xs = params["embed"]["tokens"][tokens]
    for index in range(CONFIG.num_layers):
        p = jax.tree.map(lambda w: w[index], params["layers"])  # noqa: B023
        xs = xs + block(p["mamba"], np.stack([normed(x, p["norm"]) for x in xs]))
    return np.stack([normed(x, params["final_norm"]) for x in xs])


def test_hidden_states_are_those_of_a_model_written_by_hand():
    """Documents in a row each start anew: neither the state nor the convolution looks over a border."""
    ids = np.repeat([[0, 1, 2]], (4, 1, 6), axis=1)
    ours = TRUNK(
        CONFIG,
        params_of(),
        np.concatenate([TOKENS[:1], TOKENS[:1]]),
        segment_ids=np.concatenate([0 * ids, ids]),
    )
    parts = [by_hand(params_of(), TOKENS[0, a:b]) for a, b in ((0, 4), (4, 5), (5, 11))]
    for row, expected in zip(ours, (by_hand(params_of(), TOKENS[0]), np.concatenate(parts)), strict=True):
        assert np.abs(row - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("apart", [False, True])
def test_a_cache_of_one_size_gives_the_whole_text(apart):
    """Prompts padded on the left, then parts of any length, a token at a time among them."""
    whole, params = TRUNK(CONFIG, params_of(), TOKENS), params_of()
    if apart:
        params = models.layers_apart(params)
    cache = models.empty_cache(CONFIG, params, 2, 1)
    mask = np.arange(6) >= np.array([[0], [2]])
    padded = np.stack([TOKENS[0, :6], np.pad(TOKENS[1, :4], (2, 0), constant_values=9)])
    first, cache = DECODE(CONFIG, params, padded, cache, mask_BT=mask)
    size = sum(x.size for x in jax.tree.leaves(cache))
    rest, at = [first[:, -1:]], np.array([6, 4])
    for length in (1, 1, 3):
        tokens = np.stack([row[a : a + length] for row, a in zip(TOKENS, at, strict=True)])
        part, cache = DECODE(CONFIG, params, tokens, cache)
        rest, at = [*rest, part], at + length
    for row, start in enumerate((5, 3)):
        ours = jnp.concatenate(rest, axis=1)[row]
        np.testing.assert_allclose(ours, whole[row, start : start + 6], atol=TOLERANCE)
    assert sum(x.size for x in jax.tree.leaves(cache)) == size and int(cache["length"]) == 11


def test_parameters_begin_as_the_papers_code_draws_them():
    """Step sizes log-uniform in [0.001, 0.1], A from -1 to -N; what no product reads does not decay."""
    config = dataclasses.replace(CONFIG, inner_dim=4000, conv_width=4)
    block = models.init(config, jax.random.key(0))["layers"]["mamba"]
    steps = np.log(jax.nn.softplus(block["step_bias"]))
    low, high = math.log(1e-3), math.log(0.1)
    assert low - 1e-3 <= steps.min() and steps.max() <= high + 1e-3
    assert abs(steps.mean() - (low + high) / 2) < 0.05
    np.testing.assert_allclose(-jnp.exp(block["A_log"][1, 7]), [-1, -2, -3, -4, -5], rtol=1e-6)
    assert np.abs(block["delta"]).max() <= 3**-0.5 and np.abs(block["conv"]).max() <= 0.5
    for name, inputs in (("in", 12), ("select", 4000)):
        assert abs(np.std(block[name]) / (3 * inputs) ** -0.5 - 1) < 0.05
    decays = decay_mask(models.axes(CONFIG))["layers"]["mamba"]
    assert {name for name, decay in decays.items() if decay} == {"in", "gate", "select", "delta", "out"}
    assert models.get_preset("mamba-130m").num_params == 129_135_360  # as published


@pytest.mark.slow
def test_loss_and_gradients_on_a_mesh():
    config = models.get_preset("mamba-nano", vocab_size=64)
    tokens, params = np.random.default_rng(0).integers(0, 64, (8, 40)), random_params(config)
    step = jax.value_and_grad(lambda p, t: models.loss(config, p, t, t, segment_ids=t // 16)[0])
    value, gradients = jax.jit(step)(params, tokens)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    places = shardings(models.axes(config), models.shapes(config), mesh)
    placed = jax.device_put(params, places)
    with jax.set_mesh(mesh):
        sharded_value, sharded = jax.jit(step, out_shardings=(None, places))(placed, tokens)
    for name, ways in (("in", 4), ("select", 2), ("A_log", 2), ("conv", 2), ("out", 4)):
        w = placed["layers"]["mamba"][name]
        assert w.addressable_shards[0].data.size == w.size // ways
    assert np.abs(sharded_value - value) <= 1e-5
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_config_comes_back_from_plain_values_as_its_class():
    run = TRAIN_PRESETS["mamba-nano"]()
    again = config_from_dict(to_dict(run))
    assert again == run and type(again.model) is models.MambaConfig
    assert type(config_from_dict(to_dict(TrainConfig())).model) is models.ModelConfig
    with pytest.raises(UserError, match="unknown architecture 'mambo'; did you mean 'mamba'"):
        from_plain(models.LanguageModel, {"architecture": "mambo"}, "a file")


def test_what_is_of_transformers_alone_is_refused():
    run = TRAIN_PRESETS["mamba-nano"]()
    for changes in (dict(subnetwork="est-gpt2-like"), dict(engine="tiles")):
        with pytest.raises(UserError, match="is of transformers, and the model's architecture is mamba"):
            dataclasses.replace(run, **changes)
    with pytest.raises(UserError, match="a Mamba has no site 'attn_probs'; it has embed, resid_pre"):
        models.capture(CONFIG, params_of(), TOKENS, models.Sites(("attn_probs",)))
    with pytest.raises(UserError, match="positions were given to a Mamba"):
        models.trunk(CONFIG, params_of(), TOKENS, positions=TOKENS)
