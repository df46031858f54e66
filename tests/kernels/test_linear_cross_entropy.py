"""Linear cross-entropy against float64 and against autodiff through the full logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy, token_log_probs
from jaxllm_kernels.linear_cross_entropy.xla import time_chunk

B, D, V = 3, 8, 37


def inputs(T, vocab_axis=1, dtype="float32"):
    random = np.random.default_rng(T)
    hidden = jnp.asarray(random.normal(size=(B, T, D)), dtype)
    weights = jnp.asarray(random.normal(size=(D, V) if vocab_axis == 1 else (V, D)), jnp.float32)
    labels = jnp.asarray(random.integers(0, V, (B, T)))
    return hidden, weights, labels, jnp.asarray(random.uniform(size=(B, T)), jnp.float32)


def bytes_of(steps):
    """Return a budget that holds this many time steps."""
    return B * V * 4 * steps


def in_float64(hidden, weights, labels, token_weights, z_loss):
    logits = np.asarray(hidden, np.float64) @ np.asarray(weights, np.float64)
    lse = np.log(np.exp(logits).sum(-1))
    nll = lse - np.take_along_axis(logits, np.asarray(labels)[..., None], -1)[..., 0]
    return (token_weights * nll).sum(), z_loss * (token_weights * lse**2).sum()


# One chunk; even chunks; a ragged last one; one step at a time; shorter than a chunk.
CHUNKS = [(12, 12), (12, 4), (11, 4), (7, 1), (1, 5)]


@pytest.mark.smoke
@pytest.mark.parametrize(("T", "steps"), CHUNKS)
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_sums_match_float64(T, steps, z_loss):
    hidden, weights, labels, token_weights = inputs(T)
    run = functools.partial(linear_cross_entropy, z_loss=z_loss, logits_bytes=bytes_of(steps))
    sums = jax.jit(run)(hidden, weights, labels, token_weights_BT=token_weights)
    nll, z = in_float64(hidden, weights, labels, np.asarray(token_weights, np.float64), z_loss)
    assert sums.cross_entropy == pytest.approx(nll, rel=1e-5)
    assert sums.z_loss == pytest.approx(z, rel=1e-5)
    assert sums.total == pytest.approx(nll + z, rel=1e-5)


# Every pair of chunks, layout and z-loss; not every triple.
PAIRWISE = [
    (*chunk, axis, 0.01 if (axis + i) % 2 else 0.0) for i, chunk in enumerate(CHUNKS) for axis in (0, 1)
]


@pytest.mark.parametrize(("T", "steps", "vocab_axis", "z_loss"), PAIRWISE)
def test_gradients_match_autodiff_of_full_logits(T, steps, vocab_axis, z_loss):
    hidden, weights, labels, token_weights = inputs(T, vocab_axis)

    def gradients(implementation):
        def total(hidden, weights):
            return 3.0 * linear_cross_entropy(
                hidden, weights, labels, token_weights_BT=token_weights, vocab_axis=vocab_axis,
                z_loss=z_loss, logits_bytes=bytes_of(steps), implementation=implementation,
            ).total  # fmt: skip

        return jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, weights)

    for fast, exact in zip(gradients("xla"), gradients("reference"), strict=True):
        assert np.abs(fast - exact).max() <= 1e-4


def test_bfloat16_hidden_states_keep_float32_sums():
    hidden, weights, labels, _ = inputs(12, dtype="bfloat16")
    run = functools.partial(linear_cross_entropy, logits_bytes=bytes_of(5))
    rounded = weights.astype(jnp.bfloat16).astype(jnp.float32)
    nll, _ = in_float64(hidden.astype(jnp.float32), rounded, labels, np.ones((B, 12)), 0.0)

    @functools.partial(jax.jit, static_argnums=2)
    def step(hidden, weights, implementation):
        total = lambda h, w: run(h, w, labels, implementation=implementation).total
        return jax.value_and_grad(total, argnums=(0, 1))(hidden, weights)

    total, (d_hidden, d_weights) = step(hidden, weights, "xla")
    assert total.dtype == jnp.float32
    assert total == pytest.approx(nll, rel=1e-5)  # only the operands are rounded
    _, exact = step(hidden.astype(jnp.float32), weights, "reference")
    assert d_hidden.dtype == jnp.bfloat16
    assert d_weights.dtype == jnp.float32
    assert np.abs(d_hidden.astype(jnp.float32) - exact[0]).max() <= 0.05
    assert np.abs(d_weights - exact[1]).max() <= 0.05


@pytest.mark.parametrize(("weight", "loss_scale"), [(1e-6, 1e6), (3e4, 1 / 3e4)])
def test_float16_gradients_of_any_weights_keep_to_a_scaled_loss(weight, loss_scale):
    hidden, weights, labels, _ = inputs(12)
    token_weights = jnp.full((B, 12), weight)

    @functools.partial(jax.jit, static_argnums=2)
    def step(hidden, weights, dtype):
        def total(hidden, weights):
            of = linear_cross_entropy(hidden, weights, labels, token_weights_BT=token_weights)
            return of.total * loss_scale

        return jax.value_and_grad(total, (0, 1))(hidden.astype(dtype), weights.astype(dtype))

    (total, got), (want, expected) = (step(hidden, weights, dtype) for dtype in ("float16", "float32"))
    assert total == pytest.approx(float(want), rel=1e-3)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == jnp.float16
        assert np.abs(a - b).max() <= 3e-3 * np.abs(b).max()


def test_masked_labels_may_be_anything():
    hidden, weights, labels, _ = inputs(9)
    mask = np.random.default_rng(0).random((B, 9)) < 0.5
    odd = jnp.where(mask, labels, -100)

    def total(hidden, labels):
        return linear_cross_entropy(
            hidden, weights, labels, token_weights_BT=jnp.asarray(mask), logits_bytes=bytes_of(4)
        ).total

    step = jax.jit(jax.value_and_grad(total))
    value, gradient = step(hidden, odd)
    assert value == step(hidden, labels)[0]
    assert np.isfinite(gradient).all()
    assert np.array_equal(np.abs(gradient).max(-1) > 0, mask)


@pytest.mark.parametrize(("T", "steps"), CHUNKS)
def test_token_log_probs_match_full_logits(T, steps):
    hidden, weights, labels, mix = inputs(T)

    def run(hidden, weights, implementation):
        log_probs, lse = token_log_probs(
            hidden, weights, labels, logits_bytes=bytes_of(steps), implementation=implementation
        )
        assert log_probs.shape == lse.shape == (B, T)
        return jnp.sum(mix * log_probs + jnp.sin(lse))

    value_and_grad = jax.jit(jax.value_and_grad(run, argnums=(0, 1)), static_argnums=2)
    fast, exact = (value_and_grad(hidden, weights, name) for name in ("xla", "reference"))
    assert fast[0] == pytest.approx(float(exact[0]), rel=1e-5)
    for a, b in zip(fast[1], exact[1], strict=True):
        assert np.abs(a - b).max() <= 1e-4


def test_full_logits_are_never_in_memory():
    T, vocab = 256, 4096
    full = 2 * T * vocab * 4
    arguments = (
        jax.ShapeDtypeStruct((2, T, 16), jnp.float32),
        jax.ShapeDtypeStruct((16, vocab), jnp.float32),
        jax.ShapeDtypeStruct((2, T), jnp.int32),
    )

    def temporary_bytes(**options):
        def total(hidden, weights, labels):
            return linear_cross_entropy(hidden, weights, labels, **options).total

        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        return step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(logits_bytes=full // 16) < full / 4
    assert (
        temporary_bytes(implementation="reference") > full
    )  # the measure sees logits where they are


def test_a_gradient_takes_three_matmuls():
    hidden, weights, labels, _ = inputs(12)

    def matmuls(run):
        total = jax.grad(lambda h, w: run(h, w).sum(), argnums=(0, 1))
        # Lowered, since the trace holds the program of every platform.
        return jax.jit(total).lower(hidden, weights).as_text().count("stablehlo.dot_general")

    assert matmuls(lambda h, w: linear_cross_entropy(h, w, labels).total) == 3
    assert matmuls(lambda h, w: token_log_probs(h, w, labels)[0]) == 4  # the logits twice


@pytest.mark.parametrize("T", [1, 7, 100, 1000, 1024])
@pytest.mark.parametrize("budget", [1, 4 * 50, 4 * 50 * 13, 4 * 50 * 10_000])
def test_chunks_keep_to_the_budget_and_are_even(T, budget):
    chunk = time_chunk((1, T, 8), 50, budget)
    assert 1 <= chunk <= T
    assert chunk == 1 or chunk * 50 * 4 <= budget
    most = min(max(budget // (50 * 4), 1), T)
    # A divisor of T may be up to half as long as allowed; even parts are as few as can be.
    assert 2 * chunk > most if T % chunk == 0 else -(-T // chunk) == -(-T // most)
    if budget >= T * 50 * 4:
        assert chunk == T


def test_shapes_that_do_not_fit_are_refused():
    hidden, weights, labels, _ = inputs(4)
    with pytest.raises(ValueError, match="vocab_axis=0"):
        linear_cross_entropy(hidden, weights, labels, vocab_axis=0)
    with pytest.raises(ValueError, match="labels"):
        linear_cross_entropy(hidden, weights, labels[:, :3])
    with pytest.raises(ValueError, match="not one of"):
        token_log_probs(hidden, weights, labels, implementation="cuda")
    with pytest.raises(ValueError, match="neither"):
        linear_cross_entropy(hidden[None], weights, labels)
