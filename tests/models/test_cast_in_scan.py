"""Stacked weights that a scan casts layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.axis_names import AxisNames
from jaxllm.models.cast_in_scan import cast_in_scan, cut_layer

KEY = jax.random.key(0)
PARAMS = {"matrix": jax.random.normal(KEY, (3, 5, 5)), "vector": jax.random.normal(KEY, (3, 5))}
AXES = {
    "matrix": AxisNames(("layers", "embed", "mlp"), inputs=("embed",)), "vector": AxisNames(("layers", "mlp"))
}  # fmt: skip


def run(params, x):
    def layer(x, one):
        assert one["matrix"].dtype == jnp.bfloat16 and one["vector"].dtype == jnp.float32
        return jnp.tanh(x @ one["matrix"] * one["vector"].astype(jnp.bfloat16)), None

    def body(x, group):
        return layer(x, cut_layer(group, 0))

    grouped = jax.tree.map(lambda w: w[:, None], cast_in_scan(params, AXES, "bfloat16"))
    return jax.lax.scan(body, x, grouped)[0].astype(jnp.float32).sum()


def plain(params, x):
    for matrix, vector in zip(params["matrix"], params["vector"], strict=True):
        x = jnp.tanh(x @ matrix.astype(jnp.bfloat16) * vector.astype(jnp.bfloat16))
    return x.astype(jnp.float32).sum()


def test_values_and_gradients_are_those_of_an_ordinary_cast_in_both_modes():
    x = jax.random.normal(jax.random.key(1), (4, 5), jnp.bfloat16)
    tangents = jax.tree.map(jnp.cos, PARAMS)
    for differentiate in (
        lambda f: jax.value_and_grad(f)(PARAMS, x),
        lambda f: jax.jvp(lambda p: f(p, x), (PARAMS,), (tangents,)),
    ):
        got, expected = (jax.tree.leaves(differentiate(jax.jit(f))) for f in (run, plain))
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == jnp.float32
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2)


def test_the_scan_stacks_gradients_in_the_type_of_the_products():
    x = jnp.ones((4, 5), jnp.bfloat16)
    equations = jax.make_jaxpr(jax.grad(run))(PARAMS, x).eqns
    stacked = [v.aval for e in equations if e.primitive.name == "scan" for v in e.outvars]
    assert {a.dtype for a in stacked if a.shape == (3, 1, 5, 5)} == {jnp.dtype("bfloat16")}
