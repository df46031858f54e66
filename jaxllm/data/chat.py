"""Conversations as text: the chat template that comes with a tokenizer, run in Jinja's sandbox."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError, brief

Message = Mapping[str, Any]  # {"role": "user", "content": "Hello"}; what else it holds, the template reads
# What other formats call the two that speak. A template would write them as they are, or leave them out.
_ROLES = {"human": "user", "prompter": "user", "person": "user", "gpt": "assistant", "chatgpt": "assistant",
          "bot": "assistant", "chatbot": "assistant", "ai": "assistant", "model": "assistant"}  # fmt: skip
_KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")
_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    spans: tuple[tuple[int, int], ...]  # where the assistant's turns begin and end, in characters


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template of a conversation, as Hugging Face tokenizers carry one.

    Examples:
      >>> chat = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}\\n{% endfor %}"
      ...                     "{% if add_generation_prompt %}<assistant>{% endif %}")
      >>> chat.prompt([{"role": "user", "content": "Hi"}])
      '<user>Hi\\n<assistant>'
      >>> chat.render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}])
      Rendered(text='<user>Hi\\n<assistant>Yes?\\n', spans=((20, 25),))
    """

    source: str
    tokens: tuple[tuple[str, str], ...] = ()  # special tokens by name: ("bos_token", "<s>")

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return a conversation up to where the assistant's next turn begins.

        Raises:
          UserError: the template is damaged, or refuses the conversation.
        """
        return self._write(messages, add_generation_prompt=True)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Return a whole conversation, and where the assistant speaks in it.

        An assistant's turn is what follows `prompt` of the turns before it.

        Raises:
          UserError: the template is damaged, refuses the conversation, or writes a turn in another way
            once others follow it.
        """
        text, spans = self._write(messages, add_generation_prompt=False), []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.prompt(messages[:number])
                after = self._write(messages[: number + 1], add_generation_prompt=False)
                if not (text.startswith(after) and after.startswith(before)):
                    raise UserError(
                        f"the chat template writes turn {number + 1} of a conversation in another way where "
                        "the model is to write it; give conversations with one assistant turn, the last, "
                        "or prompt and completion"
                    )
                spans.append((len(before), len(after)))
        return Rendered(text, tuple(spans))

    def _write(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        try:
            return _compiled(self.source).render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None,
                **dict(self.tokens),
            )  # fmt: skip
        except Exception as error:  # whatever a template of others does
            raise UserError(
                f"the chat template cannot write this conversation: {brief(str(error), 200)}"
            ) from error


def chat_template(tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the chat template that came with a tokenizer; None where there is none."""
    if not isinstance(tokenizer, HuggingFaceTokenizer) or tokenizer.companions.chat_template is None:
        return None
    tokens = {name: tokenizer.companions.token(name) for name in _TOKENS}
    tokens["eos_token"] = tokens["eos_token"] or tokenizer.backend.id_to_token(tokenizer.eos_id)
    known = tuple((name, token) for name, token in tokens.items() if token is not None)
    return ChatTemplate(tokenizer.companions.chat_template, known)


def check_messages(messages: Any, where: str) -> list[Message]:
    """Return the messages of a row, checked.

    Raises:
      UserError: they are no conversation, or the assistant says nothing in it.
    """
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)  # a cell of csv
        except (ValueError, RecursionError):
            pass
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    ):
        raise UserError(
            f"{where} has {brief(messages)} in the column 'messages'; expected a list of objects with the "
            "texts 'role' and 'content'"
        )
    check_roles(messages, where)
    said = [m["content"] for m in messages if m["role"] == "assistant"]
    if not said or not all(text.strip() for text in said):
        what = "an empty turn of the assistant" if said else "no turn of the assistant"
        raise UserError(f"{where} has {what}, so there is nothing to learn from it; fill it in or remove it")
    return messages


def check_roles(messages: Sequence[Message], where: str) -> None:
    """Check that who speaks is called as chat templates call them.

    Raises:
      UserError: names the role and what it is called here.
    """
    for message in messages:
        role = message["role"]
        name = role.strip().lower()
        known = _ROLES.get(name, name if name in _KNOWN_ROLES else role)
        if known != role:
            raise UserError(
                f"{where} has a message of the role {brief(role)}, which chat templates do not know; call it "
                f"'{known}'"
            )


@functools.lru_cache(maxsize=8)
def _compiled(source: str):
    """Compile a template as transformers does, so that it writes the same text."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what the assistant says; it writes what is inside."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_same"), [], [], inside).set_lineno(line)

        def _same(self, caller):
            return caller()

    def refuse(message):
        raise UserError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # Jinja's own filter writes HTML's escapes.
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)
