"""The order of a chain, checked on its state."""

from collections import OrderedDict

import jax
import optax

from jaxllm.errors import UserError


def check_chain(state) -> None:
    """Raise if a link follows one that has to be the last of its chain.

    `stochastic_round`, `kahan_compensate`, `adamw_bf16_sr` and `with_master_weights` emit updates
    that land on values of the parameters' type. A link behind them (a learning rate, weight decay)
    moves the landing, `optax.apply_updates` rounds it to nearest, and nothing else would tell.
    `optax.chain` keeps its links' states in a tuple, in order, so the state shows what follows.

    Args:
      state: what `init` of any optax transformation returned: arrays, or `jax.eval_shape`'s shapes.
        Several such links may end a chain, for parameters of their own (`optax.masked`).

    Raises:
      UserError: names the link, its place and what to do; or says that it was not given a state.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxllm.optim import stochastic_round
      >>> optimizer = optax.chain(optax.adam(1.0), stochastic_round(), optax.scale(1e-3))
      >>> check_chain(optimizer.init(jnp.zeros(3, jnp.bfloat16)))
      Traceback (most recent call last):
      jaxllm.errors.UserError: stochastic_round is link 2 of a chain of 3, but has to be the last: ...
    """
    if not _is_state(state):
        what = type(state).__name__
        if hasattr(state, "init") and hasattr(state, "update"):
            what = f"the optimizer itself ({what})"
        elif jax.tree.leaves(state):
            what = f"a {what} without the state of any link, such as parameters"
        raise UserError(
            f"check_chain was given {what}; give it the optimizer's state: "
            "check_chain(optimizer.init(params))"
        )
    check_order(state)


def check_order(state) -> None:
    """Do what `check_chain` does, of a state of whatever kind."""
    links = [link for link in jax.tree.leaves(state, is_leaf=lambda x: x is not state) if link is not state]
    if type(state) in (tuple, OrderedDict):  # of optax.chain, of optax.named_chain
        last = [must_be_last(link) for link in links]
        for place, (name, next_name) in enumerate(zip(last[:-1], last[1:], strict=True), start=1):
            if name and not next_name:
                raise UserError(
                    f"{name} is link {place} of a chain of {len(links)}, but has to be the last: what "
                    "follows moves its updates off the values of the parameters' type, and they are "
                    "rounded to nearest again; move it to the end"
                )
    for link in links:
        check_order(link)


def must_be_last(state):
    """Return the name of a link in a state that has to be the last of its chain, or None."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "must_be_last"))
    return next((node.must_be_last for node in nodes if hasattr(node, "must_be_last")), None)


def _is_state(node) -> bool:
    """Return whether a tree holds what optax's links keep: NamedTuples; an empty chain keeps ()."""
    found = jax.tree.leaves(node, is_leaf=lambda x: hasattr(x, "_fields"))
    links = [x for x in found if hasattr(x, "_fields") and not isinstance(x, optax.GradientTransformation)]
    return bool(links) or (type(node) is tuple and not found)
