"""One user's suggestions: sources blended, calibrated, held back below a threshold, learning from answers."""

import collections
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from jaxllm.config import Config, Count, Fraction, Positive, Range
from jaxllm.errors import UserError, unknown
from jaxllm.write.isotonic import IDENTITY, Isotonic, fit_isotonic
from jaxllm.write.lexicon import Lexicon
from jaxllm.write.user_store import User
from jaxllm.write.words import Caret, at_caret, in_case

SOURCES = ("trie", "ngram", "char", "model")
_POOL = 6  # candidates of a source
_REMEMBERED, _EVERY = 2000, 200  # answers that calibrate the blend anew, and how often they do


class Suggestion(NamedTuple):
    """What is shown ahead of the caret."""

    text: str  # the rest of a word and a space, then more words, each with its space
    chance: float  # that its first word is what comes
    source: str  # which of them gave it the most
    word: str  # its first word, whole, in small letters
    score: float  # the blend of the sources, before the line that answers have drawn

    @property
    def first(self) -> str:
        """What Tab accepts: the rest of the first word and its space."""
        return self.text[: self.text.index(" ") + 1]


class Proposal(NamedTuple):
    """What a language model suggests."""

    words: tuple[str, ...]  # whole, as written; the first starts with the prefix
    chance: float  # of the first, given context and prefix


@dataclass(frozen=True)
class WriterConfig(Config):
    """How suggestions are made and when they are shown."""

    sources: tuple[str, ...] = SOURCES
    weights: tuple[tuple[str, float], ...] = (("trie", 0.1), ("ngram", 0.5), ("model", 0.9))
    # Of the chance that the first word is right; 2 shows nothing: see isotonic.threshold.
    threshold: Annotated[float, Range(0, 1, or_value=2)] = 0.0
    kappa: Positive = 2000.0  # words typed at which a user counts as much as everybody
    personal: bool = True  # blend the user's own words in
    phrase_chance: Fraction = 0.3  # of each word after the first
    most_words: Count = 5  # of a suggestion
    accepted_weight: Positive = 0.5  # of accepted words, beside 1 of typed ones: it should not feed on itself
    rejections: Count = 3  # of a word after a context, before it is held back there
    fades: Fraction = 0.98  # a day

    def __post_init__(self):
        super().__post_init__()
        for name in self.sources:
            if name not in SOURCES:
                raise unknown("source", name, SOURCES)
        if not self.sources:
            raise UserError(f"sources is empty; name some of {', '.join(SOURCES)}")


