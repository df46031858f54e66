"""The phase transition on real text, and people's reading times: induction heads, surprisal, PPP.

VERDICT: In part: induction heads appear (29 times the null's score), and where copying is penalised
predictive power ends 0.0038 nats a word higher; but it has no tipping point (-0.0010: it still rises at the
end).

RESULT (30 November 2026, small, 33 minutes on one core, three seeds): induction heads appear in both arms of
two layers, after 1.9 and 2.4 of 5 million tokens (29 times the null, 25 to 33), and in no control. Predictive
power has no tipping point: on Natural Stories it still rises to the end (0.001 nats a word, 0.000 to 0.002),
on Provo too. But where copying is penalised, and the held-out loss alike, it ends higher, by 0.0038 nats a
word of 0.020 (0.0013 to 0.0064; 0.0035 where sub-words are known), as the abstract says; and taking the
copying head out at the end does not give it back (-0.004, -0.008 to 0.000). When it peaks, and whether
batches matter: undecided. Without repeats, or with a falling rate, copying is not learned, or late.

    JAXLLM_DATA=DIR python -m experiments.phase_transition_text                    # small: 2 CPU cores
    JAXLLM_DATA=DIR python -m experiments.phase_transition_text --preset debug     # a minute
    JAXLLM_DATA=DIR python -m experiments.phase_transition_text --preset gpu       # one H100 or H200

On your own model: `jaxllm.interpret.repeat_scores`, `jaxllm.interpret.copying_penalty`,
`jaxllm.interpret.psychometric_power`.

What `experiments.phase_transition` asks of a simulated reader, asked of Natural Stories and Provo. Models in
GPT-2's shape are trained on real text of several kinds (phase_transition/mixed_texts.py), three windows in
four of which are one span of it again and again: without that, copying comes after far more tokens. At
log-spaced checkpoints

- heads are scored, each beside its null: copying (prefix matching), previous token, syntactic governors
  (UAS, UD English PUD); and the in-context-learning score, early minus late loss in a window;
- every word's surprisal predicts reading times: psychometric predictive power, PPP, whole texts held out,
  also with each word's number of sub-words among the controls, and in the published, shifted column.

Arms: 1 and 2 layers at two batch sizes, the same tokens; 2 layers whose copying is penalised throughout, and
2 layers that read the text as it is. At the last checkpoint the head that copies most, and the one that
copies least, are taken out. A run is kept in OUT/runs; `--train_only --arms ... --seeds ...` trains some, in
a process of its own, and a call without them reads what is there.

Aoyama and Wilcox, Language Models Grow Less Humanlike beyond Phase Transition (arXiv 2502.18802): 768 wide,
T 1024, CC-100, 10 billion tokens; the paper preset. Rotary positions and few wide heads, which copy sooner,
are ours.
"""

import base64
import functools
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import jax
import numpy as np
import optax

from experiments.grid import check_seeds, code_digest, publish, run_grid
from experiments.phase_transition import init_params, reading_corpora, text_report
from experiments.phase_transition.mixed_texts import write_mixed_texts
from experiments.phase_transition.repeating_source import SHORTEST, tile_spans
from experiments.reading_times import syntax
from jaxllm import data, interpret, models
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, Fraction, NotNegative, Positive, Range, Seed, UserPath
from jaxllm.errors import UserError, unknown
from jaxllm.kept_result import kept_result
from jaxllm.models import ModelConfig, get_preset
from jaxllm.report import Report
from jaxllm.score import word_surprisals
from jaxllm.train import Every, RunConfig, Task, to_dict, train


class Arm(NamedTuple):
    """What an arm changes."""

    layers: int
    divided: int = 1  # the batch, by this
    penalised: bool = False  # copying
    repeats: bool = True  # windows that are one span again and again


