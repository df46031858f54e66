"""Running from states within a model, and slopes at sites, against whole runs and finite differences."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.interpret import forward_from, pooled_states, site_gradients
from tests.models.random_params import random_params

B, T = 2, 6
TOKENS = np.random.default_rng(1).integers(0, 256, (B, T))
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], np.int32)


@functools.cache
def whole(family):
    """Return (config, params, the mask that its texts take, hidden states, the stream at every depth)."""
    changes = {
        "gemma-nano": dict(num_layers=3, windows=(4, 2, 0)),
        "gpt2-nano": dict(num_token_types=2, embed_norm=True),
    }
    config = models.get_preset(family, **changes.get(family, {}))
    params = random_params(config, 0.15)
    mask = MASK if getattr(config, "causal", True) is False else None
    sites = models.Sites(("embed", "resid_post"))
    run = jax.jit(lambda params: models.capture(config, params, TOKENS, sites, segment_ids=mask))
    hidden, seen = run(params)
    return config, params, mask, hidden, np.concatenate([seen["embed"][None], seen["resid_post"]])


@pytest.mark.parametrize("family", ["llama-nano", "gemma-nano", "deberta-nano", "mamba-nano"])
def test_states_go_on_as_the_whole_model_does_from_every_depth(family):
    """Rotary, windows of several sizes, an encoder whose stream is normed after blocks and padded, Mamba.

    float32: the same sums in the same order, 1e-5.
    """
    config, params, mask, hidden, streams = whole(family)
    run = jax.jit(functools.partial(forward_from, config, segment_ids=mask))  # the layer is traced
    for depth, states in enumerate(streams):
        np.testing.assert_allclose(run(params, depth, states), hidden, atol=1e-5, err_msg=str(depth))


def test_an_edit_within_and_one_by_sites_are_the_same_and_layers_keep_their_numbers():
    config, params, _, hidden, streams = whole("llama-nano")
    shift = np.zeros((B, T, config.embed_dim), np.float32)
    shift[:, 3] = np.random.default_rng(2).normal(size=config.embed_dim)
    by_site = lambda value, layer: value + jnp.where(layer == 0, 1.0, 0.0) * shift
    trunk = lambda **edits: jax.jit(
        lambda params: models.trunk(config, params, TOKENS, sites=models.Sites(edits=edits))
    )(params)
    expected = trunk(resid_post=by_site)
    assert np.abs(expected - hidden).max() > 1e-2
    run = jax.jit(functools.partial(forward_from, config), static_argnums=1)
    for layout in (params, models.layers_apart(params)):
        np.testing.assert_allclose(run(layout, 1, streams[1] + shift), expected, atol=1e-5)
    halved = models.Sites(edits={"mlp_out": lambda value, layer: value * jnp.where(layer == 1, 0.5, 7.0)})
    found = jax.jit(functools.partial(forward_from, config, sites=halved), static_argnums=1)
    once = trunk(mlp_out=lambda value, layer: value * jnp.where(layer == 1, 0.5, 1.0))
    np.testing.assert_allclose(found(params, 1, streams[1]), once, atol=1e-5)  # what layer 0 does is over


@pytest.mark.parametrize(
    "family", ["gpt2-nano", pytest.param("gemma-nano", marks=pytest.mark.slow), "mamba-nano"]
)
def test_states_behind_a_cache_go_on_as_all_states_do(family):
    """Edits from the fourth token on, at every depth, with one cache. float32: 1e-5.

    GPT-2 has a learned table, types and a norm besides: the stream at depth 0 has them already.
    """
    config, params, _, _, streams = whole(family)
    edited = np.array(streams)
    edited[:, :, 3:] += np.random.default_rng(3).normal(size=(B, 3, config.embed_dim))
    run = jax.jit(functools.partial(forward_from, config))  # the layer is traced
    expected = [run(params, depth, states)[:, 3:] for depth, states in enumerate(edited)]

    @jax.jit
    def behind(layout, edited):
        cache = models.prefill(config, layout, TOKENS[:, :3], None, slots=T)[1]
        return [forward_from(config, layout, at, edited[at, :, 3:], cache=cache) for at in range(len(edited))]

    for layout in (params, models.layers_apart(params)):
        for depth, found in enumerate(behind(layout, edited)):
            np.testing.assert_allclose(found, expected[depth], atol=1e-5, err_msg=str(depth))


def test_a_cache_without_slots_for_the_states_gives_nothing():
    config, params, _, _, streams = whole("llama-nano")
    cache = models.prefill(config, params, TOKENS[:, :3], None, slots=T - 1)[1]
    assert np.isnan(forward_from(config, params, 1, streams[1][:, 3:], cache=cache)).all()


def test_slopes_at_sites_are_finite_differences():
    """Of a float32 model, by central differences of 1e-3 along a random direction: 2 %."""
    config, params, *_, streams = whole("llama-nano")
    reader = np.random.default_rng(3).normal(size=config.embed_dim).astype(np.float32)
    scalar = lambda hidden: jnp.sum(hidden[:, -1] @ reader)
    sites = models.Sites(("head_out", "resid_post", "final"))
    value, slopes = jax.jit(lambda params: site_gradients(config, params, TOKENS, sites, scalar))(params)
    np.testing.assert_allclose(value, scalar(whole("llama-nano")[3]), rtol=1e-5)
    draw = np.random.default_rng(4)
    for site in sites.capture:
        direction = draw.normal(size=slopes[site].shape).astype(np.float32)
        pick = direction if site == "final" else direction[1]

        @jax.jit
        def moved(by, site=site, pick=pick):
            at = 0 if site == "final" else 1
            edit = lambda value, layer: value + jnp.where(layer == at, by, 0.0) * pick
            return scalar(models.trunk(config, params, TOKENS, sites=models.Sites(edits={site: edit})))

        slope = slopes[site] if site == "final" else slopes[site][1]
        np.testing.assert_allclose((moved(1e-3) - moved(-1e-3)) / 2e-3, np.sum(slope * pick), rtol=0.02)
    # The slope of what enters layer 1 is that of running on from there.
    onward = jax.jit(jax.grad(lambda states: scalar(forward_from(config, params, 1, states))))(streams[1])
    np.testing.assert_allclose(slopes["resid_post"][0], onward, atol=1e-4)


def test_pooled_states_are_means_over_spans_whatever_the_batches(tmp_path):
    config, params, *_ = whole("llama-nano")
    draw = np.random.default_rng(5)
    rows = [draw.integers(0, 256, n).tolist() for n in (3, 9, 1, 6, 9, 2)]
    spans = [(1, 3), (8, 9), (0, 1), (2, 5), (0, 9), (0, 2)]
    found = pooled_states(config, params, rows, spans, tokens_per_batch=24, path=tmp_path / "states.npy")
    assert isinstance(found, np.memmap) and found.shape == (config.num_layers + 1, 6, config.embed_dim)
    tokens = np.array([row + [0] * (9 - len(row)) for row in rows])
    sites = models.Sites(("embed", "resid_post"))
    seen = jax.jit(lambda params: models.capture(config, params, tokens, sites)[1])(params)
    streams = np.concatenate([seen["embed"][None], seen["resid_post"]])
    for n, (first, end) in enumerate(spans):
        np.testing.assert_allclose(found[:, n], streams[:, n, first:end].mean(1), atol=1e-5)
    some = pooled_states(config, params, rows[:1], spans[:1], depths=[2, 0], tokens_per_batch=24)
    np.testing.assert_allclose(some[:, 0], found[[2, 0], 0], atol=1e-5)


def test_states_that_are_not_finished_leave_the_file_as_it_was(tmp_path, monkeypatch):
    config, params, *_ = whole("llama-nano")
    path, spans = tmp_path / "states.npy", [(0, 1), (0, 2)]
    before = pooled_states(config, params, [[1], [2, 3]], spans, tokens_per_batch=1, path=path)
    whole_file, calls = path.read_bytes(), iter([before[:, :1] + 1])  # the second batch is interrupted
    assert path == type(path)(before.filename) and np.array_equal(np.load(path), before)

    def interrupted(*_):
        try:
            return next(calls)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(sys.modules["jaxllm.interpret.pooled_states"], "_pooled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pooled_states(config, params, [[4], [5, 6]], spans, tokens_per_batch=1, path=path)
    assert path.read_bytes() == whole_file and list(tmp_path.iterdir()) == [path]


def test_padding_of_an_encoder_is_not_seen():
    config, params, mask, _, streams = whole("deberta-nano")
    rows = [TOKENS[0].tolist(), TOKENS[1, :4].tolist()]
    found = pooled_states(config, params, rows, [(0, 6), (1, 4)])
    np.testing.assert_allclose(found[:, 0], streams[:, 0].mean(1), atol=1e-5)
    np.testing.assert_allclose(found[:, 1], streams[:, 1, 1:4].mean(1), atol=1e-5)


def test_what_cannot_be_run_from_is_told_in_one_sentence():
    config, params, *_, streams = whole("llama-nano")
    run = functools.partial(forward_from, config, params)
    cache = models.prefill(config, params, TOKENS[:, :3], None, slots=T)[1]
    behind = functools.partial(run, states_BTD=streams[1][:, 3:], cache=cache)
    for more in (dict(positions=TOKENS[:, 3:]), dict(segment_ids=TOKENS[:, 3:]), dict(sites=models.Sites())):
        with pytest.raises(UserError, match="takes a cache with a layer that is a number"):
            behind(1, **more)
    with pytest.raises(UserError, match="takes a cache with a layer that is a number"):
        jax.jit(behind)(1)
    for layer in (3, -1, 1.0, True, "1"):
        with pytest.raises(UserError, match=r"layer is .*; the model has 2, so it must be from 0 .* to 2"):
            run(layer, streams[1])
    with pytest.raises(UserError, match=r"states_BTD has shape \(2, 6, 63\); it must be \[B, T, 64\]"):
        run(1, streams[1][..., 1:])
    with pytest.raises(UserError, match="sites edit embed, which the states replace"):
        run(1, streams[1], sites=models.Sites(edits={"embed": lambda value, layer: value}))
    with pytest.raises(UserError, match="sites capture"):
        run(1, streams[1], sites=models.Sites(("resid_post",)))
    with pytest.raises(UserError, match="an encoder-decoder has two"):
        forward_from(models.get_preset("t5-nano"), {}, 1, streams[1])
    with pytest.raises(UserError, match="sites capture nothing"):
        site_gradients(config, params, TOKENS, models.Sites(), jnp.sum)
    with pytest.raises(UserError, match=r"scalar returned shape \(2, 6\)"):
        site_gradients(config, params, TOKENS, models.Sites(("final",)), lambda hidden: hidden.sum(-1))
    with pytest.raises(UserError, match=r"the span of text 0 is \(1, 3\), and the text has 2 tokens"):
        pooled_states(config, params, [[1, 2]], [(1, 3)])
    with pytest.raises(UserError, match="0 texts and 0 spans"):
        pooled_states(config, params, [], [])
    with pytest.raises(UserError, match="text 0's ids .*use the model's own tokenizer"):
        pooled_states(config, params, [[999]], [(0, 1)])
    with pytest.raises(UserError, match="layer is 3"):
        pooled_states(config, params, [[1]], [(0, 1)], depths=[3])
