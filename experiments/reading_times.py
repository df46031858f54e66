"""What pretrained models' surprisal says of real reading times, and what depends on how one asks.

VERDICT: In part: SmolLM2's surprisal predicts reading times (0.051 nats a word self-paced, 0.035 at first
fixation), but most of that it does untrained too, by the number of sub-words: what training adds, 0.012, is
undecided.

RESULT (29 November 2026, small). SmolLM2-135M's surprisal brings 0.051 nats a word (0.037 to 0.066) on
Natural Stories, that of other words of a length nothing; in the published column, which is shifted by one
word, half of it is gone (0.024, 0.016 to 0.032). It is 0.008 (0.001 to 0.015) better than Gemma 3 270M's. The
same model without training brings 0.039, of the number of sub-words alone: what training adds, 0.012 (-0.004
to 0.028), is undecided here. Intervals resample blocks of words within ten stories, and that of random folds
is not paired: both are wider or narrower than stories would make them. On Provo: first fixation 0.035 (0.024
to 0.045), go-past 0.011.

    python -m experiments.reading_times                     # small: 17 minutes on 2 busy cores
    python -m experiments.reading_times --preset debug      # seconds, models without training
    python -m experiments.reading_times --models EleutherAI/pythia-160m HuggingFaceTB/SmolLM2-360M

On your own model: `python -m experiments.reading_times --models YOURS`; `jaxllm.score.word_surprisals`,
`jaxllm.interpret.psychometric_power`.

Reads JAXLLM_DATA/phase_transition: Natural Stories (self-paced) and Provo (eye movements). The gain in
held-out log-likelihood that surprisal brings (`jaxllm.interpret.psychometric_power`) is asked of

- the published times of Natural Stories and of those shifted by one word, which is where they belong;
- folds of words at random (the paper's) and of whole texts;
- sums over sub-words (the paper's) and probabilities corrected for where words end;
- controls: each model's surprisal given to other words of as many letters, and a model without training,
  whose surprisal is the number of sub-words.

Besides, what each model's heads do: copying, previous token, syntactic governors (UD English PUD).

Aoyama and Wilcox, Language Models Grow Less Humanlike beyond Phase Transition (arXiv 2502.18802).
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from experiments.grid import publish
from experiments.phase_transition import reading_corpora
from jaxllm import interpret, models
from jaxllm.atomic import write_figure
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, Seed
from jaxllm.data import start_id
from jaxllm.kept_result import kept_result
from jaxllm.pretrained import from_pretrained
from jaxllm.report import Claim, Report, decide, markdown_table
from jaxllm.score import word_surprisals
from jaxllm.train import to_dict

_BLOCK = 20  # words that are resampled together
UNTRAINED = "untrained "  # before a model's name


@dataclass(frozen=True)
class ReadingTimesConfig(Config):
    """Which models, and how much of the treebank."""

    models: tuple[str, ...] = ("pypi:smollm2", "pypi:gemma3", UNTRAINED + "pypi:smollm2")  # or others
    sentences: Count = 200  # of the treebank
    random_sequences: Count = 32  # of repeated random tokens
    corrected: bool = True  # also ask with words' ends corrected for (the first model alone)
    seed: Seed = 0
    out: str = "runs/reading-times"


def _debug() -> ReadingTimesConfig:
    return ReadingTimesConfig(
        models=("gpt2-nano",),
        sentences=6,
        random_sequences=4,
        corrected=False,
        out="runs/reading-times-debug",
    )


PRESETS = {"debug": _debug, "small": ReadingTimesConfig}


def main(config: ReadingTimesConfig, preset: str = "small") -> Report:
    """Score every model's surprisal against every measure; write the report."""
    begun = time.time()
    corpora = [reading_corpora.natural_stories(), reading_corpora.provo()]
    counts = reading_corpora.word_counts()
    bits, heads = {}, {}
    for index, name in enumerate(config.models):
        boundaries = ("sum", "corrected") if config.corrected and index == 0 else ("sum",)
        found = kept_result(
            Path(config.out, f"{name.replace('/', '--')}.json"),
            functools.partial(_read, config, name, boundaries, corpora),
            name=name, boundaries=boundaries, words=[corpus.words for corpus in corpora],
            sentences=config.sentences, random_sequences=config.random_sequences, seed=config.seed,
        )  # fmt: skip
        heads[name] = found["heads"]
        for boundary in boundaries:
            bits[name, boundary] = [np.array(x, np.float64) for x in found["bits"][boundary]]
    powers = score(bits, corpora, counts, config.seed)
    plot(powers, config.out)
    report = Report(
        experiment="reading_times", preset=preset, config=to_dict(config), seeds=[config.seed],
        metrics=metrics(powers, heads), claims=claims(config, powers), seconds=time.time() - begun,
        sections={"Gain in log-likelihood": summary(powers), "Heads": head_table(heads)},
    )  # fmt: skip
    return publish(report, config.out)


