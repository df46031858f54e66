"""Texts as vectors of any decoder or encoder, as a prompt of labelled examples shows them.

The three ways of TART. A vector is the mean of a text's last hidden states:

  stream           the text alone: `jaxllm.retrieve.Encoder`
  vanilla          one prompt with all labelled examples: the i-th sees those before it, a test item all
  leave-one-out    each labelled example after all the others, so that it sees as much as a test item does

In prompts a text's tokens are those of its fields, "\\nReview: a fine film", without the label's. In the
vanilla prompt an encoder, which looks both ways, sees an example's own label: take leave-one-out.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from jaxllm import models
from jaxllm.data import Tokenizer
from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.data.length_batches import length_batches
from jaxllm.data.tokenizer import begin_ids
from jaxllm.generate import Decoder
from jaxllm.score import FewShotPrompt, FewShotTask
from jaxllm.score.few_shot import Values
from jaxllm.score.sequences import check_ids, check_tokenizer

_TOKENS = 4096  # of a call of the model
Example = tuple[Values, int]  # an input's texts, and the number of its label


class PromptVectors(NamedTuple):
    """Vectors of labelled examples and of test items, float32."""

    examples_KD: np.ndarray
    queries_ND: np.ndarray


class _Row(NamedTuple):
    """A sequence of ids, and the stretches of it whose means are wanted."""

    ids: list[int]
    ends: list[int]  # where in the text each token's characters end; 0: it is none of the text's
    spans: list[tuple[int, int]]  # from after a character to another one


def embed_in_prompt(
    config: models.LanguageModel, params, tokenizer: Tokenizer, task: FewShotTask,
    examples: Sequence[Example], queries: Sequence[Values],
) -> PromptVectors:  # fmt: skip
    """Return vectors as one prompt of all labelled examples shows them ("vanilla").

    Args:
      config: of a decoder, which reads the examples once, or of an encoder.
      params: the model's.
      tokenizer: the model's.
      task: fields and labels of the prompt.
      examples: labelled, in their order.
      queries: test items: each comes after all examples, without a label; there may be none.

    Raises:
      UserError: a prompt that is longer than the model's context, or what `FewShotTask` refuses.
    """
    check_tokenizer(tokenizer)
    text, spans = _prompt(task, examples, None)
    [means] = _span_means(config, params, [_row(config, tokenizer, text, spans)])
    return PromptVectors(np.stack(means), _queries(config, params, tokenizer, task, examples, queries))


def embed_leave_one_out(
    config: models.LanguageModel, params, tokenizer: Tokenizer, task: FewShotTask,
    examples: Sequence[Example], queries: Sequence[Values],
) -> PromptVectors:  # fmt: skip
    """Return vectors of each labelled example after all the others; otherwise as `embed_in_prompt`.

    As many passes as examples, each of all of them: cost grows with their square.
    """
    check_tokenizer(tokenizer)
    rows = []
    for i, (values, _) in enumerate(examples):
        text, spans = _prompt(task, [*examples[:i], *examples[i + 1 :]], values)
        rows.append(_row(config, tokenizer, text, spans[-1:]))
    means_KD = np.stack([mean for [mean] in _span_means(config, params, rows)])
    return PromptVectors(means_KD, _queries(config, params, tokenizer, task, examples, queries))


def _queries(config, params, tokenizer, task, examples, queries) -> np.ndarray:
    if not queries:
        return np.zeros((0, config.embed_dim), np.float32)
    if config.why_not_decode is None:
        prompt = FewShotPrompt(Decoder(config, params), tokenizer, task, examples)
        return prompt.read(queries).vectors_ND
    rows = []
    for values in queries:
        text, spans = _prompt(task, examples, values)
        rows.append(_row(config, tokenizer, text, spans[-1:]))
    return np.stack([mean for [mean] in _span_means(config, params, rows)])


def _prompt(task, examples, query) -> tuple[str, list[tuple[int, int]]]:
    """Return a prompt, and where in it the fields of each example, and of the query, stand."""
    text, spans = "", []
    for values, label in examples:
        spans.append((len(text), len(text) + len(task.input_text(values))))
        text += task.exemplar(values, label)
    if query is not None:
        spans.append((len(text), len(text) + len(task.input_text(query))))
        text += task.query(query)
    return text, spans


def _row(config, tokenizer, text: str, spans) -> _Row:
    if config.why_not_decode is not None and isinstance(tokenizer, HuggingFaceTokenizer):
        found = tokenizer.backend.encode(text)  # with the special tokens that an encoder knows
        return _Row(found.ids, [end for _, end in found.offsets], spans)
    ids, ends = tokenizer.encode_with_ends(text)
    begin = list(begin_ids(tokenizer))
    return _Row(begin + ids.tolist(), [0] * len(begin) + ends.tolist(), spans)


def _span_means(config, params, rows: Sequence[_Row]) -> list[np.ndarray]:
    """Return the means of hidden states over the spans of each row: float32 [spans, D]."""
    check_ids(config, [row.ids for row in rows], "a prompt")
    found: list = [None] * len(rows)
    for batch in length_batches([len(row.ids) for row in rows], config.context_length, _TOKENS):
        tokens_BT, mask_BT = batch.fill([row.ids for row in rows])
        most = max(len(rows[number].spans) for number in batch.rows)
        spans_BST = np.zeros((batch.size, most, batch.length), np.float32)
        for place, number in enumerate(batch.rows):
            ids, ends, spans = rows[number]
            ends = np.array(ends)
            for span, (begin, end) in enumerate(spans):
                inside = (ends > begin) & (ends <= end)
                spans_BST[place, span, : len(ids)] = inside / max(1, inside.sum())
        means_BSD = np.asarray(_means(config, params, tokens_BT, mask_BT, spans_BST))
        for place, number in enumerate(batch.rows):
            found[number] = means_BSD[place, : len(rows[number].spans)]
    return found


@partial(jax.jit, static_argnames="config")
def _means(config, params, tokens_BT, mask_BT, spans_BST):
    hidden_BTD = models.trunk(config, params, tokens_BT, segment_ids=mask_BT)
    return jax.numpy.einsum("bst,btd->bsd", spans_BST, hidden_BTD.astype(jax.numpy.float32))
