"""The head of groups in the model: against float64 NumPy, on meshes, in runs, in generation."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxllm import models
from jaxllm.data import load_tokenizer
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, generate
from jaxllm.models.config import GROUP_HEADS
from jaxllm.optim import decay_mask, rotate
from jaxllm.parallel import MeshConfig, make_mesh, shardings
from jaxllm.text.config import model_from_dict
from jaxllm.train import to_dict
from jaxllm.vocabulary import vocab_order
from tests.models.random_params import random_params

V, K, B, T = 61, 8, 3, 12
ORDER = np.random.default_rng(7).permutation(V)
GROUPS = models.VocabGroups.of(ORDER, K)  # the last group has 5 tokens
TARGETS = np.random.default_rng(1).integers(0, V, (B, T))
MASK = np.random.default_rng(2).uniform(size=(B, T)) < 0.8
HIDDEN = jnp.asarray(np.random.default_rng(3).normal(size=(B, T, 16)), jnp.float32)


@functools.cache
def model(head, tied=True, groups=GROUPS):
    config = models.get_preset(
        "gpt2-nano", vocab_size=V, num_layers=1, embed_dim=16, num_heads=2, context_length=32,
        vocab_groups=groups, group_head=head, tie_embeddings=tied,
    )  # fmt: skip
    return config, random_params(config, scale=0.5)


CASES = [(head, True) for head in GROUP_HEADS] + [("own", False)]


@functools.cache
def computed(head, tied):
    """Return (joint log-probabilities, loss, what it logs, gradients of parameters and hidden states)."""
    config, params = model(head, tied)

    @jax.jit
    def run(params, hidden):
        loss = lambda *x: models.hidden_loss(config, *x, TARGETS, mask=MASK)
        (mean, logged), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, hidden)
        return models.logits(config, params, hidden), mean, logged, gradients

    return jax.tree.map(np.asarray, run(params, HIDDEN))


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def oracle(head, tied):
    """Return (log p(group), log p(token | group)) of every token, float64 [B, T, V], token by token."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), model(head, tied)[1])
    h, w = np.asarray(HIDDEN, np.float64), params["head"]
    group = log_softmax(h @ w["groups"] + w["groups_bias"])
    of_group, in_group = np.zeros((2, *h.shape[:2], V))
    for g in range(-(-V // K)):
        members = ORDER[g * K : (g + 1) * K]
        if head == "own":
            slots = h @ (params["embed"] if tied else w)["tokens"][members].T
        elif head == "hidden":
            slots = (h * w["scale"][g] + w["shift"][g]) @ w["slots"]
        else:
            slots = h @ w["slots"]
            if head == "logits":
                slots = slots * w["scale"][g] + w["shift"][g]
        of_group[..., members] = group[..., g : g + 1]
        in_group[..., members] = log_softmax(slots[..., : len(members)])
    return of_group, in_group


@pytest.mark.smoke
@pytest.mark.parametrize(("head", "tied"), CASES)
def test_log_probabilities_are_the_product_and_sum_to_one(head, tied):
    """Float32 against float64: 2e-5 of log-probabilities up to 20."""
    log_probs = computed(head, tied)[0]
    expected = sum(oracle(head, tied))
    assert np.abs(np.exp(expected).sum(-1) - 1).max() < 1e-12
    np.testing.assert_allclose(log_probs, expected, atol=2e-5, rtol=1e-5)
    assert np.abs(np.log(np.exp(log_probs.astype(np.float64)).sum(-1))).max() < 1e-5


@pytest.mark.parametrize(("head", "tied"), CASES)
def test_the_loss_and_its_parts_are_those_of_the_distribution(head, tied):
    _, mean, logged, _ = computed(head, tied)
    parts = [np.take_along_axis(p, TARGETS[..., None], -1)[..., 0] for p in oracle(head, tied)]
    group, slot = (-(MASK * part).sum() for part in parts)
    assert logged["group_loss_sum"] == pytest.approx(group, rel=1e-5)
    assert logged["slot_loss_sum"] == pytest.approx(slot, rel=1e-5)
    assert logged["loss_sum"] == pytest.approx(group + slot, rel=1e-5)
    assert mean == pytest.approx((group + slot) / MASK.sum(), rel=1e-5)


@pytest.mark.parametrize(("head", "tied"), CASES)
def test_gradients_are_those_of_the_log_probabilities(head, tied):
    """Float32 against float32, 3e-5 of the largest entry of each parameter."""
    config, params = model(head, tied)

    def dense(params, hidden):
        log_probs = models.logits(config, params, hidden)
        picked = jnp.take_along_axis(log_probs, TARGETS[..., None], -1)[..., 0]
        return -jnp.sum(MASK * picked) / MASK.sum()

    def near(path, got, expected):
        assert np.abs(got - expected).max() <= 3e-5 * np.abs(expected).max(), path

    expected = jax.jit(jax.grad(dense, (0, 1)))(params, HIDDEN)
    jax.tree_util.tree_map_with_path(near, computed(head, tied)[-1], expected)


def test_one_group_of_tied_vectors_is_the_dense_tied_head():
    """The same softmax over the same products, in another order: 1e-5."""
    one = models.VocabGroups.of(ORDER, V)
    config, params = model("own", groups=one)
    dense = dataclasses.replace(config, vocab_groups=None)

    @functools.partial(jax.jit, static_argnums=0)
    def run(config):
        loss, _ = models.hidden_loss(config, params, HIDDEN, TARGETS, mask=MASK)
        return models.logits(config, params, HIDDEN), loss

    (log_probs, got), (logits, expected) = run(config), run(dense)
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits), atol=1e-5)
    assert float(got) == pytest.approx(float(expected), rel=1e-6)


