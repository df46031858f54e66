"""The layout of a few-shot prompt that classifies: fields, exemplars, queries, and their tokens.

An exemplar is a line a field, "\\nField: value" (the label's last), and a closing line end; exemplars follow
one another. A query is the same without the label, and ends in "\\nLabel field:". As in the code of
generative calibration (Jiang et al. 2023, arXiv 2310.10266).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError, brief

Values = Sequence[str]  # of an input's fields: one text, or a pair


@dataclass(frozen=True)
class FewShotTask:
    """The names of a task's fields, the label's last, and the label words.

    Examples:
      >>> task = FewShotTask(("Review", "Sentiment"), ("negative", "positive"))
      >>> task.exemplar(["a fine film"], 1) + task.query(["dull"])
      '\\nReview: a fine film\\nSentiment: positive\\n\\nReview: dull\\nSentiment:'
    """

    fields: tuple[str, ...]
    labels: tuple[str, ...]

    def __post_init__(self):
        if len(self.fields) < 2 or len(set(self.fields)) < len(self.fields):
            raise UserError(
                f"fields are {self.fields}; give an input's and the label's, two or more that differ"
            )
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise UserError(f"labels are {self.labels}; give two or more that differ")
        for word in (*self.fields, *self.labels):
            if not word or word != word.strip() or "\n" in word:
                raise UserError(
                    f"{brief(word)} is empty, or has spaces around it or a line end; give a plain word"
                )

    def exemplar(self, values: Values, label: int) -> str:
        """Return a labelled input.

        Raises:
          UserError: not a value for each field, or one that holds a line end, where a model's inputs end.
        """
        return self.input_text(values) + f"\n{self.fields[-1]}: {self.labels[label]}\n"

    def query(self, values: Values) -> str:
        """Return an input whose label is to be said; raises what `exemplar` does."""
        return self.input_text(values) + f"\n{self.fields[-1]}:"

    def neutral_query(self) -> str:
        """Return the label's field alone, for pointwise mutual information (Holtzman et al. 2021)."""
        return f"\n{self.fields[-1]}:"

    def channel_exemplar(self, values: Values, label: int) -> str:
        """Return a labelled input, label first, for a noisy channel (Min et al. 2022)."""
        return f"\n{self.fields[-1]}: {self.labels[label]}" + self.input_text(values) + "\n"

    def channel_query(self, values: Values, label: int) -> tuple[str, str]:
        """Return (a label's line, the input that is to be scored after it)."""
        return f"\n{self.fields[-1]}: {self.labels[label]}", self.input_text(values)

    def markers(self) -> list[str]:
        """Return what begins each field, the first included."""
        return [f"\n{field}:" for field in self.fields]

    def input_text(self, values: Values) -> str:
        """Return an input's fields without the label's; raises what `exemplar` does."""
        if isinstance(values, str) or len(values) != len(self.fields) - 1:
            raise UserError(
                f"an input is {brief(values)}; give a list of {len(self.fields) - 1} texts, one for each of "
                f"{', '.join(self.fields[:-1])}"
            )
        for field, value in zip(self.fields, values, strict=False):
            if "\n" in value or "\r" in value:
                raise UserError(
                    f"the {field} {brief(value)} holds a line end, which ends a field; replace it by a space"
                )
        # Without a space after the colon where there is nothing to say.
        return "".join(f"\n{f}: {v}".rstrip(" ") for f, v in zip(self.fields, values, strict=False))


def label_tokens(tokenizer: Tokenizer, task: FewShotTask, *, first_only: bool = False) -> list[list[int]]:
    """Return the token ids of each label word after the label's field.

    Args:
      tokenizer: from `jaxllm.data.load_tokenizer`.
      task: its fields and labels.
      first_only: the paper's reading: a label is its first token.

    Raises:
      UserError: two labels have the same tokens, or, with `first_only`, the same first token.
    """
    after = f"\n{task.fields[-1]}:"
    ids = [_tokens_after(tokenizer, after, f" {label}") for label in task.labels]
    if first_only:
        ids = [one[:1] for one in ids]
    for number, one in enumerate(ids):
        if one in ids[:number]:
            twin = task.labels[ids.index(one)]
            raise UserError(
                f"the labels '{twin}' and '{task.labels[number]}' begin with the same token, so that a model "
                "cannot say one without the other; choose other words, or score all their tokens"
            )
    return ids


def marker_tokens(tokenizer: Tokenizer, task: FewShotTask) -> list[list[int]]:
    """Return the token ids of each field's marker, "\\nField:", as they follow a text.

    Raises:
      UserError: the tokenizer joins a text and the line end after it.
    """
    text = f"\n{task.fields[-1]}: {task.labels[0]}"
    return [_tokens_after(tokenizer, text, marker) for marker in task.markers()]


def line_end_ids(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Return which ids hold a line end: bool [V].

    Examples:
      >>> from jaxllm.data import load_tokenizer
      >>> np.flatnonzero(line_end_ids(load_tokenizer("bytes"), 257))
      array([10])
    """
    known = min(vocab_size, tokenizer.vocab_size)
    holds = ["\n" in tokenizer.decode([token]) for token in range(known)]
    return np.array(holds + [True] * (vocab_size - known))


def content_free_inputs(task: FewShotTask) -> list[list[str]]:
    """Return the inputs of contextual calibration (Zhao et al. 2021): N/A, nothing, [MASK] in every field."""
    return [[text] * (len(task.fields) - 1) for text in ("N/A", "", "[MASK]")]


def random_word_inputs(inputs: Sequence[Values], count: int = 20, seed: int = 0) -> list[list[str]]:
    """Return inputs of random words, for domain-context calibration (Fei et al. 2023, arXiv 2305.19148).

    Each field has a bag of its own: the lower-cased words of its texts, and one more than a text has on
    average. The method takes the texts that are to be classified: it is transductive.

    Raises:
      UserError: no words to draw from.
    """
    random, fields = np.random.default_rng(seed), []
    for texts in zip(*inputs, strict=True):
        words = [text.lower().split() for text in texts]
        bag = [word for some in words for word in some]
        if not bag:
            raise UserError("the inputs hold no word to draw from; give texts of the domain")
        length = int(np.mean([len(some) for some in words])) + 1
        fields.append([" ".join(random.choice(bag, length)) + " ." for _ in range(count)])
    return [list(values) for values in zip(*fields, strict=True)]


def _tokens_after(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Return the ids of a text that follows another: what stands alone may get a space of its own."""
    head, both = tokenizer.encode(before).tolist(), tokenizer.encode(before + text).tolist()
    if both[: len(head)] != head or len(both) == len(head):
        raise UserError(
            f"the tokenizer joins {brief(text)} with the text before it, so that it has no tokens of its own "
            "there; choose another word"
        )
    return both[len(head) :]
