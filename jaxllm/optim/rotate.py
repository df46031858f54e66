"""Run any gradient transformation in a random rotated basis: OrthoAdam is Adam run so."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxllm_kernels.adamw_update import fold_in
from jaxllm_kernels.hadamard_rotate import random_signs

from jaxllm.optim import orthogonal
from jaxllm.optim.axis_names import axis_names
from jaxllm.optim.low_precision_adam import scale_by_adam_low_precision
from jaxllm.optim.param_types import ParamTypes
from jaxllm.optim.stochastic_round import chosen, leaf_seed, seed_words, stochastic_round

# Layers are stacked, not mixed, and share their rotation. Of a table only the rows that a batch
# reads have gradients; rotated, every row would move.
_NEVER = ("layers", "vocab", "vocab_groups", "position", None)


class RotateState(NamedTuple):
    """State of `rotate`: what it wraps, and 8 bytes; the matrices are not in it."""

    seed: jax.Array  # uint32 [2]; a restored state keeps the basis that its moments are in
    inner: Any  # state of the wrapped transformation, in the rotated basis; float32


def rotate(
    inner: optax.GradientTransformation,
    axes: Any,
    *,
    strategy: str = "hadamard",
    block_size: int | None = None,
    mask: Any = None,
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Run `inner` as if the parameters w were stored as Q w, Q a fixed random orthogonal matrix.

        u = Q^T inner(Q g, Q w)

    An elementwise optimizer (Adam, Lion, RMSProp; decoupled decay too) then prefers no coordinate of w;
    w itself is never rotated. Q is a Kronecker product of one matrix for each axis, drawn anew in every
    step from (seed, the parameter's path, the axis); axes named layers, vocab, vocab_groups and position
    do not rotate. The state is `inner`'s, and a seed. Wrap what keeps moments and leave clipping,
    schedules and rounding outside. Emits float32 updates. On several devices the mesh must be in force
    (`jax.set_mesh`), as for every kernel.

    Strategies differ in the blocks that Q is made of (`orthogonal`) and in cost (`rotation_cost`). The
    default draws no matrix, so that nothing but products of 128 x 128 is added to a step; "kronecker" is
    the published reproduction's and takes QR decompositions as long as the axes in every step.

    Args:
      inner: any transformation; it sees float32 gradients and parameters in the rotated basis.
      axes: pytree of tuples of logical axis names, structured like the parameters, or a function of
        them to it; a name of None does not rotate. None: every axis of every parameter rotates.
      strategy: "hadamard", "block" or "kronecker".
      block_size: how many entries along an axis are mixed at most; None: 128, 128 and 4096.
      mask: pytree of bool structured like the parameters, or a function of them to it; False
        leaves a parameter in its own basis. None: all rotate.
      seed: an integer, or a random key. What a restored state holds wins.

    Raises:
      UserError: an unknown strategy or a block size that it cannot take; a parameter without axis
        names, or with another number of them than it has axes.

    Examples:
      >>> params = {"w": jnp.array([[3.0, -2.0], [1.0, 0.5]])}
      >>> axes = {"w": ("embed", "mlp")}
      >>> optimizer = optax.chain(rotate(optax.scale_by_rms(), axes), optax.scale(-0.1))
      >>> state = optimizer.init(params)
      >>> for _ in range(4):
      ...     updates, state = optimizer.update(jax.tree.map(lambda w: 2 * w, params), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{jnp.sum(params['w'] ** 2):.1f}", end=" ")
      10.5 8.4 6.9 5.8
    """
    types = ParamTypes("rotate")
    inner = optax.with_extra_args_support(inner)
    block_size = orthogonal.resolve_block_size(strategy, block_size)

    def basis(tree, words):
        """Return (tree, inverse) -> the tree in the rotated basis, or out of it; float32."""
        plan = _plan(tree, axes, mask, strategy, block_size)
        blocks = orthogonal.make_blocks(strategy, words, _sizes(plan))
        turn = partial(_turn, plan=tuple(plan.items()), strategy=strategy)
        return lambda tree, inverse=False: _keep_shardings(
            partial(turn, inverse=inverse), tree, words, blocks
        )

    def init(params):
        types.note(params)
        words = seed_words(seed)
        return RotateState(words, inner.init(basis(params, words)(params)))

    def update(updates, state, params=None, **extra):
        if params is not None:
            types.check(params)
        turn = basis(updates, state.seed)
        # Under jit the rotated parameters cost nothing where `inner` does not read them.
        turned = None if params is None else turn(params)
        updates, inner_state = inner.update(turn(updates), state.inner, turned, **extra)
        return turn(updates, inverse=True), RotateState(state.seed, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_ortho_adam(
    axes: Any,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    *,
    strategy: str = "hadamard",
    block_size: int | None = None,
    mask: Any = None,
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Scale updates by Adam in a random rotated basis (OrthoAdam, the paper's Algorithm 1).

    Args:
      axes: as of `rotate`: names, a function, or None.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root, in the rotated basis.
      strategy: as of `rotate`; and so the others.

    References:
      Kaul, Ma, Elezi, Deng, From Attention to Activation (arXiv 2410.17174).
    """
    adam = optax.scale_by_adam(b1, b2, eps)
    return rotate(adam, axes, strategy=strategy, block_size=block_size, mask=mask, seed=seed)


def orthoadam(
    learning_rate: optax.ScalarOrSchedule,
    axes: Any,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any = None,
    *,
    strategy: str = "hadamard",
    block_size: int | None = None,
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """OrthoAdam with decoupled weight decay, which is the same in every basis.

    Steps have the norm of Adam's for dense gradients and are larger for sparse ones: tune the rate anew.

    Args:
      learning_rate: a value or a schedule.
      axes: as of `rotate`: names, a function, or None.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root, in the rotated basis.
      weight_decay: decoupled, times the learning rate.
      mask: pytree of bool, or a function of the parameters to it: which ones decay. None: all.
      strategy: as of `rotate`; and so the others.

    Examples:
      >>> params = {"w": jnp.array([[3.0, -2.0], [1.0, 0.5]])}
      >>> optimizer = orthoadam(0.5, {"w": ("embed", "mlp")})
      >>> state = optimizer.init(params)
      >>> for _ in range(4):
      ...     updates, state = optimizer.update(jax.tree.map(lambda w: 2 * w, params), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{jnp.sum(params['w'] ** 2):.1f}", end=" ")
      8.7 4.8 2.2 1.0

    References:
      Kaul, Ma, Elezi, Deng, From Attention to Activation (arXiv 2410.17174).
    """
    return optax.chain(
        scale_by_ortho_adam(axes, b1, b2, eps, strategy=strategy, block_size=block_size, seed=seed),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def orthoadam_bf16_sr(
    learning_rate: optax.ScalarOrSchedule,
    axes: Any,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any = None,
    *,
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """OrthoAdam for bfloat16 weights without a float32 copy: moments in bfloat16, stochastic rounding last.

    As `adamw_bf16_sr` it takes 8 bytes a parameter, gradient included, and no link may follow it. Arguments
    are those of `orthoadam`, whose strategy is the default; `seed` draws both the basis and the rounding.

    Examples:
      >>> params = {"w": jnp.full((2, 2), 256.0, jnp.bfloat16)}     # its neighbours: 255 and 258
      >>> optimizer = orthoadam_bf16_sr(0.1, {"w": ("embed", "mlp")}, weight_decay=0.0)
      >>> gradient = {"w": jnp.array([[1.0, 2.0], [3.0, -4.0]], jnp.bfloat16)}
      >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
      >>> set(updates["w"].ravel().tolist()) <= {-1.0, 0.0, 2.0}
      True

    References:
      Kaul, Ma, Elezi, Deng, From Attention to Activation (arXiv 2410.17174); Ozkara, Yu, Park, Stochastic
      Rounding for LLM Training (arXiv 2502.20566).
    """
    adam = scale_by_adam_low_precision(b1, b2, eps)
    return optax.chain(
        rotate(adam, axes, seed=seed),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
        stochastic_round(seed),
    )


class RotationCost(NamedTuple):
    """What rotating costs, besides what the wrapped transformation does."""

    product_flops: int  # a step: there and back, blocks as dense matrices
    draw_flops: int  # a step: QR decompositions
    matrix_bytes: int  # while a step runs: one block of each size
    state_bytes: int  # between steps


def rotation_cost(
    params: Any,
    axes: Any,
    *,
    strategy: str = "hadamard",
    block_size: int | None = None,
    mask: Any = None,
) -> RotationCost:
    """Count what `rotate` adds to a step of a transformation that does not read parameters.

    A product of n entries with blocks of k takes 2 n k FLOPs, in float32; a QR decomposition 8/3 k^3.

    Args:
      params: pytree of arrays or ShapeDtypeStructs.
      axes: as of `rotate`; and so the others.

    Examples:
      >>> params = {"w": jax.ShapeDtypeStruct((768, 3072), "float32")}
      >>> rotation_cost(params, {"w": ("embed", "mlp")}, strategy="kronecker")
      RotationCost(product_flops=36238786560, draw_flops=78517370880, matrix_bytes=40108032, state_bytes=8)
    """
    block_size = orthogonal.resolve_block_size(strategy, block_size)
    plan = _plan(params, axes, mask, strategy, block_size)
    products = sum(
        4 * x.size // x.shape[axis] * sum(size**2 for size in sizes)
        for path, x in _leaves(params).items()
        for axis, sizes in plan[path]
    )
    drawn = _sizes(plan) if strategy != "hadamard" else []
    return RotationCost(
        product_flops=products,
        draw_flops=sum(8 * size**3 // 3 for size in drawn),
        matrix_bytes=sum(4 * size**2 for size in _sizes(plan)),
        state_bytes=8,
    )


def _plan(tree, axes, mask, strategy, block_size) -> dict[tuple, tuple]:
    """Return {path: ((axis that rotates, sizes of its blocks), ...)} of every array of a tree."""
    names_at = axis_names(axes, tree)
    mask_at = _leaves(chosen(mask, tree))
    plan = {}
    for path, x in _leaves(tree).items():
        turning = [i for i, name in enumerate(names_at[path]) if name not in _NEVER and mask_at[path]]
        plan[path] = tuple(
            (i, orthogonal.block_sizes(x.shape[i], strategy, block_size)) for i in turning if x.shape[i] > 1
        )
    return plan


def _sizes(plan) -> list[int]:
    return sorted({size for turning in plan.values() for _, sizes in turning for size in sizes})


def _leaves(tree) -> dict[tuple, Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree))


@partial(jax.jit, static_argnames=("plan", "strategy", "inverse"))
def _turn(tree, words, blocks, *, plan, strategy, inverse):
    """Rotate every array of a tree, or undo it; `plan` holds the items of what `_plan` returns."""
    turning_at = dict(plan)

    def leaf(path, x):
        leaf_words = leaf_seed(words, path, x)
        x = x.astype(jnp.float32)
        # Undone in the reverse order, in which the two meet without transpositions.
        for axis, sizes in turning_at[path][:: -1 if inverse else 1]:
            signs = random_signs(fold_in(leaf_words, axis), x.shape[axis])
            x = orthogonal.rotate_axis(x, axis, signs, sizes, blocks, inverse, strategy)
        return x

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _keep_shardings(function, tree, *operands):
    """Return function(tree, *operands); give each array its input's sharding."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and jax.sharding.AxisType.Explicit in mesh.axis_types:
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, tree)
        return jax.sharding.auto_axes(function, out_sharding=shardings)(tree, *operands)

    def place(new, old):
        placed = isinstance(old, jax.Array) and not isinstance(old, jax.core.Tracer) and old.committed
        return jax.device_put(new, old.sharding) if placed else new

    return jax.tree.map(place, function(tree, *operands), tree)
