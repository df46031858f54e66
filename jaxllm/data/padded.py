"""Texts as an encoder reads them: special tokens around each, padded to one length."""

from collections.abc import Sequence

import numpy as np

from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError


def encode_padded(
    tokenizer: HuggingFaceTokenizer, texts: Sequence[str | tuple[str, str]], *, longest: int | None = None
) -> dict[str, np.ndarray]:
    """Return {"tokens", "mask", "token_types"} of texts, int32 [B, T], padding on the right.

    The mask is 1 at tokens and 0 at padding, whose id is the tokenizer's [PAD], or 0: `models.trunk` takes it
    as `segment_ids`.

    Args:
      tokenizer: of a tokenizer.json, whose post-processor says which special tokens stand around texts.
      texts: texts, or pairs of them.
      longest: the model's context_length; None: any length is good.

    Raises:
      UserError: no texts, or one that is longer.
    """
    if not texts:
        raise UserError("no texts to encode; give one at least")
    encoded = [tokenizer.encode_pair(*([text] if isinstance(text, str) else text)) for text in texts]
    T = max(len(ids) for ids, _ in encoded)
    if longest is not None and T > longest:
        raise UserError(f"a text of {T} tokens does not fit context_length={longest}; cut it up")
    tokens_BT = np.full((len(texts), T), pad_id(tokenizer), np.int32)
    mask_BT, types_BT = np.zeros_like(tokens_BT), np.zeros_like(tokens_BT)
    for row, (ids, types) in enumerate(encoded):
        tokens_BT[row, : len(ids)], types_BT[row, : len(ids)], mask_BT[row, : len(ids)] = ids, types, 1
    return {"tokens": tokens_BT, "mask": mask_BT, "token_types": types_BT}


def pad_id(tokenizer: Tokenizer) -> int:
    """Return the id of padding: of [PAD] or <pad>, or 0; no token that is read sees it."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return 0
    return next((i for i in map(tokenizer.backend.token_to_id, ("[PAD]", "<pad>")) if i is not None), 0)
