"""Tokenizers that the `tokenizers` library runs: GPT-2's, a trained BPE, any tokenizer.json."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxllm.atomic import write_file
from jaxllm.data import embedded
from jaxllm.data.companions import Companions
from jaxllm.errors import UserError, brief
from jaxllm.quiet_start import held_stderr

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
_PROBE = "The naïve \N{SNOWMAN} of 1984,\n\tagain!"  # letters, digits, spaces, more than one byte
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
    """A tokenizer of the `tokenizers` library.

    Attributes:
      backend: the library's own, as its file says.
      eos_id: ends a document.
      companions: what came beside the file: BOS, ends of turns, a chat template.
    """

    backend: "tokenizers.Tokenizer"
    eos_id: int
    companions: Companions = Companions()

    def __repr__(self) -> str:
        return f"HuggingFaceTokenizer({self.vocab_size:,} ids, eos_id={self.eos_id})"

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id (some vocabularies have gaps)."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the serialised tokenizer and of eos."""
        return hashlib.sha256(f"{self.eos_id} {self.backend.to_str()}".encode()).hexdigest()

    @functools.cached_property
    def begin_ids(self) -> tuple[int, ...]:
        """What every text begins with: BOS where the tokenizer asks for it, or nothing."""
        return _begin_ids(self.backend)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end what a model writes: a document's end and, in chat models, a turn's."""
        ends = [self.eos_id, self.backend.token_to_id(self.companions.token("eos_token") or "")]
        ends += self.companions.eos_ids()
        return tuple(sorted({end for end in ends if end is not None}))

    def encode(self, text: str) -> np.ndarray:
        """Return ids [n], int32, of a document; see `Tokenizer`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return one array of ids a text, on all cores."""
        with _library("cannot encode a text"):
            encodings = self._documents.encode_batch_fast(texts, add_special_tokens=False)
            return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_with_ends(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ids [n], and for each the offset in characters where its text ends, int32 [n]."""
        with _library("cannot encode a text"):
            encoding = self._documents.encode(text, add_special_tokens=False)
            return np.array(encoding.ids, np.int32), np.array([end for _, end in encoding.offsets], np.int32)

    def encode_prompt(self, text: str) -> np.ndarray:
        """Return ids [n], int32: `begin_ids`, then the text with every special token recognised."""
        with _library("cannot encode a text"):
            ids = self.backend.encode(text, add_special_tokens=False).ids
            begun = tuple(ids[: len(self.begin_ids)]) == self.begin_ids  # Chat templates write BOS.
            return np.array(ids if begun else [*self.begin_ids, *ids], np.int32)

    def encode_marked(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return what `encode_with_ends` does, of a text that a chat template wrote.

        Every special token is recognised, and nothing put before it: the template writes BOS.
        """
        with _library("cannot encode a text"):
            encoding = self.backend.encode(text, add_special_tokens=False)
            return np.array(encoding.ids, np.int32), np.array([end for _, end in encoding.offsets], np.int32)

    def encode_pair(self, text: str, second: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids [n], which text each belongs to [n]), int32, special tokens added as an encoder reads.

        BERT's are "[CLS] text [SEP]", or "[CLS] text [SEP] second [SEP]" with types 0 and then 1.
        """
        with _library("cannot encode a text"):
            encoding = self.backend.encode(text, second)
            return np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; eos and other special tokens appear by name.

        A byte that belongs to no character reads as U+FFFD, and changes nothing before it: a text that
        is decoded while it grows changes in its last character only.
        """
        with _library("cannot decode ids"):
            return self.backend.decode(self._whole_characters(map(int, ids)), skip_special_tokens=False)

    def save(self, path: str | os.PathLike) -> None:
        """Write a tokenizer.json that load_tokenizer and Hugging Face libraries read, and its companions."""
        write_file(path, self.backend.to_str(pretty=False).encode())
        self.companions.write(Path(path).parent)

    @functools.cached_property
    def _documents(self) -> "tokenizers.Tokenizer":
        """The backend that reads documents: the end of one is placed by who packs them, not by a text."""
        from tokenizers import Tokenizer

        content = json.loads(self.backend.to_str())
        for token in content["added_tokens"]:
            token["special"] = token["id"] == self.eos_id
        backend = Tokenizer.from_str(json.dumps(content))
        backend.encode_special_tokens = True  # as text
        return backend

    @functools.cached_property
    def _byte_ids(self) -> list[int]:
        """Return the id of each byte in a vocabulary that falls back to bytes; else nothing."""
        ids = [self.backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        return [] if None in ids else ids

    @functools.cached_property
    def _bytes(self) -> dict[int, int]:
        return {i: byte for byte, i in enumerate(self._byte_ids)}

    def _whole_characters(self, ids: Iterable[int]) -> list[int]:
        """Put U+FFFD's bytes in place of bytes that are no character.

        The library would turn a whole run of bytes into U+FFFD for one that is wrong or still to come.
        """
        whole = []
        for is_bytes, run in itertools.groupby(ids, self._bytes.__contains__):
            if is_bytes:
                text = bytes(self._bytes[i] for i in run).decode(errors="replace")
                run = (self._byte_ids[byte] for byte in text.encode())
            whole += run
        return whole


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


def from_json(content: str, name: str, companions: Companions = Companions()) -> HuggingFaceTokenizer:
    """Return the tokenizer that a tokenizer.json's text describes; `name` is for messages."""
    import tokenizers

    with held_stderr(), _library(f"'{name}' is not a Hugging Face tokenizer.json"):  # a panic prints a trace
        backend = tokenizers.Tokenizer.from_str(content)
        # A file may ask for truncation or padding; either would silently change the corpus.
        backend.no_truncation()
        backend.no_padding()
        backend.decode(backend.encode(_PROBE).ids)  # some parts fail only when they are used
        return _finish(backend, name, companions)


@contextlib.contextmanager
def _library(what: str) -> Iterator[None]:
    """Tell what the `tokenizers` library raises in one sentence; a panic of its is not even an Exception."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{what}: the tokenizers library says {brief(str(error))}; check the file") from error


def _byte_level(model: "tokenizers.models.Model") -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def _finish(
    backend: "tokenizers.Tokenizer", name: str, companions: Companions = Companions()
) -> HuggingFaceTokenizer:
    ends = map(backend.token_to_id, (*_END_TOKENS, companions.token("eos_token") or ""))
    eos_id = next((i for i in ends if i is not None), None)
    if eos_id is None:
        raise UserError(
            f"the tokenizer '{name}' has no end-of-text token; expected its vocabulary to hold one "
            f"of {', '.join(_END_TOKENS)}: add one to the file"
        )
    if companions.add_bos is not None:
        _set_begin(backend, companions.token("bos_token") if companions.add_bos else None, name)
    tokenizer = HuggingFaceTokenizer(backend, eos_id, companions)
    _ = tokenizer.begin_ids  # A broken post-processor shows here.
    if tokenizer.stop_ids[-1] >= tokenizer.vocab_size:
        raise UserError(
            f"{tokenizer.stop_ids[-1]} ends a text generated with the tokenizer '{name}' (eos_token_id), but "
            f"its ids end at {tokenizer.vocab_size - 1}; give the files of one model"
        )
    return tokenizer


def _set_begin(backend: "tokenizers.Tokenizer", bos: str | None, name: str) -> None:
    """Make texts begin with `bos`, or with nothing, whatever the file's post-processor adds."""
    from tokenizers import processors

    bos_id = None if bos is None else backend.token_to_id(bos)
    if bos is not None and bos_id is None:
        raise UserError(f"the tokenizer '{name}' asks for the token '{bos:.40}' before texts, and has none")
    if _begin_ids(backend) != (() if bos_id is None else (bos_id,)):
        single = "$A" if bos is None else [bos, "$A"]
        special = [] if bos is None else [(bos, bos_id)]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)


def _begin_ids(backend: "tokenizers.Tokenizer") -> tuple[int, ...]:
    """Return the ids that the post-processor puts before a text."""
    try:
        backend.encode("a", add_special_tokens=False)
    except Exception:  # The library's, of a vocabulary with neither the letter nor an unknown token.
        return ()
    encoding = backend.encode("a")
    pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    return tuple(i for i, _ in itertools.takewhile(lambda pair: pair[1], pairs))
