"""The methods that experiments.exposed compares, each an arm: what decodes, how strongly, by which expert."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.data.tokenizer import encode_prompt, stop_ids
from jaxllm.generate import (
    Beside,
    Decoder,
    Generation,
    Suppress,
    combine_models,
    contrast,
    generate,
    keep_min_p,
    keep_top_p,
    steer,
    suppression,
)
from jaxllm.score import score_choices

NUCLEUS, PLAUSIBLE = 0.9, 0.1
# Six descriptions after Self-Debias' (arXiv 2103.00453, table 1); each in its template.
DESCRIPTIONS = (
    "rude, disrespectful or unreasonable language",
    "very hateful, aggressive, disrespectful language",
    "sexually explicit language",
    "threatening language",
    "swear words or other profane language",
    "negative or hateful language about someone's identity",
)
INSTRUCTION = "The following text is polite, respectful and kind:\n\n"


class Arm(NamedTuple):
    """One method at one strength."""

    method: str
    strength: float = 0.0
    expert: str = "toxic"

    @property
    def name(self) -> str:
        """A name for files and plots."""
        beside = "" if self.expert == "toxic" else f"-{self.expert}"
        return f"{self.method}{beside}-{self.strength:g}" if self.strength else self.method + beside


def processors(arm: Arm, expert: Callable[[str], Decoder], floor: float, prefixes: Sequence[Sequence[int]]):
    """Return an arm's logits processors. All truncate first, so that all choose among the same tokens of p.

    Args:
      arm: the method.
      expert: name -> model.
      floor: of the suppressions.
      prefixes: token ids of Self-Debias' prefixes.
    """
    first = keep_top_p(NUCLEUS)
    if arm.method in ("base", "clean", "prompt"):
        return [first]
    if arm.method == "exposed":
        return [first, combine_models(expert(arm.expert), Suppress(), suppression(arm.strength, floor))]
    if arm.method == "exposed_last":  # the same, reweighted before it is truncated
        return [combine_models(expert(arm.expert), Suppress(), suppression(arm.strength, floor)), first]
    if arm.method == "self_debias":
        beside = Beside(expert("base"), prefixes)
        return [first, combine_models(beside, Suppress(), suppression(arm.strength, floor))]
    if arm.method == "anti_only":
        return [first, combine_models(expert(arm.expert), steer, arm.strength)]
    if arm.method == "dexperts":
        return [first, combine_models([expert("clean"), expert("toxic")], steer, arm.strength)]
    plausible = keep_min_p(PLAUSIBLE)
    return [plausible, combine_models(expert(arm.expert), contrast, arm.strength)]


def measure(arm: Arm, world, expert, tokenizer, config) -> dict[str, Any]:
    """Return what an arm's continuations are like: lists a prompt and sample; no text leaves this function.

    Perplexity is that of a continuation under the base, given the prompt. KL(p~, p) is estimated on the
    arm's own draws, p whole: log p~ - log p of each.
    """
    base = expert("clean" if arm.method == "clean" else "base")
    plain = [encode_prompt(tokenizer, prompt) for prompt in world.prompts]
    instruction = tokenizer.encode(INSTRUCTION).tolist() if arm.method == "prompt" else []
    template = "The following text contains {}:\n\n"
    prefixes = [] if arm.method != "self_debias" else [
        tokenizer.encode(template.format(one)).tolist() for one in DESCRIPTIONS[: config.prefixes]
    ]  # fmt: skip
    rows = [[*instruction, *prompt] for prompt in plain for _ in range(config.samples)]
    chain = processors(arm, expert, config.floor, prefixes)
    pieces = [
        generate(
            *base, rows[at : at + config.rows_per_call], max_new_tokens=config.new_tokens, processors=chain,
            eos_id=stop_ids(tokenizer), key=jax.random.fold_in(jax.random.key(config.seed), at),
        )
        for at in range(0, len(rows), config.rows_per_call)
    ]  # fmt: skip
    drawn = Generation(*([row for piece in pieces for row in getattr(piece, name)]
                         for name in ("tokens", "log_probs", "sampled_log_probs")))  # fmt: skip
    texts = [tokenizer.decode(ids) for ids in drawn.tokens]
    log_probs = [sum(row) for row in drawn.log_probs]
    if arm.method in ("clean", "prompt"):
        contexts = [prompt for prompt in plain for _ in range(config.samples)]
        some = [row for row, ids in enumerate(drawn.tokens) if ids]
        scored = score_choices(
            *expert("base"), [contexts[i] for i in some], [[drawn.tokens[i]] for i in some]
        )
        log_probs = [0.0] * len(rows)
        for row, [choice] in zip(some, scored, strict=True):
            log_probs[row] = choice.log_prob
    scores = {name: np.asarray(scorer(texts)).tolist() for name, scorer in world.scorers.items()}
    for name in scores:  # nothing was said
        scores[name] = [score if ids else 0.0 for score, ids in zip(scores[name], drawn.tokens, strict=True)]
    distinct = {
        f"distinct_{n}": [
            _distinct(drawn.tokens[at : at + config.samples], n) for at in range(0, len(rows), config.samples)
        ]
        for n in (1, 2, 3)
    }
    return {
        "scores": scores, "log_probs": log_probs, "sampled": [sum(row) for row in drawn.sampled_log_probs],
        "tokens": [len(ids) for ids in drawn.tokens], **distinct,
    }  # fmt: skip


def _distinct(rows: Sequence[Sequence[int]], n: int) -> float:
    """Return the share of different n-grams among all of a prompt's continuations."""
    grams = [tuple(row[at : at + n]) for row in rows for at in range(len(row) - n + 1)]
    return len(set(grams)) / max(1, len(grams))
