"""GPT-NeoX, Llama 3 and Gemma 3 against float64 NumPy, token by token; no torch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, quantize, subnetwork
from jaxllm.errors import UserError
from jaxllm.models.rotary import RopeScaling, rotary_frequencies
from jaxllm.tiles.gpt2 import check_model
from tests.models.random_params import random_params

# Float32 against float64.
TOLERANCE = 1e-5
LLAMA3 = RopeScaling("llama3", factor=8.0, original_context=64)
PYTHIA = models.get_preset(
    "pythia-nano", vocab_size=37, embed_dim=24, num_heads=3, head_dim=10, rotary_fraction=0.6, mlp_dim=20
)
LLAMA = models.get_preset("llama-nano", vocab_size=37, rope_scaling=LLAMA3, rope_theta=200.0)
CONFIGS = {
    "pythia": PYTHIA,
    "pythia-serial": dataclasses.replace(PYTHIA, parallel_residual=False),
    "llama-3": LLAMA,
    "gemma": models.get_preset("gemma-nano", vocab_size=37, windows=(3, 0), rope_theta=200.0, head_dim=10),
    "llama-linear": dataclasses.replace(LLAMA, rope_scaling=RopeScaling("linear", factor=3.0)),
}


def frequency(config, pair, window=0):
    """Return one frequency as Meta's and EleutherAI's code writes it: by cases, in Python floats."""
    dim = int(config.head_dim * config.rotary_fraction)
    theta = config.windowed_rope_theta if window and config.windowed_rope_theta else config.rope_theta
    f, scaling = 1 / theta ** (2 * pair / dim), config.rope_scaling
    if scaling.kind == "linear":
        return f / scaling.factor
    if scaling.kind == "none":
        return f
    wavelength, context = 2 * math.pi / f, scaling.original_context
    if wavelength < context / scaling.high_freq_factor:
        return f
    if wavelength > context / scaling.low_freq_factor:
        return f / scaling.factor
    smooth = context / wavelength - scaling.low_freq_factor
    smooth /= scaling.high_freq_factor - scaling.low_freq_factor
    return (1 - smooth) * f / scaling.factor + smooth * f


def turned(config, x, position, window):
    """Rotate a head's first numbers as complex ones."""
    half = int(config.head_dim * config.rotary_fraction) // 2
    angles = position * np.array([frequency(config, pair, window) for pair in range(half)])
    pairs = (x[:half] + 1j * x[half : 2 * half]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag, x[2 * half :]])


