"""A tokenizer whose ids are words: what made-up worlds are written in."""

import json
from collections.abc import Iterable
from pathlib import Path

from jaxllm.atomic import write_file
from jaxllm.data import Tokenizer, load_tokenizer

SPECIAL = ("<|endoftext|>", "<unk>")  # begin every vocabulary


def word_tokenizer(words: Iterable[str], folder: Path) -> Tokenizer:
    """Write a tokenizer of `SPECIAL` and some words into a folder, as tokenizer.json, and return it."""
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": SPECIAL[0], "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}
        ],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": SPECIAL[1],
                  "vocab": {word: i for i, word in enumerate((*SPECIAL, *words))}},
    }  # fmt: skip
    write_file(folder / "tokenizer.json", json.dumps(content).encode())
    return load_tokenizer(folder / "tokenizer.json")
