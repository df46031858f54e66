"""`rotate` and OrthoAdam against dense matrices in float64, Adam, and training in the rotated basis."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.errors import UserError
from jaxllm.optim import (
    check_chain,
    orthoadam,
    orthoadam_bf16_sr,
    rotate,
    rotation_cost,
    scale_by_ortho_adam,
)
from tests.optim.rotate_oracle import (
    AXES,
    STRATEGIES,
    adam,
    assert_trees,
    dense,
    matrix,
    ortho_adam,
    run,
    tree,
)


# Its state after a step is the gradient in the rotated basis.
def seen(axes=AXES, **options):
    return rotate(optax.trace(decay=0.0), axes, **options)


def first_update(link, grads, **extra):
    """Return (updates, state) of a first step."""
    return jax.jit(lambda g: link.update(g, link.init(g), **extra))(grads)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("strategy", "length"), [("hadamard", 300), ("hadamard", 768), ("block", 300), ("kronecker", 200)]
)
def test_q_is_orthogonal_and_dense(strategy, length):
    """|Q Q^T - 1| at most 1e-5; within a block (128, 128, all) no entry is 0 or 1 but by chance."""
    link = seen({"w": (None, "embed")}, strategy=strategy)
    eye = {"w": jnp.eye(length)}
    updates, state = first_update(link, eye)
    Q = np.asarray(state.inner.trace["w"], np.float64).T
    np.testing.assert_allclose(Q @ Q.T, np.eye(length), atol=1e-5)
    np.testing.assert_allclose(updates["w"], eye["w"], atol=1e-5)
    assert np.abs(np.diag(Q)).mean() < 0.5 and np.abs(Q).max() < 0.99
    if strategy == "hadamard":  # through the kernel at 768, without it at 300
        np.testing.assert_allclose(Q, matrix(strategy, 128, 0, "['w']", 1, length), atol=1e-6)


@pytest.mark.smoke
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rotation_is_the_kronecker_product_of_its_axes(strategy):
    """Every kind of parameter against its dense float64 matrix, from the recipe in the docstrings.

    A recipe that changes garbles the moments of every checkpoint written before.
    """
    block_size = STRATEGIES[strategy]
    link = seen(strategy=strategy, block_size=block_size, seed=3)
    grads = tree(0)
    updates, state = first_update(link, grads)
    for name, g in grads.items():
        flat = np.asarray(g, np.float64).ravel()
        expected = (dense(strategy, block_size, name, seed=3) @ flat).reshape(g.shape)
        np.testing.assert_allclose(state.inner.trace[name], expected, atol=1e-5, err_msg=name)
    assert_trees(updates, grads, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_five_steps_are_algorithm_1_in_float64(strategy):
    block_size = STRATEGIES[strategy]
    mask = {"w": True, "table": True, "gain": False, "scale": False}
    optimizer = orthoadam(0.1, AXES, 0.8, 0.9, 1e-6, 0.2, mask, strategy=strategy, block_size=block_size)
    ours, _ = run(optimizer, tree(0), 5)
    for name, decays in mask.items():
        Q = dense(strategy, block_size, name)
        w = np.asarray(tree(0)[name], np.float64).ravel()
        m = v = np.zeros_like(w)
        for t in range(1, 6):
            g = Q @ np.asarray(tree(99 + t)[name], np.float64).ravel()
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
            s = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
            w = w - 0.1 * (Q.T @ s + 0.2 * decays * w)
        np.testing.assert_allclose(np.ravel(ours[name]), w, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    "kept",
    [
        dict(axes=jax.tree.map(lambda names: (None,) * len(names), AXES, is_leaf=lambda n: type(n) is tuple)),
        dict(mask=lambda params: jax.tree.map(lambda _: False, params)),
    ],
    ids=["names", "mask"],
)
def test_the_identity_is_adam_bit_for_bit(kept):
    assert_trees(run(ortho_adam(**kept), tree(0), 6)[0], run(adam(), tree(0), 6)[0])


def test_changes_of_sign_are_adam():
    """Blocks of one entry only change signs, which Adam cannot tell: the trap of a known imitation."""
    ours, theirs = run(ortho_adam(block_size=1), tree(0), 6)[0], run(adam(), tree(0), 6)[0]
    assert_trees(ours, theirs, atol=3e-7)  # multiply-adds are fused differently


def test_a_dense_rotation_is_not_adam_and_the_mask_spares_parameters():
    mask = {"w": True, "table": False, "gain": True, "scale": True}
    (ours, _), (theirs, _) = run(ortho_adam(mask=mask), tree(0), 6), run(adam(), tree(0), 6)
    for name in ("w", "gain"):
        distance = np.sqrt(np.mean((np.asarray(ours[name]) - np.asarray(theirs[name])) ** 2))
        assert distance > 0.1, name  # six steps of 0.1
    for name in ("table", "scale"):
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize(
    ("strategy", "inner"),
    [
        ("hadamard", optax.chain(optax.scale_by_adam(), optax.scale(-0.05))),
        pytest.param("block", optax.rmsprop(0.02), marks=pytest.mark.slow),
        # Which reads the parameters.
        pytest.param("kronecker", optax.adamw(0.05, weight_decay=0.3), marks=pytest.mark.slow),
        pytest.param(
            "hadamard", optax.chain(optax.scale_by_lion(), optax.scale(-0.01)), marks=pytest.mark.slow
        ),
        ("block", optax.contrib.schedule_free_sgd(0.05, b1=0.5)),  # which keeps them, from the start
    ],
    ids=["adam", "rmsprop", "adamw", "lion", "schedule_free"],
)
def test_training_w_is_training_q_w_without_rotation(strategy, inner):
    """f(w) under rotate(inner) and f(Q^T phi) under inner from phi = Q w: the same after mapping back."""
    block_size = STRATEGIES[strategy]
    Q = jnp.asarray(dense(strategy, block_size, "table"), jnp.float32)
    start, aim = tree(0)["table"], tree(1)["table"]
    f = lambda w: jnp.sum(jnp.tanh(w - aim) ** 2) + 0.05 * (w @ w.T)[0, 1] ** 2

    def descend(optimizer, w, f):
        value, state = f(w), optimizer.init(w)
        step = jax.jit(lambda w, s: optimizer.update(jax.grad(f)(w), s, w))
        for _ in range(20):
            updates, state = step(w, state)
            w = optax.apply_updates(w, updates)
        assert f(w) < 0.9 * value
        return w

    options = dict(strategy=strategy, block_size=block_size)
    w = descend(rotate(inner, {"table": AXES["table"]}, **options), {"table": start}, lambda p: f(p["table"]))
    phi = descend(inner, (Q @ start.ravel()), lambda phi: f((Q.T @ phi).reshape(start.shape)))
    np.testing.assert_allclose(w["table"].ravel(), Q.T @ phi, atol=3e-4)


@pytest.mark.smoke
def test_rows_of_absent_words_and_positions_stay_bit_for_bit():
    """Two rows of seven have gradients; the others do not move, and neither do their moments."""
    axes = {"tokens": ("vocab", "embed"), "positions": ("position", "embed")}
    params = {name: tree(i)["table"] for i, name in enumerate(axes)}
    here = jnp.array([1, 0, 0, 1, 0, 0, 0])[:, None]
    gradient = lambda t, p: jax.tree.map(lambda _: here * tree(t)["table"], params)
    moved, state = run(ortho_adam(axes=axes), params, 4, gradient)
    for name in axes:
        stayed = np.asarray(here[:, 0] == 0)
        np.testing.assert_array_equal(moved[name][stayed], params[name][stayed])
        assert not np.any(state[0].inner.nu[name][stayed])
        assert np.all(np.any(moved[name][~stayed] != params[name][~stayed], axis=1))


def test_layers_share_their_rotation_and_do_not_mix():
    link = seen()
    grads = tree(0) | {"w": jnp.stack([tree(0)["w"][0]] * 2).at[1].multiply(2)}
    first = first_update(link, grads)[1].inner.trace["w"]
    np.testing.assert_allclose(2 * first[0], first[1], rtol=1e-6)
    grads["w"] = grads["w"].at[1].set(0)
    assert not np.any(first_update(link, grads)[1].inner.trace["w"][1])


def test_every_axis_has_a_basis_of_its_own():
    """Same length, another parameter, axis or seed: another matrix."""
    eye = jnp.eye(64)
    axes = {"a": ("embed", None), "b": ("embed", None), "c": (None, "embed")}
    for strategy in STRATEGIES:
        found = []
        for seed in (0, 1):
            link = seen(axes, strategy=strategy, seed=seed)
            grads = dict.fromkeys(axes, eye)
            trace = first_update(link, grads)[1].inner.trace
            found += [trace["a"], trace["b"], trace["c"].T]
        for i in range(6):
            for j in range(i):
                overlap = np.mean(np.asarray(found[i]) * np.asarray(found[j])) * 64  # 1 if equal
                assert abs(overlap) < 0.6, (strategy, i, j)


def test_one_entry_alone_spreads_as_the_square_root_of_its_axis():
    """Adam's first step has norm 1 for it, OrthoAdam's sqrt(64)."""
    g = {"w": jnp.zeros(64).at[5].set(0.3)}
    for strategy in STRATEGIES:
        link = scale_by_ortho_adam({"w": ("embed",)}, eps=0.0, strategy=strategy)
        updates, _ = first_update(link, g)
        np.testing.assert_allclose(jnp.linalg.norm(updates["w"]), 8.0, rtol=1e-4)


def test_the_state_is_adams_and_eight_bytes_and_float32():
    params = tree(0, "bfloat16")
    state = scale_by_ortho_adam(AXES, strategy="kronecker").init(params)
    count = sum(x.size for x in jax.tree.leaves(params))
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == 8 * count + 4 + 8  # a count and the seed
    moved, after = run(ortho_adam(strategy="kronecker"), params, 2)
    kinds = lambda s: jax.tree.map(lambda x: (x.shape, x.dtype), s)
    assert kinds(after[0]) == kinds(state)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(moved))


def test_a_restored_state_goes_on_bit_for_bit_whatever_the_new_seed():
    first, second = (ortho_adam(strategy="block", block_size=8, seed=seed) for seed in (1, 2))
    params, gradient = {"w": tree(0)["w"]}, lambda t, p: {"w": tree(t)["w"]}
    straight = run(first, params, 4, gradient)
    half = jax.tree.map(np.asarray, run(first, params, 2, gradient))
    assert_trees(straight, run(second, half[0], 2, gradient, half[1], start=2))
    other, _ = run(second, params, 4, gradient)
    assert np.abs(np.asarray(other["w"]) - np.asarray(straight[0]["w"])).max() > 0.01


def test_extra_arguments_reach_what_is_wrapped():
    """A transformation that scales by the loss sees the loss."""
    scaled = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, *, value, **extra: (
            jax.tree.map(lambda u: value * u, updates), state),
    )  # fmt: skip
    link = rotate(scaled, AXES)
    updates, _ = first_update(link, tree(0), value=3.0)
    assert_trees(updates, jax.tree.map(lambda x: 3 * x, tree(0)), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(strategy="hadamar"), "unknown rotation strategy 'hadamar'; did you mean 'hadamard'"),
        (dict(block_size=12), "block_size is 12; hadamard takes powers of two"),
        (dict(block_size=0), "block_size is 0; it must be at least 1"),
    ],
)
def test_bad_values_are_named_in_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        orthoadam(1e-3, AXES, **options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Variable:
    """What wraps each array in flax nnx's states."""

    value: jax.Array


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