@dataclass
class Writer:
    """Suggest to one user.

    Examples:
      >>> shared = Lexicon()
      >>> for line in ("please send the invoice today", "please send the invoice again"):
      ...     shared.learn(line)
      >>> writer = Writer(shared, User.new())
      >>> writer.suggest("Please send the in")[0].text
      'voice today '
      >>> writer.suggest("Please se")[0].text
      'nd the invoice today '
    """

    shared: Lexicon
    user: User
    config: WriterConfig = WriterConfig()
    calibration: Mapping[str, Isotonic] = field(default_factory=dict)

    def __post_init__(self):
        self._outcomes, self._answers = collections.deque(maxlen=_REMEMBERED), 0
        self.calibration = dict(self.calibration)

    def suggest(self, text: str, count: int = 1, proposals: Sequence[Proposal] = ()) -> list[Suggestion]:
        """Return at most `count` suggestions at the end of a text, the likeliest first.

        Args:
          text: what stands before the caret.
          count: how many to show.
          proposals: of a language model, where it has answered.
        """
        caret = at_caret(text)
        raw = self.scores(caret, proposals)
        blended, line = self._blend(raw), self.calibration.get("blend", IDENTITY)
        shown = []
        for word, score in heapq.nlargest(count + 8, blended.items(), key=lambda one: one[1]):
            chance = line(score)
            if len(shown) == count or chance < self.config.threshold:
                break
            if self._is_held_back(caret, word):
                continue
            written = self._continued(caret, word, proposals)
            if written is not None:
                weights = dict(self.config.weights)
                said = {name: weights.get(name, 1.0) * own.get(word, 0.0) for name, own in raw.items()}
                shown.append(Suggestion(written, chance, max(said, key=said.__getitem__), word, score))
        return shown

    def scores(self, caret: Caret, proposals: Sequence[Proposal] = ()) -> dict[str, dict[str, float]]:
        """Return each source's chances of words, before calibration: {source: {word: P(word | ...)}}."""
        config, found = self.config, {}
        prefix = caret.prefix.lower()
        for name in ("trie", "ngram"):
            if name in config.sources:
                found[name] = self._counted("grams" if name == "ngram" else "trie", caret.words, prefix)
        if "model" in config.sources and proposals:
            model: dict[str, float] = {}
            for proposal in proposals:
                word = proposal.words[0].lower()
                model[word] = model.get(word, 0.0) + proposal.chance
            found["model"] = model
        if "ngram" in found and "model" in found:  # what the model alone names is known to the counts too
            for word in found["model"].keys() - found["ngram"].keys():
                found["ngram"][word] = self._chance("grams", word, caret.words, prefix)
        if "char" in config.sources and prefix and not any(found.values()):
            found["char"] = self._spelled(prefix)
        return found

    def accepted(self, text: str, suggestion: Suggestion) -> None:
        """Learn that a suggestion was taken, whole or in part; `learn` takes the text when it is finished."""
        self.user.rejections.pop(self._key(at_caret(text), suggestion.word), None)
        self._answered(suggestion, True)

    def rejected(self, text: str, suggestion: Suggestion) -> None:
        """Learn that something else was typed where a suggestion stood."""
        key = self._key(at_caret(text), suggestion.word)
        self.user.rejections[key] = self.user.rejections.get(key, 0) + 1
        self._answered(suggestion, False)

    def learn(self, line: str, accepted: Sequence[bool] | None = None) -> None:
        """Learn a line that is finished; `accepted` says which of its words were suggested and taken."""
        if self.config.personal:
            taken = accepted or [False] * len(line.split())
            self.user.lexicon.learn(line, [self.config.accepted_weight if one else 1.0 for one in taken])

    def _share(self) -> float:
        tokens = self.user.lexicon.tokens if self.config.personal else 0.0
        return tokens / (tokens + self.config.kappa)

    def _chance(self, kind: str, word: str, words: Sequence[str], prefix: str) -> float:
        """Return P(word | words, prefix) of everybody's counts and the user's (equation D of the blend)."""
        share, mine, ours = self._share(), getattr(self.user.lexicon, kind), getattr(self.shared, kind)
        mass = (1 - share) * ours.prefix_probability(prefix, words)
        whole = (1 - share) * ours.probability(word, words)
        if share:
            mass += share * mine.prefix_probability(prefix, words)
            whole += share * mine.probability(word, words)
        return whole / mass if mass > 0 else 0.0

    def _counted(self, kind: str, words: Sequence[str], prefix: str) -> dict[str, float]:
        share, mine, ours = self._share(), getattr(self.user.lexicon, kind), getattr(self.shared, kind)
        known = ours.likely(words, prefix) | (mine.likely(words, prefix) if share else {})
        mass = (1 - share) * ours.prefix_probability(prefix, words)
        mass += share * mine.prefix_probability(prefix, words) if share else 0.0
        whole = {word: (1 - share) * chance for word, chance in ours.probabilities(known, words).items()}
        for word, chance in mine.probabilities(known, words).items() if share else ():
            whole[word] += share * chance
        best = heapq.nlargest(_POOL, whole.items(), key=lambda one: one[1])
        return {word: chance / mass for word, chance in best if chance > 0}

    def _spelled(self, prefix: str) -> dict[str, float]:
        """Return how the prefix of an unknown word may end, a character at a time."""
        if self.shared.spelling is None:
            return {}
        word, chance = prefix, 1.0
        while len(word) < len(prefix) + 12:
            letters = self.shared.spelling.candidates(list(word), "", 1)
            ends = self.shared.spelling.probability("\n", list(word))
            if not letters or ends >= letters[0][1]:
                return {word: chance * ends} if word != prefix else {}
            word, chance = word + letters[0][0], chance * letters[0][1]
        return {}

    def _blend(self, raw: Mapping[str, dict[str, float]]) -> dict[str, float]:
        """Return the mean of the sources' calibrated chances of each word, by the sources' weights."""
        weights, blended = dict(self.config.weights), collections.defaultdict(float)
        total = sum(weights.get(name, 1.0) for name in raw)
        for name, own in raw.items():
            line = self.calibration.get(name, IDENTITY)
            for word, chance in own.items():
                blended[word] += weights.get(name, 1.0) / total * line(min(chance, 1.0))
        return blended

    def _is_held_back(self, caret: Caret, word: str) -> bool:
        """Say whether a word was refused here too often, or is a figure or a name that was seen once."""
        if self.user.rejections.get(self._key(caret, word), 0) >= self.config.rejections:
            return True
        private = any(c.isdigit() for c in word) or any(
            lexicon.is_name(word) for lexicon in (self.shared, self.user.lexicon)
        )
        return private and self.shared.trie.weight(word) + self.user.lexicon.trie.weight(word) < 2

    def _continued(self, caret: Caret, word: str, proposals: Sequence[Proposal]) -> str | None:
        """Return a suggestion that begins with a word, or None where nothing of it is left to type."""
        for proposal in proposals:
            if proposal.words[0].lower() == word and "model" in self.config.sources:
                first, more = proposal.words[0], proposal.words[1:]
                break
        else:
            first, more = self._written(word, caret.starts), ()
        if len(first) <= len(caret.prefix):
            return None
        rest = in_case(first, caret.prefix, caret.starts)
        if not more and "ngram" in self.config.sources:
            more = self._phrase([*caret.words, word])
        return " ".join([rest, *more[: self.config.most_words - 1], ""])

    def _phrase(self, words: list[str]) -> list[str]:
        begun = len(words)
        while len(words) - begun < self.config.most_words - 1:
            found = self._counted("grams", words[-8:], "")
            if not found:
                break
            word, chance = max(found.items(), key=lambda one: one[1])
            caret = at_caret(words[-1] + " ")
            if chance < self.config.phrase_chance or self._is_held_back(caret, word):
                break
            words.append(word)
        pairs = zip(words[begun - 1 :], words[begun:], strict=False)
        return [self._written(word, at_caret(before + " ").starts) for before, word in pairs]

    def _written(self, word: str, starts: bool) -> str:
        """Return a word as the user writes it, or as everybody does."""
        known = self.user.lexicon if self.user.lexicon.trie.weight(word) else self.shared
        return known.form(word, starts)

    @staticmethod
    def _key(caret: Caret, word: str) -> tuple[str, str]:
        return " ".join(caret.words[-2:]), word

    def _answered(self, suggestion: Suggestion, taken: bool) -> None:
        """Calibrate the blend anew by the last answers, every so often."""
        self._outcomes.append((suggestion.score, taken))
        self._answers += 1
        if self._answers % _EVERY == 0:
            self.calibration["blend"] = fit_isotonic(*zip(*self._outcomes, strict=True))
