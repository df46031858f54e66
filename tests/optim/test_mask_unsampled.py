"""What was not sampled stays, in every chain; and what Adam does where it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.optim import (
    mask_unsampled,
    scale_by_adam_low_precision,
    scale_by_ortho_adam,
    stochastic_round,
    with_master_weights,
)

AXES = {"mlp": ("layers", "embed", "mlp"), "norm": ("layers", "embed"), "table": ("vocab", "embed")}
SHAPES = {"mlp": (3, 4, 8), "norm": (3, 4), "table": (5, 4)}
SAMPLED = {
    "layers": np.array([True, False, True]),
    "mlp": np.array([[True, False] * 4, [False] * 8, [True] * 4 + [False] * 4]),
}
# What takes part in the step, written out.
WHERE = {
    "mlp": np.broadcast_to(SAMPLED["mlp"][:, None, :], SHAPES["mlp"]),
    "norm": np.broadcast_to(SAMPLED["layers"][:, None], SHAPES["norm"]),
    "table": np.ones(SHAPES["table"], bool),
}


def draw(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def step_of(optimizer):
    @jax.jit
    def step(params, state, grads, sampled):
        updates, state = optimizer.update(grads, state, params, sampled=sampled)
        return optax.apply_updates(params, updates), state, updates

    return step


def masks_at(step):
    """Return a random draw of the units for a step."""
    rng = np.random.default_rng(100 + step)
    layers = rng.permuted([True, True, False])
    return {"layers": layers, "mlp": layers[:, None] & (rng.random((3, 8)) < 0.5)}


@pytest.mark.smoke
def test_frozen_adamw_equals_float64_in_which_a_unit_s_steps_are_those_that_sampled_it():
    """Five steps; the count of steps, and with it the correction of the bias, is the run's: 1e-6."""
    rate, b1, b2, decay = 1e-2, 0.9, 0.95, 0.1
    optimizer = mask_unsampled(optax.adamw(rate, b1, b2, weight_decay=decay), AXES)
    params = draw(0)
    step, state = step_of(optimizer), optimizer.init(params)
    w = {name: np.float64(x) for name, x in params.items()}
    m, v = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for t in range(1, 6):
        sampled, grads = masks_at(t), draw(t)
        params, state, _ = step(params, state, grads, sampled)
        where = {"mlp": sampled["mlp"][:, None, :], "norm": sampled["layers"][:, None], "table": np.True_}
        for name, on in where.items():
            g = np.float64(grads[name])
            m[name] = np.where(on, b1 * m[name] + (1 - b1) * g, m[name])
            v[name] = np.where(on, b2 * v[name] + (1 - b2) * g**2, v[name])
            update = m[name] / (1 - b1**t) / (np.sqrt(v[name] / (1 - b2**t)) + 1e-8) + decay * w[name]
            w[name] = np.where(on, w[name] - rate * update, w[name])
    for name in w:
        np.testing.assert_allclose(params[name], w[name], atol=1e-6, err_msg=name)


def adam():
    return optax.chain(scale_by_adam_low_precision(), optax.add_decayed_weights(0.1), optax.scale(-0.1))