def test_containers_of_every_kind_hold_parameters():
    """Tuples, NamedTuples and wrappers; the names on either side wrapped or not: as in a dict."""
    link = lambda axes: rotate(optax.scale_by_adam(), axes, strategy="block", block_size=8)
    params = {"w": tree(0)["w"], "table": tree(0)["table"]}
    names = {name: AXES[name] for name in params}

    containers = {
        "tuple": lambda t: (t["w"], [t["table"]]),
        "nested": lambda t: {"block": ((t["w"],), t["table"])},
        "NamedTuple": lambda t: Pair(t["w"], t["table"]),
        "wrapped": lambda t: {"a": (Variable(t["w"]), Variable(t["table"]))},
    }
    plain = lambda t: {"a": (t["w"], t["table"])}
    for name, hold in containers.items():
        held = hold(params)
        optimizer = link(hold(names))
        updates, state = optimizer.update(held, optimizer.init(held), held)
        # Whatever holds them, one step of Adam is made in each array's rotated basis and undone.
        assert jax.tree.structure(updates) == jax.tree.structure(held), name
        for u in jax.tree.leaves(updates):
            assert np.abs(np.asarray(u)).max() > 1.1, name  # Adam's first step is 1 in every entry
    wrapped = containers["wrapped"]
    for held, axes in ((wrapped(params), plain(names)), (plain(params), wrapped(names))):
        one, other = link(axes), link(jax.tree.map(lambda x: ("layers",) * x.ndim, held))
        turned = one.update(held, one.init(held), held)[0]
        assert_trees(other.update(held, other.init(held), held)[0], jax.tree.map(jnp.sign, held), atol=1e-5)
        assert all(np.abs(np.asarray(u)).max() > 1.1 for u in jax.tree.leaves(turned))


