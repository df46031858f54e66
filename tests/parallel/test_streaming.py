"""Updates of arrays in the host's memory, against the same updates of arrays on the device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm import optim, parallel
from jaxllm.parallel import in_host_memory, streamed

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA for CPUs aborts")
LAYERS, WIDTH = 6, 24  # blocks of 4 layers, and a rest


@pytest.fixture(scope="module")
def places():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    device = NamedSharding(mesh, PartitionSpec())
    return device, in_host_memory(device)


def tree(dtype=jnp.float32, seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    shapes = {
        "matrix": (LAYERS, WIDTH, 2 * WIDTH),
        "heads": (LAYERS, WIDTH, 3, 8),
        "gain": (LAYERS, WIDTH),
        "table": (50, WIDTH),
    }
    return {name: jax.random.normal(next(keys), shape, dtype) for name, shape in shapes.items()}


AXES = {
    "matrix": ("layers", "embed", "mlp"),
    "heads": ("layers", "embed", "heads", "head_dim"),
    "gain": ("layers", "embed"),
    "table": ("vocab", "embed"),
}


def place(tree, stacked, other):
    """Put matrices of layers into one memory, the rest into another."""
    return jax.tree.map(lambda x: jax.device_put(x, stacked if x.ndim > 2 else other), tree)


def gap(left, right, device):
    def difference(a, b):
        a, b = (np.asarray(jax.device_put(x, device), np.float64) for x in (a, b))
        return np.max(np.abs(a - b), initial=0.0)

    return np.max(jax.tree.leaves(jax.tree.map(difference, left, right)))  # NaN where any is


def updater(optimizer):
    def update(kept, gradients):
        params, state = kept
        norm = optax.tree.norm(gradients)
        updates, new_state = optimizer.update(gradients, state, params)
        new = (optax.apply_updates(params, updates), new_state)
        return jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(norm), new, old), new, kept), norm

    return update


CLIP = optax.clip_by_global_norm(1.0)
CHAINS = {  # chain, type of the parameters, largest difference
    "adamw": (lambda: optax.chain(CLIP, optax.adamw(1e-2)), jnp.float32, 3e-7),
    "lion": (lambda: optax.lion(1e-2), jnp.float32, 3e-7),
    "adafactor": (lambda: optax.adafactor(1e-2), jnp.float32, 3e-7),
    "lamb": (lambda: optax.lamb(1e-2), jnp.float32, 3e-7),  # norms of whole parameters
    "multi_steps": (lambda: optax.MultiSteps(optax.adamw(1e-2), 2), jnp.float32, 3e-7),  # a conditional
    "adamw_bf16_sr": (lambda: optim.adamw_bf16_sr(1e-2), jnp.bfloat16, 0.0),  # the same draws
    "orthoadam": (lambda: optax.chain(CLIP, optim.orthoadam(1e-2, AXES)), jnp.float32, 1e-6),
    "master_weights": (lambda: optim.with_master_weights(optax.adamw(1e-2)), jnp.bfloat16, 3e-7),
}


@pytest.mark.parametrize(("name", "everything"), [  # each chain once in the fast suite
    pytest.param(name, everything, id=f"{name}-{'everything' if everything else 'moments'}",
                 marks=() if everything == (i % 2 == 0) else pytest.mark.slow)
    for i, name in enumerate(CHAINS) for everything in (False, True)
])  # fmt: skip
def test_a_chain_does_in_the_host_s_memory_what_it_does_on_the_device(name, everything, places):
    make, dtype, allowed = CHAINS[name]
    device, host = places
    optimizer = make()
    update = updater(optimizer)
    params, gradients = place(tree(dtype), device, device), tree(dtype, seed=1)
    kept = (params, place(optimizer.init(params), device, device))
    gradients = place(gradients, device, device)
    there = place(kept[1], host, device)
    moved = (place(params, host, device), there) if everything else (params, there)
    given = place(gradients, host, device) if everything else gradients

    here = jax.jit(update)
    shardings = jax.tree.map(lambda x: x.sharding, moved)
    away = jax.jit(streamed(update, block_bytes=4 * 12 * WIDTH * WIDTH), out_shardings=(shardings, None))
    for _ in range(3):
        kept, norm = here(kept, gradients)
        moved, norm_away = away(moved, given)
    assert gap(kept, moved, device) <= allowed
    assert float(norm_away) == pytest.approx(float(norm), rel=1e-6)
    memories = jax.tree.map(lambda x: x.sharding.memory_kind, moved)
    assert memories == jax.tree.map(lambda s: s.memory_kind, shardings)


@pytest.mark.parametrize(
    "optimizer, dtype",
    [(optax.adamw(1e-2), jnp.float32), (optim.adamw_bf16_sr(1e-2), jnp.bfloat16)],
    ids=["adamw", "adamw_bf16_sr"],  # the second rounds by another program on each platform
)
def test_a_stack_is_updated_in_one_loop_that_fetches_a_block(optimizer, dtype, places):
    """Of 32 layers one is on the device at a time, of moments and, in place, of weights."""
    device, host = places

    def shape(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host if x.ndim > 2 else device)

    params = {"w": jax.ShapeDtypeStruct((32, 512, 512), dtype, sharding=device)}
    state = jax.tree.map(shape, jax.eval_shape(optimizer.init, params))
    update = streamed(updater(optimizer), block_bytes=4 * 512**2 * dtype.dtype.itemsize)
    program = str(jax.make_jaxpr(update)((params, state), params))
    assert program.count("scan[") == 1
    assert re.findall(r":b?f\d\d\[([\d,]+)\] = device_put", program) == ["1,512,512"] * 2


@pytest.mark.parametrize("rows", [2, 7])
def test_a_choice_of_programs_is_made_for_each_block(rows, places):
    """By platform and by a value; neither keeps the array on the device as a whole."""
    device, host = places
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)

    def update(kept, more):
        kept = jax.lax.platform_dependent(kept, cpu=lambda x: jnp.where(x > 0, x, 2.0), default=jnp.negative)
        places = jax.lax.broadcasted_iota(jnp.float32, (7, 4), 0)
        return jax.lax.cond(more, lambda x, at: x + at, lambda x, at: x - at, kept, places), more

    run = jax.jit(streamed(update, block_bytes=rows * x[0].nbytes), out_shardings=(host, None))
    for more, sign in ((True, 1), (False, -1)):
        new, _ = run(jax.device_put(x, host), jnp.asarray(more))
        expected = np.where(x > 0, x, 2) + sign * np.arange(7)[:, None]
        np.testing.assert_allclose(jax.device_put(new, device), expected, rtol=1e-6)
    program = str(jax.make_jaxpr(streamed(update, block_bytes=rows * x[0].nbytes))(
        jax.device_put(x, host), jnp.asarray(True)
    ))  # fmt: skip
    assert f":f32[{rows},4] = device_put" in program


def test_a_program_without_rules_is_computed_from_whole_arrays(places):
    """Sorting along the rows has no rule: the array is fetched, and goes back."""
    device, host = places
    x = jax.random.normal(jax.random.key(0), (5, 3))

    def update(kept, scale):
        return jnp.sort(kept, axis=0) * scale, jnp.max(kept, axis=0)

    new, top = jax.jit(streamed(update), out_shardings=(host, None))(
        jax.device_put(x, host), jnp.float32(2.0)
    )
    np.testing.assert_array_equal(jax.device_put(new, device), np.sort(x, axis=0) * 2)
    np.testing.assert_array_equal(top, np.max(x, axis=0))
    assert new.sharding.memory_kind == parallel.HOST_MEMORY


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_operations_with_a_rule_agree_with_numpy_in_blocks_of_any_size(rows, places):
    """Every kind of rule in one function: transposes, slices, products, reductions, positions."""
    device, host = places
    x = np.random.default_rng(0).normal(size=(7, 4, 6)).astype(np.float32)
    matrix = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)

    def update(kept, matrix):
        xp = jnp if isinstance(kept, jax.Array) else np
        turned = xp.transpose(kept, (0, 2, 1))[:, :, 1:]
        position = xp.arange(7.0)[:, None, None] if xp is np else jax.lax.broadcasted_iota(
            jnp.float32, (7, 1, 1), 0
        )  # fmt: skip
        products = xp.sum(xp.matmul(kept, matrix), axis=(1, 2))
        joined = xp.concatenate([turned, turned * 2], axis=2).reshape(7, 6, 6).max(axis=2)
        square = xp.concatenate([kept[:, 0, :], kept[:, 1, :1]], axis=1)  # [7, 7]
        columns = xp.sum(square, axis=0)  # as many as there are rows, and of all of them
        row = joined.sum(axis=1) + products + xp.squeeze(position, (1, 2)) + columns
        return kept * row[:, None, None] + position, xp.sum(kept * kept)

    block = rows * x[0].nbytes
    run = jax.jit(streamed(update, block_bytes=block), out_shardings=(host, None))
    new, total = run(jax.device_put(x, host), jnp.asarray(matrix))
    expected, expected_total = update(np.float64(x), np.float64(matrix))
    np.testing.assert_allclose(jax.device_put(new, device), expected, rtol=2e-5, atol=2e-5)
    assert float(total) == pytest.approx(expected_total, rel=1e-6)


def test_a_stack_is_sharded_as_before():
    """On 8 devices, each holds its part of the host's arrays too."""
    mesh = parallel.make_mesh(parallel.MeshConfig(data=1, fsdp=4, tensor=2))
    spec = parallel.partition_spec(("layers", "embed", "mlp"), (2, 64, 256), mesh)
    moved = in_host_memory(NamedSharding(mesh, spec))
    assert moved.spec == spec and moved.memory_kind == parallel.HOST_MEMORY
    assert moved.shard_shape((2, 64, 256)) == (2, 16, 128)


def test_a_choice_with_an_array_of_another_length_is_computed_whole(places):
    """Three entries made within a program are no rows of seven: blocks of two must not cut them."""
    device, host = places
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)

    def other(kept):
        return kept * (jax.lax.broadcasted_iota(jnp.float32, (3,), 0) + jnp.full(3, 2.0))[None]

    def update(kept):
        return (jax.lax.platform_dependent(kept, cpu=other, default=jnp.negative),)

    (new,) = jax.jit(streamed(update, block_bytes=2 * x[0].nbytes), out_shardings=(host,))(
        jax.device_put(x, host)
    )
    np.testing.assert_allclose(jax.device_put(new, device), x * np.arange(2, 5), rtol=1e-6)
