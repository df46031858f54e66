"""The grouped head's loss against the dense distribution it stands for, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxllm_kernels.grouped_cross_entropy import GroupedWeights, grouped_cross_entropy, joint_log_probs
from jaxllm_kernels.grouped_cross_entropy.own_slots import own_slots_loss
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy

B, T, D = 2, 9, 12
SIZES = np.array([5, 3, 1, 5, 4])
G, K = len(SIZES), SIZES.max()
GROUP = np.repeat(np.arange(G), SIZES)
SLOT = np.concatenate([np.arange(n) for n in SIZES])


FORMS = ("hidden", "logits", "shared", "own")
SCALE = {"hidden": "hidden", "logits": "logits", "shared": "none", "own": "none"}


def inputs(form, seed=0):
    rng = np.random.default_rng(seed)
    X = {"hidden": D, "logits": K}.get(form)
    shapes = [(D, G), (G,), (G, K, D) if form == "own" else (D, K)] + ([(G, X)] * 2 if X else [])
    weights = GroupedWeights(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes))
    if X:
        weights = weights._replace(scale_GX=1 + 0.3 * weights.scale_GX)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    return hidden, weights, rng.integers(0, len(GROUP), (B, T)), jnp.asarray(rng.uniform(size=(B, T)))


def dense_log_probs(hidden, weights, form):
    """Return log p(token) [B, T, V] in float64."""
    h = np.asarray(hidden, np.float64)
    w = GroupedWeights(*(None if x is None else np.asarray(x, np.float64) for x in weights))
    group = h @ w.groups_DG + w.group_bias_G
    group -= np.log(np.exp(group).sum(-1, keepdims=True))
    out = np.zeros((B, T, len(GROUP)))
    for g, n in enumerate(SIZES):
        if form == "own":
            slot = h @ w.slots[g].T
        elif form == "hidden":
            slot = (h * w.scale_GX[g] + w.shift_GX[g]) @ w.slots
        else:
            slot = h @ w.slots
            if form == "logits":
                slot = slot * w.scale_GX[g] + w.shift_GX[g]
        slot = slot[..., :n]
        slot -= np.log(np.exp(slot).sum(-1, keepdims=True))
        out[..., GROUP == g] = group[..., g : g + 1] + slot
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("logits_bytes", [None, 4 * 2 * 5 * 2])
def test_loss_is_that_of_the_dense_distribution(form, logits_bytes):
    hidden, weights, tokens, token_weights = inputs(form)
    log_probs = dense_log_probs(hidden, weights, form)
    assert np.abs(np.exp(log_probs).sum(-1) - 1).max() <= 1e-12
    picked = np.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]
    run = functools.partial(grouped_cross_entropy, scale=SCALE[form], logits_bytes=logits_bytes)
    sums = jax.jit(run)(
        hidden, weights, GROUP[tokens], SLOT[tokens], SIZES, token_weights_BT=token_weights
    )
    assert sums.total == pytest.approx(-(np.asarray(token_weights) * picked).sum(), rel=1e-6)
    assert sums.group + sums.slot == pytest.approx(float(sums.total), rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_joint_log_probs_are_the_dense_ones_and_sum_to_one(form):
    hidden, weights, _, _ = inputs(form)
    joint = jax.jit(lambda h, w: joint_log_probs(h, w, SIZES, scale=SCALE[form]))(hidden, weights)
    assert np.abs(jax.nn.logsumexp(joint, axis=(-2, -1))).max() <= 1e-5
    np.testing.assert_allclose(
        joint[..., GROUP, SLOT], dense_log_probs(hidden, weights, form), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_joint_log_probs(form):
    hidden, weights, tokens, token_weights = inputs(form)

    def fused(hidden, weights):
        return grouped_cross_entropy(
            hidden, weights, GROUP[tokens], SLOT[tokens], SIZES, token_weights_BT=token_weights,
            scale=SCALE[form], logits_bytes=100,
        ).total  # fmt: skip

    def dense(hidden, weights):
        joint = joint_log_probs(hidden, weights, SIZES, scale=SCALE[form])[..., GROUP, SLOT]
        return -jnp.sum(token_weights * jnp.take_along_axis(joint, tokens[..., None], -1)[..., 0])

    got, expected = (jax.jit(jax.grad(f, argnums=(0, 1)))(hidden, weights) for f in (fused, dense))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= 2e-5 * np.abs(b).max()


@pytest.mark.parametrize("form", FORMS)
def test_tokens_of_weight_0_may_be_anything(form):
    hidden, weights, tokens, token_weights = inputs(form)
    mask = np.asarray(token_weights) < 0.5
    groups, slots = GROUP[tokens], SLOT[tokens]

    def total(weights, groups, slots):
        return grouped_cross_entropy(
            hidden, weights, groups, slots, SIZES, token_weights_BT=jnp.asarray(mask), scale=SCALE[form]
        ).total

    odd = np.where(mask, groups, -100), np.where(mask, slots, 10**6)
    step = jax.jit(jax.value_and_grad(total))
    got, expected = step(weights, *odd), step(weights, groups, slots)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got[1]))


# Token (0, 0) of group 1, which has 3 slots.
@pytest.mark.parametrize("form", FORMS)
def test_a_token_that_does_not_exist_is_loud_and_one_left_out_adds_nothing(form):
    hidden, weights, tokens, _ = inputs(form)
    groups, slots = GROUP[tokens], SLOT[tokens]
    groups[0, 0] = 1
    ones = np.ones((B, T), np.float32)

    def total(hidden, weights, *rows):
        of = grouped_cross_entropy(
            hidden, weights, *rows[:2], SIZES, token_weights_BT=rows[2], scale=SCALE[form]
        )
        return of.total

    def put(array, value):
        array = array.copy()
        array[0, 0] = value
        return array

    step = jax.jit(jax.value_and_grad(total, (0, 1)))
    want = step(hidden, weights, groups, put(slots, 0), put(ones, 0))
    bad = hidden.at[0, 0].set(jnp.nan)
    left_out = [
        (put(groups, -1), slots, ones),
        (groups, put(slots, -1), ones),
        (groups, put(slots, 9), put(ones, 0)),
    ]
    for rows in left_out:
        found = step(bad, weights, *rows)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, want)
    wrong = {"groups hold 5": (put(groups, G), slots), "slots hold 3": (groups, put(slots, 3))}
    for name, rows in wrong.items():
        value, gradients = step(hidden, weights, *rows, ones)
        assert np.isnan(value) and np.isnan(gradients[0][0, 0]).all()
        with pytest.raises(ValueError, match=f"{name}, and that token's softmax is over"):
            total(hidden, weights, *rows, ones)


def test_scaled_logits_in_float64_sum_over_chunks():
    hidden, weights, tokens, _ = inputs("logits")
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        wide = weights._replace(scale_GX=np.float64(weights.scale_GX), shift_GX=np.float64(weights.shift_GX))
        run = functools.partial(grouped_cross_entropy, scale="logits", logits_bytes=4 * 2 * 5 * 4 * 2)
        rows = GROUP[tokens], SLOT[tokens], SIZES
        found, want = (jax.jit(run)(hidden, w, *rows) for w in (wide, weights))
    assert found.total.dtype == jnp.float32
    assert found.total == pytest.approx(float(want.total), rel=1e-6)


def test_one_group_is_the_ordinary_head():
    hidden, _, tokens, _ = inputs("hidden")
    V = len(GROUP)
    head = jax.random.normal(jax.random.key(0), (D, V))
    weights = GroupedWeights(
        jnp.zeros((D, 1)), jnp.zeros(1), head, jnp.ones((1, D)), jnp.zeros((1, D))
    )
    run = jax.jit(grouped_cross_entropy)
    expected = float(jax.jit(linear_cross_entropy)(hidden, head, tokens).total)
    sums = run(hidden, weights, np.zeros_like(tokens), tokens, np.array([V]))
    assert sums.total == pytest.approx(expected, rel=1e-6)
    assert sums.group == 0
    each = GroupedWeights(head, jnp.zeros(V), jnp.zeros((D, 1)), jnp.ones((V, D)), jnp.zeros((V, D)))
    sums = run(hidden, each, tokens, np.zeros_like(tokens), np.ones(V, int))
    assert sums.total == pytest.approx(expected, rel=1e-6)


def test_own_weights_take_a_group_in_several_blocks():
    """Groups of 131, 0 and 2 tokens, in random order; float32 against float64, 2e-5 of the largest."""
    rng = np.random.default_rng(0)
    sizes, groups = np.array([3, 3, 2]), rng.permutation([0] * 131 + [2] * 2)
    labels, token_weights = rng.integers(0, 2, len(groups)), rng.uniform(size=len(groups))
    h, w = rng.normal(size=(len(groups), 5)), rng.normal(size=(3, 3, 5))

    def loss(hidden, slots):
        inputs = groups, labels, sizes, token_weights.astype("float32")
        return own_slots_loss(hidden, slots, *inputs)

    value, got = jax.jit(jax.value_and_grad(loss, (0, 1)))(jnp.float32(h), jnp.float32(w))
    logits = np.einsum("nd,nkd->nk", h, w[groups])
    logits[np.arange(3) >= sizes[groups][:, None]] = -np.inf
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert value == pytest.approx(-token_weights @ np.log(probs[np.arange(len(h)), labels]), rel=1e-6)
    error = token_weights[:, None] * (probs - np.eye(3)[labels])
    expected = np.einsum("nk,nkd->nd", error, w[groups]), np.zeros_like(w)
    np.add.at(expected[1], groups, error[:, :, None] * h[:, None])
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b).max() <= 2e-5 * np.abs(b).max()


@pytest.mark.parametrize(("form", "most_mib"), [("hidden", 48), ("logits", 48), ("own", 64)])
def test_memory_at_a_real_vocabulary(form, most_mib):
    """At N = 4096, D = 256, V = 50257 full logits alone are 785 MiB."""
    G, K, D = 225, 224, 256
    X = {"hidden": D, "logits": K}.get(form)
    shapes = [(1, 4096, D), (D, G), (G,), (G, K, D) if form == "own" else (D, K)]
    shapes += [(G, X)] * 2 if X else []
    floats = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    ints = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((1, 4096), (1, 4096), (G,))]

    def total(hidden, weights, groups, slots, sizes):
        return grouped_cross_entropy(hidden, weights, groups, slots, sizes, scale=SCALE[form]).total

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    program = step.lower(floats[0], GroupedWeights(*floats[1:]), *ints).compile()
    assert program.memory_analysis().temp_size_in_bytes / 2**20 < most_mib


def test_shapes_that_do_not_fit_are_refused():
    hidden, weights, tokens, _ = inputs("hidden")
    with pytest.raises(ValueError, match="scale_GX"):
        grouped_cross_entropy(hidden, weights, tokens, tokens, SIZES, scale="logits")
    with pytest.raises(ValueError, match="none of"):
        grouped_cross_entropy(hidden, weights, tokens, tokens, SIZES, scale="slots")
    with pytest.raises(ValueError, match="group_sizes"):
        grouped_cross_entropy(hidden, weights, tokens, tokens, SIZES[:2])
    with pytest.raises(ValueError, match="token_weights"):
        grouped_cross_entropy(hidden, weights, tokens, tokens, SIZES, token_weights_BT=tokens[:1])
    with pytest.raises(ValueError, match="scale 'hiden' is none of"):
        joint_log_probs(hidden, weights, SIZES, scale="hiden")
