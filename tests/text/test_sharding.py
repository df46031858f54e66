"""The same numbers however the arrays are split."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.parallel import MeshConfig
from jaxllm.text import prepare
from tests.text.steps import take_steps

MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "fsdp x tensor": MeshConfig(data=1, fsdp=2, tensor=4),
}


@pytest.fixture
def wide(tiny):
    """A config whose heads, mlp and vocabulary a 4-way tensor axis divides; its attention, any platform's."""
    config = tiny(steps=6)
    model = dataclasses.replace(config.model, vocab_size=260, attention_implementation=None)
    return dataclasses.replace(config, model=model)


@pytest.fixture(scope="module")
def alone():
    return {}


@pytest.mark.parametrize(
    "mesh", ["fsdp x tensor", *(pytest.param(name, marks=pytest.mark.slow) for name in ("data", "fsdp"))]
)
def test_losses_are_the_same_on_every_mesh(wide, mesh, alone):
    """Those of one device are computed once."""
    alone["losses"] = alone.get("losses") or take_steps(wide, 6, devices=jax.devices()[:1])[0]
    split, _ = take_steps(dataclasses.replace(wide, mesh=MESHES[mesh]), 6)
    np.testing.assert_allclose(split, alone["losses"], atol=1e-5)


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
    init = job.init_from.lower(jax.random.key(0), None).compile()
    held = init.memory_analysis().output_size_in_bytes
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(job.shapes))
    assert held < 0.2 * whole, (held, whole, json.dumps(models.axes(job.model), default=str)[:200])
