"""The study of punctuation: its taggers, generators and what they are measured on, each kept in a cell."""

import contextlib
import dataclasses
import io
import shutil
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.grid import code_digest
from experiments.punctuation_restoration.generator import (
    TERMS,
    Discriminator,
    draw_documents,
    grams_of,
    is_good,
    make_reward,
    prompts_of,
    reinforce,
    texture,
    train_generator,
)
from experiments.punctuation_restoration.report import count_blocks, micro_f1
from experiments.punctuation_restoration.texts import (
    MARKS,
    Corpus,
    add_errors,
    augmented,
    sentences,
    spelled_alike,
    written_text,
)
from jaxllm import models
from jaxllm.data import load_tokenizer
from jaxllm.kept_result import kept_result
from jaxllm.optim import OptimConfig
from jaxllm.pretrained import fetch_minilm, from_pretrained
from jaxllm.punctuate import Document, Punctuator, TaggerReward, plain, train_punctuator
from jaxllm.text import LabelConfig
from jaxllm.train import to_dict

_LABEL = {label: number for number, label in enumerate(MARKS.labels)}
_FREE = "_without_kl"
ABLATIONS = (*TERMS, "random", f"soundness{_FREE}")  # the last one is hacked
_MORE = ("seeds", "out", "amounts", "rows", "ablated")  # other values are more cells, not others
_PARTS = [f"punctuation_restoration/{name}.py" for name in ("generator", "report", "texts")]


