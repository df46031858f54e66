"""Prompts from the command line, a file, a pipe or the keyboard."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm import data
from jaxllm.data.chat import ChatTemplate, check_roles
from jaxllm.errors import UserError, brief


class Prompt(NamedTuple):
    """What is to be continued."""

    content: str | list[int]  # as `generate_text` takes it
    shown: str  # of it, before its continuation
    row: dict[str, Any]  # the object of a line of jsonl that it comes from, or made of it


class Reader:
    """Makes prompts of texts and conversations.

    Args:
      tokenizer: of the model.
      chat: take every text for a user's turn.
      name: of the model, for messages.

    Raises:
      UserError: chat, and the tokenizer has no chat template.
    """

    def __init__(self, tokenizer, chat: bool, name: str):
        self._tokenizer, self._chat = tokenizer, chat
        self._template = data.chat_template(tokenizer)
        if chat and self._template is None:
            raise UserError(f"'{name}' has no chat template, so it is no chat model; leave out --chat")

    def text(self, text: str) -> Prompt:
        """Return the prompt of a text."""
        row = {"prompt": text}
        if not self._chat:
            return Prompt(text, text, row)
        return Prompt(self._turns([{"role": "user", "content": text}], self._template), "", row)

    def row(self, row: Any, where: str) -> Prompt:
        """Return the prompt of an object with `prompt`, or `messages`.

        Raises:
          UserError: it has neither, or messages that no template can write.
        """
        if isinstance(row, dict) and isinstance(row.get("prompt"), str):
            return self.text(row["prompt"])._replace(row=row)
        messages = row.get("messages") if isinstance(row, dict) else None
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            raise UserError(
                f"{where} holds {brief(row)}; expected an object with a text 'prompt', or with 'messages': a "
                "list of objects with the texts 'role' and 'content'"
            )
        check_roles(messages, where)
        if self._template is None:
            raise UserError(
                f"{where} holds messages, and the model has no chat template that writes them; give a text "
                "'prompt'"
            )
        if messages[-1]["role"] == "assistant" and len(messages) > 1:  # what is to be answered anew
            row = row | {"reference": messages[-1]["content"], "messages": messages[:-1]}
        return Prompt(self._turns(row["messages"], self._template), "", row)

    def _turns(self, messages: list[dict[str, Any]], template: ChatTemplate) -> list[int]:
        return self._tokenizer.encode_marked(template.prompt(messages))[0].tolist()


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(x), str) for x in ("role", "content"))


def read_prompts(file: str, reader: Reader) -> list[Prompt]:
    """Return the prompts of a file: of .jsonl one a line, of any other file or "-" (a pipe) its whole text.

    A line end at the text's end is the editor's, and left out.

    Raises:
      UserError: no such file, no text in UTF-8, or a line that holds no prompt.
    """
    if file == "-":
        with contextlib.suppress(AttributeError):  # no file
            sys.stdin.reconfigure(errors="replace")
        return [reader.text(sys.stdin.read().removesuffix("\n"))]
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"cannot read the prompts in '{file}' ({reason})") from error
    if Path(file).suffix not in (".jsonl", ".ndjson"):
        return [reader.text(text.removesuffix("\n"))]
    prompts = []
    for number, line in enumerate(text.split("\n"), 1):  # a text of JSON may hold other ends of lines
        if not line.strip():
            continue
        where = f"line {number} of '{file}'"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {brief(line)}") from error
        prompts.append(reader.row(row, where))
    if not prompts:
        raise UserError(f"'{file}' holds no prompts; give a line {{\"prompt\": ...}} for each")
    return prompts


def typed_lines() -> Iterator[str]:
    """Yield the lines that a person types, after a mark, or that a pipe gives; an empty one ends them."""
    with contextlib.suppress(AttributeError):  # no file
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text become U+FFFD
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else sys.stdin.readline()
        except EOFError:
            return
        if not line.strip():
            return
        yield line.strip()
