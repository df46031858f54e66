"""A pattern of blocks is the models it is made of: alone each as its own architecture, together in turn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.models import MAMBAFORMER, MambaConfig, ModelConfig, Sites, StripedConfig

SIZES = dict(vocab_size=13, embed_dim=16, num_heads=2, mlp_dim=24, inner_dim=20, state_dim=3)
APPLY = jax.jit(models.apply, static_argnums=0)
TRUNK = jax.jit(models.trunk, static_argnums=0)
TOKENS = np.random.default_rng(0).integers(13, size=(2, 9))


def striped(*pattern, num_layers=1, **change):
    config = StripedConfig(**SIZES | dict(pattern=pattern, num_layers=num_layers) | change)
    return config, models.init(config, jax.random.key(1))


def test_a_pattern_of_one_kind_is_that_architecture():
    """Mamba's, and a transformer's without positions; with the same parameters, to rounding."""
    config, params = striped("mamba", num_layers=2)
    block = params["layers"]["block_0"]
    mamba = MambaConfig(vocab_size=13, embed_dim=16, inner_dim=20, state_dim=3, num_layers=2)
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    close(APPLY(config, params, TOKENS), APPLY(mamba, params | {"layers": block}, TOKENS))

    config, params = striped("attention", "mlp", num_layers=2)
    attention, mlp = params["layers"]["block_0"], params["layers"]["block_1"]
    layers = {"attn_norm": attention["norm"], "attn": attention["attention"],
              "mlp_norm": mlp["norm"], "mlp": mlp["mlp"]}  # fmt: skip
    theirs = ModelConfig(
        vocab_size=13, embed_dim=16, num_heads=2, mlp_dim=24, num_layers=2, position="none", norm="rmsnorm",
        qkv_bias=False, out_bias=False, mlp_bias=False,
    )  # fmt: skip
    close(APPLY(config, params, TOKENS), APPLY(theirs, params | {"layers": layers}, TOKENS))


def test_blocks_run_in_the_order_of_the_pattern_and_see_no_later_token():
    """Two rounds run one after another, apart or scanned; packed documents do not see each other."""
    config, params = striped("mamba", "attention", num_layers=2)
    run = functools.partial(TRUNK, config)
    whole = run(params, TOKENS)
    apart = run(models.layers_apart(params), TOKENS)
    np.testing.assert_allclose(whole, apart, atol=2e-5)
    other = TOKENS.copy()
    other[:, 5:] = (other[:, 5:] + 1) % 13
    np.testing.assert_array_equal(run(params, other)[:, :5], whole[:, :5])
    assert np.abs(run(params, other)[:, 5:] - whole[:, 5:]).max() > 1e-3
    packed = run(params, TOKENS, segment_ids=jnp.asarray([[0] * 4 + [1] * 5] * 2))
    swapped = run(params, np.roll(TOKENS, 5, axis=1), segment_ids=jnp.asarray([[1] * 5 + [0] * 4] * 2))
    np.testing.assert_allclose(packed[:, 4:], swapped[:, :5], atol=2e-5)


def test_its_sizes_are_counted_and_its_values_read_back():
    config, params = striped(*MAMBAFORMER)
    assert config.num_params == sum(x.size for x in jax.tree.leaves(params))
    one = StripedConfig(**SIZES, pattern=("attention",), num_layers=1)
    more = one.flops_per_token(9) - one.flops_per_token(8)
    assert more == 12 * 16  # of one attention block and one more key
    read = lambda params: models.capture(config, params, TOKENS, Sites(capture=("resid_post",)))
    hidden, seen = jax.eval_shape(read, params)
    assert seen["resid_post"].shape == (1, 2, 9, 16) and hidden.shape == (2, 9, 16)


def test_what_it_is_not_is_told_in_a_sentence():
    with pytest.raises(UserError, match="pattern is empty; name one or more of attention, mlp, mamba"):
        StripedConfig(**SIZES, pattern=())
    with pytest.raises(UserError, match="num_heads=5 does not divide embed_dim=16"):
        StripedConfig(**SIZES | {"num_heads": 5})
    config, params = striped("mamba")
    with pytest.raises(UserError, match="the model is striped, of which nothing is cached yet"):
        models.check_decodes(config)
    with pytest.raises(UserError, match="has no site 'attn_out'; it has embed"):
        models.capture(config, params, TOKENS, Sites(capture=("attn_out",)))
