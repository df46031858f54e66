"""What is known of somebody's writing, or of everybody's: words, what follows them, how they are spelled."""

from collections.abc import Iterator, Sequence

from jaxllm.write.ngrams import NGrams
from jaxllm.write.words import at_caret

_SPELLED = 6  # characters of a gram


class Lexicon:
    """Counts of words, of n-grams and of spellings, learned a line at a time.

    Attributes:
      grams: what follows what.
      trie: words by frequency.
      spelling: characters, for words that nobody wrote yet; None: not learned.
      tokens: words that were typed.

    Examples:
      >>> lexicon = Lexicon()
      >>> lexicon.learn("Please call Anna. Please call Anna again.")
      >>> lexicon.grams.candidates(["please"], "", 1)[0][0], lexicon.form("please", starts=True)
      ('call', 'Please')
    """

    def __init__(self, order: int = 4, most: int = 1_000_000, spelling: bool = True):
        self.grams, self.trie = NGrams(order, most=most), NGrams(order=1, most=most)
        self.spelling = NGrams(_SPELLED) if spelling else None
        self.tokens = 0.0
        self._forms: dict[tuple[str, bool], dict[str, float]] = {}

    def learn(self, line: str, weights: Sequence[float] | None = None) -> None:
        """Learn one line; `weights` says how much each word counts: accepted ones less than typed ones."""
        words = line.split()
        if not words:
            return
        weights = [1.0] * len(words) if weights is None else weights
        small = [word.lower() for word in words]
        if self.spelling is not None:  # each word once: unknown words are spelled as rare ones
            for word in dict.fromkeys(small):
                if not self.trie.weight(word):
                    self.spelling.learn(list(word))
        self.grams.learn_weighted(small, weights)
        self.trie.learn_weighted(small, weights)
        self.tokens += sum(weights)
        starts = True
        for word, low, weight in zip(words, small, weights, strict=True):
            known = self._forms.setdefault((low, starts), {})
            known[word] = known.get(word, 0.0) + weight
            starts = at_caret(word + " ").starts

    def form(self, word: str, starts: bool) -> str:
        """Return how a word is most often written at the start of a sentence, or inside."""
        known = self._forms.get((word, starts)) or self._forms.get((word, not starts))
        return max(known, key=known.__getitem__) if known else word

    def is_name(self, word: str) -> bool:
        """Say whether a word is written with a capital inside sentences."""
        known = self._forms.get((word, False), {})
        return bool(known) and max(known, key=known.__getitem__)[:1].isupper()

    def forget(self, share: float) -> None:
        """Let everything fade, once a day."""
        for grams in (self.grams, self.trie):
            grams.forget(share)
        self.tokens *= share
        self._forms = {key: known for key, known in self._forms.items() if self.trie.weight(key[0])}

    def to_dict(self) -> dict:
        """Return all of it but the spelling as JSON has it."""
        forms = [[word, starts, known] for (word, starts), known in self._forms.items()]
        return {
            "order": self.grams.order,
            "tokens": self.tokens,
            "grams": [[*gram, weight] for gram, weight in self.grams.grams()],
            "forms": forms,
        }

    @classmethod
    def from_dict(cls, content: dict, most: int) -> "Lexicon":
        """Return what `to_dict` wrote, without a spelling.

        Raises:
          KeyError, TypeError, ValueError: it is something else.
        """
        lexicon = cls(int(content["order"]), most, spelling=False)
        lexicon.tokens = float(content["tokens"])
        for *gram, weight in content["grams"]:
            gram = _strings(gram)
            lexicon.grams.add(tuple(gram), float(weight))
            lexicon.trie.add(tuple(gram[-1:]), float(weight))
        for word, starts, known in content["forms"]:
            [word] = _strings([word])
            lexicon._forms[word, bool(starts)] = {form: float(weight) for form, weight in known.items()}
        return lexicon

    def words(self) -> Iterator[str]:
        """Yield every word that was learned."""
        for (word,), _ in self.trie.grams():
            yield word


def _strings(values: list) -> list[str]:
    if not all(isinstance(value, str) for value in values):
        raise TypeError(values)
    return values
