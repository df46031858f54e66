"""Loss of a head that predicts a token's group, then the token inside the group.

p(token | h) = softmax(h W_G + c)[group] * softmax(t_group(h))[slot], exact and normalised
(arXiv 2411.06371). Each factor is a linear cross-entropy, so there is no kernel here: a bias is one
more channel that is always 1, a group's own scale and shift of its hidden states come before the
weights that all groups share, and a group's unused slots are columns past the token's limit. Groups with
weights of their own are another matter: own_slots.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm_kernels.compat import dot_general_float32, varying_like
from jaxllm_kernels.dtypes import in_widest
from jaxllm_kernels.grouped_cross_entropy.own_slots import own_slots_loss
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy
from jaxllm_kernels.linear_cross_entropy.labels import refuse_unknown, settle, settle_hidden, weighted
from jaxllm_kernels.linear_cross_entropy.options import DEVICE_SIZES, MASKED
from jaxllm_kernels.linear_cross_entropy.xla import over_chunks, time_chunk


class GroupedWeights(NamedTuple):
    """A head for G groups of at most K slots, on hidden states of width D."""

    groups_DG: jax.Array
    group_bias_G: jax.Array
    slots: jax.Array  # [D, K] shared by all groups, or [G, K, D]: each group's own
    scale_GX: jax.Array | None = None  # [G, D]: of hidden states; [G, K]: of slot logits
    shift_GX: jax.Array | None = None  # like scale


class GroupedLossSums(NamedTuple):
    """Float32 scalars. Only `total` has a gradient; the other two are its parts, to be logged."""

    total: jax.Array
    group: jax.Array
    slot: jax.Array


def grouped_cross_entropy(
    hidden_BTD: jax.Array,
    weights: GroupedWeights,
    groups_BT: jax.Array,
    slots_BT: jax.Array,
    group_sizes_G: jax.Array,
    *,
    token_weights_BT: jax.Array | None = None,
    scale: str = "hidden",
    logits_bytes: int | None = None,
    implementation: str | None = None,
) -> GroupedLossSums:
    """Return the weighted sum over tokens of -log p(group) - log p(slot | group).

    Costs B T (G + K) logits in place of B T V; those of one chunk or block are in memory. The
    softmaxes are computed in float32, matmuls in hidden's dtype.

    Args:
      hidden_BTD: [B, T, D].
      weights: see GroupedWeights.
      groups_BT: int [B, T], each token's group in [0, G); any value where the token weight is 0.
      slots_BT: int [B, T], its place in the group, below the group's size; likewise. A token of negative
        group or slot does not count; one that counts and does not exist makes the sums and the gradients NaN,
        or an error if labels, group sizes and token weights are NumPy's.
      group_sizes_G: int [G], how many slots of each group hold tokens; at least 1.
      token_weights_BT: [B, T] weight of each token, 0 leaves it out; None: 1. No gradient.
      scale: what weights' scale and shift apply to: "hidden", t = (h * a + b) W, or "logits",
        t = (h W) * a + b, with a and b of the token's group. The first is the richer one. "none":
        there are none, t = h W, W shared or the group's own.
      logits_bytes: see `linear_cross_entropy`.
      implementation: see `linear_cross_entropy`. scale="logits" and own weights know "xla" only.
    """
    _check(weights, group_sizes_G, scale)
    _check_tokens(hidden_BTD, weights, groups_BT, slots_BT, group_sizes_G, token_weights_BT)
    if groups_BT.size == 0:
        return GroupedLossSums(*[jnp.zeros((), jnp.float32)] * 3)
    group_sizes_G = jnp.asarray(group_sizes_G, jnp.int32)
    groups_BT, slots_BT = (jnp.asarray(x_BT, jnp.int32) for x_BT in (groups_BT, slots_BT))
    if token_weights_BT is None:
        token_weights_BT = jnp.ones_like(groups_BT)
    token_weights_BT = jax.lax.stop_gradient(token_weights_BT.astype(jnp.float32))
    groups_BT, token_weights_BT = settle(groups_BT, token_weights_BT, len(group_sizes_G))
    limits_BT = group_sizes_G[groups_BT]
    slots_BT, token_weights_BT = settle(slots_BT, token_weights_BT, limits_BT)
    hidden_BTD = settle_hidden(hidden_BTD, token_weights_BT)
    common = dict(token_weights_BT=token_weights_BT, logits_bytes=logits_bytes)

    group = linear_cross_entropy(
        _with_one(hidden_BTD),
        _with_bias(weights.groups_DG, weights.group_bias_G),
        groups_BT,
        implementation=implementation,
        **common,
    ).total
    if weights.slots.ndim == 3:
        rows = groups_BT, slots_BT, token_weights_BT
        groups_N, slots_N, token_weights_N = (x_BT.reshape(-1) for x_BT in rows)
        hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[2])
        slot = own_slots_loss(
            hidden_ND, weights.slots, groups_N, slots_N, group_sizes_G, token_weights_N
        )
    elif scale != "logits":
        if scale == "hidden":
            scaled_BTD = scaled(hidden_BTD, weights.scale_GX[groups_BT], weights.shift_GX[groups_BT])
            hidden_BTD = scaled_BTD.astype(hidden_BTD.dtype)
        slot = linear_cross_entropy(
            hidden_BTD,
            weights.slots,
            slots_BT,
            limits_BT=limits_BT,
            implementation=implementation,
            **common,
        ).total
    else:
        slot = _scaled_logits_loss(
            hidden_BTD, weights, groups_BT, slots_BT, limits_BT, token_weights_BT, logits_bytes
        )
    total = group + slot
    return GroupedLossSums(total, *jax.lax.stop_gradient((group, slot)))


def joint_log_probs(
    hidden: jax.Array, weights: GroupedWeights, group_sizes_G: jax.Array, *, scale: str = "hidden"
) -> jax.Array:
    """Return log p(group, slot | h), float32 [..., G, K]; slots that hold no token have -1e30.

    This is all of the vocabulary, for decoding a few positions: with scale="hidden" it costs an array of
    [..., G, D] and its product with the slots' weights, otherwise one product with those.
    """

    _check(weights, group_sizes_G, scale)

    def alike(x_GX):
        return jax.lax.broadcast_to_rank(x_GX, hidden.ndim + 1)

    group = _product(_with_one(hidden), _with_bias(weights.groups_DG, weights.group_bias_G))
    if weights.slots.ndim == 3:
        G, K, D = weights.slots.shape
        slot = _product(hidden, weights.slots.reshape(G * K, D).T).reshape(*hidden.shape[:-1], G, K)
    elif scale == "hidden":
        hidden_GD = scaled(hidden[..., None, :], alike(weights.scale_GX), alike(weights.shift_GX))
        slot = _product(hidden_GD.astype(hidden.dtype), weights.slots)
    else:
        slot = _product(hidden, weights.slots)[..., None, :]
        if scale == "logits":
            slot = scaled(slot, alike(weights.scale_GX), alike(weights.shift_GX))
    exists_GK = jnp.arange(slot.shape[-1], dtype=jnp.int32)[None] < group_sizes_G[:, None]
    exists_GK = alike(exists_GK)
    slot = jax.nn.log_softmax(jnp.where(exists_GK, slot, MASKED), axis=-1)
    return jnp.where(exists_GK, jax.nn.log_softmax(group, axis=-1)[..., None] + slot, MASKED)


def _scaled_logits_loss(hidden_BTD, weights, groups_BT, slots_BT, limits_BT, token_weights_BT, budget):
    """Return the summed loss of slots whose logits, not hidden states, a group scales and shifts."""

    @jax.checkpoint
    def add(total, piece):
        hidden_BtD, groups_Bt, slots_Bt, limits_Bt, token_weights_Bt = piece
        logits_BtK = _product(hidden_BtD, weights.slots)
        logits_BtK = scaled(logits_BtK, weights.scale_GX[groups_Bt], weights.shift_GX[groups_Bt])
        columns_K = jnp.arange(logits_BtK.shape[-1], dtype=jnp.int32)
        logits_BtK = jnp.where(columns_K[None, None] < limits_Bt[..., None], logits_BtK, MASKED)
        label_Bt = jnp.take_along_axis(logits_BtK, slots_Bt[..., None], axis=-1)[..., 0]
        loss_Bt = jax.nn.logsumexp(logits_BtK, axis=-1) - label_Bt
        return total + jnp.sum(weighted(token_weights_Bt, loss_Bt)).astype(jnp.float32), None

    pieces = hidden_BTD, groups_BT, slots_BT, limits_BT, token_weights_BT
    # Four arrays of a chunk's shape: logits, scale, shift and the logits' gradient.
    columns = 4 * weights.slots.shape[1]
    chunk = time_chunk(hidden_BTD.shape, columns, budget or DEVICE_SIZES.logits_bytes)
    return over_chunks(add, varying_like(jnp.zeros((), jnp.float32), *pieces), pieces, chunk)[0]


def scaled(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Return x * scale + shift in the widest of their types."""
    x, scale, shift = in_widest(x, scale, shift)
    return x * scale + shift


