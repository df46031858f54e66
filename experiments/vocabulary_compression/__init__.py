"""Predict a token's group, then the token in the group, beside heads over the whole vocabulary.

VERDICT: In part: groups whose tokens keep vectors of their own lose nothing when trained from scratch for 300
steps (0.957 of the full head's loss; a pretrained model's head that is converted does lose:
benchmarks/pretrained_vocabulary); with one direction a slot, as small as the abstract asks, the loss is 1.08
of it.

RESULT (30 November 2026, small with nine of its heads, 64 minutes on one shared core, three seeds): a head
in which each token of a group keeps its own vector (own/merge_tree) loses nothing: 0.957 of the full tied
head's held-out loss after 300 steps (0.944 to 0.970). One with a direction a slot, as small as the abstract
asks (hidden/merge_tree), is 7.7 % worse (6.8 to 8.5), all of it in the sixth to ninth tenth of the text by
frequency. Merges matter: the tree's groups are 0.32 nats below random ones (0.29 to 0.35) for such heads,
0.08 (0.02 to 0.14) for own vectors.

    python -m experiments.vocabulary_compression                    # small: 36 runs, 80 minutes on one core
    python -m experiments.vocabulary_compression --preset debug     # half a minute
    python -m experiments.vocabulary_compression --preset paper     # TinyStories-train.txt; an accelerator

On your own model: `jaxllm train --vocab-groups merge_tree --model.group-head own`;
`jaxllm.vocabulary.to_grouped_head`, for a trained model.

Every head (heads.py) is trained on the same trunk, batches and seeds. Held-out loss is split
into the group's part and the token's part (a dense head's by the groups of the first map), and by how
frequent the tokens are: each tenth holds a tenth of the training text, the most frequent tokens first.
The random map is the control that says whether the merges matter. What a step of each head costs in
memory and time, `python -m experiments.benchmarks.vocabulary_heads` measures.

A finished run is not repeated: after an interruption, or with more seeds, the same command goes on.

Vennam, Joishy, Kumaraguru, LLM Vocabulary Compression for Low-Compute Environments (arXiv 2411.06371). Its
tables, sizes, schedule and rule of grouping could not be read; only the abstract's claims are known.
"""

import contextlib
import io
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.grid import column, publish, run_grid, spread
from experiments.vocabulary_compression.heads import get_head
from jaxllm import data, models, parallel, vocabulary
from jaxllm.atomic import write_figure
from jaxllm.config import CountOrZero, Seed
from jaxllm.errors import UserError
from jaxllm.models import get_preset
from jaxllm.optim import OptimConfig
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, Report, decide, markdown_table, t_interval
from jaxllm.text import TextRun, TrainConfig, cached_result, plain_run, train
from jaxllm.train import to_dict

TENTHS = 10
_BASELINE = "full_tied"
_PAPER, _OURS = "Vennam et al. (abstract)", "this experiment"


@dataclass(frozen=True)
class VocabularyCompressionConfig(TrainConfig):
    """The run that all share, and the grid, which sets its head, groups and seed."""

    heads: tuple[str, ...] = (
        "full_tied", "full_untied",
        "hidden/merge_order", "hidden/merge_tree", "hidden/frequency", "hidden/random",
        "own/merge_order", "own/merge_tree", "own/frequency", "own/random",
        "logits/merge_tree", "shared/merge_tree",
    )  # fmt: skip
    seeds: tuple[Seed, ...] = (0, 1, 2)
    detail_batches: CountOrZero = 8  # held-out batches that are scored token by token; 0: all

    def __post_init__(self):
        super().__post_init__()
        if len(self.seeds) < 2 or len(self.heads) < 2:
            raise UserError(
                f"{len(self.seeds)} seeds and {len(self.heads)} heads compare nothing; give two or more "
                "of each"
            )
        for groups in (get_head(name).groups for name in self.heads):
            if groups is not None:
                vocabulary.parse_groups(groups)


def _debug() -> VocabularyCompressionConfig:
    return VocabularyCompressionConfig(
        model=get_preset("gpt2-nano", vocab_size=None, num_layers=1, embed_dim=32), tokenizer="bpe:300",
        seq_len=32, batch_size=8, steps=8, optim=OptimConfig(learning_rate=4e-3, warmup_steps=3),
        eval_every=8, eval_batches=2, final_eval_batches=4, save_every=8, detail_batches=2, keep_best=0,
        heads=("full_tied", "own/merge_tree"), seeds=(0, 1), out="runs/vocabulary-compression-debug",
    )  # fmt: skip


def _small() -> VocabularyCompressionConfig:
    model = get_preset("gpt2-micro", vocab_size=None, num_layers=2, position="rotary")
    return VocabularyCompressionConfig(
        model=model, tokenizer="gpt2", seq_len=128, batch_size=8, steps=300,
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=30), eval_every=100, eval_batches=4,
        final_eval_batches=24, save_every=300, keep_best=0, out="runs/vocabulary-compression",
    )  # fmt: skip


