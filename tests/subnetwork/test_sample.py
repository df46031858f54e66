"""What is drawn: exact sizes, the stated probabilities, whole groups, balanced parts."""

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.subnetwork import Rates, sample, sampled_units, shrink

GPT2 = models.get_preset("gpt2-nano", num_layers=6, embed_dim=64, num_heads=8, mlp_dim=16)
LLAMA = models.get_preset("llama-nano", num_layers=2, num_heads=8, num_kv_heads=4, head_dim=8)
DRAWS = 4000
DRAW = jax.jit(sample, static_argnames=("config", "rates", "per_layer"))
UNITS = jax.jit(sampled_units, static_argnames="config")


def draws(config, rates, **options):
    """Return which units each of many draws takes: {name: bool [draws, ...]}."""

    def draw(key):
        return sampled_units(config, sample(config, rates, key, **options))

    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), DRAWS))


def assert_mean(values, expected, sigmas=4.5):
    """The mean of independent 0s and 1s over the first axis, within some standard errors."""
    error = np.sqrt(expected * (1 - expected) / DRAWS)
    np.testing.assert_array_less(np.abs(np.mean(values, axis=0) - expected), sigmas * error + 1e-9)


@pytest.mark.smoke
def test_every_unit_is_as_likely_and_the_sizes_are_exact():
    rates = Rates(layers=0.5, heads=0.25, mlp=0.5)
    taken = draws(GPT2, rates)
    layers, heads, mlp = (np.asarray(taken[name]) for name in ("layers", "heads", "mlp"))
    assert np.all(layers.sum(1) == 3)
    np.testing.assert_array_equal(heads.sum(2), 2 * layers)  # in the layers drawn, and in no other
    np.testing.assert_array_equal(mlp.sum(2), 8 * layers)
    assert_mean(layers, 3 / 6)
    assert_mean(heads, 3 / 6 * 2 / 8)
    assert_mean(mlp, 3 / 6 * 8 / 16)
    # Every pair of layers as often as any other, and two layers' neurons independent of each other.
    assert_mean(layers[:, 0] & layers[:, 5], 3 / 6 * 2 / 5)
    assert_mean(layers[:, 2] & layers[:, 3], 3 / 6 * 2 / 5)
    both = layers[:, 0] & layers[:, 1]
    together = np.mean(mlp[both, 0, 0] & mlp[both, 1, 0])
    assert abs(together - 1 / 4) < 4.5 * np.sqrt(3 / 16 / both.sum())


def test_layers_keep_the_probabilities_they_are_given():
    """Those of 1 always; the others to a standard error; always four."""
    probabilities = (1.0, 0.9, 0.7, 0.4, 0.3, 0.7)
    layers = np.asarray(draws(GPT2, Rates(layers=probabilities))["layers"])
    assert np.all(layers.sum(1) == 4) and np.all(layers[:, 0])
    assert_mean(layers, np.array(probabilities))


def test_layers_can_share_their_draw():
    shared, apart = (
        np.asarray(DRAW(GPT2, Rates(mlp=0.5), jax.random.key(1), per_layer=x)["mlp"]) for x in (False, True)
    )
    np.testing.assert_array_equal(shared, np.broadcast_to(shared[:1], shared.shape))
    assert np.any(apart[0] != apart[1])


def test_query_heads_follow_their_keys():
    indices = jax.device_get(DRAW(LLAMA, Rates(heads=0.5), jax.random.key(2)))
    for groups, heads in zip(indices["kv_heads"][:, 0], indices["heads"][:, 0], strict=True):
        np.testing.assert_array_equal(np.unique(heads // 2), groups)
        assert len(heads) == 4 and np.all(np.diff(heads) > 0)


def test_where_groups_cannot_be_halved_each_keeps_half_of_its_heads():
    config = models.get_preset("llama-nano", num_heads=12, num_kv_heads=3, head_dim=8)
    indices = DRAW(config, Rates(heads=0.5), jax.random.key(2))
    assert "kv_heads" not in indices and indices["heads"].shape == (2, 3, 2)
    small = shrink(config, Rates(heads=0.5))
    assert (small.num_heads, small.num_kv_heads) == (6, 3)
    taken = np.asarray(UNITS(config, indices)["heads"]).reshape(2, 3, 4)
    assert np.all(taken.sum(2) == 2)


def test_every_shard_keeps_as_many_and_neurons_can_come_in_blocks():
    """2 of every 4 heads on each of 2 shards, and 2 of its 4 blocks of 2 neurons."""
    taken = draws(GPT2, Rates(heads=0.5, mlp=0.5), shards=2, mlp_block=2)
    heads, mlp = np.asarray(taken["heads"]), np.asarray(taken["mlp"])
    assert np.all(heads.reshape(DRAWS, 6, 2, 4).sum(3) == 2)
    blocks = mlp.reshape(DRAWS, 6, 2, 4, 2)
    assert np.all(blocks.all(4) == blocks.any(4)) and np.all(blocks.any(4).sum(3) == 2)
    assert_mean(heads, 0.5)
    assert_mean(mlp, 0.5)


def test_layers_whose_windows_alternate_stay_together():
    config = models.get_preset("gpt-neo-nano", num_layers=8)
    layers = np.asarray(DRAW(config, Rates(layers=0.5), jax.random.key(0))["layers"]).reshape(-1, 2)
    np.testing.assert_array_equal(layers % 2, [[0, 1], [0, 1]])
    np.testing.assert_array_equal(layers[:, 0] + 1, layers[:, 1])


def test_a_key_decides_alone_and_another_one_compiles_nothing():
    traced = []

    @jax.jit
    def draw(key):
        traced.append(key)
        return sample(GPT2, Rates(0.5, 0.5, 0.5), key)

    first, again, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    assert len(traced) == 1
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))


BAD = {
    "of 8 heads is 2.4; give one that keeps a whole number, such as 2/8 or 3/8": lambda: draw_of(heads=0.3),
    "of 16 neurons is 0.8; .* such as 1/16$": lambda: draw_of(mlp=0.05),
    "of 6 layers is 1.5; .* 1/6 or 2/6": lambda: draw_of(layers=0.25),
    "rates.mlp is 1.2; it must be a number of at most 1": lambda: Rates(mlp=1.2),
    "rates.layers is 0; it must be a number above 0": lambda: Rates(layers=0),
    "has 2 entries; give one for each of 6 layers": lambda: draw_of(layers=(0.5, 0.5)),
    "mlp_block=3 does not divide the 16 neurons": lambda: draw_of(mlp=0.5, mlp_block=3),
    "of 4 neurons in each of 4 shards is 0.5": lambda: draw_of(mlp=0.125, shards=4),
    "layers over which windows=.* repeat are kept together": lambda: sample(
        models.get_preset("gpt-neo-nano"), Rates(layers=(1.0, 0.5)), jax.random.key(0)
    ),
}  # fmt: skip


def draw_of(layers=1.0, heads=1.0, mlp=1.0, **options):
    return sample(GPT2, Rates(layers, heads, mlp), jax.random.key(0), **options)


@pytest.mark.parametrize("message", BAD)
def test_bad_rates_are_refused_with_a_sentence_that_helps(message):
    with pytest.raises(UserError, match=message):
        BAD[message]()


def test_units_of_skipped_layers_are_not_sampled():
    indices = {"layers": np.array([1, 4, 5]), "mlp": np.tile([[[0, 7]]], (3, 1, 1))}
    expected = np.zeros((6, 16), bool)
    expected[np.ix_([1, 4, 5], [0, 7])] = True
    np.testing.assert_array_equal(UNITS(GPT2, indices)["mlp"], expected)
