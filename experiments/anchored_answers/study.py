"""How one model answers multiple-choice questions, what in it prefers one letter, and what edits of it do."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.anchored_answers.questions import LETTERS, Question, letter_places, prompt, rotations
from jaxllm import models
from jaxllm.data import Tokenizer, single_token, start_id
from jaxllm.errors import UserError
from jaxllm.interpret import ComponentScores, Norm, component_scores, shift_row, swap_attention, unembedding

BATCH = 16  # prompts that a compiled program takes
LARGEST = 10  # rows of a layer that write most into a prompt: the paper's shortlist


class Subject(NamedTuple):
    """A model to ask."""

    name: str
    config: models.ModelConfig
    params: dict
    tokenizer: Tokenizer
    plain: dict[str, np.ndarray]  # plain text: tokens, targets, segment_ids, mask, each [B, T]

    @property
    def letters(self) -> np.ndarray:
        """Return the ids of " A" to " E".

        Raises:
          UserError: one of them is several tokens.
        """
        return np.array([single_token(self.tokenizer, f" {letter}") for letter in LETTERS], np.int32)


class Asked(NamedTuple):
    """Prompts: every question with its right option at each place."""

    tokens_PT: np.ndarray
    last_P: np.ndarray  # position of the colon that a letter follows
    gold_P: np.ndarray
    options_P: np.ndarray  # how many
    question_P: np.ndarray
    places_PK: np.ndarray  # position of each option's letter; 0 where there is none
    sets: tuple[str, ...]  # of each question

    def take(self, rows: np.ndarray) -> "Asked":
        """Return some of the prompts."""
        return Asked(*(x[rows] for x in self[:-1]), self.sets)


class Answers(NamedTuple):
    """What a model says at the end of each prompt."""

    logits_PK: np.ndarray  # of the letters; -inf beyond a question's options
    top_P: np.ndarray  # the likeliest id of the whole vocabulary

    @property
    def letter_P(self) -> np.ndarray:
        """Return the likeliest letter."""
        return self.logits_PK.argmax(1)


def ask_about(subject: Subject, sets: dict[str, list[Question]]) -> Asked:
    """Return the prompts of all questions, padded on the right to one length."""
    begin, rows = start_id(subject.tokenizer), []
    questions = [(name, question) for name, found in sets.items() for question in found]
    for number, (_, question) in enumerate(questions):
        for order in rotations(question):
            ids, ends = subject.tokenizer.encode_with_ends(prompt(order))
            places = [1 + int(np.searchsorted(ends, place + 1)) for place in letter_places(order)]
            rows.append((ids, order.answer, number, places))
    longest = max(len(ids) for ids, *_ in rows) + 1
    if longest > (subject.config.most_positions or longest):
        raise UserError(
            f"a prompt has {longest} tokens and the model {subject.config.most_positions} positions; give a "
            "model with a longer context"
        )
    tokens_PT = np.zeros((len(rows), -(-longest // 8) * 8), np.int32)
    tokens_PT = tokens_PT[:, : subject.config.most_positions]
    places_PK = np.zeros((len(rows), len(LETTERS)), np.int32)
    for row, (ids, _, _, places) in enumerate(rows):
        tokens_PT[row, 0], tokens_PT[row, 1 : len(ids) + 1] = begin, ids
        places_PK[row, : len(places)] = places
    column = lambda values: np.array(list(values), np.int32)
    return Asked(
        tokens_PT, column(len(ids) for ids, *_ in rows), column(gold for _, gold, *_ in rows),
        column(len(places) for *_, places in rows), column(number for _, _, number, _ in rows), places_PK,
        tuple(name for name, _ in questions),
    )  # fmt: skip


def batches(count: int) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, the last filled up with its last row."""
    for start in range(0, count, BATCH):
        yield np.minimum(np.arange(start, start + BATCH), count - 1)


def collect(count: int, function: Callable[[np.ndarray], Any]) -> Any:
    """Call a function of the rows of each batch; return its arrays, a row a prompt."""
    parts = [jax.device_get(function(rows)) for rows in batches(count)]
    return jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *parts)


def answer(subject: Subject, asked: Asked, params: dict | None = None) -> Answers:
    """Ask the model, with other parameters if they are given."""
    params, letters = subject.params if params is None else params, subject.letters

    def of_batch(rows):
        tokens, last = asked.tokens_PT[rows], asked.last_P[rows]
        return _answer(subject.config, params, tokens, None, last, letters)

    return _answers(asked, collect(len(asked.gold_P), of_batch))


