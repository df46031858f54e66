"""Adam in bfloat16, fused or a chain, Kahan's errors, master weights: against optax and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxllm_kernels.adamw_update import fold_in, random_words

from jaxllm import optim
from jaxllm.optim import (
    OptimConfig,
    adamw_bf16_sr,
    kahan_compensate,
    make_optimizer,
    scale_by_adam_low_precision,
    stochastic_round,
)
from jaxllm.optim.after import after
from jaxllm.optim.stochastic_round import leaf_seed, seed_words
from tests.optim.steps import BF16, run, tree


@pytest.mark.smoke
def test_a_resumed_run_repeats_the_draws():
    for optimizer in (
        optax.chain(scale_by_adam_low_precision(), optax.scale(-1e-3), stochastic_round(seed=5)),
        adamw_bf16_sr(1e-3),
        optax.chain(scale_by_adam_low_precision(), optax.scale(-1e-3), kahan_compensate()),
    ):
        straight = run(optimizer, tree(), 6)
        half = run(optimizer, tree(), 3)
        saved = jax.tree.map(np.asarray, half)
        resumed = run(optimizer, saved[0], 3, state=saved[1], start=3)
        jax.tree.map(np.testing.assert_array_equal, straight, resumed)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_under_jit_is_one_device_bit_for_bit(kind):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    sharding = NamedSharding(mesh, PartitionSpec("a", "b"))
    params = jax.random.normal(jax.random.key(1), (16, 24)).astype(BF16)
    optimizer = adamw_bf16_sr(1e-2)

    def gradient(t, p):
        return 0.5 * params

    whole, _ = run(optimizer, params, 3, gradient)
    gradient_there = jax.device_put(0.5 * params, sharding)
    with jax.set_mesh(mesh):
        there, state = run(optimizer, jax.device_put(params, sharding), 3, lambda t, p: gradient_there)
    assert there.sharding.is_equivalent_to(sharding, 2)
    assert state.mu.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(whole, there)


@pytest.mark.parametrize("make", [stochastic_round, kahan_compensate, scale_by_adam_low_precision])
def test_params_are_asked_for(make):
    optimizer = make()
    with pytest.raises(ValueError, match="needs params"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


def test_adam_in_float32_is_optax():
    params = tree() | {"w": tree()["w"].astype(jnp.float32), "gain": jnp.ones(64)}
    ours = optax.chain(scale_by_adam_low_precision(0.9, 0.99, moment_dtype="float32"), optax.scale(-1e-2))
    theirs = optax.chain(optax.scale_by_adam(0.9, 0.99), optax.scale(-1e-2))
    (a, _), (b, _) = run(ours, params, 5), run(theirs, params, 5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


@pytest.mark.parametrize("rounds", [True, False])
def test_stored_moments_are_float32_s_result_rounded_exactly(rounds):
    """Against float64 that is rounded with the same random words, one entry in 10,000 at most is another,
    and then a neighbour: there the exact value is within float32's own last bits of where the rounding
    turns. So both are right, each of its arithmetic; in float64 there is no other difference."""
    n, b1, b2 = 200_000, 0.9, 0.95
    params = jnp.zeros(n, BF16)
    rng = np.random.default_rng(0)
    g = jnp.asarray(rng.normal(size=n) * np.exp(3 * rng.normal(size=n)), jnp.float32)
    link = scale_by_adam_low_precision(b1, b2, round_moments=rounds, seed=3)
    state, update = link.init(params), jax.jit(link.update)
    for t in range(2):
        words = np.asarray(random_words(leaf_seed(fold_in(seed_words(3), t), (), params), (n,)))
        m, v, wide = (np.asarray(x).astype(np.float64) for x in (state.mu, state.nu, g))
        _, state = update(g, state, params)
        for exact, stored, word in (
            (b1 * m + (1 - b1) * wide, state.mu, (words ^ (words >> 16)) & 0xFFFF),
            (b2 * v + (1 - b2) * wide**2, state.nu, words >> 16),
        ):
            spacing = np.exp2(np.floor(np.log2(np.abs(exact))) - 7)
            steps = np.abs(exact) / spacing + (word / 2**16 if rounds else 0.5)
            other = np.sign(exact) * np.floor(steps) * spacing != np.asarray(stored).astype(np.float64)
            assert other.mean() < 1e-4
            last_bits = np.abs(steps - np.round(steps))[other] * 2**16  # float32 has 16 bits more
            assert np.all(last_bits <= 2)
            distance = np.abs(np.asarray(stored).astype(np.float64) - exact)[other] / spacing[other]
            assert np.all(distance <= 1.001)


def test_fused_alias_draws_what_its_links_draw():
    """One pass or a chain of four links: the same weights, but for the last bits of arithmetic."""
    chain = optax.chain(
        scale_by_adam_low_precision(0.9, 0.95, seed=4),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(1e-2),
        stochastic_round(seed=4),
    )
    params = {"w": jnp.asarray(jax.random.normal(jax.random.key(0), (64, 64)), BF16)}
    a, _ = run(adamw_bf16_sr(1e-2, weight_decay=0.1, seed=4), params, 1)
    b, _ = run(chain, params, 1)
    assert np.mean(np.asarray(a["w"] != b["w"])) < 0.02
    np.testing.assert_allclose(a["w"].astype(jnp.float32), b["w"].astype(jnp.float32), rtol=2.0**-6)


def test_a_mask_spares_parameters_and_a_schedule_is_read_at_the_count():
    """float32 parameters are not rounded: optax's AdamW is the same, but for moments kept in bfloat16."""
    params = {"w": jnp.linspace(1.0, 2.0, 64), "gain": jnp.linspace(1.0, 2.0, 64)}
    mask = {"w": True, "gain": False}
    rate = lambda count: 0.01 * (count + 1)  # 0.02 in the second step
    kwargs = dict(weight_decay=2.0, mask=mask)
    ours, _ = run(adamw_bf16_sr(rate, **kwargs), params, 2)
    theirs, _ = run(optax.adamw(rate, b2=0.95, **kwargs), params, 2)
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4)
    undecayed, _ = run(optax.adamw(rate, b2=0.95, weight_decay=0.0), params, 2)
    assert np.all(np.abs(ours["w"] - undecayed["w"]) > 0.05)


