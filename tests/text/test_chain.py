"""A chain of the user's own, made of our links and optax's, trains a model on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.optim import decay_mask, scale_by_ortho_adam, stochastic_round
from jaxllm.parallel import MeshConfig
from jaxllm.text import prepare
from tests.text.steps import take_steps

MESH = MeshConfig(data=1, fsdp=2, tensor=4)
STEPS = 20


@pytest.fixture
def config(tiny):
    """GPT-2 in bfloat16, with heads, mlp and vocabulary that a 4-way axis divides."""
    config = tiny(steps=STEPS, precision="bfloat16")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=260))


def make_chain(config):
    axes = models.axes(config.model)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        scale_by_ortho_adam(axes),
        optax.add_decayed_weights(0.1, mask=decay_mask(axes)),
        optax.scale_by_learning_rate(optax.warmup_cosine_decay_schedule(0.0, 5e-3, 5, STEPS)),
        stochastic_round(seed=1),
    )


@pytest.mark.slow
def test_ortho_adam_and_stochastic_rounding_train_gpt2_on_a_mesh_as_on_one_device(config):
    """With parameters and both moments split two ways over embed and four over mlp, at the end too."""
    optimizer = make_chain(config)
    split, state = take_steps(dataclasses.replace(config, mesh=MESH), STEPS, optimizer=optimizer)
    alone, _ = take_steps(config, STEPS, optimizer=optimizer, devices=jax.devices()[:1])
    assert split[-1] < 0.6 * split[0]
    # bfloat16 sums in another order, and the few weights that round otherwise for it.
    np.testing.assert_allclose(split, alone, atol=5e-3)

    layers, width, mlp = 2, 32, 128
    leaves = jax.tree.leaves_with_path((state.params, state.opt_state))
    found = [x for path, x in leaves if "mlp" in str(path) and x.shape == (layers, width, mlp)]
    assert [x.dtype for x in found] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for x in found:
        assert x.addressable_shards[0].data.shape == (layers, width // 2, mlp // 4)


def test_a_chain_out_of_order_is_refused_before_anything_is_compiled(config):
    optimizer = optax.chain(make_chain(config), optax.scale_by_schedule(lambda step: 0.5))
    with pytest.raises(UserError, match="stochastic_round is link 1 of a chain of 2"):
        prepare(config, optimizer=optimizer)
