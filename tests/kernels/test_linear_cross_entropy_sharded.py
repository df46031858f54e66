"""Linear cross-entropy over several devices: tokens, vocabulary, both; and how much memory it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy, token_log_probs

B, T, D, V = 4, 10, 12, 64
MESH_AXES = ("data", "vocab")
OPTIONS = {"z_loss": 0.01}


def mesh(shape=(2, 4)):
    kinds = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(shape, MESH_AXES, axis_types=kinds)


def inputs(vocab_axis):
    keys = jax.random.split(jax.random.key(1), 4)
    hidden = jax.random.normal(keys[0], (B, T, D))
    weights = jax.random.normal(keys[1], (D, V) if vocab_axis == 1 else (V, D))
    labels = jax.random.randint(keys[2], (B, T), 0, V)
    return hidden, weights, labels, jax.random.uniform(keys[3], (B, T))


def assert_equal(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize(
    ("checked", "vocab_axis", "limited"),
    [
        (True, 1, True),
        (False, 0, True),
        pytest.param(True, 0, False, marks=pytest.mark.slow),
        pytest.param(False, 1, False, marks=pytest.mark.slow),
    ],
)
def test_tokens_and_vocabulary_in_shard_map_equal_one_device(checked, vocab_axis, limited):
    arrays = inputs(vocab_axis)
    limits = jnp.maximum(arrays[2] + 1, 20) if limited else jnp.full((B, T), V)

    def total(hidden, weights, labels, token_weights, limits, **options):
        sums = linear_cross_entropy(
            hidden, weights, labels, token_weights_BT=token_weights, limits_BT=limits,
            vocab_axis=vocab_axis, **OPTIONS, **options,
        )  # fmt: skip
        return 3.0 * sums.total, sums

    def sharded(*arrays):
        sums = total(*arrays, vocab_axis_name="vocab", logits_bytes=2 * 3 * 16 * 4)
        return jax.tree.map(lambda x: jax.lax.psum(x, "data"), sums)

    of_weights = P(None, "vocab") if vocab_axis == 1 else P("vocab")
    spread = jax.shard_map(
        sharded, mesh=mesh(), check_vma=checked, out_specs=P(),
        in_specs=(P("data"), of_weights, P("data"), P("data"), P("data")),
    )  # fmt: skip
    compare = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(*arrays, limits)
        for f in (spread, functools.partial(total, implementation="reference"))
    ]
    assert_equal(*compare)


@pytest.mark.parametrize("checked", [True, False])
def test_token_log_probs_over_a_sharded_vocabulary(checked):
    hidden, weights, labels, mix = inputs(1)

    def value(hidden, weights, labels, mix, **options):
        log_probs, lse = token_log_probs(hidden, weights, labels, **options)
        return jnp.sum(mix * log_probs + jnp.sin(lse))

    def sharded(*arrays):
        return jax.lax.psum(value(*arrays, vocab_axis_name="vocab"), "data")

    spread = jax.shard_map(
        sharded, mesh=mesh(), check_vma=checked, out_specs=P(),
        in_specs=(P("data"), P(None, "vocab"), P("data"), P("data")),
    )  # fmt: skip
    compare = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(hidden, weights, labels, mix)
        for f in (spread, functools.partial(value, implementation="reference"))
    ]
    assert_equal(*compare)


def test_the_gradient_of_the_weights_is_summed_over_devices_once():
    hidden, weights, labels, _ = inputs(1)

    def sharded(hidden, weights, labels):
        sums = linear_cross_entropy(hidden, weights, labels, logits_bytes=B * V * 4)
        return jax.lax.psum(sums.total, MESH_AXES)

    spread = jax.shard_map(
        sharded, mesh=mesh((8, 1)), in_specs=(P(None, MESH_AXES), P(), P(None, MESH_AXES)), out_specs=P()
    )
    hidden, labels = jnp.tile(hidden, (1, 8, 1)), jnp.tile(labels, (1, 8))
    text = jax.jit(jax.grad(spread, argnums=1)).lower(hidden, weights, labels).compile().as_text()
    # One for the weights' gradient; none inside a loop, whose body is another computation.
    assert sum("all-reduce(" in line for line in text.splitlines()) == 1
    assert "all-reduce(" in text[text.index("ENTRY") :]


def test_a_mesh_of_automatic_axes_gives_the_same():
    arrays = inputs(1)
    places = [jax.sharding.NamedSharding(mesh(), spec) for spec in (P("data"), P(None, "vocab"), P("data"))]

    def total(hidden, weights, labels, implementation=None):
        return linear_cross_entropy(
            hidden, weights, labels, logits_bytes=64 * 4, implementation=implementation
        ).total

    def on_mesh(*arrays):
        with jax.sharding.use_abstract_mesh(mesh().abstract_mesh):
            return total(*arrays)

    step = jax.jit(jax.value_and_grad(on_mesh, argnums=(0, 1)), in_shardings=places)
    expected = jax.jit(jax.value_and_grad(total, argnums=(0, 1)), static_argnums=3)(*arrays[:3], "reference")
    assert_equal(step(*arrays[:3]), expected)


@pytest.mark.parametrize("vocab_axis", [0, 1])
def test_memory_at_a_real_vocabulary(vocab_axis):
    N, D, V = 4096, 256, 50257
    shape = (D, V) if vocab_axis == 1 else (V, D)
    arguments = (
        jax.ShapeDtypeStruct((N, D), jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((N,), jnp.int32),
    )

    def temporary_mib(**options):
        def total(hidden, weights, labels):
            return linear_cross_entropy(hidden, weights, labels, vocab_axis=vocab_axis, **options).total

        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        return step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 2**20

    # Logits of all tokens are 785 MiB; 200 MiB of them, the default, and some blocks beside.
    assert temporary_mib() < 260
    # The least that jax-cce takes at this size is 120 MiB (chunks of 1,024 columns).
    assert temporary_mib(logits_bytes=25 * 2**20) < 60
