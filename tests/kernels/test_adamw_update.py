"""One AdamW step against float64, its rounding against neighbours, its bad input against a sentence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxllm_kernels.adamw_update import adamw_update, reference

SHAPES = [(), (1,), (7,), (3, 5), (0, 4), (16, 128), (33, 130), (2, 16, 257), (2, 3, 4, 5)]
HYPER = dict(learning_rate=3e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
SEED = jnp.array([123, 456], jnp.uint32)


def inputs(shape, weight="float32", moment="float32", gradient="float32"):
    w, m, v, g = np.random.default_rng(len(shape)).normal(size=(4, *shape))
    dtypes = weight, moment, moment, gradient
    return tuple(jnp.asarray(x, dtype) for x, dtype in zip((w, m, v**2, g), dtypes, strict=True))


STEP = jax.jit(functools.partial(adamw_update, **HYPER))


def as_float64(x):
    return np.asarray(x).astype(np.float64)


def bfloat16_neighbours(x):
    """Return the bfloat16 values next to x, towards zero and away from it, as float64 magnitudes."""
    exponent = np.floor(np.log2(np.abs(x)))
    spacing = 2.0 ** (exponent - 7)
    toward = np.floor(np.abs(x) / spacing) * spacing
    return toward, toward + spacing


@pytest.mark.smoke
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_float32_step_matches_float64(shape, step):
    arrays = inputs(shape)
    new = STEP(*arrays, step=step)
    exact = reference.adamw_step(*arrays, **HYPER, step=step)
    for name, ours, theirs in zip(new._fields, new, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6, err_msg=name)


def test_float32_steps_match_optax():
    w, _, _, _ = inputs((6, 20))
    optimizer = optax.adamw(3e-3, b1=0.8, b2=0.99, weight_decay=0.1)
    theirs, state = w, optimizer.init(w)
    ours = (w, jnp.zeros_like(w), jnp.zeros_like(w))
    update = jax.jit(optimizer.update)
    step = jax.jit(functools.partial(adamw_update, learning_rate=3e-3, b1=0.8, b2=0.99, weight_decay=0.1))
    for t in range(1, 6):
        g = jax.random.normal(jax.random.key(t), w.shape)
        updates, state = update(g, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        ours = step(*ours, g, step=t)
    np.testing.assert_allclose(ours.weights, theirs, atol=2e-6)


@pytest.mark.parametrize("gradient", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("weight", ["bfloat16", "float32"])
@pytest.mark.parametrize("moment", ["bfloat16", "float32"])
def test_each_result_is_the_nearest_in_the_dtype_that_came_in(weight, moment, gradient):
    arrays = inputs((9, 70), weight, moment, gradient)
    new = STEP(*arrays, step=3)
    exact = reference.adamw_step(*arrays, **HYPER, step=3)
    for name, ours, theirs, old in zip(new._fields, new, exact, arrays, strict=False):
        assert ours.dtype == old.dtype, name
        # Half a step of bfloat16, and float32's own error beside a tie.
        half_step = 2.0**-8 if ours.dtype == jnp.bfloat16 else 0
        error = np.abs(as_float64(ours) - theirs)
        assert np.all(error <= (half_step + 2e-6) * np.abs(theirs) + 2e-6), name


@pytest.mark.smoke
@pytest.mark.parametrize(("word", "which"), [(0, 0), (0xFFFFFFFF, 1)])
def test_smallest_bits_round_towards_zero_and_largest_away(word, which):
    arrays = inputs((40, 50), "bfloat16", "bfloat16", "bfloat16")
    exact = reference.adamw_step(*arrays, **HYPER, step=2)
    new = adamw_update(
        *arrays, **HYPER, step=2, round_weights=True, round_moments=True,
        random_bits=jnp.full((40, 50), word, jnp.uint32),
    )  # fmt: skip
    for name in ("weights", "second_moment"):
        i = new._fields.index(name)
        neighbours = bfloat16_neighbours(exact[i])
        got = np.abs(as_float64(new[i]))
        # A few lie within float32's error, or 2**-16 of a step, of a neighbour.
        assert np.mean(got == neighbours[which]) > 0.995, name
        assert np.all(np.abs(got - neighbours[which]) <= neighbours[1] - neighbours[0]), name


def test_each_result_takes_its_own_bits():
    """The lower half of a word moves only the weights, the upper half the second moment too."""
    arrays = inputs((64, 64), "bfloat16", "bfloat16")
    step_of = functools.partial(
        adamw_update, *arrays, **HYPER, step=2, round_weights=True, round_moments=True
    )
    words = jax.random.bits(jax.random.key(0), (64, 64), jnp.uint32)
    step = jax.jit(lambda words: step_of(random_bits=words))
    base, lower, upper = (step(words ^ jnp.uint32(x)) for x in (0, 0xFFFF, 0xFFFF0000))
    np.testing.assert_array_equal(base.second_moment, lower.second_moment)
    np.testing.assert_array_equal(base.weights, upper.weights)
    for a, b in ((base.weights, lower.weights), (base.second_moment, upper.second_moment)):
        assert jnp.mean(a != b) > 0.2
    assert jnp.mean(base.first_moment != lower.first_moment) > 0.2


def test_uint16_bits_are_the_lower_half_of_uint32_bits():
    arrays = inputs((20, 30), "bfloat16")
    words = jax.random.bits(jax.random.key(0), (20, 30), jnp.uint32)
    step = functools.partial(adamw_update, *arrays, **HYPER, step=5, round_weights=True)
    half = step(random_bits=words.astype(jnp.uint16))
    np.testing.assert_array_equal(step(random_bits=words).weights, half.weights)


@pytest.mark.parametrize("round_moments", [False, True])
def test_second_moment_of_bfloat16_decays_at_0999(round_moments):
    """optax computes b2 * nu in bfloat16, where 0.999 is 1; to nearest, float32 arithmetic does not
    help either, since the decay is below half a step. Stochastic storage follows 0.999**t."""
    zero = jnp.zeros(4096, jnp.bfloat16)

    def body(t, v):
        return adamw_update(
            zero, zero, v, zero, learning_rate=0.0, b2=0.999, step=t, round_moments=round_moments,
            seed=jnp.stack([t, 2 * t]).astype(jnp.uint32),
        ).second_moment  # fmt: skip

    v = jax.jit(lambda v: jax.lax.fori_loop(1, 2701, body, v))(zero + 0.0845)
    start = float(jnp.bfloat16(0.0845))
    if round_moments:  # standard error: 3 % of it an element
        assert np.mean(as_float64(v)) == pytest.approx(start * 0.999**2700, rel=0.01)
    else:
        assert np.all(as_float64(v) == start)


@pytest.mark.parametrize("round_moments", [False, True])
def test_nan_gradient_reaches_the_weights(round_moments):
    w, m, v, g = inputs((4, 4), "bfloat16", "bfloat16", "bfloat16")
    g = g.at[1, 2].set(jnp.nan)
    new = adamw_update(
        w, m, v, g, **HYPER, step=1, round_weights=True, round_moments=round_moments, seed=SEED
    )
    for x in new:
        np.testing.assert_array_equal(np.isnan(as_float64(x)), np.isnan(as_float64(g)))


@pytest.mark.parametrize("generator", ["hash", "threefry"])
def test_same_words_under_jit_vmap_and_scan(generator):
    arrays = inputs((3, 8, 16), "bfloat16", "bfloat16")
    step = functools.partial(
        adamw_update, **HYPER, step=4, round_weights=True, round_moments=True, generator=generator
    )
    seeds = jnp.arange(6, dtype=jnp.uint32).reshape(3, 2)
    one_by_one = [step(*(x[i] for x in arrays), seed=seeds[i]) for i in range(3)]
    expected = jax.tree.map(lambda *xs: jnp.stack(xs), *one_by_one)
    mapped = jax.jit(jax.vmap(lambda *xs: step(*xs[:-1], seed=xs[-1])))(*arrays, seeds)
    _, scanned = jax.lax.scan(lambda c, xs: (c, step(*xs[:-1], seed=xs[-1])), 0, (*arrays, seeds))
    for got in (mapped, scanned):
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_sharded_array_rounds_like_a_whole_one():
    arrays = inputs((16, 24), "bfloat16", "bfloat16")
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b"))
    step = jax.jit(
        functools.partial(
            adamw_update, **HYPER, step=4, round_weights=True, round_moments=True, seed=SEED
        )
    )
    whole, sharded = step(*arrays), step(*jax.device_put(arrays, sharding))
    assert sharded.weights.sharding.is_equivalent_to(sharding, 2)
    jax.tree.map(np.testing.assert_array_equal, whole, sharded)


def test_donated_arrays_are_written_in_place():
    arrays = inputs((64, 64), "bfloat16", "bfloat16", "bfloat16")
    step = functools.partial(adamw_update, **HYPER, step=4, round_weights=True, round_moments=True)
    compiled = (
        jax.jit(lambda w, m, v, g: step(w, m, v, g, seed=SEED), donate_argnums=(0, 1, 2))
        .lower(*arrays)
        .compile()
    )
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == 3 * 64 * 64 * 2
    # XLA's CPU compiler writes m and v in loops of their own, before w's, and copies both for it.
    assert memory.temp_size_in_bytes < 2 * 64 * 64 * 2 + 2048


BAD = {
    "step is 0; it must be at least 1": dict(step=0),
    "must agree": dict(gradient=jnp.zeros((2, 3))),
    "first_moment is float16": dict(first_moment=jnp.zeros((2, 2), jnp.float16)),
    "needs random_bits or a seed": dict(round_weights=True),
    "only one of them": dict(round_weights=True, seed=SEED, random_bits=jnp.zeros((2, 2), jnp.uint32)),
    "uint32 \\(2,\\)": dict(round_weights=True, seed=jnp.zeros(3, jnp.uint32)),
    "random_bits have shape": dict(round_weights=True, random_bits=jnp.zeros((2, 3), jnp.uint32)),
    "give uint32": dict(round_moments=True, random_bits=jnp.zeros((2, 2), jnp.uint16)),
    "generator 'rbg' is not one of": dict(round_weights=True, seed=SEED, generator="rbg"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named_in_one_sentence(message):
    arrays = dict.fromkeys(("weights", "first_moment", "second_moment", "gradient"), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match=message):
        adamw_update(**{**arrays, **HYPER, "step": 1, **BAD[message]})
