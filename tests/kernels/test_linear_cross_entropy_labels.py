"""Labels that do not exist are loud in every implementation, and tokens that do not count add nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy, token_log_probs
from jaxllm_kernels.linear_cross_entropy.options import CPU_SIZES

N, D, V = 7, 4, 11
HIDDEN = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(D, V)).astype(np.float32)
LABELS = np.arange(N)
LIMITS = np.full(N, 9)


def step(implementation, hidden, weights, labels, token_weights, limits):
    def total(hidden, weights):
        return linear_cross_entropy(
            hidden, weights, labels, token_weights_BT=token_weights, limits_BT=limits, z_loss=0.1,
            implementation=implementation,
        ).total  # fmt: skip

    return jax.value_and_grad(total, (0, 1))(hidden, weights)


@pytest.fixture(params=["reference", "xla", "blocks"])
def run(request, monkeypatch):
    """The step of one implementation, compiled; "blocks": XLA's, with the vocabulary in several."""
    sizes = CPU_SIZES._replace(block=4 if request.param == "blocks" else 2048)
    monkeypatch.setattr("jaxllm_kernels.linear_cross_entropy.api.CPU_SIZES", sizes)
    name = "xla" if request.param == "blocks" else request.param
    compiled = jax.jit(functools.partial(step, name))
    return lambda *arrays: jax.device_get(compiled(*arrays))


def put(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


def test_a_token_that_does_not_count_adds_nothing_whatever_it_holds(run):
    rest = [put(np.ones(N, np.float32), 2, 0), LIMITS]
    want, (d_hidden, d_weights) = run(HIDDEN, WEIGHTS, LABELS, *rest)
    assert np.isfinite(want) and not d_hidden[2].any()
    cases = [
        (put(HIDDEN, 2, np.nan), LABELS, *rest),
        (put(HIDDEN, 2, np.inf), put(LABELS, 2, V), rest[0], put(LIMITS, 2, 0)),
        (HIDDEN, put(LABELS, 2, -100), np.ones(N, np.float32), put(LIMITS, 2, 0)),
    ]
    for hidden, *others in cases:
        found, gradients = run(hidden, WEIGHTS, *others)
        assert found == pytest.approx(want, rel=1e-6)
        np.testing.assert_allclose(gradients[0], d_hidden, atol=1e-6)
        np.testing.assert_allclose(gradients[1], d_weights, atol=1e-6)


@pytest.mark.parametrize(("label", "limits"), [(V, None), (9, LIMITS), (5, put(LIMITS, 2, 0))])
@pytest.mark.parametrize("token_weights", [None, np.ones(N, np.float32)])
def test_a_label_that_does_not_exist_is_loud(label, limits, token_weights, run):
    labels = put(LABELS, 2, label)
    total, gradients = run(HIDDEN, WEIGHTS, labels, token_weights, limits)
    assert np.isnan(total) and np.isnan(gradients[0][2]).all() and np.isnan(gradients[1]).any()
    with pytest.raises(ValueError, match=rf"labels hold {label}, and that token's softmax is over"):
        step(None, HIDDEN, WEIGHTS, labels, token_weights, limits)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_log_probs_of_labels_that_do_not_exist_are_nan(implementation):
    labels = np.array([0, -1, V, 9, 8, 3, 3])
    of = lambda *x: token_log_probs(*x[:3], limits_BT=x[3], implementation=implementation)
    log_probs, lse = jax.jit(of)(HIDDEN, WEIGHTS, labels, LIMITS)
    np.testing.assert_array_equal(np.isnan(log_probs), [False, True, True, True, False, False, False])
    assert np.isfinite(lse).all()
    with pytest.raises(ValueError, match="labels hold -1, .* over 9 columns, from 0; correct it"):
        of(HIDDEN, WEIGHTS, labels, LIMITS)


def test_a_label_of_no_probability_costs_what_it_costs(run):
    hidden, labels = np.ones((N, D), np.float32), LABELS
    for worst in (-np.inf, -2e30):
        found, _ = run(hidden, put(WEIGHTS, (0, 3), worst), labels, None, None)
        assert found == pytest.approx(-worst, rel=1e-5)


def test_what_is_no_head_label_or_budget_is_refused():
    with pytest.raises(ValueError, match=r"weights \(4,\) with vocab_axis=1 do not fit"):
        linear_cross_entropy(HIDDEN, WEIGHTS[:, 0], LABELS)
    with pytest.raises(ValueError, match="labels are of type float32; give whole numbers"):
        linear_cross_entropy(HIDDEN, WEIGHTS, jnp.zeros(N))
    with pytest.raises(ValueError, match="logits_bytes=-5 holds no logits"):
        linear_cross_entropy(HIDDEN, WEIGHTS, LABELS, logits_bytes=-5)
