"""The contract of a gradient transformation, which our links and optax's own keep alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

from jaxllm.optim import float32_gradients
from tests.optim.contract import (
    OPTIMIZERS,
    SPECS,
    descend,
    gradient,
    losses,
    make_step,
    plain,
    start,
)

# optax's own hold the suite itself to account: one of them in the fast suite.
every_optimizer = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("optax.lion", "optax.sgd") else ())
        for name in OPTIMIZERS
    ],
)
# The wrappers of optax: one optimizer of each nature in every one; the others of ours in the slow suite,
# each in every other wrapper.
IN_WRAPPERS = ("adamw_bf16_sr", "orthoadam", "mask_unsampled")


def in_a_wrapper(number):
    others = [name for name in OPTIMIZERS if name not in IN_WRAPPERS and not name.startswith("optax.")]
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in others[number % 2 :: 2]]
    return pytest.mark.parametrize("name", [*IN_WRAPPERS, *slow])


def build(name):
    case = OPTIMIZERS[name]
    return case.make(case.learning_rate), start(case.dtype)


def assert_same(ours, theirs, leaves=None):
    """To float32's last bits, which differ between programs, and rarely tip a rounding to 16 bits."""
    ours, theirs = (
        np.concatenate([np.ravel(tree[leaf]).astype(np.float64) for leaf in leaves or theirs])
        for tree in (ours, theirs)
    )
    assert np.mean(~(np.abs(ours - theirs) <= 1e-5)) <= 0.02  # NaN is not near


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@every_optimizer
def test_converges(name):
    """A parabola, Rosenbrock's valley and a least-squares matrix, to 2 % of the loss at the start."""
    optimizer, params = build(name)

    @jax.jit
    def train(params):
        def step(_, carry):
            params, state = carry
            updates, state = optimizer.update(gradient(params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 1000, step, (params, optimizer.init(params)))[0]

    before, after = losses(params), losses(train(params))
    for target in before:
        assert after[target] < 0.02 * before[target], target


@every_optimizer
def test_types_are_stable_and_nothing_is_compiled_twice(name):
    optimizer, params = build(name)
    step, state = make_step(optimizer), optimizer.init(params)
    before = types((params, state))
    for _ in range(3):
        params, state = step(params, state, gradient(params))
        assert types((params, state)) == before
    assert step._cache_size() == 1
    assert_same(params, plain(name, 3))


# Every optimizer on one kind of mesh, in turn; on the other kind in the slow suite.
MESHES = [
    pytest.param(name, kind, id=f"{name}-{kind.name}", marks=() if (i + j) % 2 == 0 else pytest.mark.slow)
    for i, name in enumerate(OPTIMIZERS)
    for j, kind in enumerate((AxisType.Auto, AxisType.Explicit))
]


@pytest.mark.parametrize(("name", "kind"), MESHES)
def test_state_is_sharded_like_the_parameters_and_stays_so(name, kind):
    """On 4 x 2 devices; and where it gets to is where one device gets to."""
    optimizer, params = build(name)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    shardings = {leaf: NamedSharding(mesh, spec) for leaf, spec in SPECS.items()}
    with jax.set_mesh(mesh):
        params = jax.device_put(params, shardings)
        step, state = make_step(optimizer), optimizer.init(params)
        for _ in range(3):
            grads = jax.device_put(jax.device_get(gradient(jax.device_get(params))), shardings)
            params, state = step(params, state, grads)
            for path, x in jax.tree.leaves_with_path((params, state)):
                leaf = next((leaf for leaf in SPECS if f"['{leaf}']" in jax.tree_util.keystr(path)), None)
                if leaf and x.shape == params[leaf].shape:
                    assert x.sharding.is_equivalent_to(shardings[leaf], x.ndim), path
    assert step._cache_size() == 1
    assert_same(params, plain(name, 3))


@in_a_wrapper(0)
def test_multi_steps_takes_the_mean_gradient(name):
    """Two equal gradients a step: nothing moves at the first, and the second is the plain step."""
    optimizer, params = build(name)
    optimizer = optax.MultiSteps(optimizer, every_k_schedule=2)
    step, state = make_step(optimizer), optimizer.init(params)
    for _ in range(3):
        before = params
        params, state = step(params, state, gradient(before))
        jax.tree.map(np.testing.assert_array_equal, params, before)
        params, state = step(params, state, gradient(before))
    assert_same(params, plain(name, 3))


@in_a_wrapper(1)
def test_inject_hyperparams_changes_the_rate_without_a_compilation(name):
    case = OPTIMIZERS[name]
    params = start(case.dtype)
    optimizer = optax.inject_hyperparams(case.make, hyperparam_dtype=jnp.float32)(case.learning_rate)
    step, state = make_step(optimizer), optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state, gradient(params))
    assert_same(params, plain(name, 3))
    state.hyperparams["rate" if "rate" in state.hyperparams else "learning_rate"] *= 0
    moved, _ = step(params, state, gradient(params))
    assert step._cache_size() == 1
    if name != "kahan_compensate":  # which has an error of before to pay back
        jax.tree.map(np.testing.assert_array_equal, moved, params)


@in_a_wrapper(2)
def test_masked_and_multi_transform_take_their_own_parameters(name):
    optimizer, params = build(name)
    ours, others = ["matrix", "rosenbrock"], ["parabola"]
    mask = {leaf: leaf in ours for leaf in params}
    masked = optax.chain(
        optax.masked(optax.set_to_zero(), {leaf: leaf in others for leaf in params}),
        optax.masked(optimizer, mask),
    )
    parted = optax.multi_transform({True: optimizer, False: optax.set_to_zero()}, mask)
    for inside in (masked, parted):
        moved = descend(inside, params, 3)
        assert_same(moved, plain(name, 3), ours)
        np.testing.assert_array_equal(moved["parabola"], params["parabola"])


@in_a_wrapper(3)
def test_apply_if_finite_leaves_out_a_step(name):
    """A gradient with a NaN changes neither parameters nor draws nor moments."""
    optimizer, params = build(name)
    optimizer = optax.chain(float32_gradients(), optax.apply_if_finite(optimizer, max_consecutive_errors=3))
    step, state = make_step(optimizer), optimizer.init(params)
    for t in range(4):
        grads = gradient(params)
        if t == 1:
            grads["matrix"] = grads["matrix"].at[0, 0].set(jnp.nan)
        params, state = step(params, state, grads)
    assert_same(params, plain(name, 3))
