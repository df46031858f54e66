"""The same answers as lm-evaluation-harness's own backend and as minicons, on the same weights."""

import random

import numpy as np
import pytest

from jaxllm import data, score
from jaxllm.pretrained import from_pretrained

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SENTENCES = [
    "The keys to the cabinet are on the table.",
    "Uncharacteristically, naïve critics disagreed about the film",
    "What the ship needs is more sails",
]


@pytest.fixture(scope="module")
def rival(tmp_path_factory):
    """A random GPT-2 of transformers with its tokenizer, and the folder of both."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=4, n_embd=32, n_positions=48, vocab_size=50257, initializer_range=0.2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=data.load_tokenizer("gpt2").backend,
        bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return model, tokenizer, folder


@pytest.fixture(scope="module")
def ours(rival):
    config, params, tokenizer = from_pretrained(rival[2])
    return config, params, tokenizer or data.load_tokenizer("gpt2")


def test_the_harness_gets_the_answers_of_its_own_backend(rival, ours):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from jaxllm.score.harness import HarnessModel

    model, tokenizer, _ = rival
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu", max_length=48)
    mine = HarnessModel(*ours, tokens_per_batch=256)

    def ask(kind, arguments):
        requests = [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]
        return [getattr(one, kind)(requests, disable_tqdm=True) for one in (theirs, mine)]

    draw = random.Random(0)
    words = " ".join(SENTENCES).split()
    text = lambda n: " ".join(draw.choices(words, k=n))  # noqa: E731
    contexts = [text(n) for n in (3, 8, 20, 60)] + ["", "ends in a space "]  # 60 words exceed the context
    pairs = [(context, " " + text(n)) for context in contexts for n in (1, 2, 5)]
    expected, got = ask("loglikelihood", pairs)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    np.testing.assert_allclose([a for a, _ in got], [a for a, _ in expected], atol=1e-3)

    expected, got = ask("loglikelihood_rolling", [(text(n),) for n in (1, 10, 70)])
    np.testing.assert_allclose(got, expected, atol=1e-3)

    asked = {"until": ["."], "max_gen_toks": 12, "do_sample": False}
    expected, got = ask("generate_until", [(text(n), asked) for n in (2, 9, 60)])
    assert got == expected


@pytest.mark.parametrize("boundary", ["sum", "corrected"])
def test_word_surprisals_are_those_of_minicons(rival, ours, boundary):
    minicons = pytest.importorskip("minicons.scorer")
    model, tokenizer, _ = rival
    scorer = minicons.IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    expected = scorer.word_score_tokenized(
        SENTENCES, str.split, bow_correction=boundary == "corrected", bos_token=True, surprisal=True,
        base_two=True,
    )  # fmt: skip
    got = score.word_surprisals(*ours, [s.split() for s in SENTENCES], boundary=boundary)
    for row, mine in zip(expected, got, strict=True):
        np.testing.assert_allclose(mine, [value for _, value in row], atol=1e-3)