def test_no_axes_are_all_axes_and_a_function_may_give_them():
    params = {"w": (jnp.eye(8), jnp.arange(16.0) - 3), "scalar": jnp.float32(3.0)}
    every = {"w": (("embed", "mlp"), ("embed",)), "scalar": ()}
    updates = []
    named = lambda params: jax.tree.map(lambda x: ("embed",) * x.ndim, params)
    for axes in (every, None, lambda params: every, named):
        link = rotate(optax.scale_by_adam(), axes)
        updates.append(link.update(params, link.init(params), params)[0])
    for other in updates[1:]:
        assert_trees(other, updates[0])
    assert np.abs(np.asarray(updates[0]["w"][1])).max() > 1.5  # Adam alone steps 1
    assert rotation_cost(params, None).product_flops == rotation_cost(params, every).product_flops > 0
    held = optax.masked(rotate(optax.scale_by_adam(), None), {"w": (True, False), "scalar": False})
    kept = held.update(params, held.init(params), params)[0]
    np.testing.assert_allclose(kept["w"][0], updates[0]["w"][0], atol=1e-6)  # other batches, other sums
    np.testing.assert_array_equal(kept["w"][1], params["w"][1])


def test_axes_that_do_not_fit_are_named():
    params = tree(0)
    with pytest.raises(ValueError, match=r"\['extra'\] has no axis names"):
        orthoadam(1e-3, AXES).init(params | {"extra": jnp.ones(3)})
    axes = AXES | {"w": ("embed", "mlp")}
    with pytest.raises(UserError, match=r"\['w'\] has shape \(2, 20, 12\), but its axis names are"):
        orthoadam(1e-3, axes).init(params)
    with pytest.raises(UserError, match=r"\['w'\] has no axis names; give axes structured like"):
        orthoadam(1e-3, AXES | {"w": "embed"}).init(params)
    with pytest.raises(UserError, match="the function given as axes returned None"):
        orthoadam(1e-3, lambda params: None).init(params)


def test_a_step_is_orthoadam_s_rounded_without_bias():
    """40,000 equal weights in float32, and the same in bfloat16 where a step is a tenth of their spacing."""
    weights = jnp.full((200, 200), 2.0)
    gradient = jax.random.normal(jax.random.key(0), weights.shape)
    axes, hyper = ("embed", "mlp"), (0.9, 0.95, 1e-8)
    exact = orthoadam(1.5e-3, axes, *hyper, weight_decay=0.1)
    update, _ = jax.jit(exact.update)(gradient, exact.init(weights), weights)
    rounded = orthoadam_bf16_sr(1.5e-3, axes, *hyper, weight_decay=0.1)
    low = weights.astype(jnp.bfloat16)
    state = rounded.init(low)
    check_chain(state)
    moved, _ = jax.jit(rounded.update)(gradient, state, low)
    assert set(np.unique(np.asarray(moved))) <= {-(2.0**-7), 0.0, 2.0**-6}  # onto a neighbour or nowhere
    error = np.asarray(moved - update)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(error.size)
    assert error.std() > 1e-4
