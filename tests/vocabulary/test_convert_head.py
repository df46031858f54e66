"""A dense head to groups and back: exact where it can be, least squares where not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, vocabulary
from jaxllm.errors import UserError
from jaxllm.models.huggingface_config import config_to_huggingface
from tests.models.random_params import random_params

V, D, K, N = 30, 8, 6, 400
TIED = models.get_preset("gpt2-nano", vocab_size=V, num_layers=1, embed_dim=D, num_heads=2)
CONFIG = dataclasses.replace(TIED, tie_embeddings=False)
PARAMS = random_params(CONFIG, scale=0.7)
HIDDEN = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), jnp.float32)
GROUPS = models.VocabGroups.of(np.random.default_rng(1).permutation(V), K)


def divergence(config, params, dense=(CONFIG, PARAMS)):
    """Return the mean KL of a model's head from the dense one, and so the perplexity it costs."""
    wanted = jax.nn.log_softmax(models.logits(*dense, HIDDEN))
    return float(jnp.sum(jnp.exp(wanted) * (wanted - models.logits(config, params, HIDDEN)), axis=1).mean())


@pytest.fixture(scope="module")
def own():
    fit = lambda steps: vocabulary.to_grouped_head(
        CONFIG, PARAMS, HIDDEN, GROUPS, steps=steps, learning_rate=1e-2
    )
    return {steps: fit(steps) for steps in (0, 100)}


def test_vectors_stay_and_the_groups_part_is_fitted(own):
    """Inside groups the distribution is the dense head's: 1e-5. The groups' part is what is lost."""
    config, params = own[0]
    np.testing.assert_array_equal(params["head"]["tokens"], PARAMS["head"]["kernel"].T)
    dense, grouped = (
        jax.nn.log_softmax(models.logits(c, p, HIDDEN)[:, GROUPS.members[2]])
        for c, p in ((CONFIG, PARAMS), own[0])
    )
    np.testing.assert_allclose(grouped, dense, atol=1e-5)
    uniform = params["head"] | {"groups": jnp.zeros((D, 5)), "groups_bias": jnp.zeros(5)}
    assert divergence(config, params) < 0.7 * divergence(config, params | {"head": uniform})


def test_draws_of_the_dense_head_bring_the_fit_nearer(own):
    assert divergence(*own[100]) < divergence(*own[0])
    before, after = own[0][1], own[100][1]
    assert after["layers"] is PARAMS["layers"] and after["embed"] is PARAMS["embed"]
    np.testing.assert_array_equal(after["head"]["tokens"], before["head"]["tokens"])
    assert np.abs(after["head"]["groups"] - before["head"]["groups"]).max() > 1e-3


def test_one_group_of_the_token_table_is_exact():
    one = models.VocabGroups.of(range(V)[::-1], V)
    grouped = vocabulary.to_grouped_head(TIED, PARAMS, HIDDEN, one, steps=0)
    assert "tokens" not in grouped[1]["head"]
    assert abs(divergence(*grouped, dense=(TIED, PARAMS))) < 1e-5


@pytest.mark.parametrize("head", ["hidden", "shared"])
def test_vectors_that_are_products_are_found(head):
    """Inside groups the fit is then the dense head: 2e-3, for a ridge of 1e-4."""
    rng = np.random.default_rng(2)
    scale = rng.uniform(0.5, 1.5, (5, 1, D)) if head == "hidden" else 1.0
    common = rng.normal(size=(5, 1, D))  # moves all of a group's logits alike
    kernel = np.zeros((D, V), np.float32)
    kernel.T[GROUPS.members] = scale * rng.normal(size=(K, D)) + common
    params = PARAMS | {"head": {"kernel": jnp.asarray(kernel)}}
    grouped = vocabulary.to_grouped_head(CONFIG, params, HIDDEN, GROUPS, head, steps=0)
    dense, found = (
        jax.nn.log_softmax(models.logits(c, p, HIDDEN)[:, GROUPS.members[3]])
        for c, p in ((CONFIG, params), grouped)
    )
    assert np.abs(dense - found).max() < 2e-3


