"""Inputs are drawn as the exact distribution says, whatever shares a batch; labels as without a cache."""

import functools

import jax
import numpy as np
import pytest

from jaxllm import data, models, score
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from tests.models.random_params import random_params
from tests.score.few_shot_cases import (
    EXEMPLARS,
    TASK,
    TinyTokenizer,
    every_input,
    tiny_model,
    tiny_prompt,
    uncached_log_probs,
)

LONGEST, COUNT = 6, 2048


@functools.cache
def drawn():
    return score.sample_inputs(tiny_prompt(), COUNT, key=jax.random.key(0), max_new_tokens=LONGEST, rows=256,
                               most_rejected=10**6)  # fmt: skip


@functools.cache
def world():
    """Return (inputs, their probabilities among those that end, label probabilities, the share that ends)."""
    found = every_input(LONGEST)
    log_p = np.array([total for total, _ in found.values()])
    ends = np.exp(log_p).sum()
    return list(found), np.exp(log_p) / ends, np.exp([labels for _, labels in found.values()]), ends


@pytest.mark.slow
def test_inputs_come_as_often_as_the_model_says():
    inputs, probs, _, ends = world()
    number = {ids: i for i, ids in enumerate(inputs)}
    counts = np.bincount([number[tuple(ids)] for ids in drawn().tokens], minlength=len(inputs))
    error = np.abs(counts / COUNT - probs) / np.sqrt(probs * (1 - probs) / COUNT)
    assert error[probs > 2e-3].max() < 4.5
    rare = probs <= 2e-3  # together
    assert abs(counts[rare].sum() / COUNT - probs[rare].sum()) < 4.5 * np.sqrt(probs[rare].sum() / COUNT)
    rate, tried = 1 - ends, COUNT + drawn().rejected
    assert 0.05 < rate < 0.95 and abs(drawn().rejection_rate - rate) < 4.5 * np.sqrt(
        rate * (1 - rate) / tried
    )


@pytest.mark.parametrize("normalise_each", [False, True])
def test_the_prior_is_within_three_standard_errors_of_the_truth_and_its_error_falls_as_the_root(
    normalise_each,
):
    _, probs, labels, _ = world()
    if normalise_each:
        labels = labels / labels.sum(axis=1, keepdims=True)
    truth = probs @ labels
    truth = truth / truth.sum()
    prior = drawn().prior(normalise_each=normalise_each)
    assert (np.abs(np.exp(prior.log_probs_Y) - truth) < 3 * prior.standard_error_Y).all()
    assert prior.standard_error_Y.max() < 0.02 and prior.count == COUNT

    sizes, errors = np.array([4, 16, 64, 256]), []
    for size in sizes:
        blocks = drawn().log_probs_LY.reshape(-1, size, 2)
        found = [score.estimate_prior(block, normalise_each=normalise_each) for block in blocks]
        away = np.array([np.exp(one.log_probs_Y[0]) - truth[0] for one in found])
        errors.append(np.sqrt((away**2).mean()))
        # The standard error says how far estimates are from the truth.
        assert 0.6 < errors[-1] / np.mean([one.standard_error_Y[0] for one in found]) < 1.6
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.62 < slope < -0.38


@pytest.mark.slow
def test_labels_are_read_after_the_colon_as_without_a_cache():
    config, params, _ = tiny_model()
    some = drawn().tokens[:32]
    head = TinyTokenizer().encode("".join(TASK.exemplar(*one) for one in EXEMPLARS) + "\nR:").tolist()
    rows = [head + ids for ids in some]
    table = uncached_log_probs(config, params, rows)
    expected = np.array([table[i, len(row) - 1, [8, 9]] for i, row in enumerate(rows)])
    np.testing.assert_allclose(drawn().log_probs_LY[:32], expected, atol=2e-5)
    assert all(ids[-3:] == [1, 4, 5] and 1 not in ids[:-3] for ids in drawn().tokens)
    assert drawn().texts[0] == [TinyTokenizer().decode(some[0][:-3]).strip()]


