"""The head that predicts a token's group, then the token inside the group.

p(token | h) = p(group | h) p(slot | group, h), exact and normalised, for any map of tokens to groups and
slots (Vennam, Joishy, Kumaraguru, arXiv 2411.06371; the layout of its head could not be read). A training
step computes G + K logits a token in place of V. The slots' logits t of group g, with W and v learned:

| group_head | t                              | parameters, D 768, V 50257, G = K = 225 |
|------------|--------------------------------|-----------------------------------------|
| hidden     | (h * a_g + b_g) W              | 0.69M                                   |
| logits     | (h W) * a_g + b_g              | 0.45M                                   |
| shared     | h W                            | 0.35M; to compare with                  |
| own        | h v_token                      | 38.8M; 0.17M if v is the token table    |

In the first three, tokens of one slot share a direction, so which tokens do matters. "own" is as
expressive as a dense head and its logits as few; only its weights are many. Read per token those would
be [N, D, K], more than the logits they save: the loss sorts tokens by group and reads each group's once.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxllm_kernels.compat import dot_general_float32
from jaxllm_kernels.grouped_cross_entropy import (
    GroupedLossSums,
    GroupedWeights,
    grouped_cross_entropy,
    joint_log_probs,
    scaled,
)

from jaxllm.models.config import LanguageModel
from jaxllm.parallel import mesh_axes, on_shards, spread


def log_probs(config: LanguageModel, params: dict, hidden: jax.Array) -> jax.Array:
    """Return the log-probability of every token, float32 [..., V], for hidden states [..., D].

    It costs what a dense head costs, or more: "hidden" makes an array of [..., G, D]. For the few
    positions of decoding and evaluation.
    """
    joint = joint_log_probs(hidden, _weights(config, params), _sizes(config), scale=_scale(config))
    return joint.reshape(*hidden.shape[:-1], -1)[..., config.vocab_groups.rank]


def loss_sums(
    config: LanguageModel, params: dict, hidden_BTD: jax.Array, targets_BT: jax.Array, mask_BT: jax.Array
) -> GroupedLossSums:
    """Sum the loss over tokens, and its two parts; each device of a mesh over its tokens."""
    weights = _weights(config, params)

    def on_part(hidden_BTD, weights, targets_BT, mask_BT):
        # Masked targets may hold any id; use 0 for indexing.
        rank_BT = jnp.asarray(config.vocab_groups.rank)[jnp.where(mask_BT != 0, targets_BT, 0)]
        return grouped_cross_entropy(
            hidden_BTD,
            weights,
            rank_BT // config.vocab_groups.slots,
            rank_BT % config.vocab_groups.slots,
            _sizes(config),
            token_weights_BT=mask_BT,
            scale=_scale(config),
        )

    batch = spread(("batch", None), targets_BT.shape)
    if batch is None:
        return on_part(hidden_BTD, weights, targets_BT, mask_BT)

    def summed(*arrays):
        sums = on_part(*arrays)
        # One by one: jax 0.7 cannot transpose a sum of which only some results have a gradient.
        return GroupedLossSums(*(jax.lax.psum(x, mesh_axes(batch[0])) for x in sums)) if batch[0] else sums

    # Every device has the whole head: it is small, or (own) read by the group.
    in_specs = (PartitionSpec(batch[0], None, None), jax.tree.map(lambda _: PartitionSpec(), weights))
    mapped = on_shards(summed, (*in_specs, batch, batch), GroupedLossSums(*[PartitionSpec()] * 3))
    return mapped(hidden_BTD, weights, targets_BT, mask_BT)


def draw_token(
    config: LanguageModel, params: dict, hidden_BD: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw a token for each row: its group, then its slot; G + K logits, exactly p(token | h).

    Only for drawing at temperature 1: the product of two tempered softmaxes is another distribution
    than the tempered product, and the likeliest group need not hold the likeliest token.

    Returns:
      (int32 [B], its float32 log-probability [B]).
    """
    weights = _weights(config, params, table=False)
    key_group, key_slot = jax.random.split(key)
    group_BG = _group_log_probs(weights, hidden_BD)
    group_B = jax.random.categorical(key_group, group_BG)
    slot_BK = _slot_log_probs(config, params, weights, hidden_BD, group_B)
    slot_B = jax.random.categorical(key_slot, slot_BK)
    token_B = _pick(jnp.asarray(config.vocab_groups.members)[group_B], slot_B)
    return token_B, _pick(group_BG, group_B) + _pick(slot_BK, slot_B)


