"""Tokenizers that the `tokenizers` library runs: GPT-2's, a trained BPE, any tokenizer.json."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from jaxllm.atomic import write_file
from jaxllm.data import embedded
from jaxllm.errors import UserError

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
MIN_SIZE = 257  # Every byte, and the end-of-text token.

# What ends a document in published vocabularies, the first found wins. Names of turn ends
# (<|eot_id|>, <|im_end|>) are left out on purpose: they end a chat message, not a document.
_END_TOKENS = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<|end▁of▁sentence|>",
    "[SEP]",
)


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, `backend`, that treats all text as plain text."""

    backend: "tokenizers.Tokenizer"
    eos_id: int

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id (some vocabularies have gaps)."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the serialised tokenizer and of eos."""
        return hashlib.sha256(f"{self.eos_id} {self.backend.to_str()}".encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Return ids [n], int32, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return one array of ids a text, on all cores."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_with_ends(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ids [n], and for each the offset in characters where its text ends, int32 [n]."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.int32), np.array([end for _, end in encoding.offsets], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; eos and other special tokens appear by name."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def save(self, path: str | os.PathLike) -> None:
        """Write a tokenizer.json that load_tokenizer and Hugging Face libraries read."""
        write_file(path, self.backend.to_str(pretty=False).encode())


@functools.cache
def gpt2() -> HuggingFaceTokenizer:
    """Return GPT-2's tokenizer: 50,257 ids, eos 50256."""
    from tokenizers import models

    model = models.BPE(vocab=embedded.gpt2_vocabulary(), merges=embedded.gpt2_merges())
    return _finish(_byte_level(model), "gpt2")


def train(documents: Iterable[str], size: int) -> HuggingFaceTokenizer:
    """Return a byte-level BPE of exactly `size` ids, learned from `documents`; eos is 0.

    The pre-tokenizer is GPT-2's, so merges never cross words. The result depends on the texts
    and the size alone.

    Raises:
      UserError: if the text has too few distinct pieces for that many ids.
    """
    from tokenizers import models, pre_tokenizers, trainers

    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    if backend.get_vocab_size() < size:
        raise UserError(
            f"the text is too small for the tokenizer 'bpe:{size}': it has only "
            f"{backend.get_vocab_size()} distinct pieces; give more text or at most "
            f"bpe:{backend.get_vocab_size()}"
        )
    return _finish(backend, f"bpe:{size}")


def from_json(content: str, name: str) -> HuggingFaceTokenizer:
    """Return the tokenizer that a tokenizer.json's text describes; `name` is for messages."""
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # The library raises bare Exception for anything unreadable.
        raise UserError(
            f"the file '{name}' is not a Hugging Face tokenizer.json ({error}); expected one, or a "
            "file that a jaxllm tokenizer saved"
        ) from error
    # A file may ask for truncation or padding; either would silently change the corpus.
    backend.no_truncation()
    backend.no_padding()
    return _finish(backend, name)


def _byte_level(model: "tokenizers.models.Model") -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def _finish(backend: "tokenizers.Tokenizer", name: str) -> HuggingFaceTokenizer:
    backend.encode_special_tokens = True  # Special tokens' names inside a text are text.
    ends = (backend.token_to_id(token) for token in _END_TOKENS)
    eos_id = next((i for i in ends if i is not None), None)
    if eos_id is None:
        raise UserError(
            f"the tokenizer '{name}' has no end-of-text token; expected its vocabulary to hold one "
            f"of {', '.join(_END_TOKENS)}: add one to the file"
        )
    return HuggingFaceTokenizer(backend, eos_id)