def test_state_is_eight_bytes_a_parameter_with_gradient():
    params = {"w": jnp.zeros((256, 128), BF16)}
    state = adamw_bf16_sr(1e-3).init(params)
    total = sum(x.nbytes for x in jax.tree.leaves((params, params, state)))
    assert total == 8 * 256 * 128 + 12  # a count and a seed


def test_on_a_cpu_moments_are_updated_where_they_lie():
    """In the order of XLA's choice both would be copied: the weights' loop reads them too."""
    params = jax.ShapeDtypeStruct((64, 512), BF16)
    optimizer = adamw_bf16_sr(1e-2)

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    given = params, jax.eval_shape(optimizer.init, params), params
    memory = jax.jit(step, donate_argnums=(0, 1)).lower(*given).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * 64 * 512 * BF16.dtype.itemsize
    assert memory.temp_size_in_bytes < 64 * 512 * BF16.dtype.itemsize / 4


@pytest.mark.parametrize("shape", [(1, 4), (4, 0), (0, 4), (3,), ()])
def test_what_waits_for_a_result_is_itself(shape):
    x = jnp.resize(jnp.array([1.5, -0.0, jnp.nan, jnp.inf], jnp.float32), shape)
    waiting = jax.jit(after)(x, x, jnp.int32(3))
    np.testing.assert_array_equal(waiting.view(jnp.uint32), x.view(jnp.uint32))


