"""The files beside a tokenizer.json: how texts begin, what ends a turn, the chat template.

They are kept whole, so that an exported model has what was imported; what encoding and generation
need is read out of them.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.atomic import write_file
from jaxllm.errors import UserError, brief
from jaxllm.json_file import read_bounded, read_json

_TOKENIZER, _GENERATION, _TEMPLATE = "tokenizer_config.json", "generation_config.json", "chat_template.jinja"
_MODEL = "config.json"
NAMES = (_TOKENIZER, _GENERATION, _TEMPLATE)
_MOST_BYTES = 1 << 20  # of a chat template


@dataclasses.dataclass(frozen=True)
class Companions:
    """What Hugging Face libraries keep beside a tokenizer.json; all empty for a tokenizer trained here."""

    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # tokenizer_config.json
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # generation_config.json
    template: str | None = None  # chat_template.jinja

    @property
    def add_bos(self) -> bool | None:
        """Whether texts begin with BOS; None leaves it to tokenizer.json."""
        value = self.tokenizer.get("add_bos_token")
        return value if isinstance(value, bool) else None

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that writes a conversation, if there is one; of several the default."""
        template = self.tokenizer.get("chat_template") if self.template is None else self.template
        if isinstance(template, list):
            entries = [entry for entry in template if isinstance(entry, dict)]
            default = [entry for entry in entries if entry.get("name") == "default"]
            template = default[-1].get("template") if default else None
        return template if isinstance(template, str) else None

    def token(self, name: str) -> str | None:
        """Return a special token's text by its name, such as "eos_token"."""
        token = self.tokenizer.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        return token if isinstance(token, str) else None

    def eos_ids(self) -> list[int]:
        """Return the ids that end a generated text.

        Raises:
          UserError: they are not ids.
        """
        ids = self.generation.get("eos_token_id")
        ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise UserError(
                f"{_GENERATION}: eos_token_id is {brief(ids)}; expected an id, or a list of ids"
            )
        return ids

    def write(self, folder: Path) -> None:
        """Write the files that are not empty."""
        for name, content in ((_TOKENIZER, self.tokenizer), (_GENERATION, self.generation)):
            if content:
                write_file(folder / name, (json.dumps(content, indent=2) + "\n").encode())
        if self.template is not None:
            write_file(folder / _TEMPLATE, self.template.encode())


def read_companions(folder: Path) -> Companions:
    """Return what is there. Without a generation_config.json the ids of the model's config.json count.

    Raises:
      UserError: a file is unreadable, too large, or not the JSON object that it should be.
    """
    generation = _read_object(folder / _GENERATION)
    if not generation:
        model = _read_object(folder / _MODEL)
        generation = {name: model[name] for name in ("bos_token_id", "eos_token_id") if name in model}
    return Companions(_read_object(folder / _TOKENIZER), generation, _read_text(folder / _TEMPLATE))


def _read_object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read_text(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        return read_bounded(path, _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 ({error.reason})") from error
