"""stochastic_round: exact landings, means without bias, draws of their own, types and masks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from jaxllm_kernels.adamw_update import fold_in, random_words
from jaxllm_kernels.adamw_update import stochastic_round as round_array

from jaxllm import optim
from jaxllm.errors import UserError
from jaxllm.optim import apply_updates, kahan_compensate, scale_by_adam_low_precision, stochastic_round
from jaxllm.optim.stochastic_round import leaf_seed, seed_words
from tests.optim.steps import BF16, run


@pytest.mark.smoke
def test_apply_updates_lands_on_the_rounded_value_bit_for_bit():
    """2,000,000 random pairs of weight and update, of magnitudes 2**-20 to 2**4 each."""
    n = 2_000_000
    keys = jax.random.split(jax.random.key(0), 4)

    def spread(a, b):
        return jax.random.normal(a, (n,)) * jnp.exp2(jax.random.uniform(b, (n,), minval=-20, maxval=4))

    params, wanted = spread(*keys[:2]).astype(BF16), spread(*keys[2:])
    optimizer = stochastic_round(seed=3)
    landed = jax.jit(lambda p, u: optax.apply_updates(p, optimizer.update(u, optimizer.init(p), p)[0]))
    got = np.asarray(landed(params, wanted).astype(jnp.float32))
    x = np.asarray(params.astype(jnp.float32) + wanted)
    low = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    high = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    neighbour = (got == low) | (got == high)
    # Where old weight and new one are 60,000-fold apart their difference has too few bits.
    far = np.abs(np.asarray(params.astype(jnp.float32))) > 2.0**15 * np.abs(x)
    assert np.all(neighbour | far)
    assert far.mean() < 1e-3


@pytest.mark.parametrize("generator", ["hash", "threefry"])
def test_the_mean_is_exact_down_to_float32_s_smallest_normal_number(generator):
    """1,000 pairs of weight and update around it, 1,000 draws each. In the range that the docstring states
    the mean is the sum within 5 standard errors; elsewhere within 2 x 2**-126 besides. (Below it sums and
    differences are flushed to 0: a weight of 1.2e-37, say, cannot move by the 7e-40 to its neighbour.)"""
    rng, tiny, draws = np.random.default_rng(0), 2.0**-126, 1000
    sign = lambda: rng.choice([-1.0, 1.0], 1000)
    weights = jnp.asarray(sign() * np.exp2(rng.uniform(-133, -112, 1000)), BF16)
    updates = jnp.asarray(sign() * np.exp2(rng.uniform(-133, -116, 1000)), jnp.float32)
    # The smallest of the range, with updates of a part of their step of 2**-126 and of more.
    weights = weights.at[:4].set(jnp.array([1, -1, 1.5, -1.9921875], BF16) * jnp.asarray(2.0**-119, BF16))
    updates = updates.at[:4].set(jnp.array([1.013, -2.987, -1.4, 1.01], jnp.float32) * jnp.float32(tiny))
    link = stochastic_round(1, generator=generator)
    step = jax.jit(lambda p, u: optax.apply_updates(p, link.update(u, link.init(p), p)[0]))
    landed = step(*(jnp.broadcast_to(x, (draws, 1000)) for x in (weights, updates)))
    weights, updates, landed = (np.asarray(x).astype(np.float64) for x in (weights, updates, landed))
    wanted = weights + updates
    spacing = np.exp2(np.maximum(np.floor(np.log2(np.abs(wanted) + 1e-45)), -126) - 7)
    error, standard = np.abs(landed.mean(0) - wanted), 0.5 * spacing / np.sqrt(draws)
    exact = (np.minimum(np.abs(weights), np.abs(wanted)) >= 2.0**-119) & (np.abs(updates) >= tiny)
    assert np.all(exact[:4]) and 150 < exact.sum() < 850
    assert np.max(error[exact] / standard[exact]) < 5
    assert np.max(error[~exact] - 5 * standard[~exact]) < 2 * tiny


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_updates_survive_on_average(dtype):
    """1 + 100 * 0.001 with 4,096 weights: nearest stays at 1; the mean of these is within 5 errors."""
    params = jnp.ones(4096, dtype)
    optimizer = optax.chain(optax.sgd(0.001), stochastic_round())
    moved, _ = run(optimizer, params, 100, lambda t, p: -jnp.ones(p.shape))
    spacing = float(jnp.finfo(dtype).eps)
    error = np.sqrt(100 * 0.001 * spacing / 4096)  # variance of a step is below 0.001 * spacing
    assert np.mean(np.asarray(moved).astype(np.float64)) == pytest.approx(1.1, abs=5 * error)
    still, _ = run(optax.sgd(0.001), jnp.ones(8, BF16), 100, lambda t, p: -jnp.ones(p.shape))
    assert np.all(still == 1)


def test_draws_differ_between_seeds_steps_and_parameters():
    params = {"a": jnp.ones(2000, BF16), "b": jnp.ones(2000, BF16)}
    updates = jax.tree.map(lambda p: jnp.full(p.shape, 2.0**-8), params)  # half a step

    def ups(seed, steps_before=0):
        optimizer = stochastic_round(seed)
        state = optimizer.init(params)
        for _ in range(steps_before):
            _, state = optimizer.update(updates, state, params)
        return optimizer.update(updates, state, params)[0]

    base = ups(0)
    others = [base["b"], ups(1)["a"], ups(0, 1)["a"]]
    for other in others:
        assert abs(np.mean((base["a"] > 0) == (other > 0)) - 0.5) < 5 * 0.5 / np.sqrt(2000)
    np.testing.assert_array_equal(base["a"], ups(jax.random.key(0))["a"])


@pytest.mark.smoke
def test_replicas_stay_identical_and_shards_draw_differently():
    """20 steps under shard_map on 8 devices; the same gradients everywhere."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    optimizer = optax.chain(optax.sgd(1e-3), stochastic_round(seed=1))

    def train(params):
        def step(t, carry):
            params, state = carry
            updates, state = optimizer.update(jnp.full(params.shape, 0.9), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 20, step, (params, optimizer.init(params)))[0]

    def on(spec, shape):
        mapped = jax.shard_map(train, mesh=mesh, in_specs=spec, out_specs=spec)
        return jax.jit(mapped)(jnp.ones(shape, BF16))

    replicated = on(PartitionSpec(), (512,))
    shards = [np.asarray(s.data.astype(jnp.float32)) for s in replicated.addressable_shards]
    assert len(shards) == 8
    for shard in shards[1:]:
        np.testing.assert_array_equal(shard, shards[0])
    pieces = np.asarray(on(PartitionSpec("d"), (8 * 512,)).astype(jnp.float32)).reshape(8, 512)
    correlations = np.corrcoef(pieces)[np.triu_indices(8, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(512)


def test_mask_leaves_parameters_alone():
    params = {"w": jnp.ones(500, BF16), "gain": jnp.ones(500, BF16)}
    updates = jax.tree.map(lambda p: jnp.full(p.shape, 1e-3), params)
    for mask in ({"w": True, "gain": False}, lambda p: {"w": True, "gain": False}):
        for link in (stochastic_round(mask=mask), kahan_compensate(mask=mask)):
            deltas, _ = link.update(updates, link.init(params), params)
            np.testing.assert_array_equal(deltas["gain"], updates["gain"])
            assert np.all(np.isin(deltas["w"], [0, 2.0**-7]))


def test_a_cast_to_bfloat16_before_the_rounding_is_an_error():
    params = {"w": jnp.ones(3, BF16)}
    optimizer = optax.chain(optax.adam(1e-3), stochastic_round())  # whose updates are bfloat16
    with pytest.raises(UserError, match="update of \\['w'\\] reaches stochastic_round as bfloat16"):
        optimizer.update(params, optimizer.init(params), params)


NARROW = ["bfloat16", "float16", "float8_e4m3fn", "float8_e4m3", "float8_e5m2"]


def land(params, updates):
    """Return where one step of stochastic_round alone takes the parameters."""
    link = stochastic_round()
    return jax.jit(lambda p, u: apply_updates(p, link.update(u, link.init(p), p)[0]))(params, updates)


@pytest.mark.parametrize("dtype", NARROW[1:])
def test_other_types_land_on_neighbours_without_bias(dtype):
    """300,000 pairs, subnormals among them; the neighbours by a search in the list of all values."""
    rng = np.random.default_rng(0)
    width = jnp.dtype(dtype).itemsize * 8
    values = np.arange(2**width, dtype=f"uint{width}").view(jnp.dtype(dtype)).astype(np.float64)
    grid = np.unique(values[np.isfinite(values)])
    smallest = np.abs(grid[grid != 0]).min()
    params = jnp.asarray(rng.choice(grid[np.abs(grid) < 64 * smallest], 300_000), dtype)
    updates = jnp.asarray(rng.normal(size=params.size) * 32 * smallest, jnp.float32)
    wanted = np.asarray(params).astype(np.float64) + np.asarray(updates, np.float64)
    landed = np.asarray(land(params, updates)).astype(np.float64)
    above = np.searchsorted(grid, wanted)
    assert np.all((landed == grid[above]) | (landed == grid[above - 1]))
    error = (landed - wanted) / (grid[above] - grid[above - 1])
    assert abs(error.mean()) < 5 * 0.5 / np.sqrt(params.size)


@pytest.mark.parametrize("dtype", NARROW)
def test_infinities_and_nan_stay(dtype):
    has_infinity = math.isinf(jnp.asarray(jnp.inf, dtype))
    params = jnp.array([jnp.nan, 1, 1] + [jnp.inf, -jnp.inf, 1] * has_infinity, dtype)
    updates = jnp.array([0, jnp.nan, 0] + [1, 0, -jnp.inf] * has_infinity, jnp.float32)
    expected = [jnp.nan, jnp.nan, 1] + [jnp.inf, -jnp.inf, -jnp.inf] * has_infinity
    np.testing.assert_array_equal(land(params, updates).astype(jnp.float32), jnp.array(expected))


def test_apply_updates_is_that_of_optax_and_takes_float8_besides():
    for dtype in ("float32", "bfloat16", "float16"):
        params, updates = jax.random.normal(jax.random.key(0), (2, 1000)).astype(dtype)
        ours, theirs = (module.apply_updates(params, updates) for module in (optim, optax))
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    params = jnp.ones(4096, "float8_e4m3fn")  # neighbours are 1/16 and 1/8 away
    optimizer = optax.chain(scale_by_adam_low_precision(), optax.scale(-1e-3), stochastic_round())
    step = jax.jit(lambda p, s: optimizer.update(-jnp.ones(p.shape), s, p))
    state = optimizer.init(params)
    for _ in range(100):
        updates, state = step(params, state)
        params = apply_updates(params, updates)
    # Up to 1 + 100 * 0.001, each step's variance below 0.001 / 8.
    assert params.dtype == jnp.float8_e4m3fn
    assert float(jnp.mean(params.astype(float))) == pytest.approx(1.1, abs=5 * np.sqrt(0.1 / 8 / 4096))


def test_a_type_without_a_rounding_is_named():
    params = {"w": jnp.ones(3, "float8_e4m3b11fnuz"), "count": jnp.arange(3)}
    updates = {"w": jnp.ones(3), "count": jnp.zeros(3, int)}
    link = stochastic_round()
    with pytest.raises(UserError, match="cannot round \\['w'\\] to float8_e4m3b11fnuz; keep it"):
        link.update(updates, link.init(params), params)
    spared = stochastic_round(mask={"w": False, "count": True})
    deltas, _ = spared.update(updates, spared.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, deltas, updates)


def test_generators_are_selectable():
    params, updates = jnp.ones(1000, BF16), jnp.full(1000, 2.0**-8)
    deltas = {}
    for generator in ("hash", "threefry"):
        link = stochastic_round(generator=generator)
        deltas[generator] = link.update(updates, link.init(params), params)[0]
        assert abs(np.mean(deltas[generator] > 0) - 0.5) < 5 * 0.5 / np.sqrt(1000)
    assert np.any(deltas["hash"] != deltas["threefry"])


def test_words_reach_the_rounding_unchanged():
    """The link is the kernels' rounding with the words of (seed, count, path)."""
    params, u = {"w": jnp.ones(100, BF16)}, jnp.linspace(-0.1, 0.1, 100)
    link = stochastic_round(7)
    deltas, _ = link.update({"w": u}, link.init(params), params)
    path = (jax.tree_util.DictKey("w"),)
    words = random_words(leaf_seed(fold_in(seed_words(7), 0), path, params["w"]), (100,))
    expected = functools.partial(round_array, dtype=BF16)(1 + u, words)
    np.testing.assert_array_equal(optax.apply_updates(params, deltas)["w"], expected)
