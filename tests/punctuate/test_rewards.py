"""What generated text is worth to a tagger: by autodiff, and by what the tagger says of it."""

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.data import load_tokenizer
from jaxllm.data.labelled import encode_texts, padded_batch
from jaxllm.errors import UserError
from jaxllm.punctuate import Marks, TaggerReward
from jaxllm.text import Labeller
from tests.models.random_params import random_params

LABELS = Marks().labels
DEV = [("so it goes now".split(), ["COMMA", "O", "O", "PERIOD"]), (["what"], ["QUESTION"])]
SAMPLES = [("we go on".split(), ["O", "COMMA", "O"]), ([], []), ("is it".split(), ["O", "QUESTION"])]


def test_terms_are_autodiffs_cosine_and_the_taggers_own_words():
    model = models.get_preset("bert-nano", vocab_size=257, context_length=32, num_layers=1, embed_dim=16,
                              head="token_labels", labels=LABELS)  # fmt: skip
    params, tokenizer = random_params(model), load_tokenizer("bytes")
    labeller = Labeller(model, params, tokenizer, marked="last")
    reward = TaggerReward(labeller, DEV, ceiling=-1.3)

    @jax.jit
    def gradient(batch):
        def loss(head):
            own = params | {"head": head}
            options = dict(segment_ids=batch["mask"], token_types=batch["token_types"])
            return models.loss(model, own, batch["tokens"], batch["targets"], **options)[0]

        return jax.grad(loss)(params["head"])

    def of(documents):
        words, labels = zip(*documents, strict=True)
        encoded = encode_texts(tokenizer, words, longest=32, of_words=True, marked="last")
        ids = [[LABELS.index(label) for label in own] for own in labels]
        batch = padded_batch(tokenizer, encoded, ids, rows=2, length=32)
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient(batch))])

    def f1(labeller):
        said = [np.argmax(x, axis=1) for x in labeller.log_probs([words for words, _ in DEV])]
        said = np.concatenate(said)
        own = np.array([LABELS.index(label) for _, labels in DEV for label in labels])
        return 2 * np.sum((said == own) & (own > 0)) / max(1, np.sum(said > 0) + np.sum(own > 0))

    wanted = of(DEV)  # the mean over its words
    for row in (0, 2):
        own = of([SAMPLES[row]])
        cosine = own @ wanted / np.linalg.norm(own) / np.linalg.norm(wanted)
        assert reward.utility(SAMPLES)[row] == pytest.approx(cosine, abs=1e-4)
    assert reward.utility(SAMPLES)[1] == 0
    said = labeller.log_probs([SAMPLES[0][0]])[0]
    mean = np.mean([said[i, LABELS.index(label)] for i, label in enumerate(SAMPLES[0][1])])
    assert reward.soundness(SAMPLES)[0] == pytest.approx(min(mean, -1.3), abs=1e-4)
    assert reward.soundness(SAMPLES)[1] == -5
    step, gradients = 50.0, [of([one]) if one[0] else np.zeros_like(wanted) for one in SAMPLES]
    sizes = [x.size for x in jax.tree.leaves(params["head"])]
    parts = np.split(np.mean(gradients, axis=0), np.cumsum(sizes)[:-1])
    leaves, tree = jax.tree.flatten(params["head"])
    moved = [x - step * part.reshape(x.shape) for x, part in zip(leaves, parts, strict=True)]
    after = Labeller(model, params | {"head": jax.tree.unflatten(tree, moved)}, tokenizer, marked="last")
    gain = f1(after) - f1(labeller)
    assert gain != 0 and reward.head_gain(SAMPLES, step=step) == pytest.approx(gain, abs=1e-9)
    assert reward.head_gain(SAMPLES, step=0.0) == 0
    refilled = list(SAMPLES)
    before = reward.utility(refilled)
    refilled[:] = refilled[::-1]
    np.testing.assert_allclose(reward.utility(refilled), before[::-1], atol=1e-5)
    with pytest.raises(UserError, match="dev holds no words"):
        TaggerReward(labeller, [([], [])])