ARMS = {
    "2 layers": Arm(2),
    "2 layers, small batch": Arm(2, divided=4),
    "2 layers, no repeats": Arm(2, repeats=False),
    "2 layers, copying penalised": Arm(2, penalised=True),
    "1 layer": Arm(1),
    "1 layer, small batch": Arm(1, divided=4),
}
_PARTS = ("__init__", "mixed_texts", "reading_corpora", "repeating_source")  # what decides a run, with this
_STEPS_APART = 80  # the first checkpoint comes after this part of the steps


@dataclass(frozen=True)
class TextTransitionConfig(Config):
    """The runs, and what they are read with."""

    arms: tuple[str, ...] = tuple(ARMS)[:-1]
    seeds: tuple[Seed, ...] = (0, 1, 2)
    train_only: bool = False  # train the runs and write no report
    data: str = "mixed"  # mixed_texts.py's, or what `jaxllm.data.open_source` reads, such as sotu
    tokenizer: str = "bpe:512"
    repeats: Fraction = 0.75  # of the windows: one span of text again and again, which teaches copying
    tokens: Annotated[int, Range(1, 2**63 - 1)] = 5_000_000  # that a run is trained on
    batch: Count = 32  # sequences; a quarter of them in the arms of a small batch
    context_length: Count = 64
    embed_dim: Count = 64
    num_heads: Count = 2
    learning_rate: Positive = 3e-3
    warmup: Count = 100  # steps
    penalty: NotNegative = 3.0  # weight of the copying penalty times the pairs that it sums over
    checkpoints: Count = 18  # evenly in their logarithm
    windows: Count = 128  # of held-out text
    random_sequences: Count = 100  # of repeated random tokens
    span: Count = 32  # tokens that are repeated
    sentences: Count = 100  # of the treebank
    words: Count = 20_000  # of each reading corpus at most
    out: UserPath = "runs/phase-transition-text"

    def __post_init__(self):
        super().__post_init__()
        for arm in self.arms:
            if arm not in ARMS:
                raise unknown("arm", arm, ARMS)
        if not self.train_only:
            check_seeds(self.seeds)
        if self.batch % 4:
            raise UserError(f"batch is {self.batch}; a quarter of it is a batch too: give a multiple of 4")
        if self.context_length < 2 * max(self.span, SHORTEST):
            raise UserError(
                f"context_length is {self.context_length}; a span of {self.span} tokens must come twice, so "
                f"give {2 * max(self.span, SHORTEST)} or more, or a shorter span"
            )

    def sequences(self, arm: str) -> int:
        """Return the batch of an arm."""
        return self.batch // ARMS[arm].divided

    def steps(self, arm: str) -> int:
        """Return the steps of an arm."""
        return max(1, self.tokens // (self.sequences(arm) * self.context_length))

    def checkpoint_steps(self, arm: str) -> tuple[int, ...]:
        """Return the steps after which a model is looked at: multiples of one number, and the last."""
        apart = max(1, self.steps(arm) // _STEPS_APART)
        spaced = np.geomspace(1, self.steps(arm) / apart, self.checkpoints)
        return tuple(sorted({int(round(x)) * apart for x in spaced[:-1]} | {self.steps(arm)}))


def _debug() -> TextTransitionConfig:
    return TextTransitionConfig(
        arms=("2 layers", "1 layer", "2 layers, copying penalised"), seeds=(0, 1), data="sotu",
        tokenizer="bytes", tokens=4096, batch=8, context_length=32, embed_dim=16, num_heads=2, span=10,
        checkpoints=3, windows=8, random_sequences=8, sentences=6, words=400, warmup=2,
        out="runs/phase-transition-text-debug",
    )  # fmt: skip


def _gpu() -> TextTransitionConfig:
    return TextTransitionConfig(
        arms=tuple(ARMS), tokenizer="bpe:4096", tokens=40_000_000, batch=64, context_length=256,
        embed_dim=256, num_heads=4, learning_rate=2e-3, warmup=200, span=50, checkpoints=20, windows=256,
        sentences=200, out="runs/phase-transition-text-gpu",
    )  # fmt: skip


def _paper() -> TextTransitionConfig:
    """The paper's widths and tokens; its 12 x 64 heads are GPT-2's, its models of 1 and 2 layers have 8."""
    return TextTransitionConfig(
        arms=tuple(arm for arm in ARMS if ARMS[arm].repeats), seeds=(1, 2, 3), data="tfds:c4/en",
        tokenizer="gpt2", repeats=0.0, tokens=10_000_000_000, batch=16, context_length=1024, embed_dim=768,
        num_heads=8, learning_rate=2.5e-4, warmup=2000, span=50, checkpoints=30, windows=1024,
        sentences=1000, out="runs/phase-transition-text-paper",
    )  # fmt: skip


PRESETS = {"debug": _debug, "small": TextTransitionConfig, "gpu": _gpu, "paper": _paper}


def main(config: TextTransitionConfig, preset: str = "small") -> Report | None:
    """Train every arm with every seed; read the runs against reading times; write the report."""
    begun = time.time()
    corpora = [
        shortened(one, config.words) for one in (reading_corpora.natural_stories(), reading_corpora.provo())
    ]
    counts = reading_corpora.word_counts()
    runs = run_grid(config.arms, config.seeds, functools.partial(run_arm, config, corpora))
    if config.train_only:
        return None
    powers = {
        arm: [text_report.powers(config, arm, seed, run, unpacked(run), corpora, counts)
              for seed, run in zip(config.seeds, found, strict=True)]
        for arm, found in runs.items()
    }  # fmt: skip
    text_report.plot(runs, powers, config.out)
    report = Report(
        experiment="phase_transition_text", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=text_report.metrics(runs, powers), claims=text_report.claims(runs, powers),
        seconds=time.time() - begun, sections=text_report.sections(runs, powers),
    )  # fmt: skip
    return publish(report, config.out)


def shortened(corpus: reading_corpora.ReadingCorpus, words: int) -> reading_corpora.ReadingCorpus:
    """Return the first words of each text of a corpus, so many in all at most."""
    texts = corpus.by_text()
    each = -(-words // len(texts))
    keep = np.concatenate([np.arange(len(text)) < each for text in texts])
    return reading_corpora.ReadingCorpus(
        corpus.name, [word for word, k in zip(corpus.words, keep, strict=True) if k], corpus.texts[keep],
        {name: times[keep] for name, times in corpus.times.items()}, corpus.lags,
    )  # fmt: skip


def model_config(config: TextTransitionConfig, arm: str, vocab_size: int) -> ModelConfig:
    """Return the model of an arm: pre-norm, rotary positions."""
    return get_preset(
        "gpt2-nano", vocab_size=vocab_size, context_length=config.context_length, num_layers=ARMS[arm].layers,
        embed_dim=config.embed_dim, num_heads=config.num_heads, position="rotary", rope_theta=1000.0,
        init_std=config.embed_dim**-0.5,
    )  # fmt: skip


def read_texts(config: TextTransitionConfig) -> data.Corpus:
    """Return the tokenised text that models are trained on, and what is held out."""
    source = config.data
    if source == "mixed":
        source = write_mixed_texts(Path(config.out, "texts.jsonl"))
    return data.prepare(source, config.tokenizer, seq_len=config.context_length, valid_fraction=0.05)


def make_task(config: TextTransitionConfig, arm: str, seed: int, corpus: data.Corpus) -> Task:
    """Return next tokens of windows drawn from the text, with or without the penalty."""
    model, batch = model_config(config, arm, corpus.tokenizer.vocab_size), config.sequences(arm)
    length, longest = config.context_length, config.context_length // 2
    # Expected pairs of spans whose length is uniform: the sum over later ones is about T^2 / 2 / length.
    pairs = batch * length**2 / 2 * float(np.mean(1 / np.arange(SHORTEST, longest + 1)))
    weight = config.penalty / pairs if ARMS[arm].penalised else 0.0
    repeats = config.repeats if ARMS[arm].repeats else 0.0
    ids, places = corpus.train.ids, np.arange(length + 1)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        draw = np.random.default_rng([seed, 1])
        while True:
            starts = draw.integers(0, len(ids) - length, batch)
            windows = ids[starts[:, None] + places].astype(np.int32)
            yield {"tokens": tile_spans(windows, draw, repeats, longest)}

    def loss(params, batch, key):
        tokens = batch["tokens"]
        mean, sums = models.loss(model, params, tokens[:, :-1], tokens[:, 1:])
        if weight and key is not None:
            spans = interpret.draw_repeated_spans(
                key, len(tokens), length, model.vocab_size, shortest=SHORTEST, longest=longest
            )
            mean += weight * interpret.copying_penalty(model, params, spans)
        return mean, sums

    return Task(functools.partial(init_params, model), models.axes(model), batches, loss)


def run_arm(config: TextTransitionConfig, corpora, arm: str, seed: int) -> dict:
    """Train one run; return what its checkpoints do, a list a measure. One that ended is kept."""
    name = arm.replace(", ", "-").replace(" ", "-")
    apart = ("arms", "seeds", "out", "train_only")
    decisive = {key: value for key, value in to_dict(config).items() if key not in apart}
    return kept_result(
        Path(config.out, "runs", f"{name}-{seed}.json"),
        functools.partial(_measure, config, corpora, arm, seed),
        arm=arm, seed=seed, run=decisive, words=[corpus.words for corpus in corpora],
        code=code_digest("reading_times.py", *(f"phase_transition/{name}.py" for name in _PARTS)),
    )  # fmt: skip


def _measure(config, corpora, arm, seed) -> dict:
    corpus, steps = read_texts(config), config.checkpoint_steps(arm)
    model = model_config(config, arm, corpus.tokenizer.vocab_size)
    look = functools.partial(_look, config, model, corpus, corpora)
    found: dict[str, list] = {"step": [], "tokens": []}

    def look_at_checkpoint(step, params):
        if step in steps:
            seen = look(params)
            if step == steps[-1]:
                seen["ablated"] = _ablated(config, model, params, seen["copying_of_heads"], corpus, corpora)
            tokens = step * config.sequences(arm) * config.context_length
            for name, value in {"step": step, "tokens": tokens, **seen}.items():
                found.setdefault(name, []).append(value)

    # No decay: a checkpoint then does not depend on where its run ends, nor copying come late.
    warmup = min(config.warmup, max(1, steps[-1] // 4))
    schedule = optax.warmup_constant_schedule(0.0, config.learning_rate, warmup)
    begun = time.time()
    with TemporaryDirectory() as folder:  # a run that is interrupted begins anew
        run = RunConfig(
            steps=steps[-1], seed=seed, out=folder, save_every=steps[-1], keep_last=1, log_every=100,
            progress=False,
        )  # fmt: skip
        apart = steps[0] if len(steps) > 1 else steps[-1]
        trained = train(
            make_task(config, arm, seed, corpus), run, optimizer=optax.adamw(schedule, weight_decay=0.01),
            callbacks=[Every(apart, look_at_checkpoint)],
        )  # fmt: skip
    pieces = [
        np.concatenate([word_pieces(corpus.tokenizer, text) for text in one.by_text()]).tolist()
        for one in corpora
    ]
    return found | {
        "pieces": pieces, "seconds": time.time() - begun, "tokens_per_second":
        trained.speed * config.sequences(arm) * config.context_length, "device": jax.devices()[0].device_kind,
    }  # fmt: skip


def _look(config, model, corpus, corpora, params) -> dict:
    """Return what a checkpoint does."""
    heads = interpret.repeat_scores(
        model, params, jax.random.key(0), span=config.span, sequences=config.random_sequences
    )
    loss_T = held_out_losses(model, params, corpus.valid.ids, config.windows)
    T = len(loss_T)
    return {
        "copying": float(heads.copying_LH.max()), "previous": float(heads.previous_LH.max()),
        "copying_of_heads": heads.copying_LH.tolist(), "null": heads.null, "repeat_loss": heads.repeat_loss,
        "first_loss": heads.first_loss, "loss": float(loss_T.mean()),
        "in_context": float(loss_T[T // 16 : T // 8].mean() - loss_T[-T // 8 :].mean()),
        "uas": syntax(model, params, corpus.tokenizer, config.sentences, "none"),
        "bits": _packed(_bits(config, model, params, corpus, corpora)),
    }  # fmt: skip


def held_out_losses(model: ModelConfig, params: dict, ids: np.ndarray, windows: int) -> np.ndarray:
    """Return nats at each position, means over windows spread evenly over held-out text: [T]."""
    T = model.context_length
    starts = np.linspace(0, len(ids) - T - 1, windows).astype(int)
    tokens = ids[starts[:, None] + np.arange(T + 1)].astype(np.int32)
    parts = np.array_split(tokens, max(1, windows // 64))
    return np.concatenate([_losses(model, params, part) for part in parts]).mean(axis=0)


@functools.partial(jax.jit, static_argnums=0)
def _losses(model, params, tokens):
    hidden = models.trunk(model, params, tokens[:, :-1])
    return -models.token_log_probs(model, params, hidden, tokens[:, 1:])


def _bits(config, model, params, corpus, corpora, trunk=None) -> list[np.ndarray]:
    """Return the surprisal of each word of each reading corpus."""
    options = {} if trunk is None else {"trunk": trunk}
    return [
        np.concatenate(
            word_surprisals(model, params, corpus.tokenizer, one.by_text(), tokens_per_batch=16384, **options)
        )
        for one in corpora
    ]


def _ablated(config, model, params, copying_LH, corpus, corpora) -> dict[str, list[str]]:
    """Return the surprisals without the head that copies most, and least: all reacts, or patterns kept."""
    order = np.dstack(np.unravel_index(np.argsort(copying_LH, axis=None), np.shape(copying_LH)))[0]
    found = {}
    for name, (layer, head) in (("most", order[-1]), ("least", order[0])):
        for kind, keep in (("all reacts", False), ("patterns kept", True)):
            trunk = functools.partial(
                interpret.hidden_without_head, layer=int(layer), head=int(head), keep_patterns=keep
            )
            found[f"{name} copying, {kind}"] = _packed(_bits(config, model, params, corpus, corpora, trunk))
    return found


def word_pieces(tokenizer, words: list[str]) -> np.ndarray:
    """Return how many tokens each word of a text has."""
    _, ends = tokenizer.encode_with_ends(" ".join(words))
    ends_of_words = np.cumsum([len(word) + 1 for word in words]) - 1
    return np.bincount(np.searchsorted(ends_of_words, ends), minlength=len(words))


_PER_BIT = 64  # surprisals are kept in 64ths of a bit


def _packed(values: list[np.ndarray]) -> list[str]:
    """Return arrays of surprisals as short texts."""
    whole = [np.clip(np.round(one * _PER_BIT), 0, 2**15 - 1).astype("<i2") for one in values]
    return [base64.b64encode(zlib.compress(one.tobytes(), 9)).decode() for one in whole]


def _unpacked(values: list[str]) -> list[np.ndarray]:
    return [np.frombuffer(zlib.decompress(base64.b64decode(one)), "<i2") / _PER_BIT for one in values]


def unpacked(run: dict) -> tuple[list[list[np.ndarray]], dict[str, list[np.ndarray]]]:
    """Return the surprisals of a run: of each checkpoint a list by corpus, and of the ablated models."""
    [ablated] = run["ablated"]
    return [_unpacked(one) for one in run["bits"]], {name: _unpacked(one) for name, one in ablated.items()}


if __name__ == "__main__":
    run_experiment(main, TextTransitionConfig, PRESETS)
