"""Sources and their answers as batches for an encoder-decoder: one pair a row, each padded on the right."""

import numpy as np

from jaxllm.data.tokens import Tokens


def pair_lengths(tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Return how many ids each document's source and answer have, ends included: int64 [documents] each."""
    answers_N = np.add.reduceat(tokens.predicted, tokens.starts, dtype=np.int64)
    return tokens.lengths - answers_N, answers_N


def gather_pairs(
    tokens: Tokens, documents_B: np.ndarray, seq_len: int, start_id: int
) -> dict[str, np.ndarray]:
    """Return some documents as rows, all [B, seq_len]; rows past the last document count nothing.

    Returns:
      source, source_mask: int32, what the encoder reads, and 1 where it is no padding.
      tokens: int32, `start_id` and the answer, which the decoder reads.
      targets, mask: int32 and float32, the answer with its end, and 1 where it counts.

    Examples:
      >>> ids, predicted = np.array([5, 6, 1, 7, 1], np.uint16), np.array([0, 0, 0, 1, 1], bool)
      >>> pair = Tokens(ids, starts=np.array([0]), num_bytes=1, predicted=predicted)
      >>> batch = gather_pairs(pair, np.array([0]), 4, start_id=0)
      >>> batch["source"].tolist(), batch["tokens"].tolist(), batch["targets"].tolist()
      ([[5, 6, 1, 0]], [[0, 7, 0, 0]], [[7, 1, 0, 0]])
    """
    shape = (len(documents_B), seq_len)
    source, source_mask, read, targets = (np.zeros(shape, np.int32) for _ in range(4))
    mask = np.zeros(shape, np.float32)
    read[:, 0] = start_id
    source_mask[:, 0] = 1  # a row of nothing sees its one token
    for row, number in enumerate(documents_B):
        if number >= tokens.num_documents:
            continue
        ids, begin = tokens.document(int(number)), tokens.starts[number]
        predicted = tokens.predicted[begin : begin + len(ids)]
        prompt, answer = ids[~predicted], ids[predicted]
        source[row, : len(prompt)], source_mask[row, : len(prompt)] = prompt, 1
        targets[row, : len(answer)], mask[row, : len(answer)] = answer, 1
        read[row, 1 : len(answer)] = answer[:-1]
    return {"source": source, "source_mask": source_mask, "tokens": read, "targets": targets, "mask": mask}
