"""Short texts to learn from and to tell apart: posts by the authors' rules, released sets, facts, sentences.

The genuine corpus is not handed on, and the released sets have no licence: point `--released` at the folder
`generated/` of the authors' repository, aiintelligentsystems/showerthoughts-dataset. Else one-line facts of
the package randfacts (MIT), and without any package index sentences of the embedded addresses.
"""

import json
import re
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.atomic import write_file
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.measures import words_of
from jaxllm.pretrained.wheels import download_wheel
from jaxllm.user_cache import user_cache_folder

TAG = "<|showerthought|>"
_END = "<|endoftext|>"
_FACTS = "randfacts==0.24.4"


@dataclass(frozen=True)
class Kept:
    """Texts of a file, and what was left out of it."""

    texts: list[str]
    dropped: dict[str, int] = field(default_factory=dict)  # by reason


def keep_post(record: dict[str, Any]) -> str | None:
    """Return why a post is dropped, by the rules of the authors' dataset class; None: it is kept."""
    if "removed_by_category" in record:  # whatever its value
        return "removed"
    if record.get("selftext", "") != "":
        return "has a body"
    if record.get("post_hint") == "image":
        return "is an image"
    if not isinstance(record.get("title"), str) or not record["title"].strip():
        return "no title"
    return None


def read_posts(path: str | Path) -> Kept:
    """Return the titles of a file of posts, one JSON object a line; broken lines are counted and named.

    The authors' reader ends silently at the first broken line.

    Raises:
      UserError: no post is kept.
    """
    texts, dropped, broken = [], {}, []
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            reason = keep_post(record) if isinstance(record, dict) else "broken"
            if reason == "broken":
                broken.append(number)
            if reason is None:
                texts.append(record["title"])
            else:
                dropped[reason] = dropped.get(reason, 0) + 1
    if broken:
        shown = ", ".join(map(str, broken[:5])) + (" ..." if len(broken) > 5 else "")
        print(f"{len(broken)} broken lines of '{path}' were left out: {shown}")
    if not texts:
        raise UserError(
            f"no post of '{path}' is kept ({dropped or 'it is empty'}); give titles, one JSON a line"
        )
    return Kept(texts, dropped)


@dataclass(frozen=True)
class Released:
    """The authors' files: labelled splits, and samples of two generators."""

    splits: dict[str, list[tuple[str, int]]]  # "mixed/train" ...: (text, 1 if generated)
    samples: dict[str, list[str]]  # "GPT-2", "GPT-Neo": without tags; what lacks an end is kept


def read_released(folder: str | Path) -> Released:
    """Read the released files of a folder; what is absent is left out.

    Raises:
      UserError: none is there.
    """
    folder, splits, samples = Path(folder).expanduser(), {}, {}
    for name, file in (("mixed", "mixed"), ("GPT-2", "GPT2"), ("ChatGPT", "chatGPT")):
        for part in ("train", "test"):
            path = folder / f"roberta_{part}_data_{file}.ndjson"
            if path.is_file() and path.stat().st_size:
                splits[f"{name}/{part}"] = _labelled(path)
    for name, file in (("GPT-2", "gpt2"), ("GPT-Neo", "neo")):
        path = folder / f"generated_showerthoughts_4_{file}.txt"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            samples[name] = [
                s.replace(_END, "").strip() for s in text.split(TAG) if s.replace(_END, "").strip()
            ]
    if not splits:
        raise UserError(
            f"'{folder}' holds no roberta_*_data_*.ndjson; give the folder generated/ of the authors' "
            "repository"
        )
    return Released(splits, samples)


def _labelled(path: Path) -> list[tuple[str, int]]:
    rows, broken = [], 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            rows.append((row["title"], int(row["label"] == "generated")))
        except (ValueError, KeyError, TypeError):
            broken += 1
    if broken:
        print(f"{broken} broken lines of '{path}' were left out")
    return rows


def overlaps(splits: dict[str, Sequence[str]]) -> dict[str, int]:
    """Return how many texts of each test set stand in each training set: a built-in check, case aside."""
    found = {}
    sets = {name: {" ".join(words_of(text)) for text in texts} for name, texts in splits.items()}
    for test in (name for name in splits if name.endswith("/test")):
        for train in (name for name in splits if name.endswith("/train")):
            found[f"{test} in {train}"] = sum(
                " ".join(words_of(text)) in sets[train] for text in splits[test]
            )
    return found


def short_texts(source: str, least: int = 5, most: int = 40) -> list[str]:
    """Return distinct texts of one line: "facts", "addresses", or a file of posts or lines.

    Raises:
      UserError: a file that is absent or holds none.
    """
    if source == "facts":
        lines = _facts()
    elif source == "addresses":
        joined = (" ".join(address["text"].split()) for address in sotu_addresses()[-60:])
        lines = [s for text in joined for s in re.split(r"(?<=[.!?])\s+", text)]
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise UserError(
                f"no texts at '{source}'; give facts, addresses, or a file of lines, .jsonl or .ndjson of "
                "posts"
            )
        is_json = path.suffix in (".jsonl", ".ndjson")
        lines = read_posts(path).texts if is_json else path.read_text(encoding="utf-8").splitlines()
    lines = [" ".join(line.split()) for line in lines]
    found = list(dict.fromkeys(line for line in lines if least <= len(line.split()) <= most))
    if len(found) < 100:
        raise UserError(
            f"'{source}' has {len(found)} distinct texts of {least} to {most} words; a study needs 100"
        )
    order = np.random.default_rng(7).permutation(len(found))
    return [found[i] for i in order]


def _facts() -> list[str]:
    path = user_cache_folder() / "data" / "randfacts-0.24.4.txt"
    if not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(download_wheel(Path(folder), _FACTS)) as wheel:
                write_file(path, wheel.read("randfacts/safe.txt"))
    return path.read_text(encoding="utf-8").splitlines()


def split_texts(texts: Sequence[str], held_out: float = 0.25) -> tuple[list[str], list[str]]:
    """Return (what generators read, genuine texts that none of them read)."""
    at = int(len(texts) * (1 - held_out))
    return list(texts[:at]), list(texts[at:])
