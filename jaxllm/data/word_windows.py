"""Lists of words of any length, as windows that an encoder can read; no word is split."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxllm.data.labelled import EncodedText, encode_texts
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError, brief


class Window(NamedTuple):
    """Words [begin:end] of a list are read together; labels of words [first:last] are taken from here."""

    begin: int
    end: int
    first: int
    last: int


def word_windows(sizes: Sequence[int], room: int, overlap: int = 0) -> list[Window]:
    """Cut words into windows of at most `room` tokens; each word is some one window's own.

    Windows overlap by 2 `overlap` words where they are long enough, so that a window's own words have at
    least so many others on either side.

    Args:
      sizes: tokens of each word.
      room: most tokens of a window.
      overlap: words of context.

    Raises:
      UserError: a word of more tokens than a window has.

    Examples:
      >>> word_windows([1] * 10, room=6, overlap=1)
      [Window(begin=0, end=6, first=0, last=5), Window(begin=4, end=10, first=5, last=10)]
    """
    if len(sizes) and max(sizes) > room:
        word = int(np.argmax(sizes))
        raise UserError(f"word {word} has {max(sizes)} tokens and a window has room for {room}; cut it up")
    ends = np.cumsum(sizes)
    found, begin, first = [], 0, 0
    while first < len(sizes):
        before = ends[begin - 1] if begin else 0
        end = int(np.searchsorted(ends, before + room, side="right"))
        own = min(overlap, (end - begin - 1) // 2)
        last = end if end == len(sizes) else max(end - own, first + 1)
        found.append(Window(begin, end, first, last))
        begin, first = max(last - own, begin + 1), last
    return found


def encode_windows(
    tokenizer: Tokenizer,
    words: Sequence[str],
    *,
    longest: int,
    overlap: int = 0,
    marked: Literal["first", "last"] = "first",
) -> list[tuple[Window, EncodedText]]:
    """Return windows of a list of words as an encoder reads them, special tokens around each.

    Args:
      tokenizer: the model's.
      words: any number of them.
      longest: most tokens of a window, special tokens included.
      overlap: words of context; see `word_windows`.
      marked: which of a word's tokens carries its label.

    Raises:
      UserError: a word without a token, or with more than a window has.
    """
    options = dict(longest=2**31, of_words=True)
    [whole] = encode_texts(tokenizer, [words], marked="first", **options)
    firsts = _places(whole.words_N, len(words))
    lasts = _places(encode_texts(tokenizer, [words], marked="last", **options)[0].words_N, len(words))
    ahead, behind = firsts[0], lasts[-1] + 1  # special tokens before and after
    around = ahead + len(whole.ids_N) - behind
    if around >= longest:
        raise UserError(f"longest is {longest}, which has no room for words; raise it")
    edges = np.append(firsts, behind)
    try:
        windows = word_windows(np.diff(edges), longest - around, overlap)
    except UserError as error:
        word = words[int(np.argmax(np.diff(edges)))]
        raise UserError(f"{error} ({brief(word, 40)})") from None
    carries, found = firsts if marked == "first" else lasts, []
    for window in windows:
        part = slice(firsts[window.begin], lasts[window.end - 1] + 1)
        ids, types = (np.concatenate([x[:ahead], x[part], x[behind:]]) for x in (whole.ids_N, whole.types_N))
        words_N = np.full(len(ids), -1, np.int32)
        own = np.arange(window.first, window.last)
        words_N[carries[own] - firsts[window.begin] + ahead] = own
        found.append((window, EncodedText(ids, types, words_N, False)))
    return found


def cut_words(tokenizer: Tokenizer, words: Sequence[str], longest: int) -> list[Window]:
    """Cut a list of words into windows that still fit when each is encoded on its own.

    The windows of `encode_windows` may not: a word can take more tokens at the beginning of a text than it
    takes after a space.

    Args:
      tokenizer: the model's.
      words: any number of them.
      longest: most tokens of a window, special tokens included.

    Raises:
      UserError: a word without a token, or with more than a window has.
    """
    room = longest
    while True:
        windows = [window for window, _ in encode_windows(tokenizer, words, longest=room)]
        texts = [words[window.begin : window.end] for window in windows]
        alone = encode_texts(tokenizer, texts, longest=2**31, of_words=True)
        over = max(len(one.ids_N) for one in alone) - longest
        if over <= 0:
            return windows
        room -= over


def _places(words_N: np.ndarray, count: int) -> np.ndarray:
    places = np.zeros(count, np.int64)
    at = np.flatnonzero(words_N >= 0)
    places[words_N[at]] = at
    return places
