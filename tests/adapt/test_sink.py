"""A learned sink begins where the first token stood, and takes half of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.adapt import add_sink
from jaxllm.errors import UserError
from tests.models.random_params import random_params

TOKENS = jax.random.randint(jax.random.key(1), (3, 9), 0, 200)


@pytest.mark.parametrize(
    "preset, changes", [("gpt2-nano", {}), ("llama-nano", {}), ("gemma-nano", dict(windows=(4, 0)))]
)
def test_the_sink_is_the_first_tokens_mean_logit(preset, changes):
    """Of queries after the first that see it: with windows those within them."""
    config = models.get_preset(preset, **changes)
    params = random_params(config)
    sunk, more = add_sink(config, params, TOKENS)
    models.check_params(sunk, more)
    seen = models.capture(config, params, TOKENS, models.Sites(capture=("query", "key")))[1]
    query, key = (np.asarray(seen[name], np.float64) for name in ("query", "key"))
    key = np.repeat(key, config.num_heads // config.num_kv_heads, axis=3)
    for layer in range(config.num_layers):
        window = config.windows[layer % len(config.windows)] or TOKENS.shape[1]
        for head in range(config.num_heads):
            of = [config.score_scale * query[layer, b, t, head] @ key[layer, b, 0, head]
                  for b in range(len(TOKENS)) for t in range(1, min(window, TOKENS.shape[1]))]  # fmt: skip
            got = float(more["layers"]["attn"]["sink"][layer, head])
            assert got == pytest.approx(np.mean(of), rel=1e-4, abs=1e-5)
    assert params["layers"]["attn"].keys() == more["layers"]["attn"].keys() - {"sink"}  # what was given stays


def test_a_query_gives_the_sink_as_much_as_the_first_token_where_its_logit_is_the_mean():
    config = models.get_preset("gpt2-nano", num_layers=1)
    params = random_params(config)
    sunk, more = add_sink(config, params, TOKENS[:1, :2])  # one query, so its logit is the mean
    probs = [
        models.capture(*model, TOKENS[:1, :2], models.Sites(capture=("attn_probs",)))[1]["attn_probs"]
        for model in ((config, params), (sunk, more))
    ]
    first, second = np.asarray(probs, np.float64)[:, 0, 0, :, 1, 0]  # with softmax, with the sink: [H]
    np.testing.assert_allclose(second, first / (1 + first), rtol=1e-5)


def test_the_sink_is_trained():
    config, params = add_sink(models.get_preset("gpt2-nano"), random_params(models.get_preset("gpt2-nano")),
                              TOKENS)  # fmt: skip
    loss = lambda params: models.loss(config, params, TOKENS[:, :-1], TOKENS[:, 1:])[0]
    assert bool((jax.jit(jax.grad(loss))(params)["layers"]["attn"]["sink"] != 0).all())


def test_what_takes_no_sink_is_refused_in_a_sentence():
    config = models.get_preset("gpt2-nano")
    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    with pytest.raises(UserError, match="the model has a sink, sink_logit=0.0"):
        add_sink(dataclasses.replace(config, sink_logit=0.0), params, TOKENS)
    with pytest.raises(UserError, match=r"shape \(3, 1\) hold no query that chooses"):
        add_sink(config, params, TOKENS[:, :1])
    with pytest.raises(UserError, match="a learned sink is of transformers"):
        add_sink(models.get_preset("mamba-nano"), params, TOKENS)
    assert not jnp.isfinite(config.sink_logit)
