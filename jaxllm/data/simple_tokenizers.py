"""Tokenizers without merges: one id a UTF-8 byte, or one id a character."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable

import numpy as np

from jaxllm.atomic import write_file
from jaxllm.errors import UserError

END_OF_TEXT = "<|endoftext|>"  # How eos reads when decoded, as in GPT-2.


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Map text to its UTF-8 bytes, ids 0 to 255; 256 is eos.

    Examples:
      >>> ByteTokenizer().encode("é!").tolist()
      [195, 169, 33]
      >>> ByteTokenizer().decode([195, 169, 33, 256])
      'é!<|endoftext|>'
    """

    vocab_size = 257
    eos_id = 256
    fingerprint = hashlib.sha256(b"jaxllm bytes 1").hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Return ids [n], int32."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return one array of ids a text."""
        return [self.encode(text) for text in texts]

    def encode_with_ends(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ids [n], and for each the offset in characters where its text ends, int32 [n]."""
        bytes_of = [len(character.encode()) for character in text]
        return self.encode(text), np.repeat(np.arange(1, len(text) + 1, dtype=np.int32), bytes_of)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; bytes that are not UTF-8, and ids past eos, read as U+FFFD."""
        special = {256: END_OF_TEXT.encode()}
        pieces = (bytes([i]) if 0 <= i < 256 else special.get(i, b"\xff") for i in map(int, ids))
        return b"".join(pieces).decode(errors="replace")

    def save(self, path: str | os.PathLike) -> None:
        """Write one small JSON file that load_tokenizer restores."""
        write_file(path, json.dumps({"jaxllm_tokenizer": "bytes"}).encode())


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """Map each character of a sorted alphabet to an id; then one id for others; then eos.

    A character outside the alphabet (one that only the validation split has, say) takes the
    "unknown" id and decodes as U+FFFD: the only loss in any tokenizer here.
    """

    alphabet: str

    @classmethod
    def train(cls, documents: Iterable[str]) -> "CharTokenizer":
        """Return the tokenizer of all the characters in `documents`."""
        characters: set[str] = set()
        for text in documents:
            characters.update(text)
        if not characters:
            raise UserError("the tokenizer 'char' needs text to learn its characters, got none")
        return cls("".join(sorted(characters)))

    @property
    def unknown_id(self) -> int:
        """The id of every character outside the alphabet."""
        return len(self.alphabet)

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""
        return len(self.alphabet) + 1

    @property
    def vocab_size(self) -> int:
        """The alphabet, the unknown character and eos."""
        return len(self.alphabet) + 2

    def __repr__(self) -> str:
        return f"CharTokenizer({self.vocab_size:,} ids)"

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the alphabet."""
        return hashlib.sha256(b"jaxllm char 1 " + self.alphabet.encode()).hexdigest()

    @functools.cached_property
    def _codes(self) -> np.ndarray:
        return _code_points(self.alphabet)

    def encode(self, text: str) -> np.ndarray:
        """Return ids [n], int32, one a character (code point)."""
        codes = _code_points(text)
        ids = np.searchsorted(self._codes, codes)
        known = self._codes[np.minimum(ids, len(self._codes) - 1)] == codes
        return np.where(known, ids, self.unknown_id).astype(np.int32)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return one array of ids a text."""
        return [self.encode(text) for text in texts]

    def encode_with_ends(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ids [n], and for each the offset in characters where its text ends, int32 [n]."""
        return self.encode(text), np.arange(1, len(text) + 1, dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; the unknown id, and ids past eos, read as U+FFFD."""
        symbols = [*self.alphabet, "\ufffd", END_OF_TEXT]
        return "".join(symbols[i] if 0 <= i < len(symbols) else "\ufffd" for i in map(int, ids))

    def save(self, path: str | os.PathLike) -> None:
        """Write one small JSON file that load_tokenizer restores."""
        content = {"jaxllm_tokenizer": "char", "alphabet": self.alphabet}
        write_file(path, json.dumps(content).encode())


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
