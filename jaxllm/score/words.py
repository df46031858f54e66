"""The surprisal of words, each of one token or several."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.data import start_id
from jaxllm.errors import UserError, unknown
from jaxllm.score.sequences import TOKENS_PER_BATCH, check_tokenizer, map_sequences, prepare
from jaxllm.score.texts import rolling_windows

BOUNDARIES = ("sum", "corrected")
_BLOCK = 128  # positions whose full logits are in memory at once


def word_surprisals(
    config: models.LanguageModel,
    params,
    tokenizer,
    texts: Sequence[Sequence[str]],
    *,
    base: float = 2.0,
    boundary: Literal["sum", "corrected"] = "sum",
    begin: int | None = None,
    stride: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    trunk: Callable | None = None,
) -> list[np.ndarray]:
    """Return -log p(word | the words before it) of each word of each text, float64.

    Words are joined with single spaces. Tokenizers put the space before a word into that word's first token,
    so the product of a word's token probabilities is that of "the word, and whatever follows it"; whether the
    word ends there is counted in the next one. "corrected" moves it back (Pimentel and Meister 2024, arXiv
    2406.14561; Oh and Schuler 2024, arXiv 2406.10851):

        p(w | c) = p(tokens of w | c) * p(a word begins | c w) / p(a word begins | c)

    where p(a word begins) sums over the tokens that start with a space; the first word, which has no space
    before it, is divided by nothing.

    Args:
      config: the model.
      params: its parameters.
      tokenizer: from `jaxllm.data.load_tokenizer`.
      texts: the words of each text, without whitespace.
      base: of the logarithm: 2 gives bits, math.e nats.
      boundary: "sum" (of the tokens' surprisals, as most studies) or "corrected".
      begin: id that is read before the first word, so that it is predicted too; None is `data.start_id`.
      stride: tokens between the windows that a text longer than the context is read in; None is half of the
        context. See `rolling_windows`.
      tokens_per_batch: see `score_sequences`.
      trunk: (config, params, tokens) -> hidden states, in place of `models.trunk`: of a model that is changed
        on its way, such as `functools.partial(interpret.hidden_without_head, layer=0, head=1)`.

    Raises:
      UserError: no tokenizer, an empty word or one with whitespace, a word without a token of its own, a
        token that spans two words, an unknown boundary, a base that is not above 1.
    """
    if boundary not in BOUNDARIES:
        raise unknown("boundary", boundary, BOUNDARIES)
    if not (base > 1 and math.isfinite(base)):
        raise UserError(f"base is {base}; it must be finite and above 1, such as 2 (bits)")
    check_tokenizer(tokenizer)
    params = prepare(config, params) if trunk is None else params
    begin = start_id(tokenizer) if begin is None else begin
    window = config.context_length
    stride = max(1, window // 2) if stride is None else stride
    aligned = [_align(tokenizer, words) for words in texts]
    # The token at the end is never scored: the word before it needs the distribution there.
    documents = [[begin, *ids.tolist(), tokenizer.eos_id] for ids, _ in aligned]
    windows = [(d, w) for d, ids in enumerate(documents) for w in rolling_windows(len(ids), window, stride)]
    begins_V = begins_word(tokenizer, config.vocab_size) if boundary == "corrected" else None
    scores = map_sequences(
        config,
        [documents[d][w.begin : w.end] for d, w in windows],
        partial(_score, config, params, trunk=trunk or models.trunk, begins_V=begins_V),
        tokens_per_batch,
    )
    pieces: list[list] = [[] for _ in documents]
    for (document, one), values in zip(windows, scores, strict=True):
        pieces[document].append(jax.tree.map(lambda x: x[len(x) - one.scored :].astype(np.float64), values))  # noqa: B023
    results = []
    for (_, word_of), parts in zip(aligned, pieces, strict=True):
        log_probs, begins = (np.concatenate(x) for x in zip(*parts, strict=True))
        log_probs = np.bincount(word_of, weights=log_probs[:-1])
        if boundary == "corrected" and len(word_of):
            first = np.flatnonzero(np.diff(word_of, prepend=-1))  # each word's first token
            at_end = begins[np.append(first[1:], len(word_of))]
            log_probs += at_end - np.where(first == 0, 0.0, begins[first])
        results.append(-log_probs / math.log(base))
    return results


def begins_word(tokenizer, vocab_size: int) -> np.ndarray:
    """Return for each id whether its text starts with a space: bool [V].

    Examples:
      >>> from jaxllm.data import load_tokenizer
      >>> tokenizer = load_tokenizer("gpt2")
      >>> begins_word(tokenizer, 50257)[tokenizer.encode(" two words")].tolist()
      [True, True]
    """
    [anchor, *_] = tokenizer.encode("a").tolist()  # a first token's space may be dropped
    before = len(tokenizer.decode([anchor]))
    known = min(vocab_size, tokenizer.vocab_size)
    begins = [tokenizer.decode([anchor, i])[before:].startswith(" ") for i in range(known)]
    return np.array(begins + [False] * (vocab_size - known))


def _align(tokenizer, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids [n], the number of the word that each belongs to [n])."""
    for word in words:
        if word.split() != [word]:
            raise UserError(f"the word {word[:40]!r} is empty or holds whitespace; give one word an entry")
    ids, ends = tokenizer.encode_with_ends(" ".join(words))
    ends_of_words = np.cumsum([len(word) + 1 for word in words]) - 1
    # A token of a space alone ends where the next word has not begun, and belongs to that.
    word_of = np.searchsorted(ends_of_words, ends)
    starts = ends_of_words - [len(word) for word in words]
    inside = np.concatenate([[0], ends[:-1]])[: len(ends)]
    spans = (word_of > 0) & (inside < starts[np.minimum(word_of, len(words) - 1)] - 1)
    missing = np.setdiff1d(np.arange(len(words)), word_of)
    if spans.any():
        word = words[int(word_of[spans][0])]
        raise UserError(
            f"a token of the word {word[:40]!r} also holds a part of the word before it; give both as one "
            "word"
        )
    if missing.size:
        raise UserError(
            f"the tokenizer gives the word {words[missing[0]][:40]!r} no token of its own; leave it out, or "
            "give it and its neighbour as one word"
        )
    return ids, word_of


@partial(jax.jit, static_argnames=("config", "trunk"))
def _score(config, params, tokens_BU, *, trunk, begins_V):
    """Return (log-probability of each token, of a token that begins a word), [B, T] each."""
    hidden_BTD = trunk(config, params, tokens_BU[:, :-1])
    log_probs_BT = models.token_log_probs(config, params, hidden_BTD, tokens_BU[:, 1:])
    if begins_V is None:
        return log_probs_BT, jnp.zeros_like(log_probs_BT)

    def of_position(hidden_D):
        logits_V = models.logits(config, params, hidden_D[None])[0]
        return jax.nn.logsumexp(logits_V, where=begins_V) - jax.nn.logsumexp(logits_V)

    flat_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    begins_N = jax.lax.map(of_position, flat_ND, batch_size=_BLOCK)
    return log_probs_BT, begins_N.reshape(log_probs_BT.shape)