def _paper() -> VocabularyCompressionConfig:
    """A TinyStories-sized model at the shape of the paper's example, [32, 512, 50257]; the rest is ours."""
    return VocabularyCompressionConfig(
        model=get_preset("gpt2", num_layers=8, embed_dim=512, num_heads=8, context_length=512),
        data="TinyStories-train.txt", tokenizer="gpt2", precision="mixed_o1", seq_len=512, batch_size=32,
        steps=30_000, optim=OptimConfig(learning_rate=1e-3, warmup_steps=500), eval_every=2000,
        eval_batches=50, final_eval_batches=400, save_every=2000, keep_best=0, detail_batches=50,
        out="runs/vocabulary-compression-paper",
    )  # fmt: skip


PRESETS = {"debug": _debug, "small": _small, "paper": _paper}


def main(config: VocabularyCompressionConfig, preset: str = "custom") -> Report:
    """Train the grid; write the report into `config.out`."""
    if config.distributed:
        parallel.initialize()
    started, out = time.time(), Path(config.out)
    grid = train_grid(config)
    metrics, claims, sections = judge(config, grid)
    _plot(grid, out / "losses.png")
    report = Report(
        experiment="vocabulary_compression", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=metrics, claims=claims, seconds=time.time() - started, sections=sections,
    )  # fmt: skip
    return publish(report, out)


def train_grid(config: VocabularyCompressionConfig) -> dict[str, list[dict]]:
    """Train every run that is not there yet; return head -> what `train_once` says, a seed each."""
    measure = lambda name, seed: train_once(name, run_config(config, name, seed), config)
    return run_grid(config.heads, config.seeds, measure)


def run_config(config: VocabularyCompressionConfig, name: str, seed: int) -> TrainConfig:
    """Return one run of the grid."""
    place = Path(config.out, name.replace("/", "-"), f"seed-{seed}")
    return get_head(name).of(plain_run(config, seed=seed, progress=False, out=str(place)))


def train_once(name: str, run: TrainConfig, config: VocabularyCompressionConfig) -> dict:
    """Train a run, unless it was, and score it.

    Returns:
      loss: on held-out text; parameters: how many; and what `score_tokens` says.
    """

    def measure():
        one_cpu = jax.device_count() == 1 and jax.default_backend() == "cpu"
        with contextlib.redirect_stdout(io.StringIO()):
            trained = train(run, **get_head(name).replacements(run, one_cpu=one_cpu))
        groups = _split(trained.run, config)
        details = score_tokens(trained.run, trained.params, groups, config.detail_batches)
        return dict(loss=trained.evaluation["loss"], parameters=trained.run.model.num_params, **details)

    decisive = dict(head=name, dense_split=_dense_split(config), detail_batches=config.detail_batches)
    return cached_result(Path(run.out, "outcome.json"), run, measure, **decisive)


def _split(job: TextRun, config: VocabularyCompressionConfig) -> models.VocabGroups:
    """Return the groups that a run's loss is split by: its own, or for a dense head the first map's."""
    if job.model.vocab_groups is not None:
        return job.model.vocab_groups
    order, slots = vocabulary.parse_groups(_dense_split(config))
    counts = np.bincount(job.corpus.train.ids, minlength=job.corpus.tokenizer.vocab_size)
    return models.VocabGroups.of(vocabulary.vocab_order(order, job.corpus.tokenizer, counts=counts), slots)


def _dense_split(config: VocabularyCompressionConfig) -> str:
    """Return the groups that a dense head's loss is split by."""
    maps = (get_head(name).groups for name in config.heads)
    return next((groups for groups in maps if groups is not None), "merge_tree")


