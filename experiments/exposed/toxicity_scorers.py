"""Scorers of toxicity, text -> [0, 1], and how well each tells the cases of HateCheck apart.

No scorer here is a judge. The head on MiniLM's vectors is trained on texts that no expert saw, of the same
kinds; alt-profanity-check, which a package ships, is at chance on HateCheck; a lexicon knows words alone.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import data, models
from jaxllm.errors import UserError
from jaxllm.pretrained import fetch_minilm, from_pretrained

Scorer = Callable[[Sequence[str]], np.ndarray]
_BATCH, _LONGEST = 64, 40  # texts a call; tokens of a text, the rest is cut


@functools.cache
def _minilm():
    return from_pretrained(fetch_minilm())


@functools.partial(jax.jit, static_argnums=0)
def _vectors(config, params, tokens_BT, mask_BT):
    types_BT = jnp.zeros_like(tokens_BT)
    hidden_BTD = models.trunk(config, params, tokens_BT, token_types=types_BT, segment_ids=mask_BT)
    pooled_BD = models.mean_pool(hidden_BTD, mask_BT)
    return pooled_BD / jnp.linalg.norm(pooled_BD, axis=-1, keepdims=True)


def embed(texts: Sequence[str]) -> np.ndarray:
    """Return MiniLM's vectors of texts, float32 [N, 384], of length 1."""
    model = _minilm()
    tokens_NT = np.zeros((-(-len(texts) // _BATCH) * _BATCH, _LONGEST), np.int32)
    mask_NT = np.zeros_like(tokens_NT)
    for row, text in enumerate(texts):
        one = data.encode_padded(model.tokenizer, [text])["tokens"][0]
        one = np.append(one[: _LONGEST - 1], one[-1]) if len(one) > _LONGEST else one
        tokens_NT[row, : len(one)], mask_NT[row, : len(one)] = one, 1
    mask_NT[len(texts) :, 0] = 1
    found = [
        np.asarray(
            _vectors(model.config, model.params, tokens_NT[at : at + _BATCH], mask_NT[at : at + _BATCH])
        )
        for at in range(0, len(tokens_NT), _BATCH)
    ]
    return np.concatenate(found)[: len(texts)]


def train_head(toxic: Sequence[str], clean: Sequence[str], ridge: float = 1e-4) -> list[float]:
    """Return (bias, weights) of a logistic regression on MiniLM's vectors; both classes weigh the same."""
    from scipy.optimize import minimize

    x_ND = np.float64(embed([*toxic, *clean]))
    y_N = np.repeat([1.0, -1.0], [len(toxic), len(clean)])
    weight_N = np.repeat([0.5 / len(toxic), 0.5 / len(clean)], [len(toxic), len(clean)])

    def loss(theta):
        margin_N = y_N * (x_ND @ theta[1:] + theta[0])
        slope_N = -weight_N * y_N / (1 + np.exp(np.clip(margin_N, -500, 500)))
        value = np.sum(weight_N * np.logaddexp(0, -margin_N)) + ridge * np.sum(theta[1:] ** 2)
        return value, np.append(slope_N.sum(), x_ND.T @ slope_N + 2 * ridge * theta[1:])

    return minimize(loss, np.zeros(x_ND.shape[1] + 1), jac=True, method="L-BFGS-B").x.tolist()


def head_scorer(theta: Sequence[float]) -> Scorer:
    """Return the scorer of what `train_head` returned."""
    theta = np.asarray(theta)
    return lambda texts: 1 / (1 + np.exp(-(embed(texts) @ theta[1:] + theta[0])))


def profanity_check() -> Scorer | None:
    """Return alt-profanity-check's linear model; None where the package is not installed."""
    try:
        from profanity_check import predict_prob
    except ImportError:
        return None
    return lambda texts: np.asarray(predict_prob(list(texts)), np.float64)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in small letters."""
    return re.findall(r"[a-z]+", text.lower())


def find_lexicon(toxic: Sequence[str], clean: Sequence[str], size: int, least: int = 3) -> frozenset[str]:
    """Return the words that mark toxic texts most, by log odds over clean ones; each in `least` texts.

    It is read from data at each run, so that no such word stands in this repository.
    """
    counts = [Counter(word for text in texts for word in set(words_of(text))) for texts in (toxic, clean)]

    def log_odds(word):
        shares = [
            (count[word] + 0.5) / (len(texts) + 1)
            for count, texts in zip(counts, (toxic, clean), strict=True)
        ]
        return np.log(shares[0] / shares[1])

    often = [word for word, count in counts[0].items() if count >= least and len(word) > 2]
    return frozenset(sorted(often, key=log_odds, reverse=True)[:size])


def lexicon_scorer(lexicon: frozenset[str]) -> Scorer:
    """Return a scorer that is 1 where a text holds a word of the lexicon, else 0."""
    return lambda texts: np.array([float(not lexicon.isdisjoint(words_of(text))) for text in texts])


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the probability that a positive scores above a negative, ties counted half.

    Raises:
      UserError: only one class is there.

    Examples:
      >>> area_under_curve(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0]))
      0.875
    """
    labels = np.asarray(labels, bool)
    if labels.all() or not labels.any():
        raise UserError("an area under the curve needs texts of both classes; all have one label")
    from scipy.stats import rankdata

    ranks, positives = rankdata(scores), labels.sum()
    above = ranks[labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (~labels).sum()))
