"""MAD's fuzzy recall: keys and values are one to three tokens, so that nothing says where a key ends.

Tokens of a key, and of a value, are drawn without repetition, in order. One pair, the probe, stands at a
random place, and its key and value end the sequence, which is padded on the left. In a test every key has
three tokens. Poli et al., arXiv 2403.17844; mad-lab lists all keys and values for each sequence, and shuffles
them, where these are drawn. It also leaves out the probe's first showing now and then, of short pairs near
the end; here it is always shown.
"""

import numpy as np

from jaxllm.synthetic.recall import IGNORED

LONGEST = 3  # tokens of a key, and of a value
SHORTEST_SEQUENCE = 4 * LONGEST + 1  # has room for the probe, twice


def draw_fuzzy_recall(
    draw: np.random.Generator, rows: int, length: int, *, keys: int, values: int, pad: int, every_target: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs, targets), int32 [N, length], already shifted: a target is of the next token.

    Args:
      draw: the source of chance.
      rows: N.
      length: of the inputs, padding included.
      keys, values: how many ids of tokens of each.
      pad: the id of padding.
      every_target: in training the next token, everywhere, and keys of any length; else the tokens of the
        values of keys that were shown before, and keys of three tokens.

    Examples:
      >>> inputs, targets = draw_fuzzy_recall(
      ...     np.random.default_rng(1), 1, 20, keys=3, values=3, pad=6, every_target=False)
      >>> inputs[0].tolist()
      [6, 6, 6, 6, 1, 0, 2, 4, 5, 2, 1, 0, 4, 3, 5, 2, 1, 0, 4, 3]
    """
    sequences = [
        _sequence(draw, length, keys, values, draw_all_lengths=every_target) for _ in range(rows)
    ]
    tokens_NT = np.full((rows, length + 1), pad, np.int32)
    targets_NT = np.full((rows, length + 1), IGNORED, np.int32)
    for row, (tokens, counted) in enumerate(sequences):
        tokens_NT[row, -len(tokens) :] = tokens
        targets_NT[row, -len(tokens) :] = np.where(counted, tokens, IGNORED)
    return tokens_NT[:, :-1], (tokens_NT if every_target else targets_NT)[:, 1:]


def _sequence(draw, length, keys, values, *, draw_all_lengths):
    """Return (tokens, whether each is of a value that can be known)."""
    most = length // 2 + 1  # pairs; each has two tokens at least

    def tuples(ids, first, sizes):
        order = np.argsort(draw.random((most, ids)), axis=1)[:, :LONGEST] + first
        return [tuple(one[:size]) for one, size in zip(order.tolist(), sizes.tolist(), strict=True)]

    sizes = draw.integers(1, LONGEST + 1, size=(2, most))
    if not draw_all_lengths:
        sizes[0] = LONGEST
    pairs = list(zip(tuples(keys, 0, sizes[0]), tuples(values, keys, sizes[1]), strict=True))
    probe_key, probe_value = pairs.pop()
    room = length - len(probe_key) - len(probe_value)
    place = draw.integers(max(1, room - 4 * LONGEST + 1))  # a pair that ends past it still leaves room
    value_of, tokens, counted = {}, [], []

    def show(key, value, known):
        value_of[key] = value
        tokens.extend(key + value)
        counted.extend([False] * len(key) + [known] * len(value))

    for key, value in pairs:
        if len(tokens) >= room - 2 * LONGEST:
            break
        if len(tokens) >= place and probe_key not in value_of:
            show(probe_key, probe_value, False)
            continue
        new = probe_value if key == probe_key else value
        show(key, value_of.get(key, new), key in value_of)
    show(probe_key, probe_value, True)
    return tokens, counted