def test_every_token_its_own_group_is_the_dense_untied_head():
    config, params = model("shared", groups=models.VocabGroups.of(ORDER, 1))
    dense = dataclasses.replace(config, vocab_groups=None, tie_embeddings=False)
    kernel = params["head"]["groups"][:, GROUPS.rank]
    bias = params["head"]["groups_bias"][GROUPS.rank]
    logits = models.logits(dense, params | {"head": {"kernel": kernel}}, HIDDEN) + bias
    np.testing.assert_allclose(models.logits(config, params, HIDDEN), jax.nn.log_softmax(logits), atol=2e-5)


@pytest.mark.parametrize(("head", "tied"), CASES)
def test_counts_are_those_of_the_arrays(head, tied):
    config, _ = model(head, tied)
    shapes = models.shapes(config)
    assert config.num_params == sum(x.size for x in jax.tree.leaves(shapes))
    dense = dataclasses.replace(config, vocab_groups=None)
    fewer = V - GROUPS.num_groups - K
    assert dense.flops_per_token(T) - config.flops_per_token(T) == 6 * config.embed_dim * fewer


def test_gains_start_at_one_do_not_decay_and_groups_do_not_rotate():
    config, _ = model("hidden")
    params, axes = jax.jit(models.init, static_argnums=0)(config, jax.random.key(0)), models.axes(config)
    assert (np.asarray(params["head"]["scale"]) == 1).all() and not np.asarray(params["head"]["shift"]).any()
    assert decay_mask(axes)["head"] == dict(
        groups=True, groups_bias=False, slots=True, scale=False, shift=False
    )
    # A gradient of one group alone must leave the other groups' rows where they are.
    head = {"head": {"scale": params["head"]["scale"]}}
    one = jax.tree.map(lambda x: jnp.zeros_like(x).at[2].set(1.0), head)
    turning = rotate(optax.identity(), {"head": {"scale": axes["head"]["scale"]}})
    updates = jax.jit(lambda g: turning.update(g, turning.init(head), head)[0])(one)
    moved = np.abs(updates["head"]["scale"]).max(axis=1) > 1e-6
    assert moved.tolist() == [g == 2 for g in range(GROUPS.num_groups)]


