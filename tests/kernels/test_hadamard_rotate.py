"""The rotation against a dense float64 matrix: values, inverse, gradient, every implementation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxllm_kernels.hadamard_rotate import block_sizes, hadamard_rotate, pallas_gpu, pallas_tpu, random_signs
from jaxllm_kernels.hadamard_rotate.matrix import hadamard_matrix, times_signs_matrix
from jaxllm_kernels.hadamard_rotate.reference import rotation_matrix

SEED = jnp.array([5, 6], jnp.uint32)
# Float32: a few units in the last place of the largest of 1024 terms. bfloat16: half a step.
TOLERANCE = {"float32": 4e-6, "bfloat16": 2.0**-8}


@functools.partial(jax.jit, static_argnums=0)
def signs_of(length):
    return random_signs(SEED, length)


def draw(shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def exact(x, block_size, signs, inverse, axis=-1):
    x = np.moveaxis(np.asarray(x).astype(np.float64), axis, -1)
    Q = rotation_matrix(x.shape[-1], block_size, signs)
    return np.moveaxis(x @ (Q if inverse else Q.T), -1, axis)


def assert_close(ours, theirs, dtype):
    assert ours.dtype == dtype
    error = np.abs(np.asarray(ours).astype(np.float64) - theirs)
    worst = np.max(error / (1 + np.abs(theirs)), initial=0)
    assert worst <= TOLERANCE[dtype], worst


# Each shape in one of the types: the arithmetic is float32's, whatever comes in.
@pytest.mark.smoke
@pytest.mark.parametrize(
    ("shape", "axis", "block_size", "dtype"),
    [
        ((1,), 0, 1, "bfloat16"), ((1,), -1, 8, "float32"), ((7,), -1, 4, "bfloat16"),
        ((3, 300), -1, 128, "float32"), ((300, 3), 0, 128, "bfloat16"), ((2, 5, 12), 1, 4, "float32"),
        ((2, 96, 3), 1, 32, "bfloat16"), ((4, 512), -1, 512, "bfloat16"), ((3, 1000), 1, 256, "float32"),
        ((2, 1100), 1, 1024, "float32"), ((0, 8), 1, 8, "float32"), ((3, 4, 5), 0, 2, "float32"),
    ],
)  # fmt: skip
def test_rotation_is_its_dense_matrix(shape, axis, block_size, dtype):
    x, signs = draw(shape, dtype), signs_of(shape[axis])
    for inverse, s in ((False, signs), (True, signs), (False, None)):
        rotate = functools.partial(hadamard_rotate, block_size=block_size, inverse=inverse, axis=axis)
        assert_close(jax.jit(rotate)(x, signs=s), exact(x, block_size, s, inverse, axis), dtype)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    length=st.integers(1, 100), log_block=st.integers(0, 7), rows=st.integers(1, 3), inverse=st.booleans()
)
def test_any_length_and_block(length, log_block, rows, inverse):
    x, signs = draw((rows, length)), signs_of(length)
    rotate = functools.partial(hadamard_rotate, block_size=2**log_block, inverse=inverse)
    rotated = jax.jit(rotate)(x, signs=signs)
    assert_close(rotated, exact(x, 2**log_block, signs, inverse), "float32")


def test_all_axes_flattened():
    x = draw((4, 5, 6))
    signs = signs_of(120)
    flat = hadamard_rotate(x, block_size=32, signs=signs, axis=None)
    np.testing.assert_allclose(flat.ravel(), exact(x.ravel(), 32, signs, False), atol=1e-6)


@pytest.mark.parametrize(("length", "block_size"), [(128, 128), (300, 64), (96, 1)])
def test_gradient_is_the_transpose_and_the_rotation_undoes_itself(length, block_size):
    x, y, signs = draw((3, length)), draw((3, length)) + 1, signs_of(length)
    rotate = functools.partial(hadamard_rotate, block_size=block_size, signs=signs)

    @jax.jit
    def run(x, y, signs):
        rotated, vjp = jax.vjp(rotate, x)
        twice = jax.grad(lambda y: jnp.vdot(jax.vjp(rotate, x)[1](y)[0], x))(y)
        of_signs = jax.grad(lambda s: jnp.sum(hadamard_rotate(x, block_size=block_size, signs=s)))(signs)
        return rotated, vjp(y)[0], rotate(rotated, inverse=True), twice, of_signs

    rotated, back, undone, twice, of_signs = run(x, y, signs)
    np.testing.assert_allclose(back, exact(y, block_size, signs, True), atol=1e-5)
    np.testing.assert_allclose(undone, x, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(rotated**2), jnp.sum(x**2), rtol=1e-5)
    np.testing.assert_allclose(twice, rotated, atol=1e-5)
    assert not of_signs.any()


def test_under_jit_vmap_scan_remat_and_shard_map():
    x, signs = draw((8, 6, 128)), signs_of(128)
    rotate = functools.partial(hadamard_rotate, block_size=64, signs=signs)
    expected = rotate(x)  # eagerly
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    for name, got in {
        "jit": jax.jit(rotate)(x),
        "vmap": jax.jit(jax.vmap(rotate))(x),
        "scan": jax.lax.scan(lambda c, row: (c, rotate(row)), 0, x)[1],
        "shard_map": jax.jit(jax.shard_map(rotate, mesh=mesh, in_specs=spec, out_specs=spec))(x),
        "sharded": jax.jit(rotate)(jax.device_put(x, NamedSharding(mesh, spec))),
    }.items():
        np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=name)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jax.checkpoint(rotate)(x) ** 2)))(x)
    np.testing.assert_allclose(gradient, 2 * x, atol=1e-5)


def test_outliers_spread_over_their_block():
    x = jnp.zeros((1, 256)).at[0, 17].set(16.0)
    rotated = hadamard_rotate(x, block_size=256, signs=signs_of(256))
    np.testing.assert_allclose(jnp.abs(rotated), 1.0, atol=1e-6)


@pytest.mark.parametrize(("length", "block_size"), [(1, 1), (300, 128), (128, 128), (7, 8), (96, 64)])
def test_blocks_cover_the_axis_in_powers_of_two(length, block_size):
    sizes = block_sizes(length, block_size)
    assert sum(sizes) == length and sizes == sorted(sizes, reverse=True)
    assert all(size & (size - 1) == 0 and size <= block_size for size in sizes)
    assert sizes.count(block_size) == length // block_size


def test_signs_are_fair_and_differ_between_seeds():
    a, b = (random_signs(SEED + i, 2**16) for i in range(2))
    assert set(np.unique(a)) == {-1.0, 1.0}
    for mean in (jnp.mean(a), jnp.mean(b), jnp.mean(a * b), jnp.mean(a[1:] * a[:-1])):
        assert abs(mean) < 5 / 2**8


def test_three_bfloat16_products_are_exact_to_float32():
    """The path of TPU and GPU: the value of every float32, however far its parts are apart."""
    x = draw((64, 128)) * jnp.exp2(jnp.round(8 * draw((64, 128)) + 1))
    ours = times_signs_matrix(x, jnp.eye(128, dtype=jnp.bfloat16))
    np.testing.assert_array_equal(ours, x)
    ours = times_signs_matrix(draw((64, 128)), jnp.asarray(hadamard_matrix(128), jnp.bfloat16))
    theirs = np.asarray(draw((64, 128)), np.float64) @ hadamard_matrix(128)
    np.testing.assert_allclose(ours, theirs, atol=3e-5)


KERNELS = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
KERNEL_SHAPES = [((3, 128), 128), ((70, 256), 64), ((2, 16, 384), 2), ((65, 512), 256), ((17, 1024), 1024)]
# The others are slow: interpreted kernels. Each shape by each kernel, in one of the types.
FAST = [("pallas_tpu", "float32", 64), ("pallas_gpu", "bfloat16", 64), ("pallas_gpu", "float32", 1024)]


@pytest.mark.parametrize(
    ("kernel", "dtype", "shape", "block_size"),
    [
        pytest.param(*case, shape, block, marks=() if (*case, block) in FAST else pytest.mark.slow)
        for (i, case), (j, (shape, block)) in itertools.product(
            enumerate(itertools.product(KERNELS, TOLERANCE)), enumerate(KERNEL_SHAPES)
        )
        if (*case, block) in FAST or (i + i // 2 + j) % 2
    ],
)
def test_kernel_is_the_dense_matrix(kernel, shape, block_size, dtype):
    x, signs = draw(shape, dtype), signs_of(shape[-1])
    if why := KERNELS[kernel].cannot(shape, len(shape) - 1, block_size, x.dtype):
        assert (kernel, dtype, block_size) == ("pallas_gpu", "float32", 1024), why
        return
    for inverse, s in ((False, signs), (True, signs), (False, None)):
        rotate = functools.partial(KERNELS[kernel].hadamard_rotate, block_size=block_size, inverse=inverse)
        ours = jax.jit(functools.partial(rotate, interpret=True))(x, s)
        assert_close(ours, exact(x, block_size, s, inverse), dtype)


@pytest.mark.parametrize(
    ("shape", "axis", "block_size", "why"),
    [
        ((4, 300), 1, 64, "300 elements, not a multiple of 128"),
        ((256, 4), 0, 64, "the last of two axes or more"),
        ((256,), 0, 64, "the last of two axes or more"),
        ((4, 8192), 1, 8192, "blocks of at most"),
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_asked_for_by_name_says_why_it_cannot(shape, axis, block_size, why, kernel):
    with pytest.raises(ValueError, match=why):
        hadamard_rotate(jnp.zeros(shape), block_size=block_size, axis=axis, implementation=kernel)


def test_float16_is_rotated_on_a_tpu_by_xla():
    rotate = jax.jit(functools.partial(hadamard_rotate, block_size=128))
    half = jnp.zeros((16, 128), jnp.float16)
    for x, kernel in ((half, False), (half.astype("bfloat16"), True)):
        assert ("tpu_custom_call" in rotate.trace(x).lower(lowering_platforms=("tpu",)).as_text()) == kernel


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(block_size=12), "12 is not a power of two"),
        (dict(block_size=0), "0 is not a power of two"),
        (dict(block_size=8, axis=2), "axis 2 is not one of an array of shape"),
        (dict(block_size=8, signs=jnp.ones(3)), "needs \\(8,\\)"),
        (dict(block_size=8, implementation="cuda"), "'cuda' is not one of"),
    ],
)
def test_bad_input_is_named_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        hadamard_rotate(jnp.zeros((2, 8)), **arguments)
    with pytest.raises(ValueError, match="int32; only floats rotate"):
        hadamard_rotate(jnp.zeros((2, 8), jnp.int32), block_size=8)
