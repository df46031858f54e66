"""A dense head into a head of groups and back, fitted to hidden states of real text.

Neither way is exact but for special maps: the log-probabilities of a dense head are linear in the hidden
state up to one normaliser, those of a head of groups up to two. Both fits are least squares on
log-probabilities; the head of groups then takes gradient steps on tokens drawn from the dense head, whose
expected loss is the cross-entropy between the two.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.models.config import ModelConfig
from jaxllm.models.head import logits
from jaxllm.models.loss import hidden_loss
from jaxllm.models.vocab_groups import VocabGroups

_ROWS = 256  # hidden states whose full logits are in memory at once
_RIDGE = 1e-4  # of the hidden states' mean square


def to_grouped_head(
    config: ModelConfig,
    params: dict,
    hidden_ND: jax.Array,
    groups: VocabGroups,
    group_head: str = "own",
    *,
    steps: int = 200,
    learning_rate: float = 1e-3,
    key: jax.Array | None = None,
) -> tuple[ModelConfig, dict]:
    """Return the model with a head of groups in place of its dense one; nothing else changes.

    "own" keeps each token's vector and fits only the groups' part. The others fit, by alternating least
    squares, a product of scales and shared vectors to the tokens' vectors less their group's mean (which
    the softmax in the group does not see); `similar_slots` makes a map on which that loses less. For "own",
    `similar_groups` makes one.

    Args:
      config: a model with a dense head.
      params: its parameters.
      hidden_ND: hidden states of text, as `trunk` gives them; some thousands.
      groups: a map of its vocabulary.
      group_head: see ModelConfig.
      steps: of Adam, on tokens drawn from the dense head; 0: the least squares alone.
      learning_rate: its peak.
      key: of the draws; None is `jax.random.key(0)`.

    Raises:
      UserError: groups of another vocabulary, or an unknown group_head.
    """
    grouped = dataclasses.replace(config, vocab_groups=groups, group_head=group_head)
    vectors_VD = params["embed"]["tokens"] if config.tie_embeddings else params["head"]["kernel"].T
    key = jax.random.key(0) if key is None else key
    marginals_NG, drawn_SN = _read_dense(config, params, hidden_ND, groups, key)

    H = np.asarray(hidden_ND, np.float32)
    with_one = np.pad(H, ((0, 0), (0, 1)), constant_values=1)
    # Less the mean, which a softmax does not see.
    fitted = _solve(with_one, with_one.T @ _less_mean(np.asarray(marginals_NG), axis=1))
    head = {"groups": fitted[:-1], "groups_bias": fitted[-1]}
    if group_head != "own":
        head |= _fit_slots(group_head, np.asarray(vectors_VD, np.float32), groups, H.mean(axis=0))
    elif not config.tie_embeddings:
        head["tokens"] = vectors_VD
    head = {name: jnp.asarray(x, config.param_dtype) for name, x in head.items()}
    params = {name: tree for name, tree in params.items() if name != "head"} | {"head": head}
    return grouped, fit_head(grouped, params, hidden_ND, drawn_SN, steps=steps, learning_rate=learning_rate)


def fit_head(
    config: ModelConfig,
    params: dict,
    hidden_ND: jax.Array,
    targets_SN: jax.Array,
    *,
    steps: int,
    learning_rate: float,
) -> dict:
    """Return the parameters after some steps of Adam on the head alone, the vectors of "own" left alone.

    Args:
      config: a model with a head of groups.
      params: its parameters.
      hidden_ND: hidden states of text.
      targets_SN: int [S, N], a target for each; step t takes row t modulo S.
      steps: that are taken; 0 changes nothing.
      learning_rate: of the first step; a cosine takes it to 0.
    """
    if not steps:
        return params
    fixed = {"tokens": params["head"]["tokens"]} if "tokens" in params["head"] else {}
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    # Arguments and not constants: the compiler would compute with those.
    @jax.jit
    def run(head, rest, hidden_ND, targets_SN):
        def loss(head, targets_N):
            whole = rest | {"head": head | rest["head"]}
            return hidden_loss(config, whole, hidden_ND[None], targets_N[None])[0]

        def step(carry, t):
            head, state = carry
            gradients = jax.grad(loss)(head, targets_SN[t % len(targets_SN)])
            updates, state = optimizer.update(gradients, state, head)
            return (optax.apply_updates(head, updates), state), None

        return jax.lax.scan(step, (head, optimizer.init(head)), jnp.arange(steps, dtype=jnp.int32))[0][0]

    head = {name: value for name, value in params["head"].items() if name not in fixed}
    rest = {"embed": params["embed"], "head": fixed}
    return params | {"head": run(head, rest, hidden_ND, targets_SN) | fixed}


def to_dense_head(config: ModelConfig, params: dict, hidden_ND: jax.Array) -> tuple[ModelConfig, dict, float]:
    """Return (config, parameters, mean KL divergence) of the model with the dense head nearest to its groups.

    The divergence, in nats, of the dense head's distribution from that of the groups, says what the change
    costs on these hidden states. The dense head is untied, and Hugging Face families can hold it.
    """
    dense = dataclasses.replace(config, vocab_groups=None, tie_embeddings=False)
    wanted = functools.partial(jax.jit(logits, static_argnums=0), config, params)
    H = np.asarray(hidden_ND, np.float32)
    product_DV = sum(
        np.asarray(h, np.float32).T @ _less_mean(np.asarray(wanted(h)), axis=1) for h in _pieces(hidden_ND)
    )
    kernel = jnp.asarray(_solve(H, product_DV), config.param_dtype)
    params = {name: tree for name, tree in params.items() if name != "head"} | {"head": {"kernel": kernel}}

    @jax.jit
    def divergence(rows, log_probs):
        found = jax.nn.log_softmax(logits(dense, params, rows))
        return jnp.sum(jnp.exp(log_probs) * (log_probs - found))

    total = sum(float(divergence(h, wanted(h))) for h in _pieces(hidden_ND))
    return dense, params, total / len(hidden_ND)


def similar_groups(
    vectors_VD, hidden_ND, slots: int | None = None, *, passes: int = 6, tokenizer: str = ""
) -> VocabGroups:
    """Return groups of tokens whose logits rise and fall together, for which an "own" head loses least.

    A group's log-probability is not linear in the hidden state, but nearly so where its tokens' logits are
    alike: their vectors are clustered (balanced k-means) by how far their logits differ over these hidden
    states, the root mean square of (v - w) h.

    Args:
      vectors_VD: a vector for each token: a trained model's token table or head.
      hidden_ND: hidden states of text, as `trunk` gives them; some thousands.
      slots: tokens of a group; None: the square root of V.
      passes: of assigning every token and taking the groups' means.
      tokenizer: fingerprint of the tokenizer whose ids these are; empty: not known.
    """
    variances, directions = np.linalg.eigh(np.cov(np.asarray(hidden_ND, np.float64).T))
    rotated_DD = directions * np.sqrt(np.maximum(variances, 0))
    X_VD = (_less_mean(np.asarray(vectors_VD, np.float64)) @ rotated_DD).astype(np.float32)
    V = len(X_VD)
    groups = VocabGroups.of(np.arange(V), slots)
    means_GD = X_VD[np.random.default_rng(0).choice(V, groups.num_groups, replace=False)]
    for _ in range(passes):
        group_V = _nearest_with_room(X_VD, means_GD, groups.sizes)
        means_GD = np.stack([X_VD[group_V == g].mean(axis=0) for g in range(len(means_GD))])
    return VocabGroups.of(np.argsort(group_V, kind="stable"), groups.slots, tokenizer)


def _nearest_with_room(X_VD, means_GD, sizes):
    """Return a group for each row.

    Assign in rounds: rows apply to their nearest open group; groups accept the closest.
    """
    nearness_VG = X_VD @ means_GD.T - np.square(means_GD).sum(axis=1) / 2
    group_V, room_G = np.full(len(X_VD), -1), np.array(sizes)
    while (waiting := np.flatnonzero(group_V < 0)).size:
        nearness = np.where(room_G > 0, nearness_VG[waiting], -np.inf)
        asked = nearness.argmax(axis=1)
        # Best first, by what the next choice would cost: those it matters to most.
        regret = np.partition(nearness, -2, axis=1)[:, -2:] @ (-1, 1) if (room_G > 0).sum() > 1 else asked
        for g in np.unique(asked):
            asking = np.flatnonzero(asked == g)
            taken = asking[np.argsort(-regret[asking], kind="stable")[: room_G[g]]]
            group_V[waiting[taken]] = g
            room_G[g] -= len(taken)
    return group_V


def similar_slots(groups: VocabGroups, vectors_VD, passes: int = 2) -> VocabGroups:
    """Return the same groups with tokens of similar vectors in the same slots.

    Tokens of a slot share a direction in all but "own" heads. Each group's tokens are assigned, at the least
    total distance, to the running means of the slots.

    Args:
      groups: which tokens are together; that does not change.
      vectors_VD: a vector for each token, a trained model's token table, say.
      passes: over all groups.
    """
    from scipy.optimize import linear_sum_assignment

    vectors_VD = np.asarray(vectors_VD, np.float32)
    order, K = groups.order.copy(), groups.slots
    means_KD = _less_mean(vectors_VD[order[:K]])
    for _ in range(passes):
        sums_KD = np.zeros_like(means_KD)
        for start in range(0, len(order), K):
            members = order[start : start + K]
            own_ND = _less_mean(vectors_VD[members])
            rows, slots = linear_sum_assignment(-own_ND @ means_KD[: len(members)].T)
            order[start + slots] = members[rows]
            sums_KD[slots] += own_ND[rows]
        means_KD = sums_KD / groups.num_groups
    return VocabGroups.of(order, K, groups.tokenizer)


def _less_mean(array, axis=0):
    return array - array.mean(axis=axis, keepdims=True)


def _pieces(hidden_ND):
    return (hidden_ND[start : start + _ROWS] for start in range(0, len(hidden_ND), _ROWS))


def _read_dense(config, params, hidden_ND, groups, key, draws=8):
    """Return log p(group) [N, G], and tokens drawn from the dense head [draws, N]."""

    @jax.jit
    def read(rows, key):
        logits_NV = jax.nn.log_softmax(logits(config, params, rows))
        inside_NGK = logits_NV[:, groups.members]
        exists_GK = jnp.arange(groups.slots, dtype=jnp.int32) < jnp.asarray(groups.sizes)[:, None]
        marginals_NG = jax.nn.logsumexp(inside_NGK, axis=-1, where=exists_GK)
        # By the inverse of the distribution function: a random number a draw, not one a token of V.
        below_NV = jnp.cumsum(jnp.exp(logits_NV), axis=1)
        points_NS = below_NV[:, -1:] * jax.random.uniform(key, (len(rows), draws))
        drawn_NS = jax.vmap(jnp.searchsorted)(below_NV, points_NS)
        return marginals_NG, jnp.minimum(drawn_NS, logits_NV.shape[1] - 1).T

    parts = [read(rows, jax.random.fold_in(key, i)) for i, rows in enumerate(_pieces(hidden_ND))]
    return jnp.concatenate([m for m, _ in parts]), jnp.concatenate([d for _, d in parts], axis=1)


def _solve(H_NX, product_XY):
    """Return the ridge solution of H X = Y, from H^T Y."""
    square = (H_NX.T @ H_NX).astype(np.float64)
    ridge = _RIDGE * np.trace(square) / len(square)
    return np.linalg.solve(square + ridge * np.eye(len(square)), product_XY).astype(np.float32)


def _fit_slots(group_head, vectors_VD, groups, mean_D):
    """Return slots, scale and shift whose products are nearest to the tokens' vectors."""
    exists_GK1 = (np.arange(groups.slots) < groups.sizes[:, None])[..., None]
    sizes_G11 = groups.sizes[:, None, None]
    members_GKD = vectors_VD[groups.members] * exists_GK1
    # A vector that is added to a whole group does not change its softmax: it is fitted too.
    common_G1D = members_GKD.sum(axis=1, keepdims=True) / sizes_G11
    scale = np.ones((groups.num_groups, 1, 1), np.float32)
    for _ in range(1 if group_head == "shared" else 30):
        wanted_GKD = (members_GKD - common_G1D) * exists_GK1
        slots_KD = _ratio((wanted_GKD * scale).sum(0), (exists_GK1 * scale**2).sum(0))
        if group_head != "shared":
            axis = 1 if group_head == "hidden" else 2
            squares = (exists_GK1 * slots_KD**2).sum(axis, keepdims=True)
            scale = _ratio((wanted_GKD * slots_KD).sum(axis, keepdims=True), squares)
        rest_GKD = (members_GKD - scale * slots_KD) * exists_GK1
        common_G1D = rest_GKD.sum(axis=1, keepdims=True) / sizes_G11
    if group_head == "shared":
        return {"slots": slots_KD.T}
    # The shift makes up for what the product misses of the logits at the mean hidden state.
    missed_GK = (rest_GKD - common_G1D * exists_GK1) @ mean_D
    if group_head == "logits":
        return {"slots": slots_KD.T, "scale": scale[..., 0], "shift": missed_GK}
    return {"slots": slots_KD.T, "scale": scale[:, 0], "shift": _solve(slots_KD, slots_KD.T @ missed_GK.T).T}


def _ratio(products, squares):
    return products / np.maximum(squares, 1e-12)
