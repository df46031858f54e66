"""Moving states along a probe's gradient, beside controls that move as far and end as long.

A state that is moved far enough breaks whatever reads it, in any direction. So an effect is specific to what
a probe found only by how much it exceeds the effect of other directions at the same displacement and norm
(`matched_edits` gives both). An exchange of unscaled gradients between samples, the control of Chen et al.
2023 (arXiv 2312.16257), is none: for a linear probe the sum of a pair's errors grows as that of an ascent
does, and so does the displacement.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError, brief

Probe = Callable[[jax.Array], jax.Array]  # x [B, D] -> predictions [B, O]


class MatchedEdits(NamedTuple):
    """Edited states, each [B, D], all as long as before and displaced by the same part of their length."""

    gradient: jax.Array  # along the probe's own gradient
    another: jax.Array  # along the gradient of another sample, at its state and for its target
    shuffled: jax.Array  # along the gradient of the probe of shuffled targets
    orthogonal: jax.Array  # at random, in directions that the probe does not see from x
    random: jax.Array  # at random


def matched_edits(
    probe: Probe,
    shuffled: Probe,
    x_BD: jax.Array,
    target_BO: jax.Array,
    displacement: float | jax.Array,
    *,
    key: jax.Array,
    away: bool = False,
    steps: int = 8,
) -> MatchedEdits:
    """Return states moved along the gradient of a probe's squared error, and along four controls.

    Each step follows the direction at the state reached, then puts the state back where it is exactly as long
    as the one it began as, and exactly so far from it as the step's share of the displacement asks: a point
    of a circle on a sphere. So all five can be compared, whatever the size of a gradient. Towards a target a
    walk ends at the step where the probe is nearest to it, for past that it would lead away again; a sample's
    controls go as far as it went.

    Args:
      probe: such as a `LinearProbe`; a pytree of arrays.
      shuffled: of the same class, fitted to targets that were dealt out at random.
      x_BD: the states, none of them 0.
      target_BO: what the probe should say after the edit: a sample's own target, or that of another place.
      displacement: |x' - x| / |x|, above 0 and at most 2 (the opposite point), or less where a target is
        reached; one, or one a sample [B].
      key: draws the directions, and which sample is another's.
      away: move away from the target: up the gradient.
      steps: in which the displacement is reached.

    Raises:
      UserError: fewer than two samples, shapes that do not agree, a displacement out of range.

    Examples:
      >>> from jaxllm.interpret import LinearProbe
      >>> probe = LinearProbe(jnp.eye(8)[:, :2], jnp.zeros(2))
      >>> other = LinearProbe(jnp.eye(8)[:, 2:4], jnp.zeros(2))
      >>> x = jax.random.normal(jax.random.key(0), (5, 8))
      >>> moved = matched_edits(probe, other, x, 9 * jnp.ones((5, 2)), 0.1, key=jax.random.key(1))
      >>> [round(float(jnp.linalg.norm(y[0] - x[0]) / jnp.linalg.norm(x[0])), 4) for y in moved]
      [0.1, 0.1, 0.1, 0.1, 0.1]
    """
    shape, targets = np.shape(x_BD), np.shape(target_BO)
    if len(shape) != 2 or len(targets) != 2 or targets[0] != shape[0] or shape[0] < 2:
        raise UserError(
            f"states have shape {shape} and targets {targets}; give [B, D] and [B, O] of two samples at "
            "least: one of the controls is another sample's gradient"
        )
    said = jax.eval_shape(probe, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    if said != targets:
        raise UserError(
            f"the probe predicts {said} and targets have shape {targets}; give targets that it predicts"
        )
    if not isinstance(displacement, jax.core.Tracer):
        values = np.asarray(displacement)
        if not ((values > 0) & (values <= 2)).all() or values.shape not in ((), shape[:1]):
            raise UserError(
                f"displacement is {brief(displacement)}; it must be above 0 and at most 2 (the opposite "
                "point), one for all samples or one each"
            )
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps is {brief(steps)}; it must be a whole number from 1 on")
    displacement_B = jnp.broadcast_to(jnp.asarray(displacement, jnp.float32), shape[:1])
    x_BD, target_BO = (jnp.asarray(x, jnp.float32) for x in (x_BD, target_BO))
    return _matched(probe, shuffled, x_BD, target_BO, displacement_B, key, -1.0 if away else 1.0, steps)


def probe_errors(probe: Probe, x_BD: jax.Array, target_BO: jax.Array) -> jax.Array:
    """Return each sample's mean squared error, [B]: what `matched_edits` goes down, or up."""
    return jnp.mean(jnp.square(probe(x_BD) - target_BO), axis=-1)


