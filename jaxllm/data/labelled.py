"""Texts with labels: a label of each, or of each of its words; from rows, and as batches for an encoder."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.data.files import find_text
from jaxllm.data.padded import pad_id
from jaxllm.data.rows import Row, row_reader
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError, brief, unknown

NO_LABEL = -100  # the target of a token that carries none; no loss counts it

Text = str | tuple[str, str] | Sequence[str]  # a text, two that are read together, or words


@dataclass(frozen=True)
class Labelled:
    """Texts, or pairs of them, with a label each; or texts as lists of words, with a label a word.

    Raises:
      UserError: not as many labels as texts or words, or labels that are no text or number.

    Examples:
      >>> Labelled(["good", "bad"], ["+", "-"]).classes
      ('+', '-')
      >>> Labelled([["so", "it", "goes"]], [["O", "O", "PERIOD"]]).classes
      ('O', 'PERIOD')
    """

    texts: Sequence[Text]
    labels: Sequence[Any]

    def __post_init__(self):
        texts, labels = list(self.texts), list(self.labels)
        if len(texts) != len(labels):
            raise UserError(f"{len(texts)} texts have {len(labels)} labels; give each text its own")
        if not texts:
            raise UserError("no labelled texts; give one at least")
        of_words = isinstance(labels[0], list | tuple | np.ndarray)
        check_texts(texts, of_words)
        if of_words:
            for number, (words, own) in enumerate(zip(texts, labels, strict=True)):
                if not isinstance(own, list | tuple | np.ndarray) or len(own) != len(words):
                    raise UserError(
                        f"text {number} has {len(words)} words and the labels {brief(own, 60)}; give each "
                        "word one"
                    )
            labels = [[_name(label, number) for label in own] for number, own in enumerate(labels)]
        else:
            labels = [_name(label, number) for number, label in enumerate(labels)]
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "labels", labels)

    @property
    def of_words(self) -> bool:
        """Whether each word has a label, and not each text."""
        return isinstance(self.labels[0], list)

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The distinct labels, sorted."""
        return tuple(sorted({label for own in self.labels for label in (own if self.of_words else [own])}))

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> "Labelled":
        """Return some of them."""
        return Labelled([self.texts[row] for row in rows], [self.labels[row] for row in rows])

    def split(self, every: int, seed: int = 0) -> tuple["Labelled", "Labelled"]:
        """Return (all but one in `every`, those), drawn at random.

        Raises:
          UserError: there are too few.
        """
        if len(self) < 2:
            raise UserError("one labelled text cannot be divided; give more, or what is held out beside it")
        order = np.random.default_rng(seed).permutation(len(self))
        held_out = max(1, len(self) // every)
        return self.select(sorted(order[held_out:])), self.select(sorted(order[:held_out]))

    def ids(self, classes: Sequence[str]) -> list[int] | list[list[int]]:
        """Return labels as their places among the classes.

        Raises:
          UserError: names a label that is not among them.
        """
        place = {name: number for number, name in enumerate(classes)}
        for name in self.classes:
            if name not in place:
                raise unknown("label", name, classes)
        if self.of_words:
            return [[place[label] for label in own] for own in self.labels]
        return [place[label] for label in self.labels]


def _name(label: Any, number: int) -> str:
    """Return a label's name: a text, or a number as text."""
    label = label.item() if isinstance(label, np.generic) else label
    if not isinstance(label, str | int):
        raise UserError(f"text {number} has the label {brief(label)}; expected a name or a whole number")
    return str(label).lower() if isinstance(label, bool) else str(label)


def check_texts(texts: Sequence[Text], of_words: bool) -> None:
    """Check what is to be labelled.

    Raises:
      UserError: something else than texts and pairs of them, or than lists of words.
    """
    for number, text in enumerate(texts):
        if of_words:
            good = isinstance(text, list | tuple) and len(text) and all(isinstance(w, str) for w in text)
            wanted = "a list of words, one at least"
        else:
            pair = isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
            good, wanted = isinstance(text, str) or pair, "a string, or a tuple of two"
        if not good:
            raise UserError(f"text {number} is {brief(text)}; expected {wanted}")


def read_labelled(source: str, *, text: str | None = None, label: str | None = None) -> Labelled:
    """Return the labelled texts of rows.

    Args:
      source: a file or folder of jsonl, csv, tsv, or json that is a list of objects; or "hf:NAME".
      text: the column of texts, or of lists of words; None: "text", or "words" where rows have that.
      label: the column of labels, or of lists of them; None: "label", or "labels" where rows have that.

    Raises:
      UserError: no such column, a row without label, or what `Labelled` refuses.
    """
    return Labelled(*read_rows(source, text=text, label=label))


def read_rows(
    source: str, *, text: str | None = None, label: str | None = None, must: bool = True
) -> tuple[list[Text], list[Any] | None]:
    """Return (texts, labels) of rows; see `read_labelled`.

    Args:
      source: as there; and so the others.
      must: rows have labels; else, where the first has none, they are None.
    """
    texts, labels = [], []
    for row in _rows(source, text):
        if text is None:
            text = "words" if "words" in row.values and "text" not in row.values else "text"
        if not texts:
            known = (label,) if label is not None else ("label", "labels")
            label = next((name for name in known if name in row.values), label or "label")
            must = must or label in row.values
        for column, into in ((text, texts), (label, labels))[: 1 + must]:
            if row.values.get(column) in (None, "", []):
                what = f"an empty {column}" if column in row.values else f"no column '{column}'"
                raise UserError(
                    f"{row.where} has {what}; labelled data has a text and a label in each row (its columns: "
                    f"{', '.join(row.values)}; --text-column and --label-column name others)"
                )
            into.append(row.values[column])
    if not texts:
        raise UserError(f"'{source}' holds no rows; expected a text and a label in each")
    return texts, labels if must else None


def _rows(source: str, column: str | None):
    if source.startswith("hf:"):
        from jaxllm.data import hf_source

        yield from hf_source.open_dataset(source, column).rows()
        return
    for file in find_text(source, "")[0]:
        readers = (row_reader(file, name) for name in ([column] if column else ["text", "words"]))
        reader = next(filter(None, readers), None)
        if reader is None:
            raise UserError(
                f"'{file.path}' holds text without labels; expected jsonl, csv or tsv with columns text "
                "and label"
            )
        rows: Sequence[Row] = reader(file)
        yield from rows


class EncodedText(NamedTuple):
    """A text as an encoder reads it."""

    ids_N: np.ndarray  # int32, special tokens included
    types_N: np.ndarray  # int32, which text of a pair each belongs to
    words_N: np.ndarray  # int32, the word whose label each carries; -1: none
    is_cut: bool


def encode_texts(
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    *,
    longest: int,
    of_words: bool = False,
    marked: Literal["first", "last"] = "first",
    cut: bool = False,
) -> list[EncodedText]:
    """Return texts as ids, with the special tokens that the tokenizer puts around them.

    Args:
      tokenizer: the model's.
      texts: see `Labelled`; words are read with a space between them.
      longest: most tokens of a text.
      of_words: texts are lists of words.
      marked: which of a word's tokens carries its label.
      cut: cut a longer text's end off, its last special token kept.

    Raises:
      UserError: a text that is longer, or a word that has no token.
    """
    backend = _cutting(tokenizer, longest) if cut else getattr(tokenizer, "backend", None)
    found = []
    for number, text in enumerate(texts):
        pair = text if isinstance(text, tuple) and not of_words else (" ".join(text) if of_words else text,)
        ids, types, ends, is_cut = _encode(tokenizer, backend, pair, longest if cut else None)
        if len(ids) > longest:
            raise UserError(
                f"text {number} has {len(ids)} tokens, and a text may have {longest}; cut it up, or raise "
                "longest"
            )
        words_N = np.full(len(ids), -1, np.int32)
        if of_words:
            _mark(words_N, ends, text, marked, number)
        found.append(EncodedText(np.array(ids, np.int32), np.array(types, np.int32), words_N, is_cut))
    return found


def _encode(tokenizer, backend, pair, longest):
    """Return (ids, types, where in the text each one's characters end or 0, whether something was cut)."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        one = backend.encode(*pair)
        return one.ids, one.type_ids, [end for _, end in one.offsets], bool(one.overflowing)
    if len(pair) > 1:
        raise UserError("pairs of texts need a tokenizer.json that says what stands between them")
    ids, ends = tokenizer.encode_with_ends(pair[0])
    ids = ids if len(ids) else np.array([tokenizer.eos_id], np.int32)  # nothing at all cannot be read
    return (
        ids[:longest],
        np.zeros_like(ids[:longest]),
        ends[:longest],
        longest is not None and len(ids) > longest,
    )


def _cutting(tokenizer, longest: int):
    """Return the library's tokenizer, a copy that cuts."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return None
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.enable_truncation(longest)
    return backend


def _mark(words_N, ends, words, marked, number) -> None:
    """Write into words_N which word's label each token carries."""
    sizes = np.array([len(word) for word in words])
    starts = np.cumsum(sizes + 1) - (sizes + 1)
    last_N = np.asarray(ends) - 1  # a token's last character; byte-level ones begin with the space before
    word_N = np.searchsorted(starts, last_N, side="right") - 1
    inside_N = (last_N >= 0) & (last_N < (starts + sizes)[word_N])
    seen: dict[int, int] = {}
    for place in np.flatnonzero(inside_N):
        if marked == "last" or int(word_N[place]) not in seen:
            seen[int(word_N[place])] = int(place)
    for word, name in enumerate(words):
        if word not in seen:
            raise UserError(f"word {word} of text {number}, {brief(name, 40)}, has no token; leave it out")
        words_N[seen[word]] = word


def padded_length(count: int, longest: int) -> int:
    """Return the length that a text of so many tokens is padded to, so that few are ever compiled.

    Examples:
      >>> [padded_length(count, 100) for count in (3, 17, 64, 70)]
      [16, 32, 64, 100]
    """
    return min(max(16, 1 << (count - 1).bit_length()), longest)


def padded_batch(
    tokenizer: Tokenizer,
    encoded: Sequence[EncodedText],
    labels: Sequence[Any] | None,
    *,
    rows: int,
    length: int,
) -> dict[str, np.ndarray]:
    """Return {"tokens", "mask", "token_types"} int32 [B, T], and with labels "targets" [B] or [B, T].

    Args:
      tokenizer: whose padding to use.
      encoded: at most as many as rows.
      labels: the class of each text, or of each of its words; None: there are none.
      rows: B; those that are left over are padding.
      length: T.
    """
    tokens_BT = np.full((rows, length), pad_id(tokenizer), np.int32)
    mask_BT, types_BT = np.zeros_like(tokens_BT), np.zeros_like(tokens_BT)
    of_words = labels is not None and isinstance(labels[0], list)
    targets = np.full((rows, length) if of_words else rows, NO_LABEL, np.int32)
    for row, one in enumerate(encoded):
        count = len(one.ids_N)
        tokens_BT[row, :count], types_BT[row, :count], mask_BT[row, :count] = one.ids_N, one.types_N, 1
        if of_words:
            places = np.flatnonzero(one.words_N >= 0)
            targets[row, places] = np.array(labels[row], np.int32)[one.words_N[places]]
        elif labels is not None:
            targets[row] = labels[row]
    batch = {"tokens": tokens_BT, "mask": mask_BT, "token_types": types_BT}
    return batch if labels is None else batch | {"targets": targets}


class LabelledBatches:
    """Endless batches of one shape each, in an order of every pass's own; goes on where it stood.

    A pass is shuffled, texts of about one length put together in batches, and the batches shuffled.

    Args:
      tokenizer: whose padding to use.
      encoded: the texts.
      labels: their classes.
      batch_size: rows of a batch, over all processes.
      longest: most tokens of a text.
      seed: of the order.
      process: (this process's number, how many there are): each has a part of every batch.
    """

    def __init__(self, tokenizer, encoded, labels, *, batch_size, longest, seed, process=(0, 1)):
        self._tokenizer, self._encoded, self._labels = tokenizer, encoded, labels
        self._rows, self._longest, self._seed, self._process = batch_size, longest, seed, process
        self._step, self._pass, self._batches = 0, -1, []
        content = hashlib.sha256(f"{tokenizer.fingerprint} {labels}".encode())
        for one in encoded:
            content.update(one.ids_N.tobytes() + b"\0")
        self._data = content.hexdigest()

    @property
    def steps_per_pass(self) -> int:
        """How many batches read each text once; the last is filled up with others."""
        return -(-len(self._encoded) // self._rows)

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        number, place = divmod(self._step, self.steps_per_pass)
        if number != self._pass:
            self._pass, self._batches = number, self._order(number)
        rows, self._step = self._batches[place], self._step + 1
        longest = max(len(self._encoded[row].ids_N) for row in rows)
        part, parts = self._process
        rows = np.array_split(rows, parts)[part]
        return padded_batch(
            self._tokenizer,
            [self._encoded[row] for row in rows],
            [self._labels[row] for row in rows],
            rows=len(rows),
            length=padded_length(longest, self._longest),
        )

    def _order(self, number: int) -> list[np.ndarray]:
        draw, count = np.random.default_rng((self._seed, number)), len(self._encoded)
        order = draw.permutation(count)
        order = np.concatenate([order, np.resize(order, self.steps_per_pass * self._rows - count)])
        lengths = np.array([len(one.ids_N) for one in self._encoded])
        stretch, batches = 32 * self._rows, []
        for begin in range(0, len(order), stretch):
            some = order[begin : begin + stretch]
            some = some[np.argsort(lengths[some], kind="stable")]
            batches += np.split(some, len(some) // self._rows)
        return [batches[place] for place in draw.permutation(len(batches))]

    def state(self) -> dict[str, Any]:
        """Return where it stands, and what identifies the data."""
        return {"step": self._step, "data": self._data}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a saved place.

        Raises:
          UserError: it is of other texts, labels or tokens.
        """
        if state["data"] != self._data:
            raise UserError(
                "the labelled texts are not those that the run began with; give the same, or another --out"
            )
        self._step = state["step"]
