"""From a source of text and a tokenizer to two memory-mapped splits, tokenised once.

The cache is a folder named after a hash of everything the ids depend on: the source's content,
the tokenizer, the split and the code of this package. It is written whole or not at all.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from jaxllm.atomic import new_folder
from jaxllm.data.chat import chat_template
from jaxllm.data.examples import COMPLETIONS, MESSAGES, TEXT, no_template
from jaxllm.data.pairs import pair_lengths
from jaxllm.data.sources import Piece, Source, open_source
from jaxllm.data.split import Split, assign, split_documents
from jaxllm.data.tokenizer import Tokenizer, is_trained, load_tokenizer
from jaxllm.data.tokens import Tokens, open_tokens, write_tokens
from jaxllm.errors import UserError
from jaxllm.user_cache import user_cache_folder


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenised corpus: a split to train on, one to validate on, and their tokenizer."""

    train: Tokens
    valid: Tokens
    tokenizer: Tokenizer
    kind: str = TEXT  # or "prompt and completion", "messages": examples


def prepare(
    source: str | os.PathLike,
    tokenizer: str | os.PathLike | Tokenizer = "gpt2",
    *,
    seq_len: int,
    valid_fraction: float = 0.1,
    valid_source: str | os.PathLike | None = None,
    text_column: str | None = None,
    long_examples: Literal["refuse", "skip"] = "refuse",
    pairs: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> Corpus:
    """Return the corpus, tokenising it the first time and mapping the cached result later.

    Args:
      source: "sotu" (embedded), a file, a folder, a pattern of files, "tfds:NAME" or
        "tfds:NAME:SPLIT", "hf:NAME"; see sources.open_source for what files may hold.
      tokenizer: a tokenizer, or what load_tokenizer accepts. "char" and "bpe:N" are trained here
        on the train split alone, and cached too.
      seq_len: the sequence length meant for training: each split must hold one sequence.
      valid_fraction: share of the text kept for validation; see split.split_documents.
      valid_source: text to validate on, of the same kind; None keeps `valid_fraction` of the source.
      text_column: the column of rows that holds the text; None looks for examples first, see
        sources.open_source.
      long_examples: what to do with examples that are longer than a sequence.
      pairs: prompts are sources, and completions answers to them, for an encoder-decoder.
      cache_dir: where to keep token files; if None, jaxllm/data in the user's cache folder
        (XDG_CACHE_HOME, or ~/.cache).

    Raises:
      UserError: for data that is missing, empty, unreadable or too short, an unknown tokenizer,
        examples that are too long, messages without a chat template, or a cache folder that cannot be
        written.
    """
    if seq_len < 1:
        raise UserError(f"seq_len is {seq_len}; expected at least 1")
    if not 0.0001 <= valid_fraction <= 0.9999:
        raise UserError(
            f"valid_fraction is {valid_fraction}; expected a share between 0.0001 and 0.9999, such as 0.1"
        )
    if isinstance(tokenizer, (str, os.PathLike)) and not is_trained(os.fspath(tokenizer)):
        tokenizer = load_tokenizer(tokenizer)  # First: a wrong name costs no reading.
    template = None if isinstance(tokenizer, (str, os.PathLike)) else chat_template(tokenizer)
    opened = open_source(source, text_column, template)
    if opened.kind == MESSAGES and template is None:
        raise no_template(f"'{opened.name}'", f"the tokenizer{_named(tokenizer)}")
    if pairs and opened.kind != COMPLETIONS:
        raise UserError(
            f"'{opened.name}' holds {opened.kind}, and an encoder-decoder learns to answer sources; give "
            "rows with the columns prompt and completion"
        )
    held = None if valid_source is None else open_source(valid_source, text_column, template)
    if held is not None and held.kind != opened.kind:
        raise UserError(
            f"'{opened.name}' holds {opened.kind}, and '{held.name}' to validate on holds {held.kind}; give "
            "both of one kind"
        )
    if held is not None and held.fingerprint == opened.fingerprint:
        raise UserError(
            f"'{held.name}' is to be held out and holds the same as '{opened.name}', which is trained on; "
            "give other text, or leave it out and a part of the text is held out"
        )
    root = Path(cache_dir) if cache_dir is not None else user_cache_folder() / "data"
    reading = _Reading(opened, valid_fraction, held)
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = _trained_tokenizer(os.fspath(tokenizer), reading, root)
    written_by = [template] if opened.kind == MESSAGES else ["pairs"] * pairs
    folder = root / "tokens" / _key(*reading.decided_by, tokenizer.fingerprint, *written_by)
    splits = open_tokens(folder)
    if splits is None:
        with new_folder(folder, is_whole=lambda made: open_tokens(made) is not None) as partial:
            assigned, examples = reading.assigned("tokenise"), opened.kind != TEXT
            write_tokens(assigned, tokenizer, partial, examples, pairs, reading.split.copies)
        splits = open_tokens(folder)
    if opened.kind == TEXT:
        _check_length(reading, splits, seq_len)
    elif long_examples == "refuse":
        _check_examples(reading, splits, seq_len, pairs)
    return Corpus(splits["train"], splits["valid"], tokenizer, opened.kind)


def fingerprint(
    source: str | os.PathLike,
    tokenizer: str | os.PathLike | Tokenizer | None = None,
    text_column: str | None = None,
    valid_source: str | os.PathLike | None = None,
) -> str:
    """Return a hash of the content of sources, and of a tokenizer: the same wherever they lie.

    Args:
      source: as of `prepare`; and so the others. A tokenizer that is trained on the source is its name.
    """
    if isinstance(tokenizer, (str, os.PathLike)) and not is_trained(os.fspath(tokenizer)):
        tokenizer = load_tokenizer(tokenizer)
    sources = [open_source(one, text_column).fingerprint for one in (source, valid_source) if one is not None]
    return _key(*sources, getattr(tokenizer, "fingerprint", tokenizer))


@dataclasses.dataclass(frozen=True)
class _Reading:
    """A source with its split, which is worked out only if the cache does not have the answer."""

    source: Source
    valid_fraction: float
    valid: Source | None  # in place of the fraction

    @property
    def decided_by(self) -> tuple[str, ...]:
        """What decides which text is on which side."""
        held = str(self.valid_fraction) if self.valid is None else self.valid.fingerprint
        return self.source.fingerprint, held

    @functools.cached_property
    def split(self) -> Split:
        if self.valid is not None:
            return Split(np.zeros(0, bool), None, 0)
        pieces = self._watched(self.source.pieces(), "read", None)
        return split_documents(pieces, self.source.name, self.valid_fraction)

    def assigned(self, task: str) -> Iterator[tuple[str, Piece]]:
        """Yield (side, piece) for a whole pass over the documents."""
        pieces = self._watched(self.source.pieces(), task, self.split.num_bytes or None)
        if self.valid is None:
            return assign(pieces, self.split)
        held = self._watched(self.valid.pieces(), task, None)
        return itertools.chain((("train", piece) for piece in pieces), (("valid", piece) for piece in held))

    def number(self, side: str, place: int) -> int:
        """Return which document of its source a document of a side is, counted from 1."""
        if self.valid is not None:
            return place + 1
        return int(np.flatnonzero(self.split.is_valid == (side == "valid"))[place]) + 1

    def name(self, side: str) -> str:
        """Return what the source of a side is called."""
        return self.source.name if self.valid is None or side == "train" else self.valid.name

    def train_texts(self) -> Iterator[str]:
        """Yield the pieces to train on."""
        return (piece.text for side, piece in self.assigned("learn") if side == "train")

    def _watched(self, pieces: Iterator[Piece], task: str, total: int | None) -> Iterator[Piece]:
        """Yield the pieces, with a progress bar if it takes more than two seconds."""
        from tqdm import tqdm

        bar = tqdm(
            desc=f"{task} {self.source.name}",
            total=total,
            unit="B",
            unit_scale=True,
            delay=2,
            leave=False,
            disable=None,  # Silent where nobody watches: logs and tests.
        )
        with bar:
            for piece in pieces:
                yield piece
                bar.update(len(piece.text.encode()))


def _trained_tokenizer(spec: str, reading: _Reading, root: Path) -> Tokenizer:
    key = _key(*reading.decided_by, spec)
    folder = root / "tokenizers" / key
    if not _holds_tokenizer(folder):
        with new_folder(folder, is_whole=_holds_tokenizer) as partial:
            load_tokenizer(spec, documents=reading.train_texts()).save(partial / "tokenizer.json")
    return load_tokenizer(folder)


def _holds_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def _key(*parts: object) -> str:
    return hashlib.sha256("\n".join([_reading_code(), *map(str, parts)]).encode()).hexdigest()[:32]


@functools.cache
def _reading_code() -> str:
    """Return a hash of this package: how text is read, split, tokenised and stored decides the ids too."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _named(tokenizer) -> str:
    return f" '{tokenizer}'" if isinstance(tokenizer, (str, os.PathLike)) else ""


def _check_examples(reading: _Reading, splits: dict[str, Tokens], seq_len: int, pairs: bool) -> None:
    """Refuse examples that a row cannot hold: without its end, or its prompt, one teaches something else."""
    # The tokens that a row must have room for: all but the last, which is predicted alone.
    sizes = {
        side: np.maximum(*pair_lengths(tokens)) if pairs else tokens.lengths - 1
        for side, tokens in splits.items()
    }
    long = {side: np.flatnonzero(size > seq_len) for side, size in sizes.items()}
    count = sum(map(len, long.values()))
    if not count:
        return
    side = "train" if len(long["train"]) else "valid"
    number = reading.number(side, long[side][0])
    first = sizes[side][long[side][0]]
    total = sum(tokens.num_documents for tokens in splits.values())
    most = max(int(size.max()) for size in sizes.values())
    raise UserError(
        f"{count} of {total} examples of '{reading.name(side)}' are longer than seq_len {seq_len} (the first "
        f"is number {number}, of {first} tokens); raise seq_len to at least {most}, shorten them, or leave "
        "them out with long_examples skip"
    )


def _check_length(reading: _Reading, splits: dict[str, Tokens], seq_len: int) -> None:
    for side, tokens in splits.items():
        if len(tokens) < seq_len + 1:
            kind = "training" if side == "train" else "validation"
            raise UserError(
                f"the {kind} part of '{reading.name(side)}' has {len(tokens)} tokens, shorter than one "
                f"sequence of seq_len {seq_len} and its next token; give more text or a smaller seq_len"
            )