def test_moments_may_be_sharded_where_weights_are_not():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    optimizer, params = adamw_bf16_sr(1e-2), jax.random.normal(jax.random.key(1), (16, 8)).astype(BF16)
    whole, _ = run(optimizer, params, 1, lambda t, p: 0.5 * params)
    with jax.set_mesh(mesh):
        here = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        state = optimizer.init(here)
        moments = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("a"))) for x in (state.mu, state.nu)]
        state = state._replace(mu=moments[0], nu=moments[1])
        updates, state = jax.jit(optimizer.update)(0.5 * here, state, here)
        np.testing.assert_array_equal(whole, optax.apply_updates(here, updates))
    assert state.mu.sharding.spec[0] == "a"


def test_without_jit_a_second_update_compiles_nothing(caplog):
    optimizer, params = adamw_bf16_sr(1e-2), jnp.ones((8, 8), BF16)
    state = optimizer.init(params)
    with jax.log_compiles():
        _, state = optimizer.update(params, state, params)
        assert "Compiling" in caplog.text
        caplog.clear()
        optimizer.update(params, state, params)
    assert "Compiling" not in caplog.text


def test_stationary_second_moment_has_no_drift():
    """b2 = 0.999, gradients N(0, 1): the mean of v is 1; stored to nearest it is 1.57 (spec)."""
    params = jnp.zeros(256, BF16)

    def mean_v(rounds):
        optimizer = scale_by_adam_low_precision(0.9, 0.999, round_moments=rounds)

        def body(t, state):
            g = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), params.shape)
            return optimizer.update(g, state, params)[1]

        state = jax.jit(lambda s: jax.lax.fori_loop(0, 4000, body, s))(optimizer.init(params))
        return float(jnp.mean(state.nu.astype(jnp.float32)))

    assert mean_v(True) == pytest.approx(1.0, abs=0.03)
    assert mean_v(False) > 1.3


def test_kahan_follows_the_float32_sum():
    params = jnp.ones(512, BF16)
    noise = lambda t, p: jax.random.normal(jax.random.key(t), p.shape)  # noqa: E731
    ours, state = run(optax.chain(optax.sgd(1e-3), kahan_compensate()), params, 50, noise)
    exact = 1 - 1e-3 * sum(np.asarray(noise(t, params), np.float64) for t in range(50))
    with_error = np.asarray(ours.astype(jnp.float32) + state[1].error.astype(jnp.float32), np.float64)
    np.testing.assert_allclose(with_error, exact, atol=50 * 2.0**-17)  # 2**-9 of an error of 2**-8


def test_injected_hyperparameters_draw_the_same():
    """optax.inject_hyperparams turns a seed, too, into an array."""
    injected = optax.inject_hyperparams(adamw_bf16_sr, hyperparam_dtype=jnp.float32)
    (a, _), (b, _) = (run(make(1e-3, seed=5), tree(), 3) for make in (adamw_bf16_sr, injected))
    assert np.mean(np.asarray(a["w"] != b["w"])) < 0.02
    assert np.mean(np.asarray(a["w"] != run(adamw_bf16_sr(1e-3, seed=6), tree(), 3)[0]["w"])) > 0.1


def test_found_by_name():
    config = OptimConfig(name="adamw_bf16_sr", learning_rate=0.1, schedule="constant", warmup_steps=0)
    optimizer = make_optimizer(config, 10, {"w": ("embed", "mlp")})
    params = {"w": jnp.ones((4, 4), BF16)}
    moved, _ = run(optimizer, params, 3)
    assert moved["w"].dtype == BF16 and np.all(moved["w"] != 1)


def test_master_weights_of_float32_parameters_may_be_donated():
    optimizer = optim.with_master_weights(optax.sgd(0.5))
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)

    def step(params, state):
        updates, state = optimizer.update({"w": jnp.ones(3)}, state, params)
        return optax.apply_updates(params, updates), state

    params, state = jax.jit(step, donate_argnums=(0, 1))(params, state)
    np.testing.assert_array_equal(params["w"], np.full(3, 0.5))
