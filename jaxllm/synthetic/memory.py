"""MAD's tasks of memory: facts in weights, a selection of what was read, all of it in one state.

Poli et al., arXiv 2403.17844. Targets stand where they are predicted: do not shift them.
"""

import numpy as np

from jaxllm.synthetic.recall import IGNORED


def fact_table(keys: int, values: int, seed: int = 12345) -> np.ndarray:
    """Return the value of each key, int [keys]: each value at most once, the same for every sequence."""
    return keys + np.random.default_rng(seed).permutation(values)[:keys]


def draw_memorisation(
    draw: np.random.Generator, rows: int, length: int, *, table: np.ndarray, insert: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs, targets), int32 [N, length]: key, insert, key, insert ...; a value at each insert.

    The value is in no sequence: it must be remembered from training.

    Examples:
      >>> inputs, targets = draw_memorisation(
      ...     np.random.default_rng(0), 1, 6, table=fact_table(3, 3), insert=6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([2, 6, 1, 6, 1, 6], [-100, 4, -100, 5, -100, 5])
    """
    inputs_NT = np.full((rows, length), insert, np.int32)
    targets_NT = np.full((rows, length), IGNORED, np.int32)
    inputs_NT[:, ::2] = draw.integers(len(table), size=(rows, length // 2))
    targets_NT[:, 1::2] = table[inputs_NT[:, ::2]]
    return inputs_NT, targets_NT


def draw_selective_copying(
    draw: np.random.Generator, rows: int, length: int, *, data: int, copied: int, blank: int, copy: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs, targets), int32 [N, length]: data among blanks, to be said in order after a copy token.

    Blanks stand before data tokens alone, so that the last of those touches the copy token.

    Args:
      data: ids of data tokens.
      copied: data tokens of a sequence.

    Examples:
      >>> inputs, targets = draw_selective_copying(
      ...     np.random.default_rng(0), 1, 9, data=4, copied=2, blank=4, copy=5)
      >>> inputs[0].tolist(), targets[0, -2:].tolist()
      ([4, 3, 4, 4, 4, 2, 5, 4, 4], [3, 2])
    """
    blanks = length - 2 * copied - 1
    data_NC = draw.integers(data, size=(rows, copied))
    before_NC = draw.multinomial(blanks, np.full(copied, 1 / copied), size=rows)  # blanks before each
    place_NC = np.arange(copied) + np.cumsum(before_NC, axis=1)
    inputs_NT = np.full((rows, length), blank, np.int32)
    np.put_along_axis(inputs_NT, place_NC, data_NC.astype(np.int32), axis=1)
    inputs_NT[:, length - copied - 1] = copy
    targets_NT = np.full((rows, length), IGNORED, np.int32)
    targets_NT[:, -copied:] = data_NC
    return inputs_NT, targets_NT


def draw_compression(
    draw: np.random.Generator, rows: int, length: int, *, data: int, compress: int,
    noise: float = 0.0, noise_vocab: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return (inputs, targets), int32 [N, length]: data and a compress token; the targets are the inputs.

    All are to be said from the state at the compress token, by a decoder of the task's own. With noise the
    tokens of noise, whose ids follow those of data, are targets too, as in mad-lab's code.

    Examples:
      >>> inputs, targets = draw_compression(np.random.default_rng(0), 1, 5, data=4, compress=4)
      >>> inputs[0].tolist(), bool((inputs == targets).all())
      ([3, 2, 2, 1, 4], True)
    """
    inputs_NT = draw.integers(data, size=(rows, length)).astype(np.int32)
    if noise:
        tokens_NT = data + draw.integers(noise_vocab, size=inputs_NT.shape)
        inputs_NT = np.where(draw.random(inputs_NT.shape) < noise, tokens_NT, inputs_NT).astype(np.int32)
    inputs_NT[:, -1] = compress
    return inputs_NT, inputs_NT.copy()
