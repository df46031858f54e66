"""The links on models of Equinox and flax nnx, where those are installed; neither is a dependency."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.errors import UserError
from jaxllm.optim import adamw_bf16_sr, check_chain, orthoadam, scale_by_adam_low_precision, stochastic_round

pytestmark = pytest.mark.slow
X = jnp.linspace(-1, 1, 12).reshape(3, 4).astype(jnp.bfloat16)
LINKS = {
    "adamw_bf16_sr": lambda axes: adamw_bf16_sr(0.02),
    "chain": lambda axes: optax.chain(
        scale_by_adam_low_precision(), optax.scale_by_learning_rate(0.02), stochastic_round()
    ),
    "orthoadam": lambda axes: orthoadam(0.02, axes),
}


@pytest.mark.parametrize("name", LINKS)
def test_equinox_trains_in_bfloat16_by_readme_s_calls_and_its_own_apply_updates_is_named(name):
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 1, 8, 2, key=jax.random.key(0), dtype=jnp.bfloat16)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = LINKS[name](None)

    def loss(params):
        return jnp.mean((jax.vmap(eqx.combine(params, static))(X).astype(jnp.float32) - 1) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    before, state = loss(params), optimizer.init(params)
    check_chain(state)
    first = params
    for _ in range(20):
        params, state = step(params, state)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    assert loss(params) < 0.5 * before
    updates, state = optimizer.update(first, state, first)
    with pytest.raises(UserError, match="initialised with .*weight in bfloat16 and now gets it in float32"):
        optimizer.update(first, state, eqx.apply_updates(first, updates))


@pytest.mark.parametrize("wrapped", [False, True], ids=["optimizer", "state"])
@pytest.mark.parametrize(
    ("name", "axes"),
    [("adamw_bf16_sr", None), ("chain", None)] + [("orthoadam", how) for how in ("named", "function", None)],
)
def test_flax_nnx_trains_by_its_optimizer_and_on_its_state(name, axes, wrapped):
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(4, 8, rngs=rngs, param_dtype=jnp.bfloat16)
            self.outer = nnx.Linear(8, 1, rngs=rngs, param_dtype=jnp.bfloat16)

        def __call__(self, x):
            return self.outer(jnp.tanh(self.inner(x)))

    model = Model(nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    named = lambda tree: jax.tree.map(lambda x: ("embed",) * x.ndim, tree)
    optimizer = LINKS[name]({"named": named(params), "function": named, None: None}[axes])
    loss = lambda model: jnp.mean((model(X).astype(jnp.float32) - 1) ** 2)
    before = loss(model)
    if wrapped:
        state = optimizer.init(params)

        @jax.jit
        def step(params, state):
            grads = jax.grad(lambda params: loss(nnx.merge(graph, params)))(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(20):
            params, state = step(params, state)
        model = nnx.merge(graph, params)
    else:
        trainer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
        train = nnx.jit(lambda model, trainer: trainer.update(model, nnx.grad(loss)(model)))
        for _ in range(20):
            train(model, trainer)
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert {x.dtype.name for x in leaves} == {"bfloat16"} and all(np.all(np.isfinite(x)) for x in leaves)
    assert loss(model) < 0.5 * before
