"""Scores of attention heads: against loops over captured weights, and heads whose habit is built in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import interpret, models
from jaxllm.errors import UserError
from tests.models.random_params import random_params

CONFIG = models.get_preset("gpt2-nano", vocab_size=31, context_length=32, num_layers=2)


@functools.cache
def random_model():
    """Return parameters whose attention is far from uniform."""
    return random_params(CONFIG, 0.3)


def probs_of(params, tokens):
    sites = models.Sites(capture=("attn_probs",))
    seen = jax.jit(lambda p: models.capture(CONFIG, p, jnp.asarray(tokens), sites)[1])(params)
    return np.float64(seen["attn_probs"])


@pytest.mark.parametrize("sequences", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_repeat_scores_are_a_loop_over_positions(sequences, monkeypatch):
    monkeypatch.setattr(
        "jaxllm.interpret.heads._WEIGHTS_IN_MEMORY", CONFIG.num_heads * 4 * 10**2 * 4
    )  # 4 at once
    params, key, span = random_model(), jax.random.key(5), 10
    found = interpret.repeat_scores(CONFIG, params, key, span=span, sequences=sequences)
    once = np.array(jax.random.randint(key, (sequences, span), 0, CONFIG.vocab_size))
    tokens = np.concatenate([once, once], axis=1)
    probs = probs_of(params, tokens)
    copying, previous = np.zeros((2, CONFIG.num_heads)), np.zeros((2, CONFIG.num_heads))
    for b in range(sequences):
        for i in range(span, 2 * span):
            assert tokens[b, i - span] == tokens[b, i]
            copying += probs[:, b, :, i, i - span + 1] / sequences / span
            previous += probs[:, b, :, i, i - 1] / sequences / span
    np.testing.assert_allclose(found.copying_LH, copying, atol=1e-6)
    np.testing.assert_allclose(found.previous_LH, previous, atol=1e-6)
    log_probs = jax.jit(lambda p: jax.nn.log_softmax(models.apply(CONFIG, p, jnp.asarray(tokens))))(params)
    loss = -np.take_along_axis(np.float64(log_probs)[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    assert found.first_loss == pytest.approx(loss[:, : span - 1].mean(), abs=1e-5)
    assert found.repeat_loss == pytest.approx(loss[:, span:].mean(), abs=1e-5)


def test_the_null_is_the_mean_of_weights_from_the_simplex():
    draw = np.random.default_rng(0)
    params = random_model()
    null = interpret.repeat_scores(CONFIG, params, jax.random.key(0), span=10, sequences=2).null
    drawn = [np.mean([draw.dirichlet(np.ones(i + 1))[i - 9] for i in range(10, 20)]) for _ in range(3000)]
    assert null == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 3000**0.5)
    assert np.mean(1 / np.arange(51, 101)) == pytest.approx(0.0138, abs=5e-5)  # the paper's setting


def syntax(scale, params, tokens, word_of, governor_of):
    """Return what `syntactic_accuracy` does, a word, a head and a layer at a time."""
    probs, columns = probs_of(params, tokens), []
    for b, row in enumerate(governor_of):
        words = [np.flatnonzero(word_of[b] == w) for w in range(word_of[b].max() + 1)]

        def weight(layer, head, later, earlier):
            value = np.mean([probs[layer, b, head, i, words[earlier]].sum() for i in words[later]])  # noqa: B023
            return value * {"none": 1, "target": earlier + 1, "source": later + 1}[scale]

        for w, governor in enumerate(row):
            if governor < 0:
                continue
            column = np.zeros((2, CONFIG.num_heads), bool)
            for layer in range(2):
                for head in range(CONFIG.num_heads):
                    others = [x for x in range(len(words)) if x != w]
                    value = [weight(layer, head, max(w, x), min(w, x)) for x in others]
                    column[layer, head] = others[int(np.argmax(value))] == governor
            columns.append(column)
    return np.stack(columns, axis=2)


@pytest.mark.parametrize("scale", interpret.heads.SCALES)
def test_syntactic_accuracy_is_a_loop_over_words(scale, monkeypatch):
    monkeypatch.setattr(
        "jaxllm.interpret.heads._WEIGHTS_IN_MEMORY", CONFIG.num_heads * 12**2 * 2
    )  # 2 rows at once
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 31, (3, 12))
    word_of = np.array([[-1, 0, 0, 1, 2, 3, 3, 3, 4, 5, -1, -1], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
                        [-1, 0, 1, 1, 2, -1, -1, -1, -1, -1, -1, -1]])  # fmt: skip
    governor_of = np.full((3, 12), -1)
    for b, words in enumerate((6, 12, 3)):
        for w in range(0, words, 1 + b % 2):
            governor_of[b, w] = draw.choice([x for x in range(words) if x != w])
    found = interpret.syntactic_accuracy(CONFIG, random_model(), tokens, word_of, governor_of, scale=scale)
    expected = syntax(scale, random_model(), tokens, word_of, governor_of)
    assert found.shape == expected.shape and 0 < expected.mean() < 1
    np.testing.assert_array_equal(found, expected)


def test_a_head_that_looks_back_finds_governors_one_word_back():
    """Edited to look at the token before, a head is right just where the governor is the neighbour."""
    shift = jnp.eye(8, k=-1).at[0, 0].set(1.0)
    monkey = models.Sites(edits={"attn_probs": lambda value, layer: value.at[:, 1].set(shift)})
    capture = models.capture

    def edited(config, params, tokens, sites, **options):
        return capture(
            config, params, tokens, models.Sites(sites.capture, monkey.edits, sites.keep), **options
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "capture", edited)
        jax.clear_caches()
        word_of = np.arange(8)[None]
        found = interpret.syntactic_accuracy(
            CONFIG, random_model(), np.zeros((1, 8), int), word_of, np.array([[-1, 0, 1, 0, 5, -1, 5, 6]])
        )
    jax.clear_caches()
    # Word 1 .. 7 choose the word before (weights tie between before and after: the first wins).
    assert found[:, 1].tolist() == [[True, True, False, False, True, True]] * 2
    uas, best = interpret.best_head_accuracy(found[:, 1:2], ["a", "a", "b", "b", "a", "a"])
    assert uas == pytest.approx(4 / 6) and best["b"] == (0, 0, 0.0)


def test_bad_input_is_one_sentence():
    params = random_model()
    with pytest.raises(
        UserError, match="span is 17; two of them must fit into the context of 32 tokens, so give 2 to 16"
    ):
        interpret.repeat_scores(CONFIG, params, jax.random.key(0), span=17)
    tokens, words = np.zeros((1, 4), int), np.arange(4)[None]
    for governors in ([[1, 0, 3, 4]], [[1, 1, 0, 0]]):
        with pytest.raises(UserError, match="governor in row 0 is no other word of that row, which has 4"):
            interpret.syntactic_accuracy(CONFIG, params, tokens, words, governors)
    with pytest.raises(UserError, match="unknown scale 'row'"):
        interpret.syntactic_accuracy(CONFIG, params, tokens, words, [[1, 0, 0, 0]], scale="row")
    with pytest.raises(UserError, match=r"tokens are \(1, 4\), word_of \(1, 3\)"):
        interpret.syntactic_accuracy(CONFIG, params, tokens, words[:, :3], [[1, 0, 0, 0]])
