"""What a language model suggests at the caret: continuations that must begin with the unfinished word.

A text that ends inside a word is not what a tokenizer makes of whole words. So the model reads the text up to
the unfinished word alone, and the tokens that follow must write that word's letters: a trie of the vocabulary
says which may. While a word is typed its context stays as it is, and so do the cache and the logits after it:
most keystrokes run the model not at all.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from jaxllm import models
from jaxllm.data import Tokenizer, start_id
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from jaxllm.write.token_trie import TokenTrie, token_bytes
from jaxllm.write.writer import Proposal

_BUCKETS = (1, 4, 16, 64)  # tokens of a call: a program each


@dataclass(frozen=True)
class ModelSource:
    """A model that any number of users ask; see `ModelSession`.

    Attributes:
      decoder: the model, laid out.
      tokenizer: its own.
      slots: tokens of context that are held.
      beams: words that are followed at once.
      most_words: of a suggestion.
      phrase_chance: each token's after the first word.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    slots: int = 192
    beams: int = 4
    most_words: int = 4
    phrase_chance: float = 0.3
    most_tokens: int = 8  # of a suggestion, beyond the first
    trie: TokenTrie = field(init=False)

    def __post_init__(self):
        config = self.decoder.config
        if config.start_id is not None or not getattr(config, "causal", False):
            raise UserError("suggestions need a Transformer that continues text, such as GPT-2 or Llama")
        if self.slots > config.context_length:
            raise UserError(
                f"slots is {self.slots} and the model's context {config.context_length}; make it less"
            )
        if self.slots < 2 * _BUCKETS[0] + 2 or self.beams < 1:
            raise UserError(f"slots={self.slots} and beams={self.beams} leave no room; raise them")
        written = token_bytes(self.tokenizer)[: config.known_vocab_size]
        written += [None] * (config.vocab_size - len(written))
        object.__setattr__(self, "trie", TokenTrie(written))

    def session(self) -> "ModelSession":
        """Return the state of one user's text."""
        return ModelSession(self)

    def warm_up(self) -> float:
        """Compile every program that a session runs; return the seconds that took."""
        begin = time.perf_counter()
        session = self.session()
        for size in (size for size in _BUCKETS if size < self.slots - 1):
            session._ids = []  # noqa: SLF001
            session._read([start_id(self.tokenizer)] * size)
        session.propose("the ")
        return time.perf_counter() - begin


@jax.jit
def _log_softmax(logits_BV):
    return jax.nn.log_softmax(logits_BV.astype("float32"), axis=-1)


_logits = jax.jit(models.logits, static_argnums=0)


@dataclass
class _Beam:
    tokens: list[int]
    written: bytes
    need: bytes  # what must still come of the unfinished word
    log_chance: float  # of the first word
    words: int = 0  # that are whole
    ended: int = 0  # bytes of whole words
    open: bool = True


