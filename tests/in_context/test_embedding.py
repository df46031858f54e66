"""Vectors in prompts are means over a text's own tokens, of one plain pass over the whole prompt each."""

import jax
import numpy as np
import pytest

from jaxllm import data, models
from jaxllm.errors import UserError
from jaxllm.in_context import embed_in_prompt, embed_leave_one_out
from jaxllm.score import FewShotTask
from tests.models.random_params import random_params

TASK = FewShotTask(("Text", "Tone"), ("bad", "good"))
EXAMPLES = [(["dull, bad"], 0), (["fine"], 1), (["good fun"], 1)]
QUERIES = [["odd"], ["so so"]]


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def model(request):
    causal = request.param == "decoder"
    config = models.get_preset(
        "gpt2-nano",
        vocab_size=257,
        num_layers=1,
        embed_dim=16,
        num_heads=2,
        context_length=160,
        causal=causal,
    )
    return config, random_params(config), data.load_tokenizer("bytes")


@pytest.fixture(scope="module")
def plain_mean(model):
    config, params, _ = model
    run = jax.jit(lambda tokens, mask: models.trunk(config, params, tokens, segment_ids=mask))

    def mean(text, begin, length):
        """Of one text alone, padded on the right: a byte is a token."""
        ids = np.zeros((1, 160), np.int32)
        ids[0, : len(text)] = list(text.encode())
        hidden = np.asarray(run(ids, (np.arange(160) < len(text)).astype(np.int32)[None]))[0]
        return hidden[begin : begin + length].mean(axis=0)

    return mean


def of_queries(mean):
    before = "".join(TASK.exemplar(*one) for one in EXAMPLES)
    return [mean(before + TASK.query(q), len(before), len(TASK.input_text(q))) for q in QUERIES]


def test_one_prompt_of_all_examples(model, plain_mean):
    found = embed_in_prompt(*model, TASK, EXAMPLES, QUERIES)
    text = "".join(TASK.exemplar(*one) for one in EXAMPLES)
    starts = np.cumsum([0, *(len(TASK.exemplar(*one)) for one in EXAMPLES)])
    wanted = [plain_mean(text, starts[i], len(TASK.input_text(EXAMPLES[i][0]))) for i in range(3)]
    np.testing.assert_allclose(found.examples_KD, wanted, atol=1e-5)
    np.testing.assert_allclose(found.queries_ND, of_queries(plain_mean), atol=1e-5)
    # The label that is asked for is in no prompt; an example's own label comes after its text.
    flipped = embed_in_prompt(*model, TASK, [*EXAMPLES[:2], (EXAMPLES[2][0], 0)], QUERIES)
    if model[0].causal:
        np.testing.assert_allclose(flipped.examples_KD, found.examples_KD, atol=1e-6)
    assert np.abs(flipped.queries_ND - found.queries_ND).max() > 1e-4


def test_each_example_after_all_the_others(model, plain_mean):
    found, wanted = embed_leave_one_out(*model, TASK, EXAMPLES, QUERIES), []
    for i, (values, _) in enumerate(EXAMPLES):
        before = "".join(TASK.exemplar(*one) for j, one in enumerate(EXAMPLES) if j != i)
        wanted.append(plain_mean(before + TASK.query(values), len(before), len(TASK.input_text(values))))
    np.testing.assert_allclose(found.examples_KD, wanted, atol=1e-5)
    np.testing.assert_allclose(found.queries_ND, of_queries(plain_mean), atol=1e-5)
    # Its own label does not reach its vector.
    flipped = embed_leave_one_out(*model, TASK, [(EXAMPLES[0][0], 1), *EXAMPLES[1:]], QUERIES)
    np.testing.assert_array_equal(flipped.examples_KD[0], found.examples_KD[0])


def test_prompts_that_do_not_fit_are_refused(model):
    with pytest.raises(UserError, match="context"):
        embed_in_prompt(*model, TASK, EXAMPLES * 9, QUERIES)
    with pytest.raises(UserError, match="the Text .* holds a line end"):
        embed_leave_one_out(*model, TASK, [(["a\nb"], 0), *EXAMPLES], QUERIES)
    with pytest.raises(UserError, match="the model has no tokenizer"):
        embed_in_prompt(*model[:2], None, TASK, EXAMPLES, QUERIES)