def normed(config, x, p):
    if config.norm == "layernorm":
        return (x - x.mean()) / np.sqrt(x.var() + config.norm_eps) * p["scale"] + p["bias"]
    return x / np.sqrt((x**2).mean() + config.norm_eps) * p["scale"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(config, p, xs, window):
    """Return what attention adds to each token's stream."""
    group, outs = config.num_heads // config.num_kv_heads, []
    q, k, v = (
        np.einsum("td,dhk->thk", xs, p[name]) + p.get(f"{name}_bias", 0.0)
        for name in ("query", "key", "value")
    )
    if config.qk_norm:
        q, k = (
            np.stack([[normed(config, head, p[name]) for head in token] for token in x])
            for name, x in (("query_norm", q), ("key_norm", k))
        )
    for t in range(len(xs)):
        begin = max(0, t + 1 - window) if window else 0
        out = p.get("out_bias", 0.0)
        for h in range(config.num_heads):
            mine = turned(config, q[t, h], t, window)
            scores = [mine @ turned(config, k[s, h // group], s, window) for s in range(begin, t + 1)]
            weights = np.exp(np.array(scores) / math.sqrt(config.head_dim))
            out = out + (weights / weights.sum()) @ v[begin : t + 1, h // group] @ p["out"][h]
        outs.append(normed(config, out, p["out_norm"]) if config.norm_place == "sandwich" else out)
    return np.stack(outs)


def mlp(config, p, x):
    if config.gated_mlp:
        gate = x @ p["gate"]
        if config.activation == "silu":
            return (gate / (1 + np.exp(-gate)) * (x @ p["in"])) @ p["out"]
        tanh = np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))
        return normed(config, (0.5 * gate * (1 + tanh) * (x @ p["in"])) @ p["out"], p["out_norm"])
    return gelu(x @ p["in"] + p["in_bias"]) @ p["out"] + p["out_bias"]


def by_hand(config, params, tokens):
    """Return the logits of one text, [T, V]."""
    params = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    xs = params["embed"]["tokens"][tokens] * (math.sqrt(config.embed_dim) if config.scale_embeddings else 1)
    for index in range(config.num_layers):
        p = jax.tree.map(lambda w: w[index], params["layers"])  # noqa: B023
        window = config.windows[index % len(config.windows)]
        read = np.stack([normed(config, x, p["attn_norm"]) for x in xs])
        added = attention(config, p["attn"], read, window)
        read = xs if config.parallel_residual else xs + added
        xs = xs + added + np.stack([mlp(config, p["mlp"], normed(config, x, p["mlp_norm"])) for x in read])
    head = params["embed"]["tokens"].T if config.tie_embeddings else params["head"]["kernel"]
    return np.stack([normed(config, x, params["final_norm"]) for x in xs]) @ head


@pytest.mark.parametrize("case", CONFIGS)
def test_logits_are_those_of_a_model_written_by_hand(case):
    config = CONFIGS[case]
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, 37, (1, 9))
    ours = jax.jit(lambda p: models.apply(config, p, tokens))(params)
    expected = by_hand(config, params, tokens[0])
    assert np.abs(expected).max() > 0.5
    assert np.abs(ours[0] - expected).max() <= TOLERANCE * max(1, np.abs(expected).max())


@pytest.mark.parametrize("case", CONFIGS)
def test_frequencies_are_scaled_by_cases(case):
    config = CONFIGS[case]
    expected = [frequency(config, pair) for pair in range(config.rotary_dim // 2)]
    found = rotary_frequencies(config.rotary_dim, config.rope_theta, config.rope_scaling)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    kept = rotary_frequencies(config.rotary_dim, config.rope_theta)
    assert config.rope_scaling.kind != "llama3" or len(set(np.round(kept / found, 3))) > 2  # all three cases


@pytest.mark.parametrize("case", ["pythia", "llama-3", "gemma"])
def test_decoding_with_a_cache_equals_the_whole_text(case):
    config = CONFIGS[case]
    params = random_params(config)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 37, (2, 7)))
    whole = jax.jit(lambda p: models.trunk(config, p, tokens))(params)
    decode = jax.jit(lambda p, t, c: models.decode(config, p, t, c))
    cache, parts = models.init_cache(config, 2, 8), []
    for begin, end in ((0, 4), (4, 5), (5, 6), (6, 7)):
        hidden, cache = decode(params, tokens[:, begin:end], cache)
        parts.append(hidden)
    assert np.abs(jnp.concatenate(parts, axis=1) - whole).max() <= TOLERANCE


def test_an_edit_between_the_blocks_does_not_reach_a_parallel_mlp():
    params = random_params(PYTHIA)
    edits = {"resid_mid": lambda value, layer: value + (layer == 1)}

    @jax.jit
    def seen(params):
        sites = (models.Sites(("mlp_in",)), models.Sites(("mlp_in",), edits=edits))
        return [models.capture(PYTHIA, params, jnp.zeros((1, 4), int), each)[1] for each in sites]

    plain, edited = seen(params)
    np.testing.assert_array_equal(plain["mlp_in"], edited["mlp_in"])


def test_techniques_take_the_new_models_or_refuse_them():
    params, axes = random_params(PYTHIA), models.axes(PYTHIA)
    halves = {"mlp": np.tile(np.arange(10), (2, 1, 1))}

    @jax.jit
    def both(params):
        small = subnetwork.extract(params, axes, halves, None)
        rounded = quantize.quantize_weights(params, axes, quantize.SCHEMES["zeropoint4"])
        return rounded, models.apply(PYTHIA, small, jnp.zeros((1, 3), int))

    rounded, logits = both(params)
    assert not np.array_equal(rounded["layers"]["attn"]["query"], params["layers"]["attn"]["query"])
    assert logits.shape == (1, 3, 37) and np.isfinite(logits).all()
    for changes in (dict(parallel_residual=True), dict(dropout=0.1)):
        with pytest.raises(UserError, match=f"the model has {next(iter(changes))}"):
            check_model(models.get_preset("gpt2-nano", **changes))