def _product(hidden, weights_DX):
    """Return hidden @ weights in float32, the operands in hidden's dtype."""
    axes = (((hidden.ndim - 1,), (0,)), ((), ()))
    return dot_general_float32(hidden, weights_DX.astype(hidden.dtype), axes)


def _with_one(hidden):
    return jnp.concatenate([hidden, jnp.ones_like(hidden[..., :1])], axis=-1)


def _with_bias(weights_DX, bias_X):
    return jnp.concatenate([weights_DX, bias_X[None].astype(weights_DX.dtype)])


def _check(weights: GroupedWeights, group_sizes_G, scale):
    if scale not in ("hidden", "logits", "none"):
        raise ValueError(f"scale '{scale}' is none of 'hidden', 'logits', 'none'")
    D, G = weights.groups_DG.shape
    own = weights.slots.ndim == 3
    K = weights.slots.shape[1]
    if own and scale != "none":
        raise ValueError(f"groups with weights of their own take scale='none', not '{scale}'")
    X = {"hidden": (G, D), "logits": (G, K), "none": None}[scale]
    expected = GroupedWeights((D, G), (G,), (G, K, D) if own else (D, K), X, X)
    for name, array, shape in zip(weights._fields, weights, expected, strict=True):
        found = None if array is None else array.shape
        if found != shape:
            raise ValueError(f"{name} {found} is not {shape} (scale={scale!r})")
    if group_sizes_G.shape != (G,):
        raise ValueError(f"group_sizes {group_sizes_G.shape} is not [G] = {(G,)}")


def _check_tokens(hidden_BTD, weights, groups_BT, slots_BT, group_sizes_G, token_weights_BT):
    D, G = weights.groups_DG.shape
    if hidden_BTD.ndim != 3 or hidden_BTD.shape[2] != D:
        raise ValueError(f"hidden {hidden_BTD.shape} is not [B, T, {D}]")
    for name, array in {"groups": groups_BT, "slots": slots_BT, "token_weights": token_weights_BT}.items():
        if array is not None and array.shape != hidden_BTD.shape[:2]:
            raise ValueError(f"{name} {array.shape} do not fit hidden {hidden_BTD.shape}")
    refuse_unknown("groups", groups_BT, token_weights_BT, G)
    if all(isinstance(x, np.ndarray) for x in (groups_BT, slots_BT, group_sizes_G)):
        inside_BT = (groups_BT >= 0) & (groups_BT < G)
        sizes_BT = group_sizes_G[np.where(inside_BT, groups_BT, 0)]
        refuse_unknown("slots", np.where(inside_BT, slots_BT, -1), token_weights_BT, sizes_BT)
