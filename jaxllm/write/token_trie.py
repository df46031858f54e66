"""A vocabulary in the order of its tokens' bytes: which tokens may come where some text must follow."""

import bisect
import json

import numpy as np

from jaxllm.data import Tokenizer
from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.data.simple_tokenizers import ByteTokenizer, CharTokenizer


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """Return what each id writes, [V]; None of special tokens, and of those that no text has.

    Examples:
      >>> from jaxllm.data import load_tokenizer
      >>> token_bytes(load_tokenizer("bytes"))[97:99], token_bytes(load_tokenizer("bytes"))[-1]
      ([b'a', b'b'], None)
    """
    if isinstance(tokenizer, ByteTokenizer):
        return [bytes([i]) for i in range(256)] + [None]
    if isinstance(tokenizer, CharTokenizer):
        return [character.encode() for character in tokenizer.alphabet] + [None, None]
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return [_or_none(tokenizer.decode([i])) for i in range(tokenizer.vocab_size)]
    content = json.loads(tokenizer.backend.to_str())
    special = {token["content"] for token in content["added_tokens"] if token["special"]}
    is_bytes = "ByteLevel" in json.dumps(content["decoder"])
    written: list[bytes | None] = [None] * tokenizer.vocab_size
    for piece, i in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if piece in special or i == tokenizer.eos_id:
            continue
        if is_bytes and all(c in _BYTES for c in piece):
            written[i] = bytes(_BYTES[c] for c in piece)
        elif len(piece) == 6 and piece.startswith("<0x"):
            written[i] = bytes([int(piece[3:5], 16)])
        else:
            written[i] = piece.replace("▁", " ").encode()
    return written


def _or_none(text: str) -> bytes | None:
    return text.encode() if text and "\ufffd" not in text else None


def _characters_of_bytes() -> dict[str, int]:
    """Return GPT-2's printable character of each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


_BYTES = _characters_of_bytes()


class TokenTrie:
    """The tokens of a vocabulary, sorted by what they write: each prefix is one range of them.

    Attributes:
      written: what each id writes; None of special tokens.
      ends_word_V: tokens that begin with a space or a line's end, or are special: a word ends before them.

    Examples:
      >>> trie = TokenTrie([b"in", b"inv", b"i", b"voice", b" in", None])
      >>> trie.allowed(b"inv").tolist()  # what starts with it, or it starts with
      [1, 0, 2]
      >>> trie.allowed(b"").tolist()
      [4, 2, 0, 1, 3]
    """

    def __init__(self, written: list[bytes | None]):
        self.written = written
        ids = [i for i, piece in enumerate(written) if piece]
        ids.sort(key=lambda i: written[i])
        self._sorted, self._ids = [written[i] for i in ids], np.array(ids, np.int32)
        self.ends_word_V = np.array([not piece or piece[:1] in (b" ", b"\n", b"\t") for piece in written])

    def __len__(self) -> int:
        return len(self.written)

    def starting(self, need: bytes) -> np.ndarray:
        """Return ids of tokens that start with some bytes, sorted by what they write."""
        first = bisect.bisect_left(self._sorted, need)
        last = bisect.bisect_left(self._sorted, need + b"\xff" * 8) if need else len(self._sorted)
        return self._ids[first:last]

    def allowed(self, need: bytes) -> np.ndarray:
        """Return ids of tokens that may come where `need` must follow, those that cover it first."""
        shorter = []
        for end in range(len(need) - 1, 0, -1):
            first = bisect.bisect_left(self._sorted, need[:end])
            while first < len(self._sorted) and self._sorted[first] == need[:end]:
                shorter.append(self._ids[first])
                first += 1
        return np.concatenate([self.starting(need), np.array(shorter, np.int32)])
