"""Examples to learn from: a prompt with its completion, or a conversation; what of each is predicted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.data.chat import ChatTemplate, Rendered, check_messages
from jaxllm.data.rows import Row
from jaxllm.data.tokenizer import Tokenizer, encode_prompt, encode_source, stop_ids
from jaxllm.errors import UserError, brief, unknown

TEXT, COMPLETIONS, MESSAGES = "text", "prompt and completion", "messages"  # what rows can hold


class Encoded(NamedTuple):
    """An example's ids."""

    ids_N: np.ndarray  # int32
    predicted_N: np.ndarray  # bool: the model is to predict the id from those before it


class Example(Protocol):
    """What every kind of example offers."""

    @property
    def text(self) -> str:
        """All of it, in order."""

    @property
    def predicted_text(self) -> str:
        """The part that is predicted."""

    def encode(self, tokenizer: Tokenizer) -> Encoded: ...


@dataclass(frozen=True)
class Completion:
    """A prompt, and what is to follow it. Of the ids, the completion's and the end are predicted.

    Examples:
      >>> from jaxllm.data import load_tokenizer
      >>> ids, predicted = Completion("1+1=", "2").encode(load_tokenizer("bytes"))
      >>> ids.tolist(), predicted.astype(int).tolist()
      ([49, 43, 49, 61, 50, 256], [0, 0, 0, 0, 1, 1])
    """

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        """Both."""
        return self.prompt + self.completion

    @property
    def predicted_text(self) -> str:
        """The completion."""
        return self.completion

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """Return the prompt's ids as generation reads them, the completion's, and the end of a document."""
        prompt = encode_prompt(tokenizer, self.prompt)
        both = encode_prompt(tokenizer, self.text)
        follows = self.prompt and both[: len(prompt)] == prompt
        # Where the tokenizer joins the last letters of one with the first of the other, a prompt alone would
        # never be continued so.
        completion = both[len(prompt) :] if follows else tokenizer.encode(self.completion).tolist()
        predicted = [False] * len(prompt) + [True] * len(completion)
        return _ended(tokenizer, [*prompt, *completion], predicted)


    def encode_pair(self, tokenizer: Tokenizer) -> Encoded:
        """Return the ids of the prompt as a source and of the completion, each alone and with its end."""
        source = encode_source(tokenizer, self.prompt)
        answer = [*tokenizer.encode(self.completion).tolist(), tokenizer.eos_id]
        predicted = [False] * len(source) + [True] * len(answer)
        return Encoded(np.array(source + answer, np.int32), np.array(predicted, bool))


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template writes them. The assistant's turns are predicted, each to its end."""

    rendered: Rendered

    @property
    def text(self) -> str:
        """All turns."""
        return self.rendered.text

    @property
    def predicted_text(self) -> str:
        """The assistant's turns."""
        return "".join(self.text[begin:end] for begin, end in self.rendered.spans)

    def encode(self, tokenizer: HuggingFaceTokenizer) -> Encoded:
        """Return the ids of the text as the template writes it, special tokens recognised."""
        ids, ends = tokenizer.encode_marked(self.text)
        predicted, stops = np.zeros(len(ids), bool), stop_ids(tokenizer)
        for begin, end in self.rendered.spans:
            inside = np.flatnonzero((ends > begin) & (ends <= end))
            last = np.flatnonzero(np.isin(ids[inside], stops))
            # A line end after the end of a turn is the template's: nobody waits for the model to write it.
            predicted[inside[: last[-1] + 1] if len(last) else inside] = True
        return _ended(tokenizer, ids, predicted)


def _ended(tokenizer: Tokenizer, ids: Iterable[int], predicted: Iterable[bool]) -> Encoded:
    """Append the end of a document; it is predicted after a completion or turn that has no end of its own."""
    ids, predicted = np.array(ids, np.int32), np.array(predicted, bool)
    last = np.flatnonzero(predicted)[-1:]
    open_end = bool(len(last)) and last[0] == len(ids) - 1 and ids[-1] not in stop_ids(tokenizer)
    return Encoded(np.append(ids, np.int32(tokenizer.eos_id)), np.append(predicted, open_end))


def row_kind(row: Row, column: str | None) -> str:
    """Return which of TEXT, COMPLETIONS, MESSAGES rows hold, by their columns; a named column is text."""
    if column is None and "messages" in row.values:
        return MESSAGES
    if column is None and {"prompt", "completion"} <= row.values.keys():
        return COMPLETIONS
    return TEXT


def row_text(row: Row, column: str) -> str:
    """Return a column's text.

    Raises:
      UserError: there is no such column, or no text in it.
    """
    if column not in row.values:
        error = unknown("text column", column, row.values)
        raise UserError(
            f"{error} (in {row.where}); name one with text_column, or give examples: the columns prompt and "
            "completion, or messages"
        )
    if not isinstance(row.values[column], str):
        raise UserError(
            f"{row.where} has {brief(row.values[column], 40)} in the column '{column}'; expected a string"
        )
    # JSON can hold half of a UTF-16 pair (\ud800), which no encoding can carry.
    return _whole(row.values[column])


def row_example(row: Row, kind: str, template: ChatTemplate | None) -> Example:
    """Return a row's example.

    Args:
      row: the row.
      kind: COMPLETIONS or MESSAGES.
      template: of the tokenizer, for messages.

    Raises:
      UserError: nothing to predict, a value that is no text, messages without a template or that the
        template refuses.
    """
    if kind == COMPLETIONS:
        for name in ("prompt", "completion"):
            if name not in row.values:
                raise UserError(
                    f"{row.where} has no '{name}', and the first row has; every row needs both 'prompt' and "
                    "'completion'"
                )
        prompt, completion = (row_text(row, name) for name in ("prompt", "completion"))
        if not completion.strip():
            raise UserError(
                f"{row.where} has an empty completion, so there is nothing to learn from it; fill it in or "
                "remove it"
            )
        return Completion(prompt, completion)
    if kind not in row.values:
        raise UserError(
            f"{row.where} has no column '{kind}', which the first row has; give all rows the same"
        )
    messages = [_whole_message(m) for m in check_messages(row.values[kind], row.where)]
    if template is None:
        raise no_template(row.source, "its tokenizer")
    try:
        return Conversation(template.render(messages))
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from error


def no_template(source: str, tokenizer: str) -> UserError:
    """Return the error of messages that nothing can write as text."""
    return UserError(
        f"{source} holds messages, and {tokenizer} has no chat template that writes them as text; start from "
        "a chat model, or give the columns prompt and completion"
    )


def _whole_message(message: Mapping[str, Any]) -> dict[str, Any]:
    return dict(message) | {"content": _whole(message["content"])}


def _whole(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
