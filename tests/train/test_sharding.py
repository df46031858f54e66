"""The same numbers however the arrays are split."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.parallel import MeshConfig
from jaxllm.train import prepare, train
from jaxllm.train.writers import read_metrics

MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "fsdp x tensor": MeshConfig(data=1, fsdp=2, tensor=4),
}


def losses(config, **options):
    train(config, **options)
    return np.array([row["loss"] for row in read_metrics(config.out) if "loss" in row])


@pytest.fixture
def wide(tiny):
    """A config whose heads, mlp and vocabulary a 4-way tensor axis divides."""
    config = tiny(steps=6)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=260))


def test_losses_are_the_same_on_every_mesh(wide, tmp_path):
    alone = losses(wide, devices=jax.devices()[:1])
    for name, mesh in MESHES.items():
        split = losses(dataclasses.replace(wide, mesh=mesh, out=str(tmp_path / name)))
        np.testing.assert_allclose(split, alone, atol=1e-5, err_msg=name)


def test_optimizer_state_is_split_like_its_parameters(wide):
    """Two ways over embed, four over mlp; master weights and both moments follow."""
    job = prepare(dataclasses.replace(wide, mesh=MESHES["fsdp x tensor"], precision="mixed_o2"))
    state = job.init(jax.random.key(0))
    layers, width, mlp = 2, 32, 128
    leaves = jax.tree.leaves_with_path((state.params, state.opt_state))
    found = [x for path, x in leaves if "mlp" in str(path) and x.shape == (layers, width, mlp)]
    assert len(found) == 4  # parameter, master copy, first and second moment
    for x in found:
        assert x.addressable_shards[0].data.shape == (layers, width // 2, mlp // 4)


def test_parameters_are_never_whole_on_one_device(wide):
    """Under 8-way fsdp each device holds an eighth of what can be split from the start."""
    job = prepare(dataclasses.replace(wide, mesh=MESHES["fsdp"]))
    init = job.init.lower(jax.random.key(0)).compile()
    held = init.memory_analysis().output_size_in_bytes
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(job.shapes))
    assert held < 0.2 * whole, (held, whole, json.dumps(models.axes(job.model), default=str)[:200])