def score_tokens(job: TextRun, params, groups: models.VocabGroups, max_batches: int) -> dict:
    """Score held-out tokens one by one.

    Returns:
      group, token: mean of -log p(group) and of -log p(token | group), which sum to the loss of these.
      tenths: mean loss of the tokens that make up each tenth of the training text, the most frequent first.
    """
    corpus, model = job.corpus, job.model
    tenth_V = frequency_tenths(np.bincount(corpus.train.ids, minlength=model.vocab_size))

    @jax.jit
    def score(params, batch):
        segments = batch["segment_ids"] if job.config.isolate_documents else None
        hidden_BTD = models.trunk(model, params, batch["tokens"], segment_ids=segments)
        log_probs_BTV = jax.nn.log_softmax(models.logits(model, params, hidden_BTD))
        label_BT = jnp.take_along_axis(log_probs_BTV, batch["targets"][..., None], axis=-1)[..., 0]
        # Of each token only its own group's members are read.
        group_BT = jnp.asarray(groups.rank // groups.slots)[batch["targets"]]
        exists_BTK = jnp.arange(groups.slots) < jnp.asarray(groups.sizes)[group_BT][..., None]
        inside_BTK = jnp.take_along_axis(log_probs_BTV, jnp.asarray(groups.members)[group_BT], axis=-1)
        return label_BT, jax.nn.logsumexp(inside_BTK, axis=-1, where=exists_BTK)

    batches = data.eval_batches(corpus.valid, batch_size=job.config.batch_size, seq_len=job.config.seq_len)
    sums, counts, group_sum = np.zeros(TENTHS), np.zeros(TENTHS), 0.0
    for batch in itertools.islice(batches, max_batches or None):
        label_BT, group_BT = (np.asarray(x, np.float64) for x in score(params, batch))
        counted = batch["mask"] > 0
        tenths = tenth_V[batch["targets"][counted]]
        sums += np.bincount(tenths, weights=-label_BT[counted], minlength=TENTHS)
        counts += np.bincount(tenths, minlength=TENTHS)
        group_sum -= group_BT[counted].sum()
    total = counts.sum()
    tenths = (sums / np.maximum(counts, 1)).tolist()
    return dict(group=group_sum / total, token=(sums.sum() - group_sum) / total, tenths=tenths)


def frequency_tenths(counts_V: np.ndarray) -> np.ndarray:
    """Return which tenth of a text each token belongs to, the most frequent tokens in 0.

    Examples:
      >>> frequency_tenths(np.array([1, 60, 0, 39])).tolist()
      [9, 3, 9, 7]
    """
    order_V = np.argsort(-counts_V, kind="stable")
    sorted_V = counts_V[order_V]
    middle_V = (np.cumsum(sorted_V) - sorted_V / 2) / max(counts_V.sum(), 1)
    tenth_V = np.empty(len(counts_V), np.int64)
    tenth_V[order_V] = np.minimum((TENTHS * middle_V).astype(int), TENTHS - 1)
    return tenth_V


def judge(config: VocabularyCompressionConfig, grid) -> tuple[dict, list[Claim], dict]:
    """Compare held-out losses seed by seed; return (metrics, claims, sections)."""
    loss = column(grid, "loss")
    metrics = {f"heldout_loss/{name}": float(values.mean()) for name, values in loss.items()}
    metrics |= {f"parameters/{name}": outcomes[0]["parameters"] for name, outcomes in grid.items()}
    for part in ("group", "token"):
        metrics |= {f"{part}_loss/{name}": float(np.mean([o[part] for o in grid[name]])) for name in grid}
    tenths = {name: np.mean([o["tenths"] for o in outcomes], axis=0) for name, outcomes in grid.items()}
    for name, values in tenths.items():
        metrics |= {f"tenth/{name}/{i}": float(value) for i, value in enumerate(values)}

    claims, grouped = [], [name for name in grid if "/" in name]
    if _BASELINE in grid and grouped:
        best = min(grouped, key=lambda name: loss[name].mean())
        for name in dict.fromkeys((best, *(n for n in grouped if n.startswith("hidden/merge")))):
            ratios = loss[name] / loss[_BASELINE]
            interval = t_interval(ratios)
            claims.append(Claim(f"{name} loses at most 2 % of {_BASELINE}'s held-out loss", _PAPER,
                                measured=float(ratios.mean()), interval=interval, paper=1.0,
                                holds=decide(interval, at_most=1.02)))  # fmt: skip
    for name in grouped:
        kind, _, order = name.partition("/")
        control = f"{kind}/random"
        if order.startswith(("merge", "right")) and control in grid:
            gain = loss[control] - loss[name]
            interval = t_interval(gain)
            claims.append(Claim(f"merges matter: {name}'s loss is below {control}'s by", _OURS,
                                measured=float(gain.mean()), interval=interval,
                                holds=decide(interval, above=0)))  # fmt: skip

    rows = []
    for name, outcomes in grid.items():
        ratio = f"{(loss[name] / loss[_BASELINE]).mean():.3f}" if _BASELINE in grid else ""
        parts = (f"{metrics[f'{part}_loss/{name}']:.3f}" for part in ("group", "token"))
        size = f"{outcomes[0]['parameters'] / 1e6:.2f}M"
        rows.append([name, size, spread(loss[name]), ratio, *parts])
    head = ["head", "parameters", "held-out loss", f"over {_BASELINE}'s", "group's part", "token's part"]
    by_tenth = [[name, *(f"{value:.2f}" for value in values)] for name, values in tenths.items()]
    return metrics, claims, {
        "Held-out loss": markdown_table(head, rows),
        "Held-out loss by the tenth of the text that tokens make up, the most frequent first": markdown_table(
            ["head", *map(str, range(1, TENTHS + 1))], by_tenth
        ),
    }  # fmt: skip


def _plot(grid, path) -> None:
    """Draw the two parts of each head's loss, and the loss by frequency."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    parts, tenths = figure.subplots(1, 2)
    names = list(grid)
    group, token = ([np.mean([o[part] for o in grid[name]]) for name in names] for part in ("group", "token"))
    parts.barh(names, group, label="group")
    parts.barh(names, token, left=group, label="token in the group")
    parts.invert_yaxis()
    for name in names:
        tenths.plot(range(1, TENTHS + 1), np.mean([o["tenths"] for o in grid[name]], axis=0), label=name)
    loss = "held-out loss, nats a token"
    parts.set(xlabel=loss, title="its two parts")
    parts.grid(alpha=0.3)
    label_axes(tenths, "tenth of the text, the most frequent tokens first", loss, "by frequency", whole=True)
    share_legend(figure, (parts, tenths))
    write_figure(path, figure)
