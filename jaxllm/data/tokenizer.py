"""Choose a tokenizer by name: "gpt2", "bytes", "char", "bpe:4096", or a saved file."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxllm.data import bpe
from jaxllm.data.companions import Companions, read_companions
from jaxllm.data.simple_tokenizers import ByteTokenizer, CharTokenizer
from jaxllm.errors import UserError, brief, unknown
from jaxllm.json_file import parse_json, read_bounded

_MOST_BYTES, _MOST_IDS = 2**28, 2**24
_MOST_TRAINED = 2**20  # the library makes room for so many before it has read a text


class Tokenizer(Protocol):
    """What every tokenizer offers. Ids are int32 arrays of shape [n].

    `encode` is for documents and adds no special token. It recognises those of a tokenizer.json (the
    "<|im_start|>" of a chat model, say) but for the end of a document, which whoever packs documents
    marks with `eos_id`: the string "<|endoftext|>" inside a text is text. What stands before every
    document, if anything, is `begin_ids`; prompts are for `encode_prompt`.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, eos included."""

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""

    @property
    def fingerprint(self) -> str:
        """A hash that two tokenizers share only if they give the same ids."""

    def encode(self, text: str) -> np.ndarray: ...

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]: ...

    def encode_with_ends(self, text: str) -> tuple[np.ndarray, np.ndarray]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def save(self, path: str | os.PathLike) -> None: ...


def begin_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return what every document begins with: BOS where the tokenizer asks for it, or nothing."""
    return tokenizer.begin_ids if isinstance(tokenizer, bpe.HuggingFaceTokenizer) else ()


def start_id(tokenizer: Tokenizer) -> int:
    """Return the id that stands before a document's first token: BOS, or the end of another document."""
    return [tokenizer.eos_id, *begin_ids(tokenizer)][-1]


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end what a model writes: a document's end and, in chat models, a turn's."""
    return tokenizer.stop_ids if isinstance(tokenizer, bpe.HuggingFaceTokenizer) else (tokenizer.eos_id,)


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids to continue: special tokens recognised, BOS first where the tokenizer asks for it.

    An empty prompt is the start of a document, `start_id`.
    """
    is_theirs = isinstance(tokenizer, bpe.HuggingFaceTokenizer)
    ids = tokenizer.encode_prompt(text) if is_theirs else tokenizer.encode(text)
    return list(map(int, ids)) or [start_id(tokenizer)]


def single_token(tokenizer: Tokenizer, text: str) -> int:
    """Return the id of a text that is one token, such as the letter " A" of a multiple-choice question.

    Raises:
      UserError: it is several tokens, or none.

    Examples:
      >>> single_token(load_tokenizer("gpt2"), " A")
      317
    """
    ids = tokenizer.encode(text).tolist()
    if len(ids) != 1:
        raise UserError(
            f"{brief(text)} is {len(ids)} tokens of this tokenizer, and must be one; choose a text that is "
            "one, with or without the space before it, or a tokenizer that has it"
        )
    return ids[0]


def encode_source(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids that an encoder reads to answer: those of a prompt, then the end of a document."""
    ids = encode_prompt(tokenizer, text) if text else []
    return ids if ids[-1:] == [tokenizer.eos_id] else [*ids, tokenizer.eos_id]


def is_trained(spec: str) -> bool:
    """Say whether `spec` names a tokenizer that must be trained on text first."""
    return spec == "char" or spec.startswith("bpe:")


def load_tokenizer(spec: str | os.PathLike, *, documents: Iterable[str] | None = None) -> Tokenizer:
    """Return the tokenizer that `spec` names.

    Args:
      spec: "gpt2" (OpenAI's BPE, embedded), "bytes" (UTF-8), "char" (the characters of
        `documents`), "bpe:N" (a byte-level BPE of N ids trained on `documents`), the path of a
        tokenizer.json or of a file that `save` wrote, or a folder that holds a tokenizer.json
        (tokenizer_config.json and generation_config.json beside it are read too).
      documents: training texts for "char" and "bpe:N": the train split only.

    Raises:
      UserError: if the name is unknown, the file unusable, or `documents` missing or too small.

    Examples:
      >>> load_tokenizer("gpt2").encode("Hello world, tiny GPT").tolist()
      [15496, 995, 11, 7009, 402, 11571]
      >>> tokenizer = load_tokenizer("char", documents=["banana"])
      >>> tokenizer.encode("nab").tolist(), tokenizer.vocab_size  # a, b, n, unknown, eos
      ([2, 0, 1], 5)
    """
    spec = os.fspath(spec)
    if spec == "gpt2":
        return bpe.gpt2()
    if spec == "bytes":
        return ByteTokenizer()
    if is_trained(spec):
        size = _bpe_size(spec) if spec != "char" else None
        if documents is None:
            raise UserError(
                f"the tokenizer '{spec}' is trained on text: pass documents=, an iterable "
                "of strings"
            )
        documents = [documents] if isinstance(documents, str) else documents
        return CharTokenizer.train(documents) if size is None else bpe.train(documents, size)
    path = Path(os.path.expanduser(spec))
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.is_file():
        return _load_file(path)
    if path.name.endswith(".json") or os.sep in spec:
        raise UserError(
            f"no tokenizer at '{path}'; give the path of a Hugging Face tokenizer.json (or of its "
            "folder), or one of gpt2, bytes, char, bpe:N"
        )
    raise unknown("tokenizer", spec, ["gpt2", "bytes", "char", "bpe:4096", "PATH/tokenizer.json"])


def _bpe_size(spec: str) -> int:
    size = spec.removeprefix("bpe:")
    if not size.isdecimal() or len(size) > 7 or not bpe.MIN_SIZE <= int(size) <= _MOST_TRAINED:
        raise UserError(
            f"the tokenizer {brief(spec)} needs a whole number of at least {bpe.MIN_SIZE} (the 256 bytes and "
            f"the end-of-text token) and at most {_MOST_TRAINED} after 'bpe:', such as bpe:4096"
        )
    return int(size)


def _load_file(path: Path) -> Tokenizer:
    text = read_bounded(path, _MOST_BYTES)
    content = parse_json(text, f"the tokenizer file '{path}'")
    kind = content.get("jaxllm_tokenizer")
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "char" and isinstance(content.get("alphabet"), str):
        return CharTokenizer(content["alphabet"])
    companions = read_companions(path.parent) if path.name == "tokenizer.json" else Companions()
    _check_ids(content, path)
    return bpe.from_json(text.decode(), str(path), companions)


def _check_ids(content: dict, path: Path) -> None:
    """Refuse ids that are given twice, or too large: the library makes room for all ids below one."""
    model, added = content.get("model"), content.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = [one for one in vocab.values() if type(one) is int] if isinstance(vocab, dict) else []
    if len(set(ids)) < len(ids):
        raise UserError(f"the tokenizer file '{path}' gives two tokens the same id; the file is damaged")
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    for one in ids:
        if type(one) is int and not 0 <= one < _MOST_IDS:
            raise UserError(
                f"the tokenizer file '{path}' gives a token the id {brief(one)}; expected one from 0 to "
                f"{_MOST_IDS - 1}"
            )