class Resumed:
    """The stream that enters a layer, kept for prompts, so that edits of later layers need not begin anew."""

    def __init__(self, subject: Subject, asked: Asked, layer: int):
        config, group = subject.config, len(subject.config.windows)
        self.subject, self.asked, self.start = subject, asked, layer // group * group
        self.config = dataclasses.replace(config, num_layers=config.num_layers - self.start)
        self.stream_PTD = None
        if self.start:
            before = dataclasses.replace(config, num_layers=self.start)
            cut = _cut(subject.params, slice(None, self.start))
            of_batch = lambda rows: _stream(before, cut, asked.tokens_PT[rows])
            self.stream_PTD = collect(len(asked.gold_P), of_batch)

    def answer(self, layer: int, row: int, shift_D: jax.Array) -> Answers:
        """Ask the model with a vector added to one row of a layer that is not before the kept one."""
        edited = shift_row(self.subject.config, self.subject.params, layer, row, shift_D)
        letters = self.subject.letters
        if self.stream_PTD is None:
            return answer(self.subject, self.asked, edited)
        cut = _cut(edited, slice(self.start, None))

        def of_batch(rows):
            stream = self.stream_PTD[rows]
            tokens, last = self.asked.tokens_PT[rows], self.asked.last_P[rows]
            return _answer(self.config, cut, tokens, stream, last, letters)

        return _answers(self.asked, collect(len(self.asked.gold_P), of_batch))


def swapped(subject: Subject, asked: Asked, mask_LH: np.ndarray, anchor: int) -> Answers:
    """Ask with chosen heads' attention to the anchor's letter and to the right one exchanged."""
    everyone = np.arange(len(asked.gold_P))
    anchor_P, gold_P = asked.places_PK[:, anchor], asked.places_PK[everyone, asked.gold_P]
    letters = subject.letters

    def of_batch(rows):
        where = asked.last_P[rows], anchor_P[rows], gold_P[rows]
        return _swapped(subject.config, subject.params, asked.tokens_PT[rows], mask_LH, where, letters)

    return _answers(asked, collect(len(everyone), of_batch))


def scores(
    subject: Subject, asked: Asked, anchor: int, other_P: np.ndarray, norm: Norm
) -> list[ComponentScores]:
    """Return, a batch at a time, what components say for the anchor's letter over another of each prompt."""
    letters = subject.letters

    def of_batch(rows):
        return component_scores(
            subject.config, subject.params, asked.tokens_PT[rows], letters[anchor], letters[other_P[rows]],
            norm=norm, positions_B=asked.last_P[rows],
        )  # fmt: skip

    return [jax.device_get(of_batch(rows)) for rows in batches(len(asked.gold_P))]


def other_letters(asked: Asked, anchor: int) -> np.ndarray:
    """Return for each prompt one of its letters that is not the anchor's, each as often: it knows no gold."""
    step = np.arange(len(asked.gold_P)) % (asked.options_P - 1)
    return np.where(step < anchor, step, step + 1).astype(np.int32)


class Row(NamedTuple):
    """One row of one MLP, and how it was found."""

    layer: int
    row: int
    score: float  # mean over prompts: what it adds to the anchor's logit over another letter's
    share: float  # of prompts in which it is among its layer's largest
    sign: int  # of its coefficient k_i: where it is negative, what is added to the row is taken off


def rank_rows(parts: list[ComponentScores], count: int) -> list[Row]:
    """Return the rows that are often among a layer's largest, what adds most to the anchor's logit first.

    A row counts that is among the `LARGEST` of its layer in half of the prompts; without one, those that are
    most often. The paper ranks by each row's own norm. Its scores hold the MLP's bias, so that a row which
    writes next to nothing scores what the bias does: no place to put an edit. So here: norm="final".
    """
    score_LF, share_LF, size_LF = 0.0, 0.0, 0.0
    for part, rows in zip(parts, batches(count), strict=True):
        new = np.concatenate([[True], np.diff(rows) > 0])  # not what fills the last batch up
        size_LBF = np.abs(part.row_sizes_LBF[:, new])
        least = np.partition(size_LBF, -LARGEST, axis=-1)[..., -LARGEST, None]
        share_LF += (size_LBF >= least).sum(1) / count
        score_LF += part.rows_LBF[:, new].sum(1) / count
        size_LF += part.row_sizes_LBF[:, new].sum(1)
    fit_LF = share_LF >= min(0.5, share_LF.max())
    order = np.argsort(np.where(fit_LF, -score_LF, np.inf), axis=None)[: int(fit_LF.sum())]
    places = zip(*np.unravel_index(order, score_LF.shape), strict=True)
    return [
        Row(int(i), int(j), float(score_LF[i, j]), float(share_LF[i, j]), int(np.sign(size_LF[i, j])))
        for i, j in places
    ]


def gap(answers: Answers, asked: Asked, anchor: int) -> float:
    """Return the mean logit of the anchor's letter over the mean of a prompt's others."""
    logits = np.where(np.isfinite(answers.logits_PK), answers.logits_PK, 0)
    others = (logits.sum(1) - logits[:, anchor]) / (asked.options_P - 1)
    return float(np.mean(logits[:, anchor] - others))


