"""Tiny models of each family, with weights that make every parameter matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import data, models
from jaxllm.data.embedded import sotu_addresses
from jaxllm.models.rotary import RopeScaling

SMALL = dict(vocab_size=300, embed_dim=64, num_heads=4, num_layers=2, context_length=32)
LLAMA = SMALL | dict(num_kv_heads=2, mlp_dim=96, rope_theta=5e4)
FAMILIES = {
    "gpt2": models.get_preset("gpt2-nano", **SMALL),
    "gpt2-untied": models.get_preset("gpt2-nano", **SMALL, tie_embeddings=False),
    "gpt_neo": models.get_preset("gpt-neo-nano", **(SMALL | dict(windows=(0, 5)))),
    "llama": models.get_preset("llama-nano", **LLAMA),
    "llama-untied-biased": models.get_preset(
        "llama-nano", **LLAMA, tie_embeddings=False, qkv_bias=True, out_bias=True, mlp_bias=True
    ),
    "llama-3": models.get_preset(
        "llama-nano", **LLAMA, rope_scaling=RopeScaling("llama3", factor=8.0, original_context=16)
    ),
    "gemma3": models.get_preset("gemma-nano", **(SMALL | dict(windows=(5, 0), rope_theta=90.0))),
    "gpt_neox": models.get_preset("pythia-nano", **SMALL),
}


def make_params(config, seed=0):
    """Return parameters with noise on top, so that biases are not 0 and gains not 1."""
    params = jax.jit(models.init, static_argnums=0)(config, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    draw = np.random.default_rng(seed)
    noisy = [np.float32(leaf) + 0.1 * draw.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, [jnp.asarray(leaf, config.param_dtype) for leaf in noisy])


def assert_same(a, b):
    """Assert that two trees of parameters are equal bit for bit, dtypes included."""
    a, b = (jax.tree.leaves_with_path(tree) for tree in (a, b))
    assert [path for path, _ in a] == [path for path, _ in b]
    for (path, x), (_, y) in zip(a, b, strict=True):
        assert x.dtype == y.dtype, path
        assert np.array_equal(x, y), path


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE of 300 ids."""
    return data.load_tokenizer("bpe:300", documents=[sotu_addresses()[0]["text"]])


@pytest.fixture
def tokens():
    """Token ids [3, 17]."""
    return np.random.default_rng(1).integers(0, 300, (3, 17))
