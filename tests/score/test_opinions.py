"""The read-out of one-word opinions is the model's own distribution of the next word."""

import jax
import numpy as np
import pytest

from experiments.shared.word_tokenizer import word_tokenizer
from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.score import fill_template, polarisation, read_opinions
from tests.models.random_params import random_params

WORDS = {"negative": ["sour", "old"], "positive": ["ripe"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    words = ["the", "my", "is", "was", "pear", "fig", "sour", "old", "ripe"]
    tokenizer = word_tokenizer(words, tmp_path_factory.mktemp("words"))
    config = models.get_preset("gpt2-nano", vocab_size=tokenizer.vocab_size, num_layers=1)
    return config, random_params(config), tokenizer


def test_classes_get_the_mass_of_their_words(model):
    config, params, tokenizer = model
    templates, targets = ["the {x} is", "my {x} was"], ["pear", "fig"]
    found = read_opinions(*model, templates, targets, WORDS)
    assert found.shape == (2, 2, 2)
    for t, template in enumerate(templates):
        for x, target in enumerate(targets):
            ids = tokenizer.encode(fill_template(template, target))
            next_V = jax.nn.softmax(models.apply(config, params, ids[None])[0, -1])
            for c, some in enumerate(WORDS.values()):
                wanted = sum(next_V[tokenizer.encode(word)[0]] for word in some)
                np.testing.assert_allclose(found[t, x, c], wanted, rtol=1e-5)
    np.testing.assert_allclose(polarisation([0.3, 0], [0.1, 0]), [0.75, np.nan])


def test_what_cannot_be_asked_is_refused_in_a_sentence(model):
    ask = lambda templates=("the {x} is",), targets=("fig",), words=WORDS: read_opinions(
        *model, templates, targets, words
    )
    for change, said in [
        (dict(templates=["the pear is"]), r"'the pear is' has no slot; write \{x\} where the target goes"),
        (dict(targets=[" "]), "a target is empty"),
        (dict(targets=[]), "targets is empty; give at least one"),
        (dict(words={"a": ["old"], "b": ["old"]}), "an opinion word is there twice"),
    ]:
        with pytest.raises(UserError, match=said):
            ask(**change)