def token_log_probs(
    config: LanguageModel, params: dict, hidden_BTD: jax.Array, targets_BT: jax.Array
) -> jax.Array:
    """Return log p(target) at each position, float32 [B, T]; G + K logits a token."""
    weights, slots = _weights(config, params, table=False), config.vocab_groups.slots

    def of_row(hidden_and_targets):  # by rows: "own" reads the vectors [T, K, D] of each token's group
        hidden_TD, targets_T = hidden_and_targets
        rank_T = jnp.asarray(config.vocab_groups.rank)[targets_T]
        group_TG = _group_log_probs(weights, hidden_TD)
        slot_TK = _slot_log_probs(config, params, weights, hidden_TD, rank_T // slots)
        return _pick(group_TG, rank_T // slots) + _pick(slot_TK, rank_T % slots)

    return jax.lax.map(of_row, (hidden_BTD, targets_BT))


def _group_log_probs(weights: GroupedWeights, hidden_BD) -> jax.Array:
    bias_1G = weights.group_bias_G[None].astype(jnp.float32)
    return jax.nn.log_softmax(_product(hidden_BD, weights.groups_DG) + bias_1G)


def _slot_log_probs(config, params, weights: GroupedWeights, hidden_BD, group_B) -> jax.Array:
    """Return the log-probability of each slot of one group a row, [B, K]; -inf where it holds no token."""
    groups = config.vocab_groups
    if config.group_head == "own":
        vectors_BKD = _table(config, params)[jnp.asarray(groups.members)[group_B]].astype(hidden_BD.dtype)
        slot_BK = dot_general_float32(vectors_BKD, hidden_BD, (((2,), (1,)), ((0,), (0,))))
    elif config.group_head == "hidden":
        scaled_BD = scaled(hidden_BD, weights.scale_GX[group_B], weights.shift_GX[group_B])
        slot_BK = _product(scaled_BD.astype(hidden_BD.dtype), weights.slots)
    else:
        slot_BK = _product(hidden_BD, weights.slots)
        if config.group_head == "logits":
            slot_BK = scaled(slot_BK, weights.scale_GX[group_B], weights.shift_GX[group_B])
    exists_BK = jnp.arange(groups.slots, dtype=jnp.int32)[None] < _sizes(config)[group_B][:, None]
    return jax.nn.log_softmax(jnp.where(exists_BK, slot_BK, -jnp.inf))


def _pick(values_BX: jax.Array, index_B: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values_BX, index_B[:, None], axis=1)[:, 0]


def _weights(config: LanguageModel, params: dict, table: bool = True) -> GroupedWeights:
    head = params["head"]
    if config.group_head != "own":
        slots = head["slots"]
    else:
        slots = _table(config, params)[config.vocab_groups.members] if table else None
    return GroupedWeights(head["groups"], head["groups_bias"], slots, head.get("scale"), head.get("shift"))


def _table(config: LanguageModel, params: dict) -> jax.Array:
    """Return the vectors [V, D] of the tokens in a head of their own."""
    return params["embed"]["tokens"] if config.tie_embeddings else params["head"]["tokens"]


def _scale(config: LanguageModel) -> str:
    return config.group_head if config.group_head in ("hidden", "logits") else "none"


def _sizes(config: LanguageModel) -> jax.Array:
    return jnp.asarray(config.vocab_groups.sizes)


def _product(hidden, weights_DX):
    dims = (((hidden.ndim - 1,), (0,)), ((), ()))
    return dot_general_float32(hidden, weights_DX.astype(hidden.dtype), dims)
