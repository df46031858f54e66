"""A prompt read once says of labels and inputs what whole rows without a cache say."""

import numpy as np
import pytest

from jaxllm import data, models, score
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from jaxllm.score.few_shot import label_tokens, marker_tokens
from tests.models.random_params import random_params
from tests.score.few_shot_cases import (
    EXEMPLARS,
    TASK,
    TinyTokenizer,
    tiny_model,
    tiny_prompt,
    uncached_log_probs,
)

INPUTS = [["a"], ["b a b b a"], [""], ["a b"], ["b b"]] * 5  # more than one batch
PAIRS = score.FewShotTask(("R", "S", "RS"), ("a", "b", "a a"))  # a label of two tokens that begins as another


def test_the_layout_is_the_paper_s():
    pair = score.FewShotTask(("Premise", "Hypothesis", "Prediction"), ("true", "false"))
    assert pair.exemplar(["It rains.", "It is wet."], 0) == (
        "\nPremise: It rains.\nHypothesis: It is wet.\nPrediction: true\n"
    )
    assert pair.query(["It rains.", ""]) == "\nPremise: It rains.\nHypothesis:\nPrediction:"
    assert pair.channel_exemplar(["x", "y"], 1) == "\nPrediction: false\nPremise: x\nHypothesis: y\n"
    tokenizer = data.load_tokenizer("gpt2")
    assert [tokenizer.decode(ids) for ids in marker_tokens(tokenizer, pair)] == pair.markers()
    assert [tokenizer.decode(ids) for ids in label_tokens(tokenizer, pair)] == [" true", " false"]


def test_labels_after_a_prompt_are_as_of_whole_rows():
    config, params, _ = tiny_model()
    head = TinyTokenizer().encode("".join(TASK.exemplar(*one) for one in EXEMPLARS)).tolist()
    queries = [TinyTokenizer().encode(TASK.query(values)).tolist() for values in INPUTS]
    table = uncached_log_probs(config, params, [head + ids for ids in queries])
    expected = np.array([table[i, len(head + ids) - 1, [8, 9]] for i, ids in enumerate(queries)])
    found = tiny_prompt().read(INPUTS)
    np.testing.assert_allclose(found.log_probs_NY, expected, atol=2e-6)
    likeliest = [table[i, len(head + ids) - 1].argmax() for i, ids in enumerate(queries)]
    np.testing.assert_array_equal(found.likeliest_N, likeliest)
    np.testing.assert_allclose(tiny_prompt().label_log_probs(INPUTS), expected, atol=2e-5)
    # The paper's reading is the same where labels are one token.
    np.testing.assert_array_equal(
        tiny_prompt(first_token_labels=True).label_log_probs(INPUTS[:3]),
        tiny_prompt().label_log_probs(INPUTS[:3]),
    )


def test_labels_of_several_tokens_are_scored_whole():
    config, params, _ = tiny_model()
    exemplars = [(["a", "b"], 2), (["b", "a a"], 1)]
    prompt = tiny_prompt(PAIRS, exemplars)
    assert [len(ids) for ids in prompt.labels] == [1, 1, 2]
    inputs = [["a", "b b"], ["b b b", ""]]
    head = TinyTokenizer().encode("".join(PAIRS.exemplar(*one) for one in exemplars)).tolist()
    rows = [
        [*head, *TinyTokenizer().encode(PAIRS.query(v)).tolist(), *ids]
        for v in inputs
        for ids in prompt.labels
    ]
    table = uncached_log_probs(config, params, rows)
    expected = []
    for i, row in enumerate(rows):
        n = len(prompt.labels[i % 3])
        expected.append(sum(table[i, len(row) - n + k - 1, row[len(row) - n + k]] for k in range(n)))
    np.testing.assert_allclose(prompt.label_log_probs(inputs), np.reshape(expected, (2, 3)), atol=2e-5)


SMALL = dict(vocab_size=10, num_layers=2, embed_dim=16)
PARTS = (
    models.get_preset("gpt-neo-nano", **SMALL, num_heads=2, context_length=64, windows=(0, 16)),
    models.get_preset("mamba-nano", **SMALL),
)
FAMILIES = {
    "llama": models.get_preset("llama-nano", **SMALL, num_heads=2, num_kv_heads=1, context_length=64),
    "gemma": models.get_preset(
        "gemma-nano", **SMALL, num_heads=2, num_kv_heads=1, head_dim=8, context_length=64, windows=(16, 0)
    ),
    "gpt-neo": PARTS[0],
    "mamba": PARTS[1],
    "hybrid": models.HybridConfig(parts=PARTS),
}