CHAINS = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), mask_unsampled(adam(), AXES)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda rate: mask_unsampled(optax.chain(adam(), optax.scale(rate)), AXES)
    )(rate=1.0),
    "with_master_weights": lambda: with_master_weights(mask_unsampled(adam(), AXES)),
    "of master weights": lambda: mask_unsampled(with_master_weights(adam()), AXES),
    "masked decay": lambda: mask_unsampled(
        optax.chain(adam(), optax.masked(optax.trace(0.9), {"mlp": True, "norm": False, "table": True})), AXES
    ),
    "OrthoAdam, then stochastic_round": lambda: optax.chain(
        mask_unsampled(optax.chain(scale_by_ortho_adam(AXES), optax.scale(-0.1)), AXES),
        stochastic_round(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_in_every_chain_what_was_not_sampled_keeps_its_bits(chain):
    """Bfloat16 weights after a step of all, then one of some: those move and no other does."""
    optimizer, params = CHAINS[chain](), draw(0, jnp.bfloat16)
    step, state = step_of(optimizer), optimizer.init(params)
    everything = {name: np.ones_like(mask) for name, mask in SAMPLED.items()}
    grads = {name: g.astype(jnp.float32) for name, g in draw(1).items()}
    params, state, _ = step(params, state, grads, everything)
    after, new_state, updates = step(params, state, grads, SAMPLED)
    for name, on in WHERE.items():
        before, now = (np.asarray(x[name]).astype(np.float32) for x in (params, after))
        np.testing.assert_array_equal(now[~on], before[~on], err_msg=name)
        assert np.mean(now[on] != before[on]) > 0.4, name
        assert np.all(np.asarray(updates[name])[~on] == 0)
    # Moments follow the units; in OrthoAdam's basis, which mixes them, whole layers.
    paths = jax.tree.leaves_with_path(state), jax.tree.leaves(new_state)
    arrays = [(p, a, b) for (p, a), b in zip(*paths, strict=True) if a.shape == SHAPES["mlp"]]
    assert len(arrays) >= 2
    rotated = chain.startswith("OrthoAdam")
    on = np.broadcast_to(SAMPLED["layers"][:, None, None], SHAPES["mlp"]) if rotated else WHERE["mlp"]
    for path, a, b in arrays:
        if "master" in jax.tree_util.keystr(path) and chain == "with_master_weights":
            on = WHERE["mlp"]
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_array_equal(a[~on], b[~on], err_msg=jax.tree_util.keystr(path))
        assert np.mean(a[on] != b[on]) > 0.5, path


def test_a_step_that_is_told_nothing_is_the_plain_optimizer_s():
    params, grads = draw(0), draw(1)
    plain, masked = adam(), mask_unsampled(adam(), AXES)

    @jax.jit
    def updates(params, grads):
        state = plain.init(params)
        return plain.update(grads, state, params), masked.update(grads, state, params)

    expected, other = updates(params, grads)
    jax.tree.map(np.testing.assert_array_equal, other, expected)


def test_zero_gradients_make_adam_step_sqrt_p_times_as_far():
    """What TrainConfig's unsampled=zero_grad means: E[g] = p a and E[g^2] = p a^2 for a gradient a that is
    seen with probability p, whatever it is multiplied by. Mean step over 3,000 steps, within 4 %."""
    units, steps, p = 64, 3000, 0.25
    optimizer = optax.adam(1.0, 0.9, 0.999)

    @jax.jit
    def mean_step():
        def one(carry, key):
            state, total = carry
            kept = jnp.argsort(jax.random.uniform(key, (units,))) < p * units
            updates, state = optimizer.update(jnp.where(kept, 1.0 / p, 0.0), state)
            return (state, total - jnp.mean(updates)), None

        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(one, (optimizer.init(jnp.zeros(units)), 0.0), keys)[0][1] / steps

    assert float(mean_step()) == pytest.approx(np.sqrt(p), rel=0.04)


def test_on_a_mesh_of_either_kind_the_state_stays_where_it_was():
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind), devices=jax.devices()[:4])
        specs = {
            "mlp": PartitionSpec(None, "a", "b"),
            "norm": PartitionSpec(None, "a"),
            "table": PartitionSpec(),
        }
        shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        optimizer = mask_unsampled(optax.adam(0.1), AXES)
        with jax.set_mesh(mesh):
            params, grads = (jax.device_put(draw(seed), shardings) for seed in (0, 1))
            state = optimizer.init(params)
            after, state, _ = step_of(optimizer)(params, state, grads, SAMPLED)
        for name in SHAPES:
            assert after[name].sharding.is_equivalent_to(shardings[name], after[name].ndim)
            assert state[0].mu[name].sharding.is_equivalent_to(shardings[name], after[name].ndim)
            np.testing.assert_array_equal(np.asarray(after[name] == params[name]), ~WHERE[name])


def test_axes_may_be_a_function_and_parameters_may_lie_in_tuples():
    params, grads = draw(0), draw(1)
    step, state = step_of(mask_unsampled(optax.adam(0.1), AXES)), optax.adam(0.1).init(params)
    expected, _, _ = step(params, state, grads, SAMPLED)
    shuffled = lambda tree: (tree["mlp"], [tree["norm"], (tree["table"],)])
    axes = shuffled(AXES)
    step = step_of(mask_unsampled(optax.adam(0.1), lambda tree: axes))
    moved, _, _ = step(shuffled(params), optax.adam(0.1).init(shuffled(params)), shuffled(grads), SAMPLED)
    jax.tree.map(np.testing.assert_array_equal, moved, shuffled(expected))
