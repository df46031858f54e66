"""Marked text of earnings calls and addresses, real output of a recogniser, and a channel of its errors."""

import difflib
import lzma
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.shared.real_data import data_folder
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.punctuate import NONE, Document, Marks

MARKS = Marks(",.?")
_FILLERS = ("um", "uh", "you know", "i mean")
_UNKNOWN = "unk"  # as the tagger reads [UNK]


@dataclass(frozen=True)
class Corpus:
    """Marked texts, kept apart by talk.

    Args:
      written: marked text of another kind.
      domain: talks to learn from, whole; the study takes a few, and all for the upper bound.
      dev: talks that rewards and choices see.
      unlabelled: words of other talks as a recogniser wrote them.
      tests: name -> talks; "reference" and "asr" are of the same talks, in one order.
      aligned: of each word of "asr", whether it lies in a stretch that the reference has too; None: unknown.
    """

    written: list[Document]
    domain: list[Document]
    dev: list[Document]
    unlabelled: list[list[str]]
    tests: dict[str, list[Document]]
    aligned: list[np.ndarray] | None = field(default=None)


def read_corpus(config) -> Corpus:
    """Return the texts of a run: Earnings-21 and 22, or with `data` IWSLT's files."""
    written = _addresses(config.written_words, config.words_per_text)
    return _iwslt(config, written) if config.data is not None else _earnings(config, written)


def _addresses(words: int, per_text: int) -> list[Document]:
    """Return sotu addresses, the latest first, as stretches, until there are so many words."""
    found, count = [], 0
    for one in reversed(sotu_addresses()):
        for begin, end, read in _stretches(MARKS.read(one["text"].replace("—", " — ")), per_text):
            if count >= words:
                return found
            found.append((_lower(read[0][begin:end]), read[1][begin:end]))
            count += end - begin
    return found


def _earnings(config, written) -> Corpus:
    calls22 = _reference("earnings22")
    names = sorted(calls22)
    order = np.random.default_rng(config.split_seed).permutation(len(names))
    dev, domain = order[: config.dev_talks], order[config.dev_talks :][: config.domain_talks]
    calls21, asr21 = _reference("earnings21"), _labelled(data_folder(*_E21, "asr_rev_kaldi.tsv.xz"))
    shared = sorted(set(calls21) & set(asr21))
    order21 = np.random.default_rng(config.split_seed + 1).permutation(len(shared))
    tests = [shared[i] for i in order21[: config.test_talks]]
    others = [shared[i] for i in order21[config.test_talks :][: config.unlabelled_talks]]
    most, skip = config.words_per_talk, 100  # the operator's greeting is much the same in every call
    reference = [_part(calls21[name], skip, most) for name in tests]
    asr = [_part(asr21[name], skip, most) for name in tests]
    return Corpus(
        written,
        [_part(calls22[names[i]], skip, config.domain_words_per_talk) for i in domain],
        [_part(calls22[names[i]], skip, most) for i in dev],
        [_part(asr21[name], skip, most)[0] for name in others],
        {"reference": reference, "asr": asr},
        [
            aligned_words(_part(calls21[name], 0, 2 * most + skip)[0], words)
            for name, (words, _) in zip(tests, asr, strict=True)
        ],
    )


def _iwslt(config, written) -> Corpus:
    """Return IWSLT's files in a folder: dev2012 to learn from, test2011 and test2011asr as tests."""
    folder = Path(config.data).expanduser()
    files = {name: folder / name for name in ("dev2012", "test2011", "test2011asr")}
    for path in files.values():
        if not path.exists():
            raise UserError(f"{path} does not exist; data names a folder with {', '.join(files)}")
    whole = {name: next(iter(_labelled(path).values())) for name, path in files.items()}
    talks = [
        (whole["dev2012"][0][begin:end], whole["dev2012"][1][begin:end])
        for begin, end, _ in _stretches(whole["dev2012"], config.words_per_talk)
    ]
    dev = talks[-config.dev_talks :]  # the last ones: a talk lies on one side, but for the one that is cut
    domain = talks[: config.domain_talks]
    unlabelled = [words for words, _ in talks[config.domain_talks :][: config.unlabelled_talks]]
    tests = {"reference": [whole["test2011"]], "asr": [whole["test2011asr"]]}
    return Corpus(written, domain, dev, unlabelled, tests)


