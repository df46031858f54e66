"""Token ids that no one meant: refused where they are known, loud where only the device sees them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import generate
from tests.models.random_params import random_params

CONFIG = models.get_preset("gpt2-nano", vocab_size=20, num_layers=1)
GROUPED = models.get_preset(
    "gpt2-nano", vocab_size=20, num_layers=1, vocab_groups=models.VocabGroups.of(np.arange(20))
)


@pytest.fixture(scope="module", params=[CONFIG, GROUPED], ids=["dense", "groups"])
def model(request):
    return request.param, models.init(request.param, jax.random.key(0))


TOKENS = np.arange(8, dtype=np.int32).reshape(1, 8)


@pytest.mark.parametrize(
    "tokens, words",
    [
        (TOKENS.astype(np.float32), "float32; token ids must be whole numbers"),
        (TOKENS - 1, "the id -1; the vocabulary has ids from 0 to 19"),
        (TOKENS + 15, "the id 22"),
    ],
)
def test_tokens_that_the_vocabulary_has_not_are_refused(tokens, words):
    params = models.shapes(CONFIG)  # nothing is computed
    for ids in (tokens, jnp.asarray(tokens)):
        with pytest.raises(UserError, match=f"tokens .*{words}"):
            models.apply(CONFIG, params, ids)
    with pytest.raises(UserError, match="targets are of type float32"):
        models.hidden_loss(CONFIG, params, jnp.zeros((1, 8, 64)), jnp.zeros((1, 8)))


@pytest.mark.parametrize("prompt", [[1, -3], [1, 2.5], [1, 20]])
def test_prompts_that_the_vocabulary_has_not_are_refused(prompt):
    with pytest.raises(UserError, match="a prompt's ids .*; use the tokenizer"):
        generate(CONFIG, models.shapes(CONFIG), [[1, 2], prompt], max_new_tokens=1)


def test_negative_targets_do_not_count_and_ids_beyond_the_vocabulary_are_loud(model):
    config, params = model
    hidden = jax.random.normal(jax.random.key(1), (1, 8, config.embed_dim))

    @jax.jit
    def loss(targets, mask):
        return models.hidden_loss(config, params, hidden, targets, mask=mask)

    ones = jnp.ones((1, 8))
    masked = ones.at[:, 2:5].set(0)
    ignored = jnp.asarray(TOKENS).at[:, 2:5].set(-100)
    mean, sums = loss(ignored, ones)
    want, wanted = loss(jnp.asarray(TOKENS), masked)
    assert float(mean) == pytest.approx(float(want), abs=1e-6) and float(sums["token_count"]) == 5
    assert float(sums["loss_sum"]) == pytest.approx(float(wanted["loss_sum"]), abs=1e-5)
    assert np.isnan(loss(ignored.at[0, 0].set(20), ones)[0])
    assert float(loss(ignored.at[0, 2].set(99), masked)[0]) == pytest.approx(float(want), abs=1e-6)
    with pytest.raises(UserError, match="targets hold the id 20"):
        models.hidden_loss(config, params, hidden, ignored.at[0, 0].set(20))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_targets_may_be_unsigned(dtype):
    """Of 256 ids, so that the size is no uint8."""
    config = models.get_preset("gpt2-nano", num_layers=1)
    params, hidden = random_params(config), jax.random.normal(jax.random.key(1), (1, 8, config.embed_dim))
    mask, targets = jnp.ones((1, 8)).at[0, 2].set(0), TOKENS + 248
    want = models.hidden_loss(config, params, hidden, jnp.asarray(targets), mask=mask)[0]
    for place in (np.asarray, jnp.asarray):
        found = models.hidden_loss(config, params, hidden, place(targets.astype(dtype)), mask=mask)[0]
        assert float(found) == float(want)


@pytest.mark.parametrize("family", ["gpt2-nano", "mamba-nano", "hybrid", "striped", "t5-nano"])
def test_a_row_of_ids_is_no_batch(family):
    kinds = {
        "hybrid": models.HybridConfig(parts=(CONFIG,), tables="parts"),
        "striped": models.StripedConfig(vocab_size=20, embed_dim=16, num_heads=2, num_layers=1),
    }
    config = kinds.get(family) or models.get_preset(family, num_layers=1)
    params, said = models.shapes(config), r"tokens are of shape \[3\]; give \[B, T\], a row of ids each"
    if config.start_id is not None:
        with pytest.raises(UserError, match=said):
            models.encode(config, params, jnp.arange(3))
        return
    with pytest.raises(UserError, match=said):
        models.apply(config, params, jnp.arange(3))
    if config.why_not_decode is None:
        with pytest.raises(UserError, match=said):
            models.decode(config, params, jnp.arange(3), models.init_cache(config, 1, 3))


def test_positions_that_the_table_has_not_are_refused_and_loud_on_the_device():
    config = models.get_preset("gpt2-nano", num_layers=1, context_length=8)
    params, tokens = random_params(config), jnp.zeros((1, 3), int)
    for wrong in (8, -1):
        with pytest.raises(UserError, match=f"positions hold {wrong}; the model has positions from 0 to 7"):
            models.trunk(config, params, tokens, positions=np.array([[0, 1, wrong]]))
    run = jax.jit(lambda positions: models.trunk(config, params, tokens, positions=positions))
    found = run(jnp.array([[0, 7, 8]]))
    assert np.isfinite(found[:, :2]).all() and np.isnan(found[:, 2]).all()
    assert np.isnan(run(jnp.array([[0, 1, -1]]))[:, 2]).all()


def test_the_kernel_leaves_out_negative_labels():
    hidden, weights = jnp.ones((4, 3)), jnp.arange(15.0).reshape(3, 5)
    labels = jnp.array([1, -100, 4, -1])
    total = lambda implementation, *of: linear_cross_entropy(*of, implementation=implementation).total
    total = jax.jit(total, static_argnums=0)
    want = total(None, hidden[::2], weights, labels[::2])
    for implementation in ("reference", "xla"):
        found = total(implementation, hidden, weights, labels)
        assert float(found) == pytest.approx(float(want), rel=1e-6)
