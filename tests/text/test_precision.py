"""What each precision policy stores, and that all of them learn."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.optim import adamw_bf16_sr, kahan_compensate, stochastic_round, with_master_weights
from jaxllm.text import PRECISIONS, prepare
from jaxllm.text.precision import get_precision, warn_of_lost_updates
from tests.text.steps import take_steps

# policy -> (type of parameters, of moments, bytes a parameter with both moments and master copy)
STORED = {
    "float32": ("float32", "float32", 12),
    "mixed_o1": ("float32", "float32", 12),
    "mixed_o2": ("bfloat16", "float32", 14),
    "bfloat16": ("bfloat16", "bfloat16", 6),
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_state_has_the_types_and_bytes_of_its_policy(tiny, name):
    job = prepare(tiny(precision=name))
    params, moments, bytes_a_parameter = STORED[name]
    assert {x.dtype.name for x in jax.tree.leaves(job.shapes.params)} == {params}
    arrays = [x for x in jax.tree.leaves(job.shapes.opt_state) if x.ndim]
    assert {x.dtype.name for x in arrays} == {moments}
    count = job.model.num_params
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(job.shapes.params) + arrays)
    assert held == bytes_a_parameter * count


@pytest.mark.parametrize(
    "precision, optimizer, warns",
    [
        ("bfloat16", optax.adamw(1e-3), True),
        ("bfloat16", optax.chain(optax.lion(1e-3), stochastic_round()), False),
        ("bfloat16", optax.masked(kahan_compensate(), True), False),
        ("bfloat16", adamw_bf16_sr(1e-3), False),
        ("mixed_o2", with_master_weights(optax.adamw(1e-3)), False),
        ("float32", optax.adamw(1e-3), False),
    ],
)
def test_updates_that_rounding_loses_are_warned_of(precision, optimizer, warns):
    state = jax.eval_shape(optimizer.init, jnp.zeros(8, get_precision(precision).param_dtype))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_lost_updates(precision, "this optimizer", state)
    assert len(caught) == warns
    assert all("adamw_bf16_sr" in str(one.message) for one in caught)


@pytest.mark.parametrize("name", PRECISIONS)
def test_matrix_products_run_in_the_policys_type(tiny, name):
    job = prepare(tiny(precision=name))
    batch = jax.tree.map(jnp.asarray, next(job.batches()))
    read = list(products(jax.make_jaxpr(job.train_step)(job.shapes, batch).jaxpr))
    assert len(read) > 10
    assert all(types == {jnp.dtype("float32" if name == "float32" else "bfloat16")} for types in read)


def products(jaxpr):
    """Yield the types that each matrix product of a program reads."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield {operand.aval.dtype for operand in equation.invars}
        is_program = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        for inner in filter(is_program, jax.tree.leaves(equation.params, is_leaf=is_program)):
            yield from products(getattr(inner, "jaxpr", inner))


@pytest.mark.slow
def test_every_policy_follows_float32(tiny):
    """12 steps; bfloat16 keeps 8 bits, and the loss of a batch of 128 tokens averages its noise."""
    losses = {
        name: take_steps(tiny(precision=name, steps=12), 12, devices=jax.devices()[:1])[0]
        for name in PRECISIONS
    }
    assert losses["float32"][-1] < losses["float32"][0] - 1
    for name in ("mixed_o1", "mixed_o2"):
        np.testing.assert_allclose(losses[name], losses["float32"], atol=0.02, err_msg=name)
    # Nothing but bfloat16: small updates are lost to rounding, as the literature says; it still learns.
    assert losses["bfloat16"][-1] < losses["float32"][0] - 0.5