@pytest.mark.parametrize("family", [
    "gemma", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "gemma")
])  # fmt: skip
def test_an_answer_does_not_depend_on_padding_windows_or_the_queries_beside_it(family):
    config = FAMILIES[family]
    params, tokenizer = random_params(config, 0.35), TinyTokenizer()
    exemplars = [(["a", "b"], 2), (["b", "a a"], 1)]
    prompt = score.FewShotPrompt(Decoder(config, params), tokenizer, PAIRS, exemplars)
    inputs = [["a", "b b"], ["b a a b a b a b a a b b", "a"], ["", "b"]]
    head = tokenizer.encode("".join(PAIRS.exemplar(*one) for one in exemplars)).tolist()
    contexts = [head + tokenizer.encode(PAIRS.query(values)).tolist() for values in inputs]
    scored = score.score_choices(config, params, contexts, [prompt.labels] * 3)
    expected = [[choice.log_prob for choice in row] for row in scored]
    np.testing.assert_allclose(prompt.label_log_probs(inputs), expected, atol=5e-5)
    alone = [prompt.label_log_probs([values])[0] for values in inputs]
    np.testing.assert_allclose(alone, expected, atol=5e-5)


def test_an_encoder_decoder_which_answers_a_source_is_refused():
    config = models.get_preset("t5-nano", vocab_size=10)
    with pytest.raises(UserError, match="is continued, and encoder_decoder answers a source"):
        score.FewShotPrompt(Decoder(config, random_params(config)), TinyTokenizer(), TASK, EXEMPLARS)


def test_inputs_after_a_label_are_as_of_whole_rows():
    config, params, _ = tiny_model()
    head = TinyTokenizer().encode("".join(TASK.channel_exemplar(*one) for one in EXEMPLARS)).tolist()
    rows, starts = [], []
    for values in INPUTS[:5]:
        for label in (0, 1):
            line, text = TASK.channel_query(values, label)
            starts.append(len(head) + len(TinyTokenizer().encode(line)))
            rows.append(head + TinyTokenizer().encode(line + text).tolist())
    table = uncached_log_probs(config, params, rows)
    expected = [sum(table[i, at - 1, row[at]] for at in range(start, len(row)))
                for i, (row, start) in enumerate(zip(rows, starts, strict=True))]  # fmt: skip
    got = tiny_prompt(channel=True).channel_log_probs(INPUTS[:5])
    np.testing.assert_allclose(got, np.reshape(expected, (5, 2)), atol=5e-5)


def test_fillers_come_from_where_they_should():
    assert score.content_free_inputs(PAIRS) == [["N/A", "N/A"], ["", ""], ["[MASK]", "[MASK]"]]
    texts = [["One two three", "x"], ["four", "y z"]]  # 2 and 1.5 words on average, so 3 and 2
    fillers = score.random_word_inputs(texts, 20)
    assert len(fillers) == 20
    for first, second in fillers:
        assert len(first.split()) == 4 and set(first.split()) <= {"one", "two", "three", "four", "."}
        assert len(second.split()) == 3 and set(second.split()) <= {"x", "y", "z", "."}


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: score.FewShotTask(("R",), ("a", "b")), "give an input's and the label's, two or more"),
        (lambda: score.FewShotTask(("R", "S"), ("a", "a")), "labels are .*; give two or more that differ"),
        (lambda: score.FewShotTask(("R", "S"), ("a", "b ")), "has spaces around it"),
        (lambda: TASK.exemplar(["one\ntwo"], 0), r"the R 'one\\ntwo' holds a line end, which ends a field"),
        (lambda: TASK.query("text"), "an input is 'text'; give a list of 1 texts"),
        (lambda: PAIRS.query(["a"]), "give a list of 2 texts, one for each of R, S"),
        (lambda: label_tokens(data.load_tokenizer("bytes"), score.FewShotTask(("R", "S"), ("bad", "big")),
                              first_only=True), "'bad' and 'big' begin with the same token"),
        (lambda: tiny_prompt(PAIRS, [], first_token_labels=True), "'a' and 'a a' begin with the same token"),
        (lambda: tiny_prompt(exemplars=EXEMPLARS * 5), "15 exemplars are .* model's context is 64"),
        (lambda: tiny_prompt().label_log_probs([["a " * 60]]), "a query of .* does not fit"),
        (lambda: tiny_prompt().channel_log_probs(INPUTS), "make the prompt with channel=True"),
        (lambda: score.random_word_inputs([[""]]), "no word to draw from"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()
