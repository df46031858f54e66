"""The train step against a plain float64 loop, and what it does when numbers go bad."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import parallel
from jaxllm.train.state import TrainState, init_state, state_shardings
from jaxllm.train.step import is_sound, make_eval_step, make_train_step


def linear_loss(params, batch, key):
    """Mean squared error of a linear model over the rows that the mask counts."""
    error = batch["x"].astype(params["w"].dtype) @ params["w"] - batch["y"]
    count = jnp.sum(batch["mask"])
    return jnp.sum(batch["mask"] * error**2) / jnp.where(count == 0, 1, count), {"token_count": count}


def make_batch(rows=12, width=5, seed=0):
    rng = np.random.default_rng(seed)
    mask = (rng.random(rows) < 0.6).astype(np.float32)
    return {
        "x": rng.normal(size=(rows, width)).astype(np.float32),
        "y": rng.normal(size=rows).astype(np.float32),
        "mask": mask,
    }


def start(optimizer, dtype=jnp.float32):
    init = lambda key: {"w": jax.random.normal(key, (5,), dtype)}  # noqa: E731
    return init_state(init, optimizer, jax.random.key(3))


def adamw_float64(w, gradients, lr, b1, b2, eps, decay):
    """AdamW as in Loshchilov & Hutter (arXiv 1711.05101), algorithm 2, in float64."""
    w, m, v = np.float64(w), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        g = gradient(w)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - lr * (step + decay * w)
    return w


@pytest.mark.parametrize("accumulate, weight", [(1, 1.0), (2, 1.0), (3, 0.02), (6, 1.0)])
def test_steps_equal_adamw_in_float64_whatever_the_accumulation(accumulate, weight):
    """Also where the weights of a batch sum to less than 1: 7 x 0.02."""
    optimizer = optax.adamw(1e-2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
    state = start(optimizer)
    step = jax.jit(make_train_step(linear_loss, optimizer, accumulate=accumulate))
    batches = [make_batch(seed=s) for s in range(5)]
    batches = [batch | {"mask": batch["mask"] * np.float32(weight)} for batch in batches]

    def gradient(batch):
        x, y, mask = (np.float64(batch[k]) for k in ("x", "y", "mask"))
        return lambda w: 2 * x.T @ (mask * (x @ w - y)) / mask.sum()

    expected = adamw_float64(
        state.params["w"], [gradient(b) for b in batches], 1e-2, 0.9, 0.95, 1e-8, 0.1
    )
    for batch in batches:
        before = state.params
        state, metrics = step(state, batch)
    np.testing.assert_allclose(state.params["w"], expected, atol=2e-6)
    assert int(state.step) == 5
    assert float(metrics["token_count"]) == pytest.approx(batches[-1]["mask"].sum())
    assert float(metrics["loss"]) == pytest.approx(float(linear_loss(before, batches[-1], None)[0]), rel=1e-5)


def test_accumulated_gradients_are_summed_in_float32():
    """256 parts whose bfloat16 gradients are 1 + 1/256 sum to 257 in float32, to 256 in bfloat16."""

    def loss(params, batch, key):
        value = jnp.sum(params["w"].astype(jnp.float32) * jnp.mean(batch["x"]))
        return value, {"token_count": jnp.ones(())}

    optimizer = optax.sgd(1.0)
    state = start(optimizer, jnp.bfloat16)
    batch = {"x": np.repeat(np.float32([1.0, 1.0078125]), 128)[:, None]}
    step = jax.jit(make_train_step(loss, optimizer, accumulate=256))
    _, metrics = step(state, batch)
    expected = np.sqrt(5) * (1 + 1.0078125) / 2  # the mean, over 5 equal components
    np.testing.assert_allclose(float(metrics["grad_norm"]), expected, rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_view_is_drawn_once_and_its_gradient_comes_back_to_where_it_was_taken(accumulate):
    """Three of five weights, doubled, kept in bfloat16; gradients are summed in float32."""
    told = []

    class Doubled:
        def places(self, key):
            return jnp.sort(jax.random.permutation(key, 5)[:3])

        def __call__(self, params, frozen, key):
            return {"w": 2 * params["w"][self.places(key)]}

        def optimizer_args(self, key):
            return {"sampled": {"layers": self.places(key)}}

    def loss(params, batch, key):
        return linear_loss(params, batch | {"x": batch["x"][:, :3]}, key)

    def update(grads, state, params, *, sampled):
        told.append(sampled)
        return jax.tree.map(lambda g: -g, grads), sampled["layers"]

    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(3, int), update)
    before = start(optimizer, jnp.bfloat16)
    batch = make_batch()
    step = jax.jit(make_train_step(loss, optimizer, accumulate=accumulate, views=[Doubled()]))
    after, metrics = step(before, batch)
    places = np.asarray(after.opt_state)
    x, y, mask = (np.float64(batch[k]) for k in ("x", "y", "mask"))
    x, w = x[:, :3], np.float64(before.params["w"])
    gradient = np.zeros(5)
    gradient[places] = 2 * 2 * x.T @ (mask * (x @ (2 * w[places]) - y)) / mask.sum()
    assert len(told) == 1 and list(told[0]) == ["layers"] and len(set(places)) == 3
    # The gradient is computed and rounded in bfloat16, which holds 8 bits.
    np.testing.assert_allclose(float(metrics["grad_norm"]), np.linalg.norm(gradient), rtol=2e-2)
    atol = 3e-2 * np.abs(gradient).max()
    np.testing.assert_allclose(np.float64(after.params["w"]), w - gradient, atol=atol)
    later, drawn = after, set()
    for _ in range(3):
        later, _ = step(later, batch)
        drawn.add(tuple(np.asarray(later.opt_state)))
    assert len(drawn) > 1  # each step draws its own
    untouched = np.setdiff1d(np.arange(5), places)
    np.testing.assert_array_equal(after.params["w"][untouched], before.params["w"][untouched])


def test_a_state_keeps_its_types_and_is_rounded_to_them_last():
    """Gradients of 1 and 1 + 1/128 have the mean 1 + 1/256 in float32, and 1 in bfloat16."""

    def loss(params, batch, key):
        value = jnp.sum(params["w"].astype(jnp.float32) * jnp.mean(batch["x"]))
        return value, {"token_count": jnp.ones(())}

    optimizer = optax.chain(optax.trace(0.5), optax.scale(-1.0))
    before = init_state(lambda key: {"w": jnp.ones(5, jnp.bfloat16)}, optimizer, jax.random.key(0))
    step = jax.jit(make_train_step(loss, optimizer, accumulate=2))
    after, _ = step(before, {"x": np.float32([[1.0], [1.0078125]])})
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, before)
    np.testing.assert_array_equal(after.params["w"], -1 / 256)
    np.testing.assert_array_equal(after.opt_state[0].trace["w"], 1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_view_may_fix_the_type_that_the_loss_computes_in(accumulate):
    """Float32 weights seen in bfloat16: the gradient is that in float64, rounded, and kept in float32."""

    def narrow(params, frozen, key):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)

    def narrow_loss(params, batch, key):
        assert params["w"].dtype == jnp.bfloat16
        return linear_loss(params, batch, key)

    optimizer = optax.sgd(1.0)
    before, batch = start(optimizer), make_batch()
    step = jax.jit(make_train_step(narrow_loss, optimizer, accumulate=accumulate, views=[narrow]))
    after, _ = step(before, batch)
    x, y, mask = (np.float64(batch[k]) for k in ("x", "y", "mask"))
    w = np.float64(before.params["w"])
    gradient = 2 * x.T @ (mask * (x @ w - y)) / mask.sum()
    assert after.params["w"].dtype == jnp.float32
    np.testing.assert_allclose(after.params["w"], w - gradient, atol=3e-2 * np.abs(gradient).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_step_and_all_after_it_change_nothing(bad):
    optimizer = optax.adamw(1e-2)
    step = jax.jit(make_train_step(linear_loss, optimizer))
    good, _ = step(start(optimizer), make_batch())
    poisoned = make_batch(seed=1)
    poisoned["x"][2, 1] = bad
    poisoned["mask"][2] = 1
    after, metrics = step(good, poisoned)
    later, _ = step(after, make_batch(seed=2))
    assert bool(metrics["failed"]) and bool(later.failed) and not bool(good.failed)
    for name in ("step", "params", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(good, name), getattr(later, name)
        )


def spoils(name, bad):
    """Return SGD whose third update makes the parameters, or its own state alone, `bad`."""

    def update(grads, state, params):
        count, kept = state
        wrong = jnp.where(count == 2, bad, 0.0)
        updates = jax.tree.map(lambda g: -0.01 * g + (wrong if name == "params" else 0), grads)
        return updates, (count + 1, kept + (wrong if name == "state" else 0))

    return optax.GradientTransformation(lambda params: (jnp.zeros((), int), jnp.zeros(3)), update)


@pytest.mark.parametrize(
    "optimizer, good_steps, fails",
    [
        (spoils("params", np.nan), 2, True),
        (spoils("params", np.inf), 2, True),
        (spoils("state", np.nan), 2, True),
        (spoils("state", np.inf), 2, False),  # an optimizer may keep one: the best loss so far
        (optax.adam(1e-2, eps=0.0), 0, True),  # 0 / 0 where no gradient has been
        (optax.adam(float("nan")), 0, True),
        (optax.adam(1e39), 0, True),
    ],
)
def test_an_update_that_is_not_finite_is_told_at_its_step(optimizer, good_steps, fails):
    state = start(optimizer)
    step = jax.jit(make_train_step(linear_loss, optimizer))
    batch = make_batch()
    batch["x"][:, 1] = 0
    told = []
    for _ in range(4):
        state, metrics = step(state, batch)
        told.append((bool(metrics["failed"]), bool(metrics["sound"])))
    assert told == [(True, False) if fails and number >= good_steps else (False, True) for number in range(4)]
    assert bool(state.failed) == fails


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("where, bad, sound", [
    ("params", np.nan, False), ("params", np.inf, False), ("opt_state", np.nan, False),
    ("opt_state", np.inf, True), ("opt_state", 1.0, True),
])  # fmt: skip
def test_a_state_is_sound_without_nan_and_with_finite_parameters(place, where, bad, sound):
    ones = lambda: np.ones((4, 3), np.float32)  # noqa: E731
    state = {"params": {"w": ones()}, "opt_state": {"m": ones(), "n": np.int32(1)}}
    state[where][{"params": "w", "opt_state": "m"}[where]][3, 1] = bad
    if place == "host":
        if jax.__version_info__ < (0, 10):
            pytest.skip("XLA for CPUs aborts")
        mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
        here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        state = jax.device_put(state, parallel.in_host_memory(here))
    assert bool(is_sound(state["params"], state["opt_state"])) is sound


@pytest.mark.parametrize("told", [True, False])
def test_an_evaluation_sums_the_loss_that_is_told_or_the_mean(told):
    """And calls a loss with parameters, batch and key, which is all that was promised."""

    def loss(params, batch, key, /):
        mean, sums = linear_loss(params, batch, key)
        total = mean * sums["token_count"]
        return mean + 5.0, sums | ({"loss_sum": total} if told else {})

    state, batch = start(optax.sgd(0.1)), make_batch()
    got, count = jax.jit(make_eval_step(loss))(state.params, None, batch)
    x, y, mask, w = (np.float64(v) for v in (batch["x"], batch["y"], batch["mask"], state.params["w"]))
    want = np.sum(mask * (x @ w - y) ** 2) + (0 if told else 5 * mask.sum())
    assert float(got) == pytest.approx(want, rel=1e-6) and float(count) == mask.sum()


def test_each_step_draws_from_its_own_key():
    seen = []

    def loss(params, batch, key):
        return jnp.sum(params["w"]) * 0 + jax.random.uniform(key), {"token_count": jnp.ones(())}

    optimizer = optax.sgd(0.0)
    step = jax.jit(make_train_step(loss, optimizer))
    state = start(optimizer)
    for _ in range(3):
        state, metrics = step(state, make_batch())
        seen.append(float(metrics["loss"]))
    assert len(set(seen)) == 3
    again, _ = step(start(optimizer), make_batch())
    assert isinstance(again, TrainState)
    _, metrics = step(start(optimizer), make_batch())
    assert float(metrics["loss"]) == seen[0]


def test_an_optimizer_of_two_kinds_of_parameters_is_laid_out():
    """What optax.multi_transform masks of each kind stays masked; moments lie where their weights do."""
    kinds = {"w": "slow", "gate": "fast"}
    optimizer = optax.multi_transform({"slow": optax.adam(1e-3), "fast": optax.set_to_zero()}, kinds)
    init = lambda key: {"w": jnp.ones((8, 4)), "gate": jnp.ones(3)}
    shapes = jax.eval_shape(lambda: init_state(init, optimizer, jax.random.key(0)))
    mesh = parallel.make_mesh(parallel.MeshConfig(data=1, fsdp=8), jax.devices())
    axes = {"w": ("embed", "mlp"), "gate": (None,)}
    laid_out = state_shardings(shapes, optimizer, axes, mesh)
    assert jax.tree.structure(laid_out) == jax.tree.structure(shapes)
    moments = laid_out.opt_state.inner_states["slow"].inner_state[0].mu
    assert moments["w"] == laid_out.params["w"] and not moments["w"].is_fully_replicated
