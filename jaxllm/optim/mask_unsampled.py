"""What an optimizer does to parameters that took no part in a step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxllm.optim.axis_names import axis_names
from jaxllm.optim.rotate import RotateState


def mask_unsampled(
    inner: optax.GradientTransformation, axes: Any
) -> optax.GradientTransformationExtraArgs:
    """Run `inner` on a step of a subnetwork and leave what was not sampled as it was.

    To Adam a unit that was not sampled has a gradient of 0: its moments decay, its momentum moves it
    on, and decoupled decay shrinks it. Here its update is 0 and its moments stay, as if the step had
    not been. Wrap whatever keeps moments or decays weights; a chain goes on behind it:

        chain(clip_by_global_norm(1.0), mask_unsampled(orthoadam(rate, axes), axes), stochastic_round())

    A rotated basis (`rotate`) mixes an array's units, so that its moments freeze by whole layers, which are
    not mixed; the updates are masked outside, unit by unit.

    The step is told what was sampled by an extra argument, `update(grads, state, params, sampled=...)`;
    without it this does nothing.

    Args:
      inner: any transformation.
      axes: as of `rotate`; None has no axis that is sampled.

    Returns:
      A transformation with the state of `inner`. `sampled` is what `subnetwork.sampled_units` returns:
      {logical axis name: bool}, "layers" [L] and the others [L, units].

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
    inner = optax.with_extra_args_support(inner)

    def update(updates, state, params=None, *, sampled=None, **extra):
        new, new_state = inner.update(updates, state, params, **extra)
        if not sampled:
            return new, new_state
        masks = _masks(updates, axes, sampled)
        new = jax.tree.map(lambda mask, u: _keep(mask, u, jnp.zeros_like(u)), masks, new)
        new_state = jax.tree.map(_keep, _state_masks(inner, state, updates, axes, sampled), new_state, state)
        return new, new_state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _masks(tree, axes, sampled):
    """Return for each array of a tree a mask that broadcasts to it, or True if it is sampled whole."""
    names_at = axis_names(axes, tree)

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