@pytest.mark.parametrize("head", [pytest.param("hidden", marks=pytest.mark.slow), "own"])
def test_loss_and_gradients_on_a_mesh(head):
    if jax.device_count() < 8:
        pytest.skip("needs 8 (simulated) devices")
    groups = models.VocabGroups.of(ORDER.tolist() + [61, 62, 63], K)
    config = dataclasses.replace(model(head)[0], vocab_size=64, vocab_groups=groups)
    params = random_params(config)
    hidden, targets = np.repeat(HIDDEN[:1], 8, axis=0), np.random.default_rng(0).integers(0, 64, (8, T))
    hidden *= np.arange(1, 9)[:, None, None] / 8

    def step(params, hidden, targets):
        loss = lambda p: models.hidden_loss(config, p, hidden, targets, mask=targets % 5 > 0)[0]
        return jax.value_and_grad(loss)(params)

    value, gradients = jax.jit(step)(params, hidden, targets)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    places = shardings(models.axes(config), models.shapes(config), mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, places)
        sharded_value, sharded = jax.jit(step, out_shardings=(None, places))(placed, hidden, targets)
    assert sharded["head"]["groups"].addressable_shards[0].data.shape == (8, 4)
    assert abs(sharded_value - value) <= 1e-5
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("head", "tied"), CASES)
def test_drawn_tokens_have_the_distribution_that_evaluation_sees(head, tied):
    """20,000 draws, chi-squared at p = 1e-3; their log-probabilities to 2e-5."""
    config, params = model(head, tied)
    hidden = HIDDEN[0, 0]
    rows = jnp.broadcast_to(hidden, (20_000, len(hidden)))
    log_probs = computed(head, tied)[0][0, 0]
    tokens, drawn = jax.jit(lambda k: models.draw_token(config, params, rows, k))(jax.random.key(3))
    np.testing.assert_allclose(drawn, log_probs[tokens], atol=2e-5)
    expected = 20_000 * np.exp(log_probs.astype(np.float64))
    common = expected >= 5
    counts = np.bincount(tokens, minlength=V)
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_generation_is_greedy_over_tokens_and_not_over_groups():
    config, params = model("own")
    read = jax.jit(lambda tokens: models.apply(config, params, tokens)[0, 1:-1])
    greedy = generate(config, params, [[3, 5]], max_new_tokens=8, sampling=SamplingConfig(temperature=0))
    assert greedy.tokens[0] == read(np.array([[3, 5, *greedy.tokens[0]]])).argmax(axis=-1).tolist()
    drawn = generate(config, params, [[3, 5]], max_new_tokens=8)
    ids = np.array([[3, 5, *drawn.tokens[0]]])
    expected = np.take_along_axis(np.asarray(read(ids)), ids[0, 2:, None], 1)[:, 0]
    np.testing.assert_allclose(drawn.log_probs[0], expected, atol=1e-4)


def test_a_config_with_groups_survives_json():
    config, _ = model("hidden")
    again = model_from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config and hash(again) == hash(config)
    np.testing.assert_array_equal(again.vocab_groups.rank, GROUPS.rank)


def test_no_hugging_face_family_holds_the_head(tmp_path):
    from jaxllm.pretrained import save_pretrained

    config, params = model("hidden")
    with pytest.raises(UserError, match="no Hugging Face family can hold a head of groups"):
        save_pretrained(tmp_path / "hf", config, params)


def test_gpt2_s_tree_has_short_sums():
    """G + K = 449 logits at the square root, against 50257."""
    groups = models.VocabGroups.of(vocab_order("merge_tree", load_tokenizer("gpt2")))
    assert (groups.num_groups, groups.slots, groups.sizes.sum()) == (224, 225, 50257)
    config = models.get_preset("gpt2", vocab_groups=groups)
    assert config.logits_per_token == 449
