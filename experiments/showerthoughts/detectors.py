"""Who wrote a text, a person or a model: linear, fine-tuned, from scratch; by likelihood without training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxllm import models
from jaxllm.config import Config, Count
from jaxllm.data import Labelled, load_tokenizer
from jaxllm.errors import UserError
from jaxllm.measures import normalize_typography, wilson_interval, words_of
from jaxllm.optim import OptimConfig
from jaxllm.pretrained import fetch_minilm, from_pretrained
from jaxllm.text import LabelConfig, train_labels

NAMES = "genuine", "generated"
Detector = Callable[[Sequence[str]], np.ndarray]  # texts to scores, above 0: generated


class Labels(NamedTuple):
    """Texts, and whether a model wrote each."""

    texts: list[str]
    generated: np.ndarray  # bool

    def first(self, most: int | None) -> "Labels":
        """Return the first texts."""
        return Labels(self.texts[:most], self.generated[:most])

    def normalized(self) -> "Labels":
        """Return the same without what typing alone gives away."""
        return Labels([normalize_typography(text) for text in self.texts], self.generated)


def mixed(genuine: Sequence[str], generated: Sequence[str], seed: int) -> Labels:
    """Return as many of both, shuffled."""
    size = min(len(genuine), len(generated))
    if not size:
        raise UserError("a detector needs genuine and generated texts; one of both sets is empty")
    texts = [*genuine[:size], *generated[:size]]
    order = np.random.default_rng([seed, 71]).permutation(len(texts))
    return Labels([texts[i] for i in order], np.array([i >= size for i in order]))


def linear_detector(train: Labels) -> Detector:
    """Return TF-IDF of words and pairs of words, marks included, under logistic regression with C = 5."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("the linear detector needs scikit-learn; pip install 'jaxllm[studies]'") from None
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, min_df=2)
    fitted = LogisticRegression(C=5, max_iter=300).fit(vectors.fit_transform(train.texts), train.generated)
    return lambda texts: fitted.decision_function(vectors.transform(list(texts)))


@dataclass(frozen=True)
class TrainedConfig(Config):
    """How an encoder is trained to detect."""

    steps: Count = 45
    batch_size: Count = 16
    longest: Count = 48
    embed_dim: Count = 64  # of the one from scratch
    num_layers: Count = 2
    scratch_steps: Count = 250


def minilm_detector(train: Labels, how: TrainedConfig, seed: int, out: Path) -> Detector:
    """Return MiniLM fine-tuned."""
    return _encoder(from_pretrained(fetch_minilm()), train, how, how.steps, 1e-4, seed, out)


def scratch_detector(train: Labels, how: TrainedConfig, seed: int, out: Path) -> Detector:
    """Return a small encoder that begins with nothing."""
    size = min(1000, 260 + len(train.texts))
    tokenizer = load_tokenizer(f"bpe:{size}", documents=train.texts)
    model = models.get_preset(
        "bert-nano", vocab_size=tokenizer.vocab_size, context_length=how.longest, embed_dim=how.embed_dim,
        num_layers=how.num_layers,
    )  # fmt: skip
    return _encoder((model, None, tokenizer), train, how, how.scratch_steps, 1e-3, seed, out)


def _encoder(start, train, how, steps, rate, seed, out) -> Detector:
    labelled = Labelled(train.texts, [NAMES[int(flag)] for flag in train.generated])
    few = Labelled(labelled.texts[:8], labelled.labels[:8])  # evaluated by the caller, on many sets
    run = LabelConfig(
        steps=steps, batch_size=min(how.batch_size, len(train.texts)), longest=how.longest, labels=NAMES,
        eval_every=steps, save_every=steps, keep_best=0, keep_last=1, seed=seed, progress=False, out=str(out),
        optim=OptimConfig(learning_rate=rate, warmup_steps=max(1, steps // 10), weight_decay=0.01,
        beta2=0.98),
    )  # fmt: skip
    labeller = train_labels(run, labelled, few, start=tuple(start), devices=jax.devices()[:1]).labeller

    def scores(texts):
        log_probs = np.stack(labeller.log_probs([text or " " for text in texts]))
        return log_probs[:, 1] - log_probs[:, 0]

    return scores


def likelihood_detector(losses: Callable[[Sequence[str]], np.ndarray], train: Labels) -> Detector:
    """Return a threshold on nats a token under a model that knows neither set: what is likelier is generated.

    The threshold, and which side of it is generated, are all that is learned.
    """
    nats = losses(train.texts)
    order = np.sort(nats)
    best = max(
        (
            (np.mean((side * (at - nats) > 0) == train.generated), side, at)
            for at in order
            for side in (1, -1)
        ),
        key=lambda one: one[0],
    )
    _, side, at = best
    return lambda texts: side * (at - losses(texts))


def accuracy(detector: Detector, test: Labels) -> dict[str, float | list]:
    """Return accuracy with Wilson's interval, the area under the curve, and accuracy by length."""
    scores = detector(test.texts)
    right = (scores > 0) == test.generated
    low, high = wilson_interval(int(right.sum()), len(right))
    lengths = np.array([len(words_of(text)) for text in test.texts])
    by_length = []
    for least, most in LENGTHS:
        mine = (lengths >= least) & (lengths <= most)
        by_length.append([int(right[mine].sum()), int(mine.sum())])
    return {
        "accuracy": float(right.mean()), "low": low, "high": high, "auc": area_under(scores, test.generated),
        "by_length": by_length, "n": len(right),
    }  # fmt: skip


LENGTHS = (0, 9), (10, 14), (15, 19), (20, 999)  # words


def area_under(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that a generated text scores above a genuine one, ties counted half."""
    from scipy.stats import rankdata

    ranks, count = rankdata(scores), int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))
