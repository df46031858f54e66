"""What an optimizer does to parameters that took no part in a step."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxllm.errors import UserError, unknown
from jaxllm.optim.check_chain import must_be_last
from jaxllm.optim.rotate import RotateState


def mask_unsampled(
    inner: optax.GradientTransformation,
    axes: Any,
    *,
    unsampled: Literal["zero_grad", "freeze"] = "freeze",
    compensate: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Run `inner` on a step of a subnetwork and leave what was not sampled as it was.

    To Adam a unit that was not sampled has a gradient of 0: its moments decay, its momentum moves it
    on, and decoupled decay shrinks it. "freeze" keeps its update at 0 and its moments as they were, as
    if the step had not been. Wrap whatever keeps moments or decays weights; a chain goes on behind it:

        chain(clip_by_global_norm(1.0), mask_unsampled(orthoadam(rate, axes), axes), stochastic_round())

    A rotated basis (`rotate`) mixes an array's units, so that its moments freeze by whole layers, which are
    not mixed; the updates are masked outside, unit by unit.

    With probability p of being sampled a gradient has E[g] = p a and E[g^2] = p a^2 whatever constant it is
    multiplied by, so Adam on zero gradients steps sqrt(p) times as far: 0.71 at p = 1/2. `compensate`
    divides the updates by sqrt(p), p the part of the parameter that this step sampled.

    The step is told what was sampled by an extra argument, `update(grads, state, params, sampled=...)`;
    without it this does nothing.

    Args:
      inner: any transformation.
      axes: pytree of tuples of logical axis names, structured like the parameters.
      unsampled: "freeze", or "zero_grad": nothing special.
      compensate: divide by sqrt(p); meant for "zero_grad".

    Returns:
      A transformation with the state of `inner`. `sampled` is what `subnetwork.sampled_units` returns:
      {logical axis name: bool}, "layers" [L] and the others [L, units].

    Raises:
      UserError: an unknown name; or, at init, a compensation that would move the rounded updates of
        `inner` off the values of the parameters' type.

    Examples:
      >>> params = {"w": jnp.ones((2, 3))}
      >>> optimizer = mask_unsampled(optax.sgd(0.5, momentum=0.9), {"w": ("layers", "embed")})
      >>> state = optimizer.init(params)
      >>> sampled = {"layers": jnp.array([True, False])}
      >>> updates, state = optimizer.update(params, state, params, sampled=sampled)
      >>> print(updates["w"][:, 0], state[0].trace["w"][:, 0])
      [-0.5  0. ] [1. 0.]

    References:
      Li et al., Evolving Subnetwork Training (arXiv 2406.06962); what it does here is not published.
    """
    if unsampled not in ("zero_grad", "freeze"):
        raise unknown("unsampled", unsampled, ("zero_grad", "freeze"))
    inner = optax.with_extra_args_support(inner)

    def init(params):
        state = inner.init(params)
        if compensate and (link := must_be_last(state)):
            raise UserError(f"mask_unsampled(compensate=True) would scale the rounded updates of {link}; "
                            "wrap the transformation before it")  # fmt: skip
        return state

    def update(updates, state, params=None, *, sampled=None, **extra):
        new, new_state = inner.update(updates, state, params, **extra)
        if not sampled:
            return new, new_state
        masks = _masks(updates, axes, sampled)
        if unsampled == "freeze":
            new = jax.tree.map(lambda mask, u: _keep(mask, u, jnp.zeros_like(u)), masks, new)
            new_state = jax.tree.map(
                _keep, _state_masks(inner, state, updates, axes, sampled), new_state, state
            )
        if compensate:
            new = jax.tree.map(_compensated, masks, new)
        return new, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _masks(tree, axes, sampled):
    """Return for each array of a tree a mask that broadcasts to it, or True if it is sampled whole."""
    names_at = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda node: isinstance(node, tuple)))

    def leaf(path, x):
        names, mask = names_at[path], True
        if names[:1] != ("layers",):
            return mask
        for axis, name in enumerate(names):
            if name in sampled:
                spread = {0, axis}
                mask = mask & sampled[name].reshape([n if i in spread else 1 for i, n in enumerate(x.shape)])
        return mask

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _state_masks(inner, state, updates, axes, sampled):
    """Return the mask of each array of a state; those not shaped like their parameter get True."""

    def mask_of(leaf, u, mask):
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        return mask if leaf.shape == u.shape else True

    def masks(sampled):
        return optax.tree_utils.tree_map_params(
            inner,
            mask_of,
            state,
            updates,
            _masks(updates, axes, sampled),
            transform_non_params=lambda _: True,
            is_leaf=lambda node: isinstance(node, optax.MaskedNode),
        )

    layers = {name: mask for name, mask in sampled.items() if name == "layers"}
    return jax.tree.map(
        lambda by_unit, by_layer: by_layer if isinstance(by_unit, RotateState) else by_unit,
        masks(sampled),
        masks(layers),
        is_leaf=lambda node: isinstance(node, RotateState),
    )


def _keep(mask, new, old):
    return new if mask is True else jnp.where(mask, new, old)


def _compensated(mask, u):
    return u if mask is True else (u * jax.lax.rsqrt(jnp.mean(mask, dtype=jnp.float32))).astype(u.dtype)
