"""Losses, baselines and terms against float64 NumPy and autodiff; no estimate is biased."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.reward import (
    Reward,
    agreement,
    clipped_loss,
    diversity,
    generalised_advantages,
    group_standardised,
    head_gradients,
    kl_estimates,
    leave_one_out,
    policy_log_probs,
    reinforce_loss,
)

DRAW = np.random.default_rng(0)
B, T = 4, 5
MASK = np.array([[0, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]], np.float32)


def test_the_clipped_loss_and_its_gradient_against_numpy():
    old, new = DRAW.normal(-2, 1, (2, B, T)).astype(np.float32)
    A = DRAW.normal(size=B).astype(np.float32)
    ratio = np.exp((new - old).astype(np.float64))
    clipped = np.clip(ratio, 0.8, 1.2)
    A_B1 = A[:, None].astype(np.float64)
    wanted = -np.sum(MASK * np.minimum(ratio * A_B1, clipped * A_B1)) / B
    # A clipped ratio passes no gradient where it is the smaller of the two.
    passes = (ratio * A_B1 <= clipped * A_B1) * MASK
    wanted_gradient = -passes * A_B1 * ratio / B
    value, gradient = jax.value_and_grad(clipped_loss)(new, old, A, MASK)
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=2e-5, atol=1e-7)
    assert 0 < passes.sum() < MASK.sum()  # both branches were there


def test_where_the_policy_drew_itself_both_losses_have_one_gradient():
    log_probs = DRAW.normal(-2, 1, (B, T)).astype(np.float32)
    A = DRAW.normal(size=(B, T)).astype(np.float32)
    plain = jax.grad(reinforce_loss)(log_probs, A, MASK)
    np.testing.assert_allclose(plain, -A * MASK / B, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(clipped_loss)(log_probs, log_probs, A, MASK), plain, rtol=1e-6)


def test_baselines_and_advantages_against_their_definitions():
    r = DRAW.normal(size=6)
    alone = [r[i] - np.mean(np.delete(r, i)) for i in range(6)]
    np.testing.assert_allclose(leave_one_out(r), alone, rtol=1e-6)
    np.testing.assert_allclose(leave_one_out(r, 3)[3:], leave_one_out(r[3:]), rtol=1e-6)
    half = (r[:3] - r[:3].mean()) / (r[:3].std() + 1e-6)
    np.testing.assert_allclose(group_standardised(r, 3)[:3], half, rtol=1e-6)
    rewards, values = DRAW.normal(size=(2, B, T))
    found = generalised_advantages(rewards, values, MASK, discount=0.9, decay=0.8)
    for b in range(B):
        at = np.flatnonzero(MASK[b])
        after = [*values[b, at[1:]], 0.0]
        delta = rewards[b, at] + 0.9 * np.array(after) - values[b, at]
        wanted = [sum(0.72**k * d for k, d in enumerate(delta[i:])) for i in range(len(at))]
        np.testing.assert_allclose(found[b, at], wanted, rtol=1e-5)
        assert not found[b, MASK[b] == 0].any()
    kl = kl_estimates(rewards, values, MASK)
    np.testing.assert_allclose(kl, (rewards - values) * MASK, rtol=1e-6)
    with pytest.raises(UserError, match="1 rewards in groups of 1 have no others"):
        leave_one_out([1.0])


def test_leave_one_out_gives_the_exact_policy_gradient_on_average():
    """All sequences of a tiny model are enumerated, and all pairs of them, so that nothing is drawn."""
    end, V, new, prompt = 0, 3, 3, 1
    config = models.get_preset("gpt2-nano", vocab_size=V, context_length=4, num_layers=1, embed_dim=8,
                               num_heads=2)  # fmt: skip
    params = jax.tree.map(lambda x: 3 * x, models.init(config, jax.random.key(0)))
    every = []
    for drawn in itertools.product(range(V), repeat=new):
        ended = drawn.index(end) if end in drawn else new
        row = (prompt, *drawn[: ended + 1], *[0] * (new - ended - 1))[: new + 1]
        mask = tuple(float(t <= ended) for t in range(new))
        if (row, mask) not in every:
            every.append((row, mask))
    tokens, mask = (np.array(x) for x in zip(*every, strict=True))
    assert len(tokens) == 15  # 1 + 2 + 4 that ended, 8 that did not
    rewards = np.random.default_rng(1).normal(size=len(tokens))

    @jax.jit
    def log_probs_and_gradients(params):
        def of_sequences(params):
            return jnp.sum(policy_log_probs(config, params, tokens) * mask, axis=1)

        return of_sequences(params), jax.jacrev(of_sequences)(params)

    log_probs, gradients = jax.device_get(log_probs_and_gradients(params))
    p = np.exp(log_probs.astype(np.float64))
    np.testing.assert_allclose(p.sum(), 1, atol=1e-5)
    pairs = np.array(list(itertools.product(range(len(tokens)), repeat=2)))
    A = np.stack([leave_one_out(rewards[pair]) for pair in pairs])
    chance = p[pairs].prod(axis=1)
    per_sequence = np.zeros(len(tokens))  # the loss of a batch of two is linear in the advantages
    np.add.at(per_sequence, pairs[:, 0], chance * A[:, 0] / 2)
    np.add.at(per_sequence, pairs[:, 1], chance * A[:, 1] / 2)
    largest = 0.0
    for own in jax.tree.leaves(gradients):  # of log p, each sequence's
        estimated, exact = (np.tensordot(weight, own, 1) for weight in (per_sequence, p * rewards))
        np.testing.assert_allclose(estimated, exact, atol=1e-6)
        largest = max(largest, np.abs(exact).max())
    assert largest > 1e-2


def test_gradient_agreement_in_closed_form_is_autodiffs():
    D, C = 3, 4
    h = DRAW.normal(size=(B, T, D)).astype(np.float32)
    head = {"w": DRAW.normal(size=(D, C)).astype(np.float32), "b": DRAW.normal(size=C).astype(np.float32)}
    y = DRAW.integers(0, C, size=(B, T))

    def loss(head, h, y, m):
        nll = optax.softmax_cross_entropy_with_integer_labels(h @ head["w"] + head["b"], y)
        return jnp.sum(nll * m) / m.sum()

    auto = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0, 0)))(head, h, y, MASK)
    found = jax.jit(head_gradients)(h, h @ head["w"] + head["b"], y, MASK)
    np.testing.assert_allclose(found[:, :D], auto["w"], atol=1e-6)
    np.testing.assert_allclose(found[:, D], auto["b"], atol=1e-6)
    cosine = agreement(found, np.asarray(found[2]))
    assert cosine[2] == pytest.approx(1) and (np.abs(cosine) <= 1 + 1e-6).all()


def test_terms_are_standardised_and_checked():
    reward = Reward({"a": (2.0, lambda s: np.array(s) * 1000.0), "b": (1.0, lambda s: -np.array(s))})
    rewards, means = reward([1, 2, 3])
    np.testing.assert_allclose(rewards, np.array([-1, 0, 1]) / np.std([1, 2, 3]), rtol=1e-5)
    assert means == {"a": 2000, "b": -2}
    assert diversity([[1, 2, 3, 4, 5], [0, 1, 2, 3, 4], [9]]).tolist() == [-0.5, -0.5, 0]
    with pytest.raises(UserError, match="the term 'nan' of 2 samples gave values of shape"):
        Reward({"nan": (1.0, lambda s: np.array([np.nan, 1]))})([1, 2])
