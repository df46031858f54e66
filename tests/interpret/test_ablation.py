"""Heads taken out, and attention penalised: against NumPy on captured weights and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import interpret, models
from jaxllm.errors import UserError
from tests.models.random_params import random_params

CONFIG = models.get_preset("gpt2-nano", vocab_size=31, context_length=32, num_layers=2)
TOKENS = np.random.default_rng(0).integers(0, 31, (3, 12))


TRUNK = jax.jit(lambda params: models.trunk(CONFIG, params, jnp.asarray(TOKENS)))


@functools.cache
def random_model():
    return random_params(CONFIG, 0.2)


def without_head(params, layer, head):
    """Return parameters whose head adds nothing: the rows of the output matrix that read it are 0."""
    attn = params["layers"]["attn"]
    attn = attn | {"out": attn["out"].at[layer, head].set(0)}
    return params | {"layers": params["layers"] | {"attn": attn}}


def captured(params, *names, tokens=TOKENS, **edits):
    sites = models.Sites(capture=names, **edits)
    return jax.jit(lambda p: models.capture(CONFIG, p, jnp.asarray(tokens), sites))(params)


def test_zero_rows_of_the_output_matrix_are_a_zeroed_head():
    hidden = interpret.hidden_without_head(CONFIG, random_model(), TOKENS, 1, 0)
    expected = TRUNK(without_head(random_model(), 1, 0))
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    assert float(jnp.abs(hidden - captured(random_model())[0]).max()) > 0.01


def test_patterns_that_are_kept_with_nothing_taken_out_change_nothing():
    """A head that adds nothing already: both ways of taking it out are the identity."""
    params = without_head(random_model(), 0, 1)
    whole = TRUNK(params)
    for keep in (False, True):
        hidden = interpret.hidden_without_head(CONFIG, params, TOKENS, 0, 1, keep_patterns=keep)
        np.testing.assert_allclose(hidden, whole, atol=1e-5)


def test_later_layers_attend_as_in_the_whole_model_only_where_patterns_are_kept():
    """The stream after layer 1, with layer 0's head taken out, is that of clean weights on changed values."""
    params = random_model()
    _, clean = captured(params, "attn_probs")
    zero = {
        "head_out": lambda x, layer: jnp.where(layer == 0, x.at[:, :, 1].set(0), x),
        "attn_probs": lambda x, layer: clean["attn_probs"][layer],
    }
    hidden, seen = captured(params, "attn_probs", "value", "head_out", edits=zero)
    mixed = np.einsum("bhts,bshk->bthk", np.float64(clean["attn_probs"][1]), np.float64(seen["value"][1]))
    np.testing.assert_allclose(seen["head_out"][1], mixed, atol=1e-5)
    found = interpret.hidden_without_head(CONFIG, params, TOKENS, 0, 1, keep_patterns=True)
    np.testing.assert_allclose(found, hidden, atol=1e-5)
    reacting = interpret.hidden_without_head(CONFIG, params, TOKENS, 0, 1)
    assert float(jnp.abs(found - reacting).max()) > 0.01


def test_one_program_serves_all_heads():
    run = jax.jit(functools.partial(interpret.hidden_without_head, CONFIG, keep_patterns=True))
    for layer, head in ((0, 0), (1, 1)):
        expected = interpret.hidden_without_head(
            CONFIG, random_model(), TOKENS, layer, head, keep_patterns=True
        )
        np.testing.assert_allclose(run(random_model(), TOKENS, layer, head), expected, atol=1e-5)
    assert run._cache_size() == 1


BEYOND = [(2, 0, "layer is 2"), (-1, 0, "layer is -1"), (0, 2, "head is 2")]


@pytest.mark.parametrize("layer,head,wrong", BEYOND)
def test_a_head_beyond_the_model_is_named(layer, head, wrong):
    message = f"{wrong}; the model has 2, so it must be from 0 to 1"
    with pytest.raises(UserError, match=message):
        interpret.hidden_without_head(CONFIG, random_model(), TOKENS, layer, head)


def test_the_copying_penalty_is_a_sum_over_pairs():
    spans = interpret.draw_repeated_spans(jax.random.key(2), 3, 12, 31, shortest=3, longest=5)
    seen = captured(random_model(), "attn_probs", tokens=spans.tokens_BT)[1]
    probs = np.float64(seen["attn_probs"]).max(axis=(0, 2))
    expected = sum(
        probs[b, i, j]
        for b, period in enumerate(spans.period_B.tolist())
        for i in range(12)
        for j in range(i + 1)
        if (i + 1 - j) % period == 0
    )
    assert float(interpret.copying_penalty(CONFIG, random_model(), spans)) == pytest.approx(
        expected, rel=1e-5
    )


WORDS = np.array(
    [[-1, 0, 0, 1, 2, 3, 3, 4, 5, 5, 6, -1], np.arange(12), [0, 1, 1, 1, 2, 3, -1, -1, -1, -1, -1, -1]]
)
GOVERNORS = np.full((3, 12), -1)
GOVERNORS[0, :7] = [1, -1, 1, 6, 3, 0, 1]
GOVERNORS[1, [2, 9]] = [11, 0]
GOVERNORS[2, :4] = [2, 0, -1, 2]


def test_the_syntactic_penalty_is_a_sum_over_words():
    probs = np.float64(captured(random_model(), "attn_probs")[1]["attn_probs"]).max(axis=(0, 2))
    expected = 0.0
    for b in range(3):
        for w, governor in enumerate(GOVERNORS[b]):
            if governor >= 0:
                later, earlier = (np.flatnonzero(WORDS[b] == x) for x in (max(w, governor), min(w, governor)))
                expected += np.mean([probs[b, i, earlier].sum() for i in later])
    found = interpret.syntactic_penalty(CONFIG, random_model(), jnp.asarray(TOKENS), WORDS, GOVERNORS)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_a_penalty_is_that_of_finite_differences():
    def penalty(scale):
        params = jax.tree.map(lambda x: x, random_model())
        params["layers"]["attn"] |= {"query": params["layers"]["attn"]["query"] * scale}
        return interpret.syntactic_penalty(CONFIG, params, jnp.asarray(TOKENS), WORDS, GOVERNORS)

    step = 1e-2
    slope = (penalty(1 + step) - penalty(1 - step)) / (2 * step)
    assert float(jax.grad(penalty)(1.0)) == pytest.approx(float(slope), rel=2e-2)
    assert abs(float(slope)) > 1e-2
