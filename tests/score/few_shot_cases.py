"""A tokenizer of ten tokens and a small model, whose inputs can be listed one by one."""

import functools
import itertools

import jax
import numpy as np

from jaxllm import models, score
from jaxllm.generate import Decoder
from tests.models.random_params import random_params

TASK = score.FewShotTask(("R", "S"), ("+", "-"))
EXEMPLARS = [(["a b"], 0), (["b b a"], 1), (["a"], 0)]


class TinyTokenizer:
    """Tokens are the longest words that fit."""

    words = ("<eos>", "\n", "\n\n", "R", "S", ":", " a", " b", " +", " -")
    vocab_size, eos_id, fingerprint = len(words), 0, "tiny"

    def encode(self, text):
        ids = []
        while text:
            word = max((w for w in self.words if text.startswith(w) and w != "\n\n"), key=len)
            ids.append(self.words.index(word))
            text = text[len(word) :]
        return np.array(ids, np.int32)

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


@functools.cache
def tiny_model(context=64):
    config = models.get_preset("llama-nano", vocab_size=10, embed_dim=16, num_heads=2, num_kv_heads=1,
                               mlp_dim=32, context_length=context)  # fmt: skip
    params = random_params(config, 0.35)
    return config, params, Decoder(config, params)


def tiny_prompt(task=TASK, exemplars=EXEMPLARS, **options):
    return score.FewShotPrompt(tiny_model()[2], TinyTokenizer(), task, exemplars, **options)


@functools.cache
def full(config):
    return jax.jit(functools.partial(models.apply, config))


def uncached_log_probs(config, params, rows):
    """Return log p of every token after each of a row's, float64 [n, V], from whole rows of full logits."""
    length = -(-max(map(len, rows)) // 8) * 8
    tokens = np.zeros((len(rows), length), np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = ids
    logits = np.asarray(full(config)(params, tokens), np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def every_input(longest):
    """Return {tokens up to the label's colon: log-probability of drawing them}, [1, S, :] forced; not
    normalised.

    What is missing from 1 runs past the longest length.
    """
    config, params, _ = tiny_model()
    tokenizer, marker = TinyTokenizer(), [1, 4, 5]
    head = tokenizer.encode("".join(TASK.exemplar(*one) for one in EXEMPLARS) + "\nR:").tolist()
    free = [t for t in range(10) if t not in (0, 1, 2)]  # neither an end, nor a line end, nor a double one
    values = [x for n in range(longest - len(marker) + 1) for x in itertools.product(free, repeat=n)]
    rows = [[*head, *value, *marker] for value in values]
    log_probs = uncached_log_probs(config, params, rows)
    allowed = np.array([t not in (0, 2) for t in range(10)])
    drawn = np.where(allowed, log_probs, -np.inf)
    drawn -= np.logaddexp.reduce(drawn, axis=-1, keepdims=True)
    found = {}
    for row, value in enumerate(values):
        path = [*value, 1]  # the value, and the line end that ends it
        total = sum(drawn[row, len(head) - 1 + place, token] for place, token in enumerate(path))
        labels = log_probs[row, len(rows[row]) - 1, [8, 9]]
        found[(*value, *marker)] = (total, labels)
    return found