_E21 = ("punctuation_restoration", "earnings21")


def _reference(name: str) -> dict[str, Document]:
    """Return {call: (words, labels)} of `token TAB mark TAB case` lines, merged as IWSLT's files are."""
    found: dict[str, Document] = {}
    path = data_folder("punctuation_restoration", name, "reference.tsv.xz")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("## "):
                continue
            if line.startswith("# "):
                words, labels = found.setdefault(line[2:].strip(), ([], []))
                continue
            token, mark, *_ = line.rstrip("\n").split("\t")
            if any(c.isalnum() for c in token):
                words.append(token.lower())
                labels.append(MARKS.label(mark) if mark else NONE)
    return found


def _labelled(path: Path) -> dict[str, Document]:
    """Return {talk: (words, labels)} of `word TAB LABEL` lines; a file without `# talk` lines is one talk.

    Raises:
      UserError: counts and names the lines that are something else.
    """
    found: dict[str, Document] = {}
    broken, words, labels = [], None, None
    opened = (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8")
    with opened as lines:
        for number, line in enumerate(lines, start=1):
            if line.startswith("# "):
                words, labels = found.setdefault(line[2:].strip(), ([], []))
                continue
            parts = line.rstrip("\n").split("\t")
            if len(parts) != 2 or parts[1] not in MARKS.labels:
                broken += [number] if line.strip() else []
                continue
            if words is None:
                words, labels = found.setdefault("all", ([], []))
            words.append(parts[0].lower())
            labels.append(parts[1])
    if broken:
        names = ", ".join(map(str, broken[:5])) + (" ..." if len(broken) > 5 else "")
        raise UserError(
            f"{len(broken)} lines of '{path}' (line {names}) are no word, tab and one of "
            f"{', '.join(MARKS.labels)}; mend them"
        )
    return found


def _part(talk: Document, begin: int, count: int) -> Document:
    return talk[0][begin : begin + count], talk[1][begin : begin + count]


def _lower(words: Sequence[str]) -> list[str]:
    return [word.lower() for word in words]


def _stretches(talk: Document, count: int):
    """Yield (begin, end, talk) of stretches of about so many words that end with a full stop or question."""
    words, labels = talk
    begin = 0
    for place, label in enumerate(labels):
        if place + 1 - begin >= count and label in ("PERIOD", "QUESTION"):
            yield begin, place + 1, talk
            begin = place + 1


def sentences(talks: Sequence[Document], count: int) -> list[Document]:
    """Return talks as texts of about `count` words, each of whole sentences."""
    return [
        (talk[0][begin:end], talk[1][begin:end])
        for talk in talks
        for begin, end, _ in _stretches(talk, count)
    ]


def aligned_words(reference: Sequence[str], heard: Sequence[str]) -> np.ndarray:
    """Return of each word that was heard whether it is in a stretch that the reference has too, bool [N]."""
    matcher = difflib.SequenceMatcher(a=list(reference), b=list(heard), autojunk=False)
    found = np.zeros(len(heard), bool)
    for _, begin, size in matcher.get_matching_blocks():
        found[begin : begin + size] = True
    return found


def written_text(document: Document) -> str:
    """Return words with their marks as text."""
    return " ".join(word + MARKS.mark(label) for word, label in zip(*document, strict=True))


def add_errors(
    talk: Document, rate: float, draw: np.random.Generator, near: dict[str, list[str]]
) -> Document:
    """Return a talk as a recogniser of a word error rate could have written it.

    A third of the errors each: a word left out, replaced by one that is spelled alike, put in (a filler, or
    the word before once more). A mark stays with the last word before it that is left.

    Args:
      talk: words and labels.
      rate: errors a word.
      draw: of the errors.
      near: word -> words that are spelled alike; see `spelled_alike`.
    """
    words, labels = [], []
    for word, label in zip(*talk, strict=True):
        kind = draw.integers(3) if draw.random() < rate else None
        if kind == 0:
            if label != NONE and labels and labels[-1] == NONE:
                labels[-1] = label
            continue
        others = near.get(word, ())
        words.append(str(draw.choice(others)) if kind == 1 and others else word)
        labels.append(label)
        if kind == 2:
            filler = str(draw.choice(_FILLERS)).split() if draw.random() < 0.5 else [word]
            words += filler
            labels[-1:] = [NONE] * len(filler) + [label]
    return words, labels


def spelled_alike(words: Sequence[str], most: int = 4) -> dict[str, list[str]]:
    """Return for each word others with its first two letters and nearly its length, the nearest first."""
    groups: dict[str, list[str]] = {}
    known = sorted(set(words))
    for word in known:
        groups.setdefault(word[:2], []).append(word)
    found = {}
    for word in known:
        some = [o for o in groups[word[:2]] if o != word and abs(len(o) - len(word)) <= 1][:60]
        some.sort(key=lambda other: -sum(a == b for a, b in zip(word, other, strict=False)))  # noqa: B023
        found[word] = some[:most]
    return found


def augmented(talk: Document, draw: np.random.Generator, share: float = 0.15) -> Document:
    """Return a text with 15 % of its words changed: 40 % unknown, 40 % left out, 20 % an unknown put in.

    Alam et al., 2020. No language model; what any generator must beat.
    """
    words, labels = [], []
    for word, label in zip(*talk, strict=True):
        kind = draw.random() / share
        if kind >= 1 or kind < 0.4:
            words.append(_UNKNOWN if kind < 0.4 else word)
            labels.append(label)
        elif kind >= 0.8:
            words += [word, _UNKNOWN]
            labels += [label, NONE]
    return words, labels


def made_up_corpus(config) -> Corpus:
    """Return talks of a made-up grammar, for runs that have no real data: the marks follow from the words."""
    subjects, verbs = ["revenue", "margin", "the team", "growth"], ["rose", "fell", "held", "improved"]

    def talk(seed: int, words: int) -> Document:
        draw, found, labels = np.random.default_rng(seed), [], []
        while len(found) < words:
            asked = draw.random() < 0.2
            part = [*(["did"] if asked else []), *str(draw.choice(subjects)).split(), str(draw.choice(verbs))]
            if draw.random() < 0.4:
                part += ["however", "this", "quarter"]
                labels += [NONE] * (len(part) - 4) + ["COMMA", NONE, NONE]
            else:
                labels += [NONE] * (len(part) - 1)
            found += part
            labels.append("QUESTION" if asked else "PERIOD")
        return found, labels

    tests = [talk(100 + i, config.words_per_talk) for i in range(config.test_talks)]
    draw = np.random.default_rng(config.split_seed)
    near = spelled_alike([word for words, _ in tests for word in words])
    heard = [add_errors(one, 0.1, draw, near) for one in tests]
    aligned = [aligned_words(one[0], two[0]) for one, two in zip(tests, heard, strict=True)]
    return Corpus(
        _addresses(config.written_words, config.words_per_text),
        [talk(200 + i, config.domain_words_per_talk) for i in range(config.domain_talks)],
        [talk(300 + i, config.words_per_talk) for i in range(config.dev_talks)],
        [talk(400 + i, config.words_per_talk)[0] for i in range(config.unlabelled_talks)],
        {"reference": tests, "asr": heard},
        aligned,
    )
