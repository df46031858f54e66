"""all-MiniLM-L6-v2: vectors of real sentences, padded in one batch, equal those of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import data, models
from jaxllm.errors import UserError
from jaxllm.pretrained import fetch_minilm, from_pretrained, save_pretrained

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

# Of length 1: the difference of two is that of their directions.
TOLERANCE = 1e-5
SENTENCES = [
    "A man is playing a guitar on the stage.",
    "Someone on the stage plays the guitar.",
    "Fellow-citizens of the Senate and of the House of Representatives, the Constitution is 1 of 3 things.",
    "naïve café 日本 🙂 co-operative, unaffable!",
    "No.",
    "The rainforest covers five and a half million square kilometres, most of them in Brazil; Peru, "
    "Colombia, Bolivia, Ecuador, Guyana, Suriname and Venezuela have the rest: each counts its trees.",
]


@pytest.fixture(scope="module")
def folder():
    try:
        return fetch_minilm()
    except UserError as error:
        pytest.skip(str(error))


def vectors(model, batch):
    options = dict(token_types=batch["token_types"], segment_ids=batch["mask"])
    hidden = models.trunk(model.config, model.params, batch["tokens"], **options)
    pooled = models.mean_pool(hidden, jnp.asarray(batch["mask"]))
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)


def their_vectors(folder, batch):
    model = transformers.AutoModel.from_pretrained(folder).eval()
    given = dict(input_ids=batch["tokens"], attention_mask=batch["mask"], token_type_ids=batch["token_types"])
    with torch.no_grad():
        hidden = model(**{name: torch.from_numpy(x.astype(np.int64)) for name, x in given.items()})[0].numpy()
    mask = batch["mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)


def test_vectors_of_sentences_are_those_of_transformers(folder, tmp_path):
    model = from_pretrained(folder)
    assert model.config == models.get_preset("all-minilm-l6-v2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = data.encode_padded(model.tokenizer, SENTENCES, longest=model.config.context_length)
    theirs = tokenizer(SENTENCES, padding=True, return_tensors="np")
    np.testing.assert_array_equal(batch["tokens"], theirs.input_ids)
    np.testing.assert_array_equal(batch["mask"], theirs.attention_mask)
    assert batch["mask"].sum(1).min() < batch["mask"].shape[1] // 4
    ours = jax.jit(lambda: vectors(model, batch))()
    difference = np.abs(ours - their_vectors(folder, batch)).max()
    print("difference", difference, "cosines", float(ours[0] @ ours[1]), float(ours[0] @ ours[2]))
    assert difference <= TOLERANCE, difference
    assert ours[0] @ ours[1] > 0.7 > 0.2 > ours[0] @ ours[2]

    save_pretrained(tmp_path / "out", model.config, model.params, model.tokenizer)
    again = their_vectors(tmp_path / "out", batch)
    assert np.abs(again - ours).max() <= TOLERANCE
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported(SENTENCES).input_ids == tokenizer(SENTENCES).input_ids


def test_a_pair_of_sentences_has_two_types(folder):
    model = from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pairs = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[4], SENTENCES[3])]
    batch = data.encode_padded(model.tokenizer, pairs)
    theirs = tokenizer(pairs, padding=True, return_tensors="np")
    np.testing.assert_array_equal(batch["tokens"], theirs.input_ids)
    np.testing.assert_array_equal(batch["token_types"], theirs.token_type_ids)
    with pytest.raises(UserError, match="a text of .* tokens does not fit context_length=5"):
        data.encode_padded(model.tokenizer, SENTENCES, longest=5)
