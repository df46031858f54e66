"""What the model computes: causality, documents, scanning, remat, precision, decoding."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.models.norms import normalize
from jaxllm.models.transformer import _layer, rotary_table
from tests.models.random_params import random_params

NAMES = ("gpt2-nano", "gpt-neo-nano", "llama-nano")


def fast(*names):
    """Run with every family, the named ones in the fast suite."""
    marks = {name: () if name in names else pytest.mark.slow for name in NAMES}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


VOCAB = 61


@functools.cache
def model(name, **overrides):
    """Return (config, params) with every parameter random, so that biases and sinks count."""
    small = dict(embed_dim=32, num_heads=4, vocab_size=VOCAB, context_length=32)
    if name == "gpt-neo-nano":
        small["windows"] = (0, 5)
    config = models.get_preset(name, **(small | overrides))
    return config, random_params(config)


def text(shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_future_tokens_get_zero_gradient(name):
    config, params = model(name)
    tokens = text((1, 13))

    def logits_at_6(embedded):
        sites = models.Sites(edits={"embed": lambda value, layer: embedded})
        return models.apply(config, params, tokens, sites=sites)[0, 6].sum()

    embedded = jax.random.normal(jax.random.key(0), (1, 13, config.embed_dim))
    gradient = jax.jit(jax.grad(logits_at_6))(embedded)
    reached = np.abs(gradient[0]).max(axis=-1) > 0
    assert reached[:7].all()
    assert not reached[7:].any()


def test_vectors_in_place_of_tokens_are_those_of_the_stream():
    """Gemma's are its table's rows times sqrt(D); a learned table adds positions to either."""
    config, params = model("gpt2-nano", scale_embeddings=True, num_layers=1)
    tokens = text((1, 5))
    run = jax.jit(lambda tokens: models.trunk(config, params, tokens))
    vectors = params["embed"]["tokens"][tokens] * np.float32(math.sqrt(config.embed_dim))
    np.testing.assert_allclose(run(vectors), run(tokens), atol=1e-6)


def test_a_window_limits_how_far_back_a_layer_sees():
    config, params = model("gpt-neo-nano", windows=(3,))  # two layers of 3 reach 5 tokens
    tokens = text((1, 12))

    def logits_at_9(embedded):
        sites = models.Sites(edits={"embed": lambda value, layer: embedded})
        return models.apply(config, params, tokens, sites=sites)[0, 9].sum()

    gradient = jax.jit(jax.grad(logits_at_9))(jnp.ones((1, 12, config.embed_dim)))
    reached = np.abs(gradient[0]).max(axis=-1) > 0
    assert reached.tolist() == [5 <= i <= 9 for i in range(12)]


@fast("gpt-neo-nano")
def test_scan_equals_a_python_loop(name):
    config, params = model(name, num_layers=2 * len(model(name)[0].windows))
    tokens = jnp.asarray(text((2, 11)))
    positions = jnp.broadcast_to(jnp.arange(11), (2, 11))
    rotary = rotary_table(positions, config.head_dim, config.rope_theta)

    def unrolled(params):
        x = params["embed"]["tokens"][tokens]
        if config.position == "learned":
            x = x + params["embed"]["positions"][positions]
        for i in range(config.num_layers):
            layer_params = jax.tree.map(lambda w: w[i], params["layers"])  # noqa: B023
            x, _, _ = _layer(
                config, layer_params, x, i, config.windows[i % len(config.windows)], None,
                rotary=(rotary,) if config.position == "rotary" else (),
                segment_ids_BT=None, sites=None,
            )  # fmt: skip
        return normalize(x, params["final_norm"], config.norm, config.norm_eps)

    scanned = jax.jit(lambda p: models.trunk(config, p, tokens))(params)
    assert np.abs(scanned - jax.jit(unrolled)(params)).max() <= 1e-5


def test_every_remat_policy_gives_the_same_gradients():
    tokens = text((2, 12))

    def gradients(remat):
        config, params = model("llama-nano", remat=remat)
        return jax.jit(jax.grad(lambda p: models.loss(config, p, tokens, tokens)[0]))(params)

    plain = gradients("none")
    for remat in ("full", "dots"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            gradients(remat),
            plain,
        )


def test_full_remat_keeps_less():
    tokens = jax.ShapeDtypeStruct((8, 32), jnp.int32)

    def temporary_bytes(remat):
        config, params = model("gpt2-nano", num_layers=8, remat=remat)
        step = jax.jit(jax.grad(lambda p, t: models.loss(config, p, t, t)[0]))
        return step.lower(params, tokens).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes("full") < 0.5 * temporary_bytes("none")


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_packed_documents_equal_separate_ones(name):
    config, params = model(name)
    first, second = text((2, 9), 1), text((2, 7), 2)
    run = jax.jit(lambda p, t, s: models.trunk(config, p, t, segment_ids=s))
    segments = np.repeat([[1] * 9 + [2] * 7], 2, axis=0)
    both = np.concatenate([first, second], axis=1)
    packed = run(params, both, segments)
    plain = jax.jit(lambda p, t: models.trunk(config, p, t))
    after = np.pad(second, ((0, 0), (0, 9)))  # to one length; what follows cannot change a document
    unpacked, alone = plain(params, both), plain(params, after)[:, :7]
    assert np.abs(packed - np.concatenate([unpacked[:, :9], alone], axis=1)).max() <= 1e-5
    assert np.abs(packed[:, 9:] - unpacked[:, 9:]).max() > 1e-2  # else nothing was isolated


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_cached_decoding_equals_the_full_forward(name):
    config, params = model(name, sink_logit="learned")
    tokens = text((2, 14))
    full = jax.jit(lambda p: models.trunk(config, p, tokens))(params)
    step = jax.jit(lambda p, t, c: models.decode(config, p, t, c), donate_argnums=2)
    hidden, cache = step(params, tokens[:, :8], models.init_cache(config, 2, 17))
    assert np.abs(hidden - full[:, :8]).max() <= 1e-5
    for i in range(8, 14):
        hidden, cache = step(params, tokens[:, i : i + 1], cache)
        assert np.abs(hidden[:, 0] - full[:, i]).max() <= 1e-5
    assert int(cache["length"]) == 14


@fast("gpt2-nano")
def test_left_padding_does_not_change_what_a_row_decodes(name):
    config, params = model(name)
    lengths, total, new = [4, 9, 7], 9, 5
    rows = [text(n + new, seed=n) for n in lengths]
    prompt, mask = np.zeros((3, total), int), np.zeros((3, total), bool)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        prompt[i, total - n :], mask[i, total - n :] = row[:n], True
    step = jax.jit(lambda p, t, c, m: models.decode(config, p, t, c, mask_BT=m))
    hidden, cache = step(params, prompt, models.init_cache(config, 3, total + new), mask)
    assert np.isfinite(hidden).all()
    decoded = [hidden[:, -1]]
    for t in range(new):
        tokens = np.stack([row[n + t] for row, n in zip(rows, lengths, strict=True)])[:, None]
        hidden, cache = step(params, tokens, cache, np.ones((3, 1), bool))
        decoded.append(hidden[:, 0])
    full = jax.jit(lambda p, t: models.trunk(config, p, t))
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        after = np.zeros((1, total + new), int)  # what follows a row cannot change it
        after[0, : len(row)] = row
        alone = full(params, after)[0, n - 1 : len(row)]
        assert np.abs(np.stack(decoded)[:, i] - alone).max() <= 1e-5, f"row {i}"


def test_greedy_decoding_with_a_cache_equals_rereading_the_text():
    config, params = model("gpt-neo-nano")
    tokens = text((1, 6))
    step = jax.jit(lambda p, t, c: models.decode(config, p, t, c))
    hidden, cache = step(params, tokens, models.init_cache(config, 1, 20))
    full = jax.jit(lambda p, t: models.apply(config, p, t))
    reread = cached = tokens
    for _ in range(8):
        padded = np.pad(reread, ((0, 0), (0, 20 - reread.shape[1])))
        best = np.argmax(full(params, padded)[:, reread.shape[1] - 1], axis=-1)
        reread = np.concatenate([reread, best[:, None]], axis=1)
        token = np.argmax(models.logits(config, params, hidden[:, -1]), axis=-1)[:, None]
        cached = np.concatenate([cached, token], axis=1)
        hidden, cache = step(params, token, cache)
    assert cached.tolist() == reread.tolist()


@fast("llama-nano")
def test_bfloat16_stays_near_float32(name):
    # bfloat16 keeps 8 bits: a relative 2**-8 a rounding, a few of them in two layers.
    tokens = text((2, 16))
    config, params = model(name)
    half, _ = model(name, dtype="bfloat16")

    @functools.partial(jax.jit, static_argnums=0)
    def run(config, params):
        hidden = models.trunk(config, params, tokens)
        return hidden, models.logits(config, params, hidden), models.loss(config, params, tokens, tokens)[0]

    _, exact, exact_loss = run(config, params)
    hidden, rounded, loss = run(half, params)
    assert hidden.dtype == jnp.bfloat16 and rounded.dtype == jnp.float32
    assert np.abs(rounded - exact).max() <= 0.03 * np.abs(exact).max()
    assert abs(exact_loss - loss) <= 0.01 * exact_loss


def test_loss_is_the_mean_over_the_mask():
    config, params = model("llama-nano", tie_embeddings=False)
    tokens, targets = text((2, 10), 1), text((2, 10), 2)
    mask = np.random.default_rng(3).random((2, 10)) < 0.5

    @jax.jit
    def run(params, mask):
        loss = models.loss(config, params, tokens, targets, mask=mask, z_loss=0.1)
        return models.apply(config, params, tokens), *loss

    logits, mean, sums = run(params, mask)
    logits = np.asarray(logits, np.float64)
    lse = np.log(np.exp(logits).sum(-1))
    nll = lse - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    assert sums["token_count"] == mask.sum()
    assert sums["loss_sum"] == pytest.approx((mask * nll).sum(), rel=1e-5)
    assert sums["z_loss"] == pytest.approx(0.1 * (mask * lse**2).sum(), rel=1e-5)
    assert mean == pytest.approx((mask * (nll + 0.1 * lse**2)).sum() / mask.sum(), rel=1e-5)
    assert run(params, np.zeros_like(mask))[1] == 0


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "rmsnorm_scalar"])
def test_norms_match_their_formulas(norm):
    x = np.random.default_rng(0).normal(1.0, 2.0, (2, 3, 8)).astype(np.float32)
    scale = np.float32(1.7) if norm == "rmsnorm_scalar" else np.arange(1, 9, dtype=np.float32)
    centred = x - x.mean(-1, keepdims=True) if norm == "layernorm" else x
    expected = scale * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)
    assert np.abs(normalize(x, {"scale": jnp.asarray(scale)}, norm, 1e-3) - expected).max() <= 1e-5


def test_softmax_one_is_a_zero_key_and_value_before_the_text():
    config, params = model("gpt2-nano", sink_logit=0.0)
    plain, _ = model("gpt2-nano")
    tokens = text((2, 9))
    # Give every layer of the plain model one more key and value, both zero, through the cache.
    cache = models.init_cache(plain, 2, 10)
    cache["valid"] = cache["valid"].at[:, 0].set(True)
    cache["length"] = jnp.int32(1)
    shifted = dict(params, embed=dict(params["embed"]))
    table = params["embed"]["positions"]
    shifted["embed"]["positions"] = jnp.concatenate([table[:1], table[:-1]])  # position p is now p + 1
    trunk = jax.jit(models.trunk, static_argnums=0)
    prepended, _ = jax.jit(models.decode, static_argnums=0)(plain, shifted, tokens, cache)
    sink = trunk(config, params, tokens)
    assert np.abs(prepended - sink).max() <= 1e-5
    assert np.abs(sink - trunk(plain, params, tokens)).max() > 1e-2


def test_too_many_tokens_for_the_position_table_are_refused():
    config, params = model("gpt2-nano")
    with pytest.raises(UserError, match="33 tokens do not fit context_length=32"):
        models.trunk(config, params, text((1, 33)))


@fast("gpt2-nano")
def test_a_new_model_predicts_nothing_in_particular(name):
    config = models.get_preset(name)

    @jax.jit
    def run(key):
        return models.loss(config, models.init(config, key), text((4, 64)), text((4, 64), 1))

    mean, _ = run(jax.random.key(0))
    assert mean == pytest.approx(math.log(config.vocab_size), abs=0.1)