class ModelSession:
    """The model's memory of one text that changes a key at a time.

    What an edit left unchanged is not read again, and a caret inside a word that was asked about is answered
    by what is known of it.

    Attributes:
      calls: of the model, so far.
    """

    def __init__(self, source: ModelSource):
        self._source, self.calls = source, 0
        self._cache, self._ids, self._log_chances_V = None, [], None
        self._found: list[_Beam] = []  # whole words, after the context that was read last
        self._begun: tuple[list[_Beam], dict | None, int] | None = None  # beams that a deadline stopped
        self._seconds = 0.0  # of a call, lately

    def propose(self, text: str, deadline: float | None = None) -> list[Proposal]:
        """Return words that may come, the likeliest first; each may be followed by more.

        Args:
          text: what stands before the caret.
          deadline: in seconds of `time.perf_counter`: no call is begun that would pass it, and what is known
            by then is returned.
        """
        context, need = at_tokens(recent(text))
        tokenizer, trie = self._source.tokenizer, self._source.trie
        ids = [start_id(tokenizer), *tokenizer.encode(context).tolist()] if context else [start_id(tokenizer)]
        ids = self._window(ids)
        if ids != self._ids or self._log_chances_V is None:
            self._found, self._begun = [], None
            if not self._in_time(deadline):
                return []
            self._log_chances_V = self._read(ids)
        allowed = trie.allowed(need)
        if not len(allowed):
            return []
        chances = self._log_chances_V[allowed]
        mass = float(np.logaddexp.reduce(chances))
        best = int(allowed[chances.argmax()])
        known = self._known(need)
        if not any(beam.tokens[0] == best for beam in known):
            if not self._goes_on(best, need):
                order = np.argsort(-chances)[: self._source.beams]
                beams = [self._begin(int(allowed[n]), float(chances[n]), need) for n in order]
                self._begun = beams, None, 0
            there = {id(beam) for beam in self._found} | {beam.written for beam in known}
            new = [beam for beam in self._follow(deadline) if beam.words]
            self._found += [one for one in new if id(one) not in there and one.written not in there]
            known = self._known(need)
        found = [one for beam in known if (one := _proposal(beam, mass)) is not None]
        best_of = {}
        for one in sorted(found, key=lambda one: -one.chance):
            best_of.setdefault(one.words[0], one)
        return list(best_of.values())

    def _known(self, need: bytes) -> list[_Beam]:
        return [one for one in self._found if one.written.startswith(need) and len(one.written) > len(need)]

    def _begin(self, token: int, log_chance: float, need: bytes) -> _Beam:
        written = self._source.trie.written[token]
        return _Beam([token], written, need[len(written) :], log_chance)

    def _goes_on(self, best: int, need: bytes) -> bool:
        """Say whether beams that a deadline stopped serve what was typed since; close those that do not."""
        if self._begun is None:
            return False
        beams = self._begun[0]
        for beam in beams:
            if not beam.written.startswith(need):
                beam.open = beam.open and need.startswith(beam.written)
                beam.need = need[len(beam.written) :]
            else:
                beam.need = b""
        return any(beam.open and beam.tokens[0] == best for beam in beams)

    def _follow(self, deadline: float | None) -> list[_Beam]:
        """Extend the beams token by token, until the first words are whole and the best's phrase has ended.

        What a deadline stops goes on at the next key.
        """
        source = self._source
        beams, cache, step = self._begun
        for step in range(step, source.most_tokens + 1):  # noqa: B020
            whole = all(beam.words or not beam.open for beam in beams) and not beams[0].open
            if whole or step == source.most_tokens:
                self._begun = None
                return beams
            if not self._in_time(deadline):
                break
            begin = time.perf_counter()
            if cache is None:
                rows = [0] * source.beams
                cache = source.decoder.fork(self._cache, rows, slots=source.most_tokens)
            last = [beam.tokens[-1] for beam in beams] + [0] * (source.beams - len(beams))
            hidden_BD, cache = source.decoder.step(np.array(last, np.int32), cache)
            chances_BV = np.asarray(_log_softmax(_logits(*source.decoder, hidden_BD)))
            self._timed(begin)
            for place, (beam, chances_V) in enumerate(zip(beams, chances_BV, strict=False)):
                if beam.open:
                    self._extend(beam, chances_V, is_first=place == 0)
        self._begun = beams, cache, step
        return beams

    def _extend(self, beam: _Beam, chances_V: np.ndarray, is_first: bool) -> None:
        """Add the likeliest token to a beam, or close it."""
        source, trie = self._source, self._source.trie
        if beam.need:
            allowed = trie.allowed(beam.need)
            if not len(allowed):
                beam.open = False
                return
            token = int(allowed[chances_V[allowed].argmax()])
            beam.need = beam.need[len(trie.written[token]) :]
            beam.log_chance += float(chances_V[token])
        else:
            token = int(chances_V.argmax())
            if trie.ends_word_V[token]:
                beam.words, beam.ended = beam.words + 1, len(beam.written)
                if beam.words == 1:
                    beam.log_chance += float(np.logaddexp.reduce(chances_V[trie.ends_word_V]))
                piece = trie.written[token]
                is_over = piece is None or piece[:1] != b" " or beam.words == source.most_words
                # The phrase of the best alone: the others are shown for their first words.
                if is_over or not is_first or chances_V[token] < np.log(source.phrase_chance):
                    beam.open = False
                    return
            elif not beam.words:
                beam.log_chance += float(chances_V[token])
            elif chances_V[token] < np.log(source.phrase_chance):
                beam.open = False
                return
        beam.tokens.append(token)
        beam.written += trie.written[token]

    def _read(self, ids: list[int]) -> np.ndarray:
        """Return log-probabilities after some tokens, [V]; those that the cache has already are not run."""
        source = self._source
        if self._cache is None:
            _, self._cache = source.decoder.prefill(np.array([ids[:1]]), slots=source.slots)
            self._ids = ids[:1]
        same = next((n for n, (a, b) in enumerate(zip(ids, self._ids, strict=False)) if a != b), None)
        same = min(len(ids), len(self._ids)) if same is None else same
        at = min(same, len(ids) - 1)  # the last token is run for what follows it
        hidden_BD = None
        while at < len(ids):
            begin = time.perf_counter()
            size = next((size for size in _BUCKETS if size >= len(ids) - at), _BUCKETS[-1])
            while at + size > source.slots:  # there is no room for padding at the end of the cache
                size //= 2
            piece = ids[at : at + size]
            padded = np.array([piece + [0] * (size - len(piece))], np.int32)
            self._cache = source.decoder.rewind(self._cache, at)
            hidden_BTD, self._cache = source.decoder.extend(padded, self._cache)
            hidden_BD = hidden_BTD[:, len(piece) - 1]
            at += len(piece)
        self._cache = source.decoder.rewind(self._cache, len(ids))
        chances_V = np.asarray(_log_softmax(_logits(*source.decoder, hidden_BD)))[0]
        self._timed(begin)
        self._ids = list(ids)
        return chances_V

    def _window(self, ids: list[int]) -> list[int]:
        """Return the last tokens of a long text; the window moves by half, so that the cache serves long."""
        most = self._source.slots - 1
        if len(ids) <= most:
            return ids
        half = most // 2
        start = (len(ids) - most + half - 1) // half * half
        return ids[start:]

    def _in_time(self, deadline: float | None) -> bool:
        return deadline is None or time.perf_counter() + self._seconds < deadline

    def _timed(self, begin: float) -> None:
        taken = time.perf_counter() - begin
        self._seconds = taken if not self.calls else 0.8 * self._seconds + 0.2 * taken
        self.calls += 1


def at_tokens(text: str) -> tuple[str, bytes]:
    """Return (what a model reads, what must follow): a text is cut before its last word, space included.

    Examples:
      >>> at_tokens("send the inv"), at_tokens("send the "), at_tokens("inv"), at_tokens("One.\\nTw")
      (('send the', b' inv'), ('send the', b' '), ('', b'inv'), ('One.\\n', b'Tw'))
    """
    begin = max(text.rfind(" "), text.rfind("\n"), text.rfind("\t")) + 1
    begin -= begin > 0 and text[begin - 1] == " "
    return text[:begin], text[begin:].encode(errors="surrogatepass")  # half a character: no word has it


def recent(text: str, most: int = 2000) -> str:
    """Return the end of a long text, from a word's start that stays while the text grows by half of it."""
    if len(text) <= most:
        return text
    begin = (len(text) - most + most // 2 - 1) // (most // 2) * (most // 2)
    return text[begin:].partition(" ")[2]


def _proposal(beam: _Beam, mass: float) -> Proposal | None:
    words: Sequence[str] = beam.written[: beam.ended].decode(errors="replace").split()
    if not words or "\ufffd" in words[0]:
        return None
    return Proposal(tuple(words), float(np.exp(min(beam.log_chance - mass, 0.0))))