def load(name: str, seed: int = 0):
    """Return (config, params, tokenizer) of a model by the name that this experiment gives it."""
    trained = name.removeprefix(UNTRAINED)
    if trained in models.PRESETS:
        from jaxllm.data import load_tokenizer

        config = models.get_preset(trained, vocab_size=50257, context_length=2048, position="rotary")
        return config, models.init(config, jax.random.key(seed)), load_tokenizer("gpt2")
    config, params, tokenizer = from_pretrained(trained)
    if name != trained:
        params = jax.jit(functools.partial(models.init, config))(jax.random.key(seed))
    return config, params, tokenizer


def _read(config, name, boundaries, corpora) -> dict:
    model, params, tokenizer = load(name, config.seed)
    bits = {
        boundary: [
            np.concatenate(
                word_surprisals(model, params, tokenizer, corpus.by_text(), boundary=boundary)
            ).tolist()
            for corpus in corpora
        ]
        for boundary in boundaries
    }
    repeats = interpret.repeat_scores(
        model, params, jax.random.key(config.seed), sequences=config.random_sequences
    )
    uas = {
        scale: syntax(model, params, tokenizer, config.sentences, scale) for scale in interpret.heads.SCALES
    }
    return {"bits": bits, "heads": {
        "copying": float(repeats.copying_LH.max()), "previous token": float(repeats.previous_LH.max()),
        "null": repeats.null, "loss of repeats": repeats.repeat_loss,
        **{f"UAS, scaled by {scale}": share for scale, share in uas.items()},
    }}  # fmt: skip


def syntax(model, params, tokenizer, sentences: int, scale: str) -> float:
    """Return the share of words whose governor the best head of each relation finds, on the PUD treebank."""
    parses = reading_corpora.english_pud(sentences)
    rows = []
    for parse in parses:
        ids, ends = tokenizer.encode_with_ends(parse.text)
        rows.append(([start_id(tokenizer), *ids], [-1, *np.searchsorted(parse.ends, ends)]))
    T, W = max(len(ids) for ids, _ in rows), max(len(parse.ends) for parse in parses)
    tokens, word_of = np.zeros((len(rows), T), int), np.full((len(rows), T), -1)
    governor_of = np.full((len(rows), W), -1)
    for b, ((ids, words), parse) in enumerate(zip(rows, parses, strict=True)):
        tokens[b, : len(ids)], word_of[b, : len(ids)] = ids, words
        alone = np.isin(np.arange(len(parse.ends)), words)  # a word without a token of its own is not judged
        known = alone & alone[parse.governors] & (parse.governors >= 0)
        governor_of[b, : len(known)] = np.where(known, parse.governors, -1)
    correct = interpret.syntactic_accuracy(model, params, tokens, word_of, governor_of, scale=scale)
    relations = [
        p.relations[w] for p, row in zip(parses, governor_of, strict=True) for w in np.flatnonzero(row >= 0)
    ]
    return interpret.best_head_accuracy(correct, relations)[0]


def score(bits, corpora, counts, seed) -> dict[tuple[str, ...], interpret.PredictivePower]:
    """Return {(model, boundary, corpus, measure, folds): power}; all models share a corpus' words."""
    powers = {}
    for number, corpus in enumerate(corpora):
        controls = corpus.controls(counts)
        known = {key: np.where(values[number] > 0, values[number], np.nan) for key, values in bits.items()}
        everything = np.column_stack([controls, *known.values()])
        for measure, times in corpus.times.items():
            shared = interpret.usable_rows(times, everything, corpus.texts, corpus.lags)
            for (name, boundary), values in known.items():
                shuffled = shuffle_within_length(values, corpus, seed)
                for label, given in ((name, values), (f"{name}, other words'", shuffled)):
                    for folds in ("texts", "words"):
                        powers[label, boundary, corpus.name, measure, folds] = interpret.psychometric_power(
                            times, given, controls, corpus.texts, lags=corpus.lags, folds=folds, rows=shared
                        )
    return powers


def shuffle_within_length(values: np.ndarray, corpus, seed: int) -> np.ndarray:
    """Return each word's surprisal given to another word of as many letters: what length alone explains."""
    draw, lengths = np.random.default_rng(seed), np.array([len(word) for word in corpus.words])
    shuffled = values.copy()
    for length in np.unique(lengths):
        places = np.flatnonzero((lengths == length) & np.isfinite(values))
        shuffled[places] = draw.permutation(values[places])
    return shuffled


