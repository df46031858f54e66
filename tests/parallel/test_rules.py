"""The table from logical axes to mesh axes."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm import models, parallel
from jaxllm.errors import UserError
from jaxllm.parallel import MeshConfig, make_mesh, partition_spec


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))


@pytest.mark.parametrize(
    "axes, shape, expected",
    [
        (("embed", "mlp"), (64, 256), P("fsdp", "tensor")),
        (("layers", "embed", "heads", "head_dim"), (2, 64, 8, 16), P(None, "fsdp", "tensor", None)),
        (("batch", None), (16, 128), P(("data", "fsdp"), None)),
        (("vocab", "embed"), (50257, 768), P(None, "fsdp")),  # 4 does not divide 50257: whole
        (("embed", "kv_heads", "head_dim"), (576, 3, 64), P("fsdp", None, None)),
        (("position", "embed"), (1024, 7), P(None, None)),
        ((), (), P()),
    ],
)
def test_axes_go_where_the_table_says_and_only_where_they_divide(mesh, axes, shape, expected):
    assert partition_spec(axes, shape, mesh) == expected


def test_two_axes_on_one_mesh_axis_are_refused(mesh):
    with pytest.raises(ValueError, match="'mlp' and 'heads' both map to mesh axis 'tensor'"):
        partition_spec(("heads", "mlp"), (8, 8), mesh)


@pytest.mark.parametrize("preset", list(models.PRESETS))
def test_every_parameter_of_every_preset_can_be_placed_on_a_pod(preset):
    """16-way fsdp x 4-way tensor: what a device holds is near an even share, or half of fsdp's alone."""
    config = models.get_preset(preset)
    pod = jax.sharding.AbstractMesh((1, 16, 4), ("data", "fsdp", "tensor"))
    shapes = models.shapes(config)
    held = whole = 0
    for shape, spec in zip(
        jax.tree.leaves(shapes),
        jax.tree.leaves(
            jax.tree.map(lambda x, names: partition_spec(names, x.shape, pod), shapes, models.axes(config)),
            is_leaf=lambda x: isinstance(x, P),
        ),
        strict=True,
    ):
        ways = np.prod([pod.shape[name] for name in jax.tree.leaves(tuple(spec))])
        held += shape.size / ways
        whole += shape.size
    # What no tensor axis can split (odd vocabularies and head counts) is split by fsdp alone: 4 even shares.
    counts = (config.known_vocab_size, *(getattr(config, n, 1) for n in ("num_heads", "num_kv_heads")))
    even = whole > 1e7 and all(count % 4 == 0 for count in counts)  # small models are biases in good part
    assert held <= whole / 64 * (1.15 if even else 3)


def test_mesh_fills_in_what_is_left():
    assert dict(make_mesh(MeshConfig(fsdp=2)).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert dict(make_mesh(MeshConfig(data=2, fsdp=-1)).shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    "ways, message",
    [
        (dict(fsdp=3), "fsdp=3.*8 devices"),
        (dict(data=1), "data=1.*8 devices"),
        (dict(data=-1, fsdp=-1), "at most one size may be -1"),
        (dict(tensor=0), "mesh.tensor is 0"),
    ],
)
def test_a_mesh_that_does_not_cover_the_devices_is_refused(ways, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(**ways))


def test_constrain_places_activations_and_does_nothing_outside_a_mesh(mesh):
    x = np.ones((4, 6, 8), np.float32)
    traced = jax.make_jaxpr(lambda x: parallel.constrain(x, "batch", None, "heads"))(x)
    assert "sharding_constraint" not in str(traced)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: parallel.constrain(x, "batch", None, "heads"))(x)
    assert y.addressable_shards[0].data.shape == (2, 6, 2)
