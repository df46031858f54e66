"""A model spread over devices computes what it computes on one."""

import functools

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.parallel import MeshConfig, make_mesh, shardings

TOKENS = np.random.default_rng(0).integers(0, 64, (8, 24))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh_config"),
    [
        ("llama-nano", MeshConfig(data=2, fsdp=2, tensor=2)),
        ("gpt-neo-nano", MeshConfig(fsdp=8)),
        ("gemma-nano", MeshConfig(data=2, fsdp=2, tensor=2)),
        ("bert-nano", MeshConfig(data=2, fsdp=2, tensor=2)),
        ("deberta-nano", MeshConfig(data=2, fsdp=2, tensor=2)),
    ],
)
def test_loss_and_gradients_on_a_mesh(name, mesh_config):
    if jax.device_count() < 8:
        pytest.skip("needs 8 (simulated) devices")
    config = models.get_preset(name, vocab_size=64, sink_logit="learned")
    init = functools.partial(models.init, config)
    params = jax.jit(init)(jax.random.key(0))
    step = jax.value_and_grad(lambda p, t: models.loss(config, p, t, t, z_loss=1e-3)[0])
    value, gradients = jax.jit(step)(params, TOKENS)

    mesh = make_mesh(mesh_config)
    places = shardings(models.axes(config), models.shapes(config), mesh)
    with jax.set_mesh(mesh):
        drawn = jax.jit(init, out_shardings=places)(jax.random.key(0))
        sharded_value, sharded = jax.jit(step, out_shardings=(None, places))(drawn, TOKENS)
    query = drawn["layers"]["attn"]["query"]
    assert query.addressable_shards[0].data.size < query.size  # it was spread at all
    assert np.abs(sharded_value - value) <= 1e-5
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
