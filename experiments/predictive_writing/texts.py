"""Texts to type again: facts as the pilot typed them, messages to and from a bank, notes of many people."""

import csv
import io
import json
import lzma
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.shared.real_data import data_folder
from jaxllm.atomic import write_file
from jaxllm.data import read_documents
from jaxllm.errors import UserError, unknown
from jaxllm.pretrained.wheels import download_wheel
from jaxllm.user_cache import user_cache_folder

CORPORA = ("facts", "customers", "bank", "addresses")
# 7,193 one-line facts (MIT); the wheel's code is never run.
_FACTS = "randfacts==0.24.4"
_FACTS_SHA256 = "beb07c7b61352f86410aa178be0a3e6b031a454e9df90e5487fb10f7ad21ddbb"


class Lines(NamedTuple):
    """Lines that count, lines that calibrate, lines that are typed."""

    train: list[str]
    dev: list[str]
    test: list[str]


def load_lines(corpus: str, seed: int, *, dev: int, test: int, most: int) -> Lines:
    """Return a corpus split by a seed: nine tenths to count, as the pilot, the rest to calibrate and type.

    Raises:
      UserError: an unknown corpus, or one that is not at hand.
    """
    if corpus not in CORPORA:
        raise unknown("corpus", corpus, CORPORA)
    lines = {"facts": _facts, "customers": _customers, "bank": _bank, "addresses": _addresses}[corpus]()
    order = np.random.default_rng([seed, 27]).permutation(len(lines))
    lines = [lines[n] for n in order]
    cut = max(len(lines) * 9 // 10, 1)
    if dev + test > len(lines) - cut:
        raise UserError(
            f"{corpus} holds out {len(lines) - cut} lines, and dev={dev} with test={test} ask for more; "
            "lower them"
        )
    held = lines[cut:]
    return Lines(lines[:cut][:most], held[:dev], held[dev : dev + test])


def _facts() -> list[str]:
    path = user_cache_folder() / "data" / "randfacts-0.24.4.txt"
    if not path.exists():
        with tempfile.TemporaryDirectory() as scratch:
            wheel = download_wheel(Path(scratch), _FACTS, _FACTS_SHA256)
            with zipfile.ZipFile(wheel) as content:
                write_file(path, content.read("randfacts/safe.txt"))
    return _clean(path.read_text(encoding="utf-8").splitlines(), lower=True)


def _customers() -> list[str]:
    folder = data_folder("predictive_writing", "banking77")
    rows = []
    for name in ("train", "test"):
        text = lzma.decompress((folder / f"{name}.csv.xz").read_bytes()).decode()
        rows += [row["text"] for row in csv.DictReader(io.StringIO(text))]
    return _clean(rows)


def _bank() -> list[str]:
    path = data_folder("predictive_writing", "sgd_banks", "banks.jsonl.xz")
    rows = [json.loads(line) for line in lzma.decompress(path.read_bytes()).decode().splitlines()]
    return _clean([text for row in rows for who, text in row["turns"] if who == "S"])


def _addresses() -> list[str]:
    """Return sentences of the embedded addresses: what is there without a network or data."""
    lines = []
    for document in read_documents("sotu"):
        lines += document.splitlines()
        if len(lines) > 3000:
            break
    sentences = (sentence for line in lines for sentence in line.split(". "))
    return _clean([sentence for sentence in sentences if 4 < len(sentence.split()) < 25])


def _clean(lines: list[str], lower: bool = False) -> list[str]:
    cleaned = (" ".join((line.lower() if lower else line).split()) for line in lines)
    return [line for line in dict.fromkeys(cleaned) if line]


_TOPICS = (
    "the quarterly estimate for {client} is {amount} and due on {date}",
    "spoke with {client} about form {form} and the missing receipts",
    "{client} sent the bank statements for {month} this morning",
    "payroll of {client} was run on {date} with two corrections",
    "reconciled the card account of {client} through {month}",
    "asked {client} for a signed copy of form {form} before {date}",
    "the sales tax return of {client} was filed on {date}",
    "{client} wants to know whether the home office can be deducted",
    "set up recurring invoices of {amount} for {client} from {month}",
    "moved {amount} from suspense to repairs for {client} after the call",
)
_PHRASES = (
    "will follow up early next week unless they reply", "left a detailed voicemail and sent a summary",
    "nothing further is needed from our side at present", "flagged for review before the books are closed",
    "client was friendly and happy with the explanation", "please double check the opening balance first",
    "see the shared folder for the scanned documents", "waiting for their answer before we can go on",
    "this took longer than planned because of the import", "reminded them that the deadline cannot be moved",
    "all figures agree with the statement to the cent", "they prefer to be reached by mail in the afternoon",
)  # fmt: skip
_CLIENTS = ("Harbour Tools", "Lindgren Bakery", "Okafor Dental", "Sunrise Yoga", "Marlow Freight",
            "Petrov Glass", "Quince Press", "Delgado Motors", "Ito Gardens", "Baxter Pools")  # fmt: skip
_FORMS = ("1099-NEC", "W-9", "941", "1120-S", "Schedule C")
_MONTHS = ("January", "March", "May", "July", "October")


class Person(NamedTuple):
    """Somebody who writes notes: stock phrases before and after a change of habit."""

    notes: list[str]
    private: str  # a string of their own, which stands in their notes


def make_people(count: int, notes: int, drift: int, seed: int) -> list[Person]:
    """Return people with topics, clients and stock phrases of their own; phrases change at note `drift`."""
    people = []
    for number in range(count):
        draw = np.random.default_rng([seed, number, 5])
        topics, clients = draw.permutation(_TOPICS)[:4], draw.permutation(_CLIENTS)[:3]
        phrases = draw.permutation(_PHRASES)
        private = "".join(draw.choice(list("bdfgklmnprstvz"), 9)) + "x"
        written = []
        for at in range(notes):
            own = phrases[:3] if at < drift else phrases[3:6]
            slots = {
                "client": draw.choice(clients), "form": draw.choice(_FORMS), "month": draw.choice(_MONTHS),
                "amount": f"${int(draw.integers(2, 90)) * 50:,}",
                "date": f"{draw.choice(_MONTHS)} {draw.integers(1, 29)}",
            }  # fmt: skip
            note = f"{draw.choice(topics).format(**slots)} and {draw.choice(own)}"
            written.append(f"{note} {private}" if at % 5 == 4 else note)
        people.append(Person(written, private))
    return people


def with_typos(lines: list[str], share: float, seed: int) -> list[str]:
    """Return lines in which two neighbouring letters of some words are exchanged, as fingers do."""
    draw, changed = np.random.default_rng([seed, 6]), []
    for line in lines:
        words = line.split()
        for n, word in enumerate(words):
            if len(word) > 3 and draw.random() < share:
                at = int(draw.integers(1, len(word) - 2))
                words[n] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        changed.append(" ".join(words))
    return changed


def in_mixed_case(lines: list[str], seed: int) -> list[str]:
    """Return the lines with a quarter of their words capitalised and a quarter in capitals."""
    draw = np.random.default_rng([seed, 7])
    change = (str, str, str.capitalize, str.upper)
    return [" ".join(change[draw.integers(4)](word) for word in line.split()) for line in lines]


def with_unseen(lines: list[str], share: float, seed: int) -> list[str]:
    """Return lines in which made-up words stand in place of some."""
    draw = np.random.default_rng([seed, 8])
    syllables = "vor", "lim", "tas", "que", "dro", "nep", "ula", "zin"
    return [
        " ".join(
            "".join(draw.choice(syllables, 3)) if len(word) > 3 and draw.random() < share else word
            for word in line.split()
        )
        for line in lines
    ]