def calibrated(known: Answers, known_about: Asked, answers: Answers, asked: Asked) -> Answers:
    """Return answers without the letters' mean logits of questions with as many options: no edit at all."""
    logits_PK = answers.logits_PK.copy()
    for count in np.unique(asked.options_P):
        mean_K = known.logits_PK[known_about.options_P == count, :count].mean(0)
        logits_PK[asked.options_P == count, :count] -= mean_K
    return Answers(logits_PK, answers.top_P)


def fit_strength(
    resumed: Resumed, row: Row, shift_D: jax.Array, anchor: int, before: float
) -> tuple[float, float]:
    """Return (the multiple of a shift after which the mean gap is nearest 0, that gap), by secant steps.

    It reads no right answer: with each at every place, a model without a preference for a letter has no gap.
    """
    tried = [(0.0, before)]
    guess = 1.0
    for _ in range(4):
        found = resumed.answer(row.layer, row.row, guess * shift_D)
        tried.append((guess, gap(found, resumed.asked, anchor)))
        (s0, g0), (s1, g1) = tried[-2:]
        if abs(g1) < 0.02 * abs(before) or g1 == g0:
            break
        guess = float(np.clip(s1 - g1 * (s1 - s0) / (g1 - g0), -100, 100))
    return min(tried, key=lambda pair: abs(pair[1]))


def direction(subject: Subject, anchor: int) -> tuple[jax.Array, jax.Array]:
    """Return (the anchor's unembedding, the mean of the other letters'), each [D]."""
    vectors_KD = unembedding(subject.config, subject.params, subject.letters)
    others = np.arange(len(LETTERS)) != anchor
    return vectors_KD[anchor], vectors_KD[others].mean(0)


@partial(jax.jit, static_argnums=0)
def plain_log_probs(config: models.ModelConfig, params: dict, rows: dict[str, np.ndarray]) -> jax.Array:
    """Return the log-probability of each next token of plain text, [B, T]."""
    hidden_BTD = models.trunk(config, params, rows["tokens"], segment_ids=rows["segment_ids"])
    return models.token_log_probs(config, params, hidden_BTD, rows["targets"])


def per_question(asked: Asked, values_P: np.ndarray, where_P: np.ndarray | None = None) -> np.ndarray:
    """Return the mean over each question's prompts, of those in `where_P`; NaN where a question has none."""
    where_P = np.ones(len(values_P), bool) if where_P is None else where_P
    numbers = np.unique(asked.question_P)
    found = np.full(len(numbers), np.nan)
    for i, number in enumerate(numbers):
        mine = where_P & (asked.question_P == number)
        if mine.any():
            found[i] = values_P[mine].mean()
    return found


def measured(subject: Subject, asked: Asked, answers: Answers, anchor: int) -> dict[str, np.ndarray]:
    """Return each question's accuracy and anchored-bias rate, letters alone and the whole vocabulary."""
    letter, others = answers.letter_P, asked.gold_P != anchor
    full_right = answers.top_P == subject.letters[asked.gold_P]
    return {
        "accuracy": per_question(asked, letter == asked.gold_P),
        "accuracy_full": per_question(asked, full_right),
        "anchored": per_question(asked, letter == anchor, others),
        "anchored_full": per_question(asked, answers.top_P == subject.letters[anchor], others),
        "accuracy_on_anchor": per_question(asked, letter == asked.gold_P, ~others),
        "accuracy_on_others": per_question(asked, letter == asked.gold_P, others),
    }


def _answers(asked: Asked, found) -> Answers:
    logits_PK, top_P = found
    beyond = np.arange(len(LETTERS)) >= asked.options_P[:, None]
    return Answers(np.where(beyond, -np.inf, logits_PK), top_P)


def _cut(params: dict, layers: slice) -> dict:
    return params | {"layers": jax.tree.map(lambda w: w[layers], params["layers"])}


@partial(jax.jit, static_argnums=0)
def _answer(config, params, tokens_BT, stream_BTD, last_B, letters_K):
    """Return (the letters' logits [B, K], the likeliest id [B]) after each prompt, or after its stream."""
    resume = {} if stream_BTD is None else {"embed": lambda value, layer: stream_BTD.astype(value.dtype)}
    return _read(config, params, tokens_BT, models.Sites(edits=resume), last_B, letters_K)


@partial(jax.jit, static_argnums=0)
def _swapped(config, params, tokens_BT, mask_LH, where, letters_K):
    sites = models.Sites(edits=swap_attention(mask_LH, *where))
    return _read(config, params, tokens_BT, sites, where[0], letters_K)


def _read(config, params, tokens_BT, sites, last_B, letters_K):
    hidden_BTD = models.trunk(config, params, tokens_BT, sites=sites)
    logits_BV = models.logits(config, params, hidden_BTD[jnp.arange(len(last_B)), last_B])
    return logits_BV[:, letters_K], jnp.argmax(logits_BV, axis=-1)


@partial(jax.jit, static_argnums=0)
def _stream(config, params, tokens_BT):
    return models.capture(config, params, tokens_BT, models.Sites(("resid_post",)))[1]["resid_post"][-1]