def _interval(gain: np.ndarray) -> tuple[float, float]:
    return interpret.bootstrap_interval(gain, np.arange(len(gain)) // _BLOCK)


def claims(config: ReadingTimesConfig, powers) -> list[Claim]:
    """Return what depends on the times, on the folds and on the words' ends: paired, over the same words."""
    found, first = [], config.models[0]

    def test(text, source, gain, **bounds):
        interval = _interval(gain)
        found.append(Claim(text, source, float(gain.mean()), decide(interval, **bounds), interval=interval))

    story, ours = ("Natural Stories", "aligned", "texts"), "this experiment"
    aligned = powers[first, "sum", *story]
    test(
        f"{first}'s surprisal predicts self-paced reading, nats a word",
        "arXiv 2006.01912",
        aligned.per_word,
        above=0,
    )
    control = powers[f"{first}, other words'", "sum", *story]
    test("the same, over surprisal of other words of the same length", "control",
         aligned.per_word - control.per_word, above=0)  # fmt: skip
    published = powers[first, "sum", "Natural Stories", "published", "texts"]
    both = np.intersect1d(aligned.rows, published.rows)
    pick = [power.per_word[np.isin(power.rows, both)] for power in (aligned, published)]
    test("what the published column, shifted by one word, loses of it", ours, pick[0] - pick[1], above=0)
    test("what random folds of words add to it", ours,
         powers[first, "sum", "Natural Stories", "aligned", "words"].per_word.mean() - aligned.per_word,
         at_most=0.002, at_least=-0.002)  # fmt: skip
    if (first, "corrected", *story) in powers:
        test("what correcting for words' ends adds to it", "arXiv 2406.14561",
             powers[first, "corrected", *story].per_word - aligned.per_word, above=0)  # fmt: skip
    for measure in ("first fixation", "go-past"):
        test(f"{first}'s surprisal predicts eye movements ({measure})", "arXiv 2006.01912",
             powers[first, "sum", "Provo", measure, "texts"].per_word, above=0)  # fmt: skip
    for other in config.models[1:]:
        test(f"{first}, over {other}, self-paced", "control" if other.startswith(UNTRAINED) else ours,
             aligned.per_word - powers[other, "sum", *story].per_word, above=0)  # fmt: skip
    return found


def metrics(powers, heads) -> dict[str, float]:
    """Return every power and head score by name."""
    values = {"/".join(key): power.delta_log_likelihood for key, power in powers.items()}
    for key, power in powers.items():
        if (
            key[1:] == ("sum", "Natural Stories", "aligned", "texts")
            or key[3] == "published"
            and key[4] == "texts"
        ):
            values |= {f"{'/'.join(key)}/slope at lag {lag}": float(x) for lag, x in enumerate(power.slopes)}
    return values | {f"{name}/{score}": x for name, scores in heads.items() for score, x in scores.items()}


def summary(powers) -> str:
    """Return a table of the gains, with intervals from resampled runs of words."""
    rows = []
    for (name, boundary, corpus, measure, folds), power in powers.items():
        low, high = _interval(power.per_word)
        rows.append((name, boundary, f"{corpus}, {measure}", folds, f"{power.delta_log_likelihood:.4f}",
                     f"{low:.4f} to {high:.4f}", " ".join(f"{x:.2f}" for x in power.slopes)))  # fmt: skip
    head = (
        "model",
        "word's bits",
        "times",
        "held out",
        "gain, nats a word",
        "95 % interval",
        "slopes by lag, ms/bit",
    )
    return markdown_table(head, rows)


def head_table(heads: dict[str, dict[str, float]]) -> str:
    """Return the best head's scores of each model."""
    names = list(next(iter(heads.values())))
    return markdown_table(["model", *names], [[m, *(f"{x[n]:.3f}" for n in names)] for m, x in heads.items()])


def plot(powers, out: str) -> None:
    """Plot the gain of each model on each measure, whole texts held out, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = {key: power for key, power in powers.items() if key[4] == "texts"}
    measures = sorted({key[2:4] for key in shown})
    figure, axes = plt.subplots(1, len(measures), figsize=(3.4 * len(measures), 4), layout="constrained")
    for axis, place in zip(axes, measures, strict=True):
        here = {(key[0], key[1]): power for key, power in shown.items() if key[2:4] == place}
        for y, power in enumerate(here.values()):
            low, high = _interval(power.per_word)
            axis.plot([low, high], [y, y], color="tab:blue")
            axis.plot(power.delta_log_likelihood, y, "o", color="tab:blue")
        labels = [name if boundary == "sum" else f"{name}, {boundary}" for name, boundary in here]
        axis.set_yticks(range(len(here)), labels if axis is axes[0] else [""] * len(here))
        axis.axvline(0, color="gray", lw=0.8)
        axis.set(title=", ".join(place), xlabel="gain, nats a word", ylim=(len(here) - 0.5, -0.5))
    write_figure(Path(out, "gain.png"), figure)
    plt.close(figure)


if __name__ == "__main__":
    run_experiment(main, ReadingTimesConfig, PRESETS)
