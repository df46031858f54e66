"""Every implementation of linear cross-entropy against float64 NumPy, values and gradients."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy, pallas_gpu, pallas_tpu, token_log_probs
from jaxllm_kernels.linear_cross_entropy.options import CPU_SIZES

PALLAS = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
# Largest difference from float64, relative to the largest entry. Bfloat16 rounds the logits'
# derivatives to 8 bits before the matmuls.
TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-2}
OPTIONS = [{}, {"z_loss": 0.01}]


@pytest.fixture
def interpreted(monkeypatch):
    """Run the kernels in the interpreter, or in the TPU simulator with all its checks."""

    def choose(name, simulate=False):
        interpret = True
        if simulate:
            if not hasattr(pltpu, "InterpretParams"):
                pytest.skip("this jax has no TPU simulator")
            interpret = pltpu.InterpretParams(
                detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan"
            )
        for function in ("stats", "gradients") if name in PALLAS else ():
            run = functools.partial(getattr(PALLAS[name], function), interpret=interpret)
            monkeypatch.setattr(PALLAS[name], function, run)
        return name

    return choose


def inputs(N, D, V, *, vocab_axis=1, dtype="float32", limited=False, seed=0):
    rng = np.random.default_rng([N, D, V, seed])
    hidden = jnp.asarray(rng.normal(size=(N, D)), dtype)
    weights = jnp.asarray(rng.normal(size=(D, V) if vocab_axis == 1 else (V, D)) * 0.7, dtype)
    labels = rng.integers(0, V, N)
    token_weights = rng.uniform(0.2, 1.5, N) * (rng.uniform(size=N) < 0.8)
    labels[token_weights == 0] = -100
    limits = rng.integers(np.maximum(labels, 0) + 1, V + 1) if limited else None
    return hidden, weights, *(None if x is None else jnp.asarray(x) for x in (labels, token_weights, limits))


def in_float64(
    hidden, weights, labels, token_weights, limits, *, vocab_axis=1, z_loss=0.0
):  # fmt: skip
    """Return (total, cross-entropy, z-loss, gradient of hidden, gradient of weights)."""
    h, w = np.asarray(hidden, np.float64), np.asarray(weights, np.float64)
    w = w if vocab_axis == 1 else w.T
    N, V = len(h), w.shape[1]
    token_weights = np.asarray(token_weights, np.float64)
    limits = np.full(N, V) if limits is None else np.asarray(limits)
    exists = np.arange(V) < limits[:, None]
    logits = h @ w
    p = np.exp(logits) * exists
    lse = np.log(p.sum(1))
    p /= p.sum(1, keepdims=True)
    labels = np.where(token_weights == 0, 0, np.asarray(labels))
    target = np.eye(V)[labels]
    nll = (token_weights * (lse - (target * logits).sum(1))).sum()
    z = z_loss * (token_weights * lse**2).sum()
    d = token_weights[:, None] * ((1 + 2 * z_loss * lse[:, None]) * p - target)
    d_weights = h.T @ d
    return nll + z, nll, z, d @ w.T, d_weights if vocab_axis == 1 else d_weights.T


def run(implementation, arrays, **options):
    def total(hidden, weights, labels, token_weights, limits):
        sums = linear_cross_entropy(
            hidden, weights, labels, token_weights_BT=token_weights, limits_BT=limits,
            implementation=implementation, **options,
        )  # fmt: skip
        return 2.0 * sums.total, sums

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, sums), (d_hidden, d_weights) = step(*arrays)
    return *sums, d_hidden / 2, d_weights / 2


def assert_close(got, expected, tolerance):
    for name, a, b in zip(("total", "nll", "z", "d_hidden", "d_weights"), got, expected, strict=True):
        error = np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-3)
        limit = tolerance if name.startswith("d_") else 1e-5
        assert error <= limit, f"{name}: {error:.2g} > {limit:.2g}"


# Plain and with everything, one layout each; the others are slow: interpreted kernels.
FAST = {(0, 1), (len(OPTIONS) - 1, 0)}


@pytest.mark.parametrize("implementation", ["xla", *PALLAS])
@pytest.mark.parametrize(
    ("options", "vocab_axis"),
    [
        pytest.param(options, axis, marks=() if (i, axis) in FAST else pytest.mark.slow)
        for i, options in enumerate(OPTIONS)
        for axis in (0, 1)
    ],
    ids=str,
)
def test_loss_and_gradients_match_float64(implementation, vocab_axis, options, interpreted, monkeypatch):
    monkeypatch.setattr(  # so that a small vocabulary is cut into blocks, the last one ragged
        "jaxllm_kernels.linear_cross_entropy.api.CPU_SIZES", CPU_SIZES._replace(block=128)
    )
    monkeypatch.setattr(pallas_gpu, "SLICE_BYTES", 133 * 256 * 4)
    arrays = inputs(133, 24, 517, vocab_axis=vocab_axis, limited=bool(options))
    expected = in_float64(*arrays, vocab_axis=vocab_axis, **options)
    got = run(interpreted(implementation), arrays, vocab_axis=vocab_axis, **options)
    assert {x.dtype.name for x in got} == {"float32"}
    assert_close(got, expected, TOLERANCE["float32"])


@pytest.mark.parametrize(
    "implementation", ["xla", "pallas_tpu", pytest.param("pallas_gpu", marks=pytest.mark.slow)]
)
def test_gradients_have_the_type_of_their_inputs(implementation, interpreted):
    arrays = inputs(70, 40, 300, dtype="bfloat16")
    got = run(interpreted(implementation), arrays)
    assert [x.dtype for x in got] == ["float32"] * 3 + ["bfloat16"] * 2
    assert_close(got, in_float64(*arrays), TOLERANCE["bfloat16"])


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", *PALLAS])
@hypothesis.given(
    N=st.integers(1, 300), D=st.integers(1, 70), V=st.integers(1, 700), vocab_axis=st.sampled_from([0, 1]),
    limited=st.booleans(), z_loss=st.sampled_from([0.0, 0.3]),
)  # fmt: skip
@hypothesis.settings(
    max_examples=3, deadline=None, derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_any_shape(implementation, N, D, V, vocab_axis, limited, z_loss, interpreted):
    options = {"vocab_axis": vocab_axis, "z_loss": z_loss}
    arrays = inputs(N, D, V, vocab_axis=vocab_axis, limited=limited)
    got = run(interpreted(implementation), arrays, **options)
    # A single logit has loss and gradient 0; what is left of it is rounding.
    assert_close(got, in_float64(*arrays, **options), 2e-5 if V > 1 else 1e-3)


# One call of the kernel and several; a vocabulary that its blocks divide (so that the gradient is
# updated in place) and one that they do not.
@pytest.mark.parametrize(
    ("N", "V", "vocab_axis"),
    [(300, 517, 0)]
    + [pytest.param(300, 512, 1, marks=pytest.mark.slow)],
)
def test_tpu_kernels_in_the_simulator(N, V, vocab_axis, interpreted, monkeypatch):
    blocks = pallas_tpu.Blocks(tokens=128, vocab=256, call_tokens=256)
    monkeypatch.setattr(pallas_tpu, "_STATS", {8192: blocks})
    monkeypatch.setattr(pallas_tpu, "_GRADIENTS", {8192: blocks})
    options = {"vocab_axis": vocab_axis, "z_loss": 0.01}
    arrays = inputs(N, 40, V, vocab_axis=vocab_axis, limited=True)
    got = run(interpreted("pallas_tpu", simulate=True), arrays, **options)
    assert_close(got, in_float64(*arrays, **options), TOLERANCE["float32"])
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize("implementation", ["xla", *PALLAS])
def test_token_log_probs_and_their_gradients(implementation, interpreted):
    hidden, weights, labels, mix, limits = inputs(90, 24, 300, limited=True)
    labels = jnp.maximum(labels, 0)

    def value(hidden, weights, implementation):
        log_probs, lse = token_log_probs(
            hidden, weights, labels, limits_BT=limits, implementation=implementation
        )
        return jnp.sum(mix * log_probs + jnp.sin(lse))

    step = jax.jit(jax.value_and_grad(value, argnums=(0, 1)), static_argnums=2)
    expected = step(hidden, weights, "reference")
    got = step(hidden, weights, interpreted(implementation))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("implementation", [None, "xla", "pallas_tpu"])
def test_token_log_probs_have_second_derivatives(implementation, interpreted):
    hidden, weights, labels, mix, _ = inputs(20, 8, 60)
    labels = jnp.maximum(labels, 0)
    interpreted(implementation)

    def slope(hidden, implementation):
        def value(hidden):
            log_probs, lse = token_log_probs(hidden, weights, labels, implementation=implementation)
            return jnp.sum(mix * log_probs**2 + lse)

        return jnp.sum(jnp.sin(jax.grad(value)(hidden)))

    step = jax.jit(jax.grad(slope), static_argnums=1)
    got, expected = (step(hidden, name) for name in (implementation, "reference"))
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("implementation", ["xla", *PALLAS])
def test_under_vmap_scan_and_remat(implementation, interpreted):
    name = interpreted(implementation)
    hidden, weights, labels, token_weights, _ = inputs(3 * 40, 16, 150)
    parts = [x.reshape(3, 40, *x.shape[1:]) for x in (hidden, labels, token_weights)]

    def loss(weights, hidden, labels, token_weights, implementation=name):
        return linear_cross_entropy(
            hidden, weights, labels, token_weights_BT=token_weights, implementation=implementation
        ).total

    def by_vmap(weights):
        return jax.vmap(functools.partial(loss, weights))(*parts).sum()

    def by_scan(weights):
        step = jax.checkpoint(lambda total, part: (total + loss(weights, *part), None))
        return jax.lax.scan(step, 0.0, parts)[0]

    whole = functools.partial(loss, implementation="reference")
    expected = jax.jit(jax.value_and_grad(whole))(weights, hidden, labels.clip(0), token_weights)
    for form in (by_vmap, by_scan):
        got = jax.jit(jax.value_and_grad(form))(weights)
        assert got[0] == pytest.approx(float(expected[0]), rel=1e-5)
        assert np.abs(got[1] - expected[1]).max() <= 1e-4


def test_a_named_implementation_that_cannot_run_says_why():
    hidden, weights, labels, *_ = inputs(8, 4, 9, dtype="float16")
    with pytest.raises(ValueError, match="pallas_tpu cannot run this: hidden states are float16"):
        linear_cross_entropy(hidden, weights, labels, implementation="pallas_tpu")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), pytest.raises(ValueError, match="shard_map"):
        jax.eval_shape(
            functools.partial(linear_cross_entropy, implementation="pallas_gpu"), hidden, weights, labels
        )
