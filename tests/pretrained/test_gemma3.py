"""Gemma 3 270M as its GGUF file has it: logits and ids of transformers, English against shuffled words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, score
from jaxllm.errors import UserError
from jaxllm.pretrained import fetch_gemma3, from_pretrained

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

TEXT = (
    "The Amazon rainforest covers much of the Amazon basin of South America. This basin is seven million "
    "square kilometres large, of which five and a half million are covered by the rainforest. The region "
    "includes territory of nine nations: the majority of the forest is in Brazil, followed by Peru and "
    "Colombia, and there are smaller parts in Bolivia, Ecuador, Guyana, Suriname and Venezuela."
)
BOS = 2
CHAT = "<start_of_turn>user\nHi<end_of_turn>"


@pytest.fixture(scope="module")
def file():
    try:
        return fetch_gemma3()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(file):
    return from_pretrained(file)


@pytest.fixture(scope="module")
def theirs(file):
    options = dict(gguf_file=file.name)
    load = transformers.AutoModelForCausalLM.from_pretrained
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
    return load(file.parent, dtype=torch.float32, **options).eval(), tokenizer


def test_the_config_is_the_preset(model):
    assert model.config == models.get_preset("gemma-3-270m")


def test_english_is_likelier_than_its_words_shuffled(model):
    words = TEXT.split()
    np.random.default_rng(0).shuffle(words)
    perplexities = []
    for text in (TEXT, " ".join(words)):
        [log_probs] = score.score_sequences(
            model.config, model.params, [[BOS, *model.tokenizer.encode(text)]]
        )
        perplexities.append(float(np.exp(-np.mean(log_probs))))
    print("perplexities", perplexities)
    assert perplexities[0] < 20 and perplexities[1] > 15 * perplexities[0], perplexities


def test_logits_are_those_of_transformers_beyond_the_window(model, theirs):
    tokens = np.random.default_rng(1).integers(6, 200_000, (1, 600))
    tokens[0, :60] = [BOS, *model.tokenizer.encode(TEXT)[:59]]
    ours = jax.jit(lambda p: models.apply(model.config, p, jnp.asarray(tokens)))(model.params)
    with torch.no_grad():
        expected = theirs[0](torch.from_numpy(tokens)).logits.numpy()
    # Float32 on both sides, sums of 18 layers in another order.
    difference, size = np.abs(ours - expected).max(), np.abs(expected).max()
    print("difference", difference, "of logits up to", size)
    assert difference <= 1e-4 * max(1, size / 10), (difference, size)


@pytest.mark.parametrize(
    "text", [TEXT, "  two\n\nlines naïve 日本 🙂 1234"]
)
def test_ids_are_those_of_transformers(model, theirs, text):
    assert model.tokenizer.encode(text).tolist() == theirs[1](text, add_special_tokens=False).input_ids
    assert model.tokenizer.encode_prompt(text).tolist() == theirs[1](text).input_ids