class Study:
    """A run: its texts, taggers and generators."""

    def __init__(self, config: Any, corpus: Corpus):
        self.config, self.corpus, self.speed = config, corpus, 0.0
        self.topic = corpus.domain[: config.topic_talks]
        self._key = _digest(_plain(config), code_digest(*_PARTS))
        texts = (corpus.written, corpus.domain, corpus.dev, corpus.unlabelled, corpus.tests)
        self._key += _digest(texts)
        self.copies: set[tuple] = set()
        for words, _ in (*corpus.written, *self.topic):
            self.copies |= grams_of(words, 12)
        near = spelled_alike([word for words, _ in corpus.tests["reference"] for word in words])
        self.tests, clean = dict(corpus.tests), corpus.tests["reference"][: config.noisy_talks]
        for rate in config.noise:
            draw = np.random.default_rng(int(1000 * rate))
            noisy = [add_errors(talk, rate, draw, near) for talk in clean]
            self.tests[f"noise_{rate:g}"] = noisy
        self._taggers: dict[int, Punctuator] = {}
        self._generators: dict[int, Any] = {}
        self._encoder = None

    def measure(self) -> tuple[dict, dict]:
        """Return (cells by row and seed, what surrounds them)."""
        config, cells, health = self.config, {}, {}
        with tqdm(total=len(config.rows) * len(config.seeds), desc="taggers", unit="tagger") as bar:
            for seed in config.seeds:
                for row in config.rows:
                    bar.set_postfix_str(f"{row}, seed {seed}")
                    cells[row, seed] = self.row(row, seed)
                    bar.update()
                if "rl" in config.rows:
                    health[seed] = self.texts("rl", seed)["health"]
        first = config.seeds[0]
        extra = {"health": health, "ablation": self.ablation(first), "amount": self.amount(cells, first)}
        extra["context"] = self._kept(f"context-{first}", lambda: self.right_context(first))
        extra["samples"] = {
            name: [written_text(one) for one in self.texts(name, first)["documents"][:6]]
            for name in ("generated", "rl", *config.ablated[-1:])
            if name in (*config.rows, *config.ablated)
        }
        return cells, extra

    def row(self, row: str, seed: int) -> dict:
        """Return a row's counts by block on each test, and dev's micro-F1."""

        def measure():
            if row == "rl":  # the best round by dev; none is better than no reinforcement only there
                rounds = self.texts(row, seed)["rounds"]
                taggers = [self.tagger(row, self._of(row, seed, some), seed) for some in rounds]
                best = max(range(len(taggers)), key=lambda i: self.dev(taggers[i]))
                return self.scores(taggers[best]) | {"round": best}
            punctuator = self.tagger(row, self._of(row, seed), seed)
            if row == "topic":
                self._taggers[seed] = punctuator  # whom the first round's reward asks
            return self.scores(punctuator)

        return self._kept(f"row-{row}-{seed}", measure)

    def _of(self, row: str, seed: int, generated: Sequence[Document] | None = None) -> list[Document]:
        """Return the marked text that a row learns from."""
        corpus, draw = self.corpus, np.random.default_rng(seed)
        if row == "written":
            return list(corpus.written)
        found = [*corpus.written, *(corpus.domain if row == "upper" else self.topic)]
        if row == "augmented":
            found = list(corpus.written)
        if row not in ("augmented", "topic", "scratch", "upper"):
            found += self.texts(row, seed)["documents"] if generated is None else generated
        # The same noise on all of it, so that clean text is not the mark of generated text.
        return [augmented(one, draw) for one in found]

    def tagger(self, row: str, documents: Sequence[Document], seed: int) -> Punctuator:
        """Return a tagger trained on some text, for as many steps as any other."""
        config = self.config
        if self._encoder is None:
            self._encoder = _encoder(config)
        model, params, tokenizer = self._encoder
        out = Path(config.out, "taggers", f"{row}-{seed}")
        shutil.rmtree(out, ignore_errors=True)
        scratch = row == "scratch"
        rate, steps = config.scratch_rate if scratch else config.tagger_rate, config.tagger_steps
        run = LabelConfig(
            steps=steps, batch_size=config.tagger_batch, longest=config.window, seed=seed, eval_every=steps,
            save_every=steps, keep_best=0, keep_last=1, progress=False, out=str(out),
            optim=OptimConfig(learning_rate=rate, warmup_steps=steps // 10, weight_decay=0.01, beta2=0.999),
        )  # fmt: skip
        order = np.random.default_rng(seed).permutation(len(documents))
        # One long text: windows go across texts, as they do in a talk.
        joined = (
            [word for i in order for word in documents[i][0]],
            [y for i in order for y in documents[i][1]],
        )
        some = [(words[:200], labels[:200]) for words, labels in self.corpus.dev[:1]]
        start = (model, None if scratch else params, tokenizer)
        with _quiet():
            punctuator, _ = train_punctuator(
                run, [joined], some, MARKS, start=start, devices=jax.devices()[:1]
            )
        shutil.rmtree(out, ignore_errors=True)  # its weights are large, and what it says is kept
        return punctuator

    def scores(self, punctuator: Punctuator) -> dict:
        """Return counts by block of each test, and dev's micro-F1."""
        found = {name: [] for name in self.tests}
        for name, talks in self.tests.items():
            for number, talk in enumerate(talks):
                gold, said = self._said(punctuator, talk)
                found[name] += count_blocks(gold, said, self.config.block)
                if name == "asr" and self.corpus.aligned is not None:
                    gold, said = (np.where(self.corpus.aligned[number], x, 0) for x in (gold, said))
                    found.setdefault("asr_aligned", []).extend(count_blocks(gold, said, self.config.block))
        return {"tests": found, "dev": self.dev(punctuator)}

    def dev(self, punctuator: Punctuator) -> float:
        """Return micro-F1 on dev."""
        return float(micro_f1(self._counts(punctuator, self.corpus.dev)))

    def texts(self, row: str, seed: int, updates: int | None = None) -> dict:
        """Return {"documents": generated marked text, "health": figures of each draw, "rounds": ...}."""
        return self._kept(f"texts-{row}-{seed}", lambda: self._texts(row, seed, updates))

    def _texts(self, row, seed, updates):
        config, generator = self.config, self.generator(seed)
        prompts = prompts_of(generator, sentences(self.topic, config.words_per_text))
        drawing = dict(rows=config.rollouts, most=config.sample_tokens)
        if row == "generated":
            drawn = draw_documents(generator, prompts, config.samples, seed=seed, **drawing)
            return {"documents": self._good(drawn), "health": {}}
        per_round = config.updates if updates is None else updates
        rounds = config.rounds if updates is None else 1
        if row in ("rl", "best_of_n", "random"):
            weights = {"random": 1.0} if row == "random" else config.weights
            kl = config.kl
        else:
            weights, kl = {row.removesuffix(_FREE): 1.0}, 0.0 if row.endswith(_FREE) else config.kl
        drawn = draw_documents(generator, prompts, config.rollouts * 4, seed=seed + 1, **drawing)
        spoken = [
            words[i : i + 30] for words in self.corpus.unlabelled for i in range(0, len(words) - 30, 30)
        ]
        discriminator = Discriminator(spoken, [words for words, _ in drawn])
        tagger = TaggerReward(self.first_tagger(seed).labeller, self.corpus.dev)
        if row == "best_of_n":
            reward = make_reward(weights, tagger, discriminator, seed)
            count = rounds * per_round * config.rollouts + config.samples
            every = draw_documents(generator, prompts, count, seed=seed, **drawing)
            ranked = []
            for begin in range(0, len(every), config.rollouts):  # standardised over as many as a draw of RL
                some = every[begin : begin + config.rollouts]
                ranked += zip(reward(some).rewards_B.tolist(), some, strict=True)
            ranked.sort(key=lambda one: -one[0])
            return {"documents": self._good([one for _, one in ranked]), "health": {}}
        told, found, policy = [], [], generator
        for number in range(rounds):
            reward = make_reward(weights, tagger, discriminator, seed)
            out = Path(config.out, "policies", f"{row}-{seed}-{number}")
            shutil.rmtree(out, ignore_errors=True)
            with _quiet():
                policy, some = reinforce(
                    dataclasses.replace(config, kl=kl), policy, prompts, reward, self.copies,
                    updates=per_round, seed=seed + number, out=out,
                )  # fmt: skip
            shutil.rmtree(out, ignore_errors=True)
            told += some
            drawn = draw_documents(policy, prompts, config.samples, seed=seed + number, **drawing)
            found.append(self._good(drawn))
            if number + 1 < rounds:
                again = self.tagger(f"{row}-round", self._of(row, seed, found[-1]), seed)
                tagger = TaggerReward(again.labeller, self.corpus.dev)
                discriminator = Discriminator(spoken, [words for words, _ in drawn])
        health = {name: [one[name] for one in told if name in one] for name in told[0]}
        for name in TERMS:
            health.setdefault(name, [0.0])
        gain = tagger.head_gain(drawn[: config.rollouts])
        return {
            "documents": found[-1], "rounds": found, "health": health, "head_gain": gain,
            "drawn": texture(drawn, self.copies),
        }  # fmt: skip

    def _good(self, drawn: Sequence[Document]) -> list[Document]:
        """Return samples that pass the filter, until there are enough words."""
        found, count = [], 0
        for one in drawn:
            if count < self.config.generated_words and is_good(one, self.copies):
                found.append(one)
                count += len(one[0])
        return found

    def first_tagger(self, seed: int) -> Punctuator:
        """Return the tagger of row 3, which the first round's reward asks."""
        if seed not in self._taggers:
            self._taggers[seed] = self.tagger("topic", self._of("topic", seed), seed)
        return self._taggers[seed]

    def generator(self, seed: int):
        """Return the generator of a seed, before any reinforcement."""
        if seed not in self._generators:
            config = self.config
            out = Path(config.out, "generators", f"{seed}-{self._key[:12]}")
            written, topic = self.corpus.written, sentences(self.topic, config.words_per_text)
            with _quiet():
                self._generators[seed] = train_generator(config, written, topic, seed, out)
        return self._generators[seed]

    def ablation(self, seed: int) -> dict:
        """Return what each term alone, and soundness without KL, makes of the generator and of dev."""
        found = {}
        for name in self.config.ablated:
            updates = None if name == "random" else self.config.ablated_updates
            texts = self.texts(name, seed, updates)
            health = texts["health"]
            dev = self._kept(
                f"ablation-{name}-{seed}",
                lambda name=name: {"dev": self.dev(self.tagger(name, self._of(name, seed), seed))},
            )
            key = name.removesuffix(_FREE)
            rise = 0.0 if key == "random" else health[key][-1] - health[key][0]
            found[name] = dev | texts["drawn"] | {"kl": health["kl"][-1], "reward_gain": rise}
        return found

    def amount(self, cells: dict, seed: int) -> dict:
        """Return dev's micro-F1 against words of generated text without reinforcement."""
        found, config = {"0": cells["topic", seed]["dev"]}, self.config
        documents = self.texts("generated", seed)["documents"] if "generated" in config.rows else []
        if not documents:
            return found
        ends = np.cumsum([len(words) for words, _ in documents])
        found[str(int(ends[-1]))] = cells["generated", seed]["dev"]
        for words in config.amounts:
            some = documents[: int(np.searchsorted(ends, words)) + 1]
            measure = lambda some=some: {
                "dev": self.dev(self.tagger("generated", self._of("generated", seed, some), seed))
            }
            found[str(words)] = self._kept(f"amount-{words}-{seed}", measure)["dev"]
        return found

    def right_context(self, seed: int) -> dict:
        """Return micro-F1 of the upper bound's tagger with few words of right context, and the whole."""
        punctuator, behind = self.tagger("upper", self._of("upper", seed), seed), 24
        words, labels = (x[: self.config.context_words] for x in self.corpus.tests["reference"][0])
        gold, found = [_LABEL[label] for label in labels], {}
        for ahead in self.config.right_context:
            parts = [words[max(0, t - behind) : t + 1 + ahead] for t in range(len(words))]
            log_probs = punctuator.labeller.log_probs([[plain(word) for word in part] for part in parts])
            said = [int(x[min(t, behind)].argmax()) for t, x in enumerate(log_probs)]
            found[str(ahead)] = float(micro_f1(np.sum(count_blocks(gold, said, len(gold)), axis=0)))
        return found

    def _counts(self, punctuator, talks) -> np.ndarray:
        block = self.config.block
        counts = [one for talk in talks for one in count_blocks(*self._said(punctuator, talk), block)]
        return np.sum(counts, axis=0)

    def _said(self, punctuator, talk) -> tuple[np.ndarray, np.ndarray]:
        """Return (the labels of a talk's words, what a tagger says), as numbers."""
        begun = time.perf_counter()
        [log_probs] = punctuator.labeller.log_probs([[plain(word) for word in talk[0]]])
        self.speed = len(talk[0]) / (time.perf_counter() - begun)
        return np.array([_LABEL[label] for label in talk[1]]), log_probs.argmax(axis=1)

    def _kept(self, name: str, measure) -> dict:
        path = Path(self.config.out, "cells", f"{name}.json")
        return kept_result(path, measure, name=name, study=self._key)


def _plain(config: Any) -> dict:
    values = to_dict(config)
    return {name: value for name, value in values.items() if name not in _MORE}


def _digest(*values) -> str:
    return sha256(repr(values).encode()).hexdigest()


def _encoder(config: Any):
    """Return (config, parameters, tokenizer) of the encoder's first layers."""
    if config.encoder == "nano":
        sizes = dict(vocab_size=257, context_length=config.window, num_layers=config.layers)
        model = models.get_preset("bert-nano", **sizes)
        return model, models.init(model, jax.random.key(0)), load_tokenizer("bytes")
    model, params, tokenizer = from_pretrained(fetch_minilm())
    layers = jax.tree.map(lambda x: x[: config.layers], params["layers"])
    return dataclasses.replace(model, num_layers=config.layers), params | {"layers": layers}, tokenizer


@contextlib.contextmanager
def _quiet():
    """Leave out what a run says of itself: there are dozens."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