def test_a_richer_head_fits_better():
    costs = [
        divergence(*vocabulary.to_grouped_head(CONFIG, PARAMS, HIDDEN, GROUPS, head, steps=0))
        for head in ("own", "hidden", "shared")
    ]
    assert costs[0] < 0.5 * costs[1] and costs[1] < 0.9 * costs[2]


def test_similar_slots_bring_back_slots_that_were_shuffled():
    rng = np.random.default_rng(3)
    directions = 3 * rng.normal(size=(K, D))
    table = np.zeros((V, D))
    table[GROUPS.members] = directions + 0.1 * rng.normal(size=(5, K, D)) + rng.normal(size=(5, 1, D))
    shuffled = models.VocabGroups.of(np.concatenate([rng.permutation(g) for g in GROUPS.members]), K)
    found = vocabulary.similar_slots(shuffled, table)
    same_group = [sorted(a) == sorted(b) for a, b in zip(found.members, GROUPS.members, strict=True)]
    assert all(same_group)
    slot_V = GROUPS.rank % K  # which direction each token has
    assert (slot_V[found.members] == slot_V[found.members[0]]).all()
    assert not (slot_V[shuffled.members] == slot_V[shuffled.members[0]]).all()


def test_similar_groups_are_those_whose_logits_rise_and_fall_together():
    """Hidden states never vary along the last axis: what vectors do there, however much, must not matter."""
    rng = np.random.default_rng(4)
    group_V = rng.permutation(np.arange(V) // K)
    table = 3 * rng.normal(size=(5, D))[group_V] + 0.1 * rng.normal(size=(V, D))
    table[:, -1] = 100 * rng.normal(size=V)
    hidden = np.array(HIDDEN)
    hidden[:, -1] = 7.0
    found = vocabulary.similar_groups(table, hidden, K)
    assert sorted(map(sorted, found.members.tolist())) == sorted(
        np.flatnonzero(group_V == g).tolist() for g in range(5)
    )
    short = vocabulary.similar_groups(table[:-2], hidden, K)  # the last group has two less
    assert short.sizes.tolist() == [6, 6, 6, 6, 4] and sorted(short.order.tolist()) == list(range(V - 2))
    assert vocabulary.similar_groups(table, hidden, V).num_groups == 1


def test_similar_groups_lose_less_than_others():
    similar = vocabulary.similar_groups(PARAMS["head"]["kernel"].T, HIDDEN, K)
    costs = [
        divergence(*vocabulary.to_grouped_head(CONFIG, PARAMS, HIDDEN, groups, steps=0))
        for groups in (similar, GROUPS)
    ]
    assert costs[0] < 0.8 * costs[1]


def test_back_to_a_dense_head_says_what_it_costs(own):
    grouped = own[100]
    config, params, cost = vocabulary.to_dense_head(*grouped, HIDDEN)
    assert config == dataclasses.replace(CONFIG, group_head="own")  # which says nothing without groups
    log_probs = jax.nn.log_softmax(models.logits(config, params, HIDDEN))
    wanted = models.logits(*grouped, HIDDEN)
    assert cost == pytest.approx(float(jnp.sum(jnp.exp(wanted) * (wanted - log_probs), 1).mean()), rel=1e-3)
    # Least squares: no other direction lowers the error of the centred log-probabilities.
    config_to_huggingface(config)  # raises if no family can hold it
    X, Y = np.asarray(HIDDEN, np.float64), np.asarray(wanted, np.float64)
    best = np.linalg.lstsq(X, Y - Y.mean(axis=1, keepdims=True), rcond=None)[0]
    np.testing.assert_allclose(params["head"]["kernel"], best, atol=2e-3)


def test_groups_of_another_vocabulary_are_refused():
    with pytest.raises(UserError, match="vocab_groups are of 31 tokens"):
        vocabulary.to_grouped_head(CONFIG, PARAMS, HIDDEN, models.VocabGroups.of(range(31)))
