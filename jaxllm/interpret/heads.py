"""What single attention heads do: copy what followed before, look one token back, point at syntactic heads.

Scores of all heads of all layers come from one compiled pass, reduced where a layer is computed. They are
those of Aoyama and Wilcox 2025 (arXiv 2502.18802), each beside what a head without a habit would score.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError, unknown

SCALES = ("none", "target", "source")
_WEIGHTS_IN_MEMORY = 2**25  # attention weights of a layer at once


class RepeatScores(NamedTuple):
    """What a model does with random tokens that come a second time, means over sequences and positions."""

    copying_LH: np.ndarray  # weight on the token after the earlier occurrence: induction
    previous_LH: np.ndarray  # weight on the token before
    null: float  # the mean of either under weights drawn uniformly from the simplex
    first_loss: float  # nats, of the tokens when they come first
    repeat_loss: float  # nats, of the same when they come again


def repeat_scores(
    config: models.ModelConfig, params: dict, key: jax.Array, *, span: int = 50, sequences: int = 100
) -> RepeatScores:
    """Return how much each head copies (prefix matching) and looks one token back, on repeated random tokens.

    A sequence is `span` tokens, drawn uniformly from the vocabulary, twice. At each position i of the second
    half a copying head attends to i - span + 1: the token after the earlier occurrence of this one (Olsson et
    al. 2022, arXiv 2209.11895). Such tokens are far from any text: a model that copies real repeats may score
    low, which `repeat_loss` shows beside it.

    Args:
      config: a model with causal attention.
      params: its parameters, layers stacked.
      key: of the tokens.
      span: tokens that are repeated.
      sequences: drawn.

    Raises:
      UserError: two spans do not fit into the context.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> found = repeat_scores(config, models.init(config, jax.random.key(0)), jax.random.key(1), span=8)
      >>> found.copying_LH.shape, round(found.null, 3), bool(abs(found.copying_LH - found.null).max() < 0.02)
      ((2, 2), 0.083, True)
    """
    if not 2 <= span <= config.context_length // 2:
        raise UserError(
            f"span is {span}; two of them must fit into the context of {config.context_length} tokens, so "
            f"give 2 to {config.context_length // 2}"
        )
    batch = max(1, min(sequences, _WEIGHTS_IN_MEMORY // (config.num_heads * 4 * span**2)))
    once_BT = jax.random.randint(key, (sequences, span), 0, config.vocab_size)
    totals = 0
    for start in range(0, sequences, batch):
        part = once_BT[start : start + batch]
        padding = ((0, batch - len(part)), (0, 0))  # one shape, one program
        weights_B = (jnp.arange(batch, dtype=jnp.int32) < len(part)).astype(jnp.float32)
        sums = _repeat_sums(config, params, jnp.pad(jnp.tile(part, 2), padding), weights_B, span)
        totals = jax.tree.map(np.add, totals, jax.device_get(sums)) if start else jax.device_get(sums)
    copying, previous, first, repeat = (np.float64(total) / sequences for total in totals)
    null = float(np.mean(1 / np.arange(span + 1, 2 * span + 1)))
    return RepeatScores(copying, previous, null, float(first), float(repeat))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _repeat_sums(config, params, tokens_BT, weights_B, span):
    """Return sums over sequences of (copying [L, H], previous [L, H], loss of each half)."""
    T = 2 * span
    source = jnp.arange(span, T, dtype=jnp.int32)

    def reduce_layer(captured, layer):
        probs_BHTT = captured["attn_probs"]
        copying_BH = probs_BHTT[:, :, source, source - span + 1].mean(-1)
        previous_BH = probs_BHTT[:, :, source, source - 1].mean(-1)
        return {"copying": weights_B @ copying_BH, "previous": weights_B @ previous_BH}

    sites = models.Sites(capture=("attn_probs",), keep=reduce_layer)
    hidden_BTD, kept = models.capture(config, params, tokens_BT, sites)
    losses_BT = -models.token_log_probs(config, params, hidden_BTD[:, :-1], tokens_BT[:, 1:])
    # The first token of the second half cannot be foreseen: nothing says that a repeat begins.
    first, repeat = losses_BT[:, : span - 1].mean(1), losses_BT[:, span:].mean(1)
    return kept["copying"], kept["previous"], weights_B @ first, weights_B @ repeat


def syntactic_accuracy(
    config: models.ModelConfig,
    params: dict,
    tokens: np.ndarray,
    word_of: np.ndarray,
    governor_of: np.ndarray,
    *,
    scale: Literal["none", "target", "source"] = "none",
) -> np.ndarray:
    """Return which words each head connects to their syntactic governor: bool [L, H, N], in the words' order.

    The weight between two words is that of the later to the earlier, summed over the earlier word's tokens
    and averaged over the later one's. A head's choice for a word is the other word, before or after it in
    its row, with the largest weight.

    Args:
      config: a model with causal attention.
      params: its parameters, layers stacked.
      tokens: int [B, T].
      word_of: the number of the word in its row that each token belongs to, int [B, T], 0, 1, 2 ...; -1 for
        tokens of no word (padding, a begin token).
      governor_of: of each word the number of its governor in the row, int [B, W]; -1 where there is none (a
        root, a governor outside the row, no such word): those N words that have one are judged.
      scale: multiplies weights by the position of the word attended to ("target": what the paper's code does)
        or of the attending word ("source": what its comment says, undoing that late words have more to
        attend to); positions count from 1.

    Raises:
      UserError: an unknown scale, a governor that is no word of its row or the word itself, arrays whose
        shapes do not agree.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    tokens, word_of, governor_of = map(np.asarray, (tokens, word_of, governor_of))
    if tokens.shape != word_of.shape or len(governor_of) != len(tokens):
        raise UserError(
            f"tokens are {tokens.shape}, word_of {word_of.shape} and governor_of {governor_of.shape}; the "
            "first two must agree, and all have a row a text"
        )
    words_B = word_of.max(axis=1, initial=-1) + 1
    W = governor_of.shape[1]
    wrong = (governor_of >= words_B[:, None]) | (governor_of == np.arange(W))
    if wrong.any() or W < words_B.max(initial=0):
        row = int(np.argmax(wrong.any(1)))
        raise UserError(
            f"a governor in row {row} is no other word of that row, which has {words_B[row]}; number a row's "
            "words from 0, and give -1 where there is no governor"
        )
    judged_BW = governor_of >= 0
    batch = max(1, min(len(tokens), _WEIGHTS_IN_MEMORY // (config.num_heads * tokens.shape[1] ** 2)))
    found = []
    for start in range(0, len(tokens), batch):
        rows = slice(start, start + batch)
        short = batch - len(tokens[rows])
        parts = [np.pad(x[rows], ((0, short), (0, 0)), constant_values=-1) for x in (tokens, word_of)]
        chosen_LBHW = np.asarray(_choices(config, params, np.maximum(parts[0], 0), parts[1], W, scale))
        chosen_LHBW = chosen_LBHW[:, : batch - short].swapaxes(1, 2)
        found.append((chosen_LHBW == governor_of[rows])[:, :, judged_BW[rows]])
    return np.concatenate(found, axis=2)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _choices(config, params, tokens_BT, word_BT, W, scale):
    """Return the other word of its row that each head connects most with each word: int [L, B, H, W]."""
    member_BTW = (word_BT[..., None] == jnp.arange(W, dtype=jnp.int32)).astype(jnp.float32)
    mean_BTW = member_BTW / jnp.maximum(member_BTW.sum(1, keepdims=True), 1)
    position_W = jnp.arange(1, W + 1, dtype=jnp.float32)

    def reduce_layer(captured, layer):
        weights_BHWX = jnp.einsum("bsw,bhst,btx->bhwx", mean_BTW, captured["attn_probs"], member_BTW)
        if scale != "none":
            weights_BHWX *= position_W if scale == "target" else position_W[:, None]
        earlier_BHWX = jnp.tril(weights_BHWX, -1)
        both_BHWX = earlier_BHWX + earlier_BHWX.swapaxes(-1, -2)
        # No word chooses itself, nor one that is not there.
        there_BX = member_BTW.any(axis=1)
        allowed_BHWX = there_BX[:, None, None] & ~jnp.eye(W, dtype=bool)
        return {"chosen": jnp.argmax(jnp.where(allowed_BHWX, both_BHWX, -1.0), axis=-1)}

    sites = models.Sites(capture=("attn_probs",), keep=reduce_layer)
    return models.capture(config, params, tokens_BT, sites)[1]["chosen"]


def best_head_accuracy(correct: np.ndarray, relations: Sequence) -> tuple[float, dict]:
    """Return the unlabelled attachment score (UAS), each relation read off its best head, and those heads.

    Args:
      correct: bool [L, H, N], of `syntactic_accuracy`.
      relations: the name of the relation of each judged word to its governor, N of them.

    Returns:
      (UAS, {relation: (layer, head, accuracy)}). The best of many heads is chosen on the words that it is
      judged on: a model without training shows how far that alone goes.

    Examples:
      >>> correct = np.array([[[True, False, False], [False, False, True]]])
      >>> best_head_accuracy(correct, ["det", "det", "obj"])
      (0.666..., {'det': (0, 0, 0.5), 'obj': (0, 1, 1.0)})
    """
    relations = np.asarray(relations)
    right, best = 0, {}
    for relation in np.unique(relations).tolist():
        mask = relations == relation
        count_LH = correct[:, :, mask].sum(axis=2)
        layer, head = np.unravel_index(np.argmax(count_LH), count_LH.shape)
        best[relation] = (int(layer), int(head), float(count_LH.max() / mask.sum()))
        right += count_LH.max()
    return float(right / len(relations)), best
