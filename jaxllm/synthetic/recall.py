"""MAD's recall of a value by its key, shown earlier in the same sequence; plainly, or with noise between.

A sequence is pairs: a key, drawn evenly, and its value, drawn evenly when the key first comes and the same
from then on. It ends with a key that was shown, and its value. Ids of keys come first, then those of values,
then those of noise. Poli et al., arXiv 2403.17844, in the form without a copy prefix (multi-query).

Suffixes: N sequences, P pairs, K keys, T tokens.
"""

import numpy as np

IGNORED = -100  # a target that neither loss nor accuracy counts


def draw_recall(
    draw: np.random.Generator,
    rows: int,
    length: int,
    *,
    keys: int,
    values: int,
    noise: float = 0.0,
    noise_vocab: int = 0,
    every_target: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs, targets), int32 [N, length - 1], already shifted: a target is of the next token.

    Args:
      draw: the source of chance.
      rows: N.
      length: of a sequence before it is shifted; even.
      keys, values: how many ids of each.
      noise: chance that a pair but the last is two tokens of noise; at least one other is none, so that
        there is a key to ask for.
      noise_vocab: ids of noise.
      every_target: in training the next token, everywhere; else the value of each key that was shown before.

    Examples:
      >>> inputs, targets = draw_recall(
      ...     np.random.default_rng(0), 1, 10, keys=2, values=2, every_target=False)
      >>> inputs[0].tolist()
      [1, 3, 0, 3, 0, 3, 0, 3, 1]
      >>> targets[0].tolist()
      [-100, -100, -100, -100, 3, -100, 3, -100, 3]
    """
    pairs, row_N = length // 2 - 1, np.arange(rows)
    value_NK = keys + draw.integers(values, size=(rows, keys))
    key_NP = draw.integers(keys, size=(rows, pairs))
    noisy_NP = draw.random((rows, pairs)) < noise
    noisy_NP[row_N, draw.integers(pairs, size=rows)] = False
    shown_NK = np.zeros((rows, keys), bool)
    known_NP = np.zeros((rows, pairs), bool)  # pairs whose key was shown before
    for at in range(pairs):
        key_N, real_N = key_NP[:, at], ~noisy_NP[:, at]
        known_NP[:, at] = shown_NK[row_N, key_N] & real_N
        shown_NK[row_N[real_N], key_N[real_N]] = True
    asked_N = np.argmax(np.where(shown_NK, draw.random((rows, keys)), -1), axis=1)  # evenly of those shown
    pairs_NP2 = np.stack([key_NP, value_NK[row_N[:, None], key_NP]], axis=2)
    if noise:
        tokens = keys + values + draw.integers(noise_vocab, size=pairs_NP2.shape)
        pairs_NP2 = np.where(noisy_NP[..., None], tokens, pairs_NP2)
    last_N12 = np.stack([asked_N, value_NK[row_N, asked_N]], axis=1)[:, None]
    tokens_NT = np.concatenate([pairs_NP2, last_N12], axis=1).reshape(rows, length).astype(np.int32)
    if every_target:
        return tokens_NT[:, :-1], tokens_NT[:, 1:]
    counted_NP = np.pad(known_NP, ((0, 0), (0, 1)), constant_values=True)
    targets_NT = np.full_like(tokens_NT, IGNORED)
    targets_NT[:, 1::2] = np.where(counted_NP, tokens_NT[:, 1::2], IGNORED)
    return tokens_NT[:, :-1], targets_NT[:, 1:]