def pair_prompt(vocab_size=None):
    """Return a model of characters, and a prompt of pairs whose labels are of several tokens."""
    exemplars = [(["so it is", "no"], 0), (["ill", "less ill"], 1)]
    task = score.FewShotTask(("Claim", "Reply", "Tone"), ("bad", "good"))
    head = "".join(task.exemplar(*one) for one in exemplars) + "\nClaim:"
    tokenizer = (
        data.load_tokenizer("char", documents=[head]) if vocab_size is None else data.load_tokenizer("bytes")
    )
    config = models.get_preset(
        "llama-nano", vocab_size=tokenizer.vocab_size, context_length=256, num_layers=1
    )
    params = random_params(config)
    prompt = score.FewShotPrompt(Decoder(config, params), tokenizer, task, exemplars)
    return config, params, tokenizer, head, prompt


@pytest.mark.slow
def test_samples_depend_on_their_key_alone_and_pairs_have_both_fields():
    """Longer than the first cache, so that it is moved, made longer and, in the end, narrower."""
    config, params, tokenizer, head, prompt = pair_prompt()
    options = dict(key=jax.random.key(3), max_new_tokens=70, most_rejected=1000)
    many = score.sample_inputs(prompt, 16, rows=16, **options)
    few = score.sample_inputs(prompt, 16, rows=1, **options)  # one by one
    assert many.tokens == few.tokens and many.rejected == few.rejected > 0
    np.testing.assert_allclose(many.log_probs_LY, few.log_probs_LY, atol=2e-4)
    assert max(map(len, many.tokens)) > 50

    for ids, texts in zip(many.tokens, many.texts, strict=True):
        text = tokenizer.decode(ids)
        assert text.endswith("\nTone:") and text.count("\n") == 2 and "\nReply:" in text and len(texts) == 2
    # Labels of several tokens: read again with all of them, as whole rows without a cache.
    rows = [[*tokenizer.encode(head), *ids, *label] for ids in many.tokens[:4] for label in prompt.labels]
    table = uncached_log_probs(config, params, rows)
    sums = [sum(table[i, len(row) - n + k - 1, row[len(row) - n + k]] for k in range(n))
            for i, row in enumerate(rows) for n in [len(prompt.labels[i % 2])]]  # fmt: skip
    np.testing.assert_allclose(many.log_probs_LY[:4], np.reshape(sums, (4, 2)), atol=2e-4)


def test_samples_of_a_model_with_a_window_depend_on_their_key_alone():
    """A row that draws several samples keeps the slots of those before, which are in no window."""
    config = models.get_preset(
        "gemma-nano", vocab_size=10, num_layers=1, embed_dim=16, mlp_dim=32, num_heads=2, num_kv_heads=1,
        head_dim=8, context_length=128, windows=(12,),
    )  # fmt: skip
    decoder = Decoder(config, random_params(config, 0.35))
    prompt = score.FewShotPrompt(decoder, TinyTokenizer(), TASK, EXEMPLARS)
    options = dict(key=jax.random.key(1), max_new_tokens=16, most_rejected=1000)
    many, few = (score.sample_inputs(prompt, 8, rows=rows, **options) for rows in (8, 1))
    assert many.tokens == few.tokens and many.rejected == few.rejected
    np.testing.assert_allclose(many.log_probs_LY, few.log_probs_LY, atol=2e-5)


def test_a_generator_that_never_ends_a_field_is_given_up_with_the_rejection_rate():
    *_, prompt = pair_prompt(257)
    with pytest.raises(
        UserError, match=r"of \d+ inputs \(100%\) ran past 20 tokens without a line end; give"
    ):
        score.sample_inputs(prompt, 4, key=jax.random.key(0), max_new_tokens=20)
    with pytest.raises(UserError, match="room for 10 tokens after the exemplars, too few"):
        score.sample_inputs(prompt, 4, key=jax.random.key(0), max_new_tokens=10)
    config = models.get_preset("mamba-nano", vocab_size=10)
    mamba = Decoder(config, random_params(config))
    prompt_of_mamba = score.FewShotPrompt(mamba, TinyTokenizer(), TASK, EXEMPLARS)
    with pytest.raises(UserError, match="this model has a recurrent state"):
        score.sample_inputs(prompt_of_mamba, 2, key=jax.random.key(0))
    with pytest.raises(UserError, match="count is 0; it must be at least 1"):
        score.sample_inputs(prompt, 0, key=jax.random.key(0))
