"""What follows a link that must be the last, and weights that lost their type, are noticed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import optim
from jaxllm.errors import UserError
from jaxllm.optim import (
    adamw_bf16_sr,
    check_chain,
    kahan_compensate,
    scale_by_adam_low_precision,
    stochastic_round,
)
from tests.optim.steps import BF16, run

ADAM = scale_by_adam_low_precision()
ON_W, ON_B = {"w": True, "b": False}, {"w": False, "b": True}
IN_ORDER = {
    "chain": optax.chain(ADAM, optax.scale(-1.0), stochastic_round()),
    "nested": optax.chain(optax.clip(1.0), optax.chain(ADAM, optax.chain(stochastic_round()))),
    "fused": optax.chain(optax.clip(1.0), adamw_bf16_sr(1e-3)),
    "not fused": optax.chain(ADAM, optax.scale(-1.0)),
    "named": optax.named_chain(("z", ADAM), ("a", kahan_compensate())),
    "one each": optax.chain(optax.masked(stochastic_round(), ON_W), optax.masked(kahan_compensate(), ON_B)),
    "parted": optax.multi_transform({True: adamw_bf16_sr(1e-3), False: optax.adam(1e-3)}, ON_W),
}
OUT_OF_ORDER = {
    "stochastic_round is link 2 of a chain of 3": optax.chain(ADAM, stochastic_round(), optax.scale(-1.0)),
    "kahan_compensate is link 1 of a chain of 2": optax.chain(
        optax.chain(ADAM, kahan_compensate()), optax.scale_by_schedule(lambda t: -1e-3)),
    "adamw_bf16_sr is link 1 of a chain of 2": optax.MultiSteps(
        optax.chain(adamw_bf16_sr(1.0), optax.add_decayed_weights(0.1)), 2),
    "with_master_weights is link 1 of a chain of 2": optax.apply_if_finite(
        optax.chain(optim.with_master_weights(optax.adam(1.0)), optax.clip(1.0)), 3),
    "stochastic_round is link 1 of a chain of 3": optax.named_chain(
        ("z", stochastic_round()), ("a", optax.identity()), ("b", optax.scale(1.0))),
    "stochastic_round is link 2 of a chain of 4": optax.chain(
        ADAM, optax.masked(stochastic_round(), ON_W), optax.scale(1.0), optax.clip(1.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_ORDER)
def test_a_chain_in_order_passes(name):
    check_chain(IN_ORDER[name].init({"w": jnp.ones(3, BF16), "b": jnp.ones(3, BF16)}))


@pytest.mark.parametrize("message", OUT_OF_ORDER)
def test_a_link_behind_the_last_one_is_named(message):
    params = {"w": jnp.ones(3, BF16), "b": jnp.ones(3, BF16)}
    with pytest.raises(UserError, match=f"^{message}, but has to be the last.*move it to the end$"):
        check_chain(jax.eval_shape(OUT_OF_ORDER[message].init, params))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (optax.chain(ADAM, stochastic_round()), "the optimizer itself (GradientTransformationExtraArgs)"),
        (optax.MultiSteps(ADAM, 2), "the optimizer itself (MultiSteps)"),
        ({"w": jnp.ones(3)}, "a dict without the state of any link, such as parameters"),
        ((jnp.ones(3), jnp.ones(3)), "a tuple without the state of any link, such as parameters"),
        (jnp.ones(3), "a ArrayImpl without the state of any link, such as parameters"),
        ([ADAM, stochastic_round()], "a list without the state of any link, such as parameters"),
        ({}, "dict"),
        (None, "NoneType"),
    ],
    ids=["chain", "MultiSteps", "dict", "tuple", "array", "links", "empty", "None"],
)
def test_a_chain_or_parameters_in_place_of_a_state_are_named(given, what):
    wanted = "give it the optimizer's state: check_chain(optimizer.init(params))"
    with pytest.raises(UserError, match=re.escape(f"check_chain was given {what}; {wanted}")):
        check_chain(given)


def test_states_without_an_array_pass():
    for optimizer in (optax.identity(), optax.sgd(0.1), optax.chain(optax.identity())):
        check_chain(optimizer.init({"w": jnp.ones(3)}))


LANDING = {
    "scale_by_adam_low_precision": optax.chain(ADAM, optax.scale(-1e-3)),
    "stochastic_round": stochastic_round(),
    "kahan_compensate": kahan_compensate(),
    "adamw_bf16_sr": adamw_bf16_sr(1e-3),
    "with_master_weights": optim.with_master_weights(optax.sgd(1e-3)),
    "rotate": optim.rotate(optax.scale_by_adam(), None),
}


@pytest.mark.parametrize("link", LANDING)
def test_weights_that_were_widened_by_an_update_are_noticed(link):
    """`w + update` is what equinox.apply_updates does: float32 from then on, at the first such step named."""
    optimizer, params = LANDING[link], {"w": jnp.ones(3, BF16), "wide": jnp.ones(2)}
    grads, state = jax.tree.map(lambda p: jnp.ones(p.shape), params), optimizer.init(params)
    step = jax.jit(optimizer.update)
    updates, state = step(grads, state, params)
    kept = optax.apply_updates(params, updates)
    assert kept["w"].dtype == BF16
    step(grads, state, kept)
    widened = jax.tree.map(lambda p, u: p + u, params, updates)
    assert widened["w"].dtype == jnp.float32
    message = rf"{link} was initialised with \['w'\] in bfloat16 and now gets it in float32"
    with pytest.raises(UserError, match=message + ".*optax.apply_updates"):
        step(grads, state, widened)


def test_gradients_of_the_updates_type_are_what_wrappers_with_two_branches_want():
    """Why float32_gradients is there: optax puts zeros like the gradients beside the float32 updates."""
    params = {"w": jnp.ones(3, BF16)}
    recipe = optax.chain(ADAM, optax.scale(-0.1), stochastic_round())
    guarded = optax.apply_if_finite(recipe, 3)
    with pytest.raises(TypeError, match="bfloat16"):
        guarded.update(params, guarded.init(params), params)
    often = optax.conditionally_transform(recipe, lambda step: step >= 0)
    for wrapped in (guarded, often):
        optimizer = optax.chain(optim.float32_gradients(), wrapped)
        (a, _), (b, _) = (run(o, params, 3, lambda t, p: p) for o in (optimizer, recipe))
        np.testing.assert_array_equal(a["w"], b["w"])


def test_a_chain_out_of_order_does_round_to_nearest():
    """Why it is an error: the same two links, and with the rate behind the rounding nothing moves."""
    rate, gradient = optax.scale(-1e-3), lambda t, p: -jnp.ones(p.shape)
    moved, _ = run(optax.chain(rate, stochastic_round()), jnp.ones(512, BF16), 50, gradient)
    still, _ = run(optax.chain(stochastic_round(), rate), jnp.ones(512, BF16), 50, gradient)
    assert np.mean(np.asarray(moved != 1)) > 0.9 and np.all(still == 1)