@functools.partial(jax.jit, static_argnames="steps")
def _matched(probe, shuffled, x_BD, target_BO, displacement_B, key, sign, steps) -> MatchedEdits:
    random_key, plane_key, order_key = jax.random.split(key, 3)

    def downhill(of, y_BD):
        return -sign * jax.grad(lambda y_BD: jnp.sum(probe_errors(of, y_BD, target_BO)))(y_BD)

    # One cycle through all samples in random order: nobody is its own partner.
    order_B = jax.random.permutation(order_key, len(x_BD))
    partner_B = jnp.zeros_like(order_B).at[order_B].set(jnp.roll(order_B, 1))
    another_BD = downhill(probe, x_BD)[partner_B]
    random_BD = jax.random.normal(random_key, x_BD.shape, jnp.float32)
    seen_BOD = jax.vmap(jax.jacrev(lambda x_D: probe(x_D[None])[0]))(x_BD)
    # With x itself: what keeps the norm would else put a part of x back in, which the probe sees.
    basis_BDO = jnp.linalg.qr(jnp.concatenate([seen_BOD, x_BD[:, None]], axis=1).swapaxes(1, 2))[0]
    unseen_BD = jax.random.normal(plane_key, x_BD.shape, jnp.float32)
    unseen_BD -= jnp.einsum("bdo,beo,be->bd", basis_BDO, basis_BDO, unseen_BD)

    size_B1 = jnp.linalg.norm(x_BD, axis=1, keepdims=True)
    shares = jnp.arange(1, steps + 1, dtype=jnp.float32) / steps

    def proposed(y_XBD, way_XBD):
        length_XB1 = jnp.linalg.norm(way_XBD, axis=-1, keepdims=True)
        return y_XBD + size_B1 * displacement_B[:, None] / steps * way_XBD / jnp.maximum(length_XB1, 1e-30)

    def tried(y_BD, share):
        y_BD = _placed(x_BD, proposed(y_BD, downhill(probe, y_BD)), share * displacement_B[:, None])
        return y_BD, probe_errors(probe, y_BD, target_BO)

    errors_SB = jax.lax.scan(tried, x_BD, shares)[1]
    displacement_B *= jnp.where(sign > 0, shares[jnp.argmin(errors_SB, axis=0)], 1.0)

    def step(y, share):
        ways = (downhill(probe, y.gradient), another_BD, downhill(shuffled, y.shuffled), unseen_BD, random_BD)
        ahead_5BD = proposed(jnp.stack(y), jnp.stack(ways))
        return MatchedEdits(*_placed(x_BD, ahead_5BD, share * displacement_B[:, None])), None

    return jax.lax.scan(step, MatchedEdits(*[x_BD] * 5), shares)[0]


def _placed(x_BD, towards_XBD, chord_B1) -> jax.Array:
    """Return the points as long as x at a chord |x' - x| / |x| from it, on the side of other points."""
    size_B1 = jnp.linalg.norm(x_BD, axis=1, keepdims=True)
    unit_BD = x_BD / size_B1
    across_XBD = towards_XBD - jnp.sum(towards_XBD * unit_BD, axis=-1, keepdims=True) * unit_BD
    length_XB1 = jnp.linalg.norm(across_XBD, axis=-1, keepdims=True)
    across_XBD = across_XBD / jnp.maximum(length_XB1, 1e-30)
    angle_B1 = 2 * jnp.arcsin(jnp.minimum(chord_B1 / 2, 1))
    moved_XBD = size_B1 * (jnp.cos(angle_B1) * unit_BD + jnp.sin(angle_B1) * across_XBD)
    return jnp.where(length_XB1 > 0, moved_XBD, x_BD)  # where there is no direction nothing is moved
