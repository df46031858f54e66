"""New tokens are one id each, and change nothing that a model says of the others but the mass they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.adapt import add_tokens
from jaxllm.data import load_tokenizer
from jaxllm.errors import UserError
from tests.models.random_params import random_params

TOKENIZER = load_tokenizer("bpe:270", documents=["the sun and the moon and the stars " * 20])


@pytest.mark.parametrize("tied", [True, False])
def test_a_tag_is_one_id_with_the_mean_of_the_old_rows(tied):
    config = models.get_preset(
        "llama-nano", vocab_size=TOKENIZER.vocab_size, num_layers=1, tie_embeddings=tied
    )
    params = random_params(config)
    grown, more, tokenizer = add_tokens(config, params, TOKENIZER, ["<|joke|>", "<|fact|>"])
    models.check_params(grown, more)
    assert tokenizer.vocab_size == grown.vocab_size == config.vocab_size + 2
    assert tokenizer.encode("<|joke|>the moon").tolist() == [270, *TOKENIZER.encode("the moon").tolist()]
    assert len(TOKENIZER.encode("<|joke|>")) > 1 and tokenizer.decode([271]) == "<|fact|>"
    table = np.asarray(params["embed"]["tokens"])
    np.testing.assert_allclose(
        more["embed"]["tokens"][270:], np.tile(table.mean(0), (2, 1)), rtol=1e-5, atol=1e-7
    )
    tokens = jnp.array([[5, 9, 2]])
    before, after = models.apply(config, params, tokens), models.apply(grown, more, tokens)
    np.testing.assert_allclose(after[..., :270], before, atol=1e-5)
    np.testing.assert_allclose(after[..., 270], before.mean(-1), atol=1e-5)


def test_what_cannot_be_added_is_refused_in_a_sentence():
    config = models.get_preset("gpt2-nano", vocab_size=270)
    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    for tokens in (["the"], [" "], ["<|x|>", "<|x|>"]):
        with pytest.raises(UserError, match="cannot be added"):
            add_tokens(config, params, TOKENIZER, tokens)
    with pytest.raises(UserError, match="cannot take new tokens"):
        add_tokens(config, params, load_tokenizer("bytes"), ["<|x|>"])
