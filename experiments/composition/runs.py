"""What all combinations share: the text they read, the plain run they change, and what a step costs."""

import dataclasses
import functools
import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.grid import seeds_claim
from jaxllm import models
from jaxllm.atomic import write_file
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.optim import OptimConfig
from jaxllm.parallel import HOST_MEMORY
from jaxllm.report import Claim
from jaxllm.text import TrainConfig
from jaxllm.text.prepare import TextRun
from jaxllm.train.prepare import Run

OURS = "this experiment"
_MODERN = 1981  # the first year of the texts that are adapted to
_SENTENCES = 6  # of a paragraph
_HELD_OUT = 8  # one address of so many


class Paragraph(NamedTuple):
    """A paragraph of an address, a sentence a line."""

    text: str
    year: int
    held_out: bool


@dataclasses.dataclass
class Finding:
    """What a combination came to: figures, claims, and of what cannot be the sentence that says so."""

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    claims: list[Claim] = dataclasses.field(default_factory=list)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)

    def claim(self, text: str, values: Sequence[float], **bounds: float) -> None:
        """Claim that a figure, one a seed, lies within bounds (`report.decide`)."""
        self.claims.append(seeds_claim(text, OURS, values, **bounds))

    def exact(self, text: str, values: Sequence[float], at_most: float) -> None:
        """Claim that a difference which no seed should have is at most a rounding error, in every one."""
        worst = float(np.max(values))
        self.claims.append(Claim(f"{text}, at most {at_most:g}", OURS, worst, bool(worst <= at_most)))

    def costs(self, jobs: Mapping[str, Run], rounds: int) -> None:
        """Note seconds a step and bytes of state of each run."""
        for arm, (seconds, device, host) in costs(jobs, rounds).items():
            self.metrics |= {
                f"step_ms/{arm}": 1e3 * seconds, f"state_kib_a_device/{arm}": device / 1024,
                f"state_kib_on_the_host/{arm}": host / 1024,
            }  # fmt: skip


def over_seeds(config, measure: Callable[..., dict[str, float]]) -> tuple[Finding, dict[str, np.ndarray]]:
    """Return (a finding of means, the values of each figure) of what `measure(config, seed)` returns."""
    rows = [measure(config, seed) for seed in config.seeds]
    values = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
    return Finding({name: float(value.mean()) for name, value in values.items()}), values


@functools.cache
def paragraphs(most: int) -> list[Paragraph]:
    """Return about so many paragraphs of the embedded addresses, evenly over the years.

    The addresses have no breaks: a paragraph is some sentences, one a line.
    """
    found = []
    for number, one in enumerate(sotu_addresses()):
        sentences = re.split(r"(?<=[.!?]) ", one["text"].strip())
        for at in range(0, len(sentences) - _SENTENCES + 1, _SENTENCES):
            text = "\n".join(sentences[at : at + _SENTENCES])
            found.append(Paragraph(text, int(one["year"]), number % _HELD_OUT == 0))
    return found[:: max(1, len(found) // most)]


def is_modern(one: Paragraph) -> bool:
    """Say whether a paragraph is of the years that models are adapted to and never trained on."""
    return one.year >= _MODERN


def write_texts(out: str, most: int) -> None:
    """Write OUT/ERA.jsonl and OUT/ERA-held-out.jsonl, for the eras "old" and "modern"."""
    for era in ("old", "modern"):
        for held_out in (False, True):
            rows = [
                json.dumps({"text": one.text}) + "\n" for one in paragraphs(most)
                if is_modern(one) == (era == "modern") and one.held_out == held_out
            ]  # fmt: skip
            name = f"{era}-held-out.jsonl" if held_out else f"{era}.jsonl"
            write_file(Path(out, name), "".join(rows).encode())


def text_run(config, name: str, seed: int, *, era: str = "old", **changes) -> TrainConfig:
    """Return the plain run of an experiment's config, with some values replaced."""
    steps = changes.get("steps", config.steps)
    plain = dict(
        data=str(Path(config.out, f"{era}.jsonl")), valid_data=str(Path(config.out, f"{era}-held-out.jsonl")),
        tokenizer=config.tokenizer, seq_len=config.seq_len, batch_size=config.batch_size, steps=steps,
        optim=OptimConfig(learning_rate=config.learning_rate, warmup_steps=max(1, steps // 10)),
        eval_every=steps, save_every=steps, keep_last=1, keep_best=0, log_every=1, eval_batches=16,
        final_eval_batches=16, progress=False, seed=seed, out=str(Path(config.out, name, f"seed-{seed}")),
    )  # fmt: skip
    return TrainConfig(**(plain | changes))


def with_optimizer(run: TrainConfig, name: str) -> TrainConfig:
    """Return the run with another optimizer, on bfloat16 weights without masters."""
    return dataclasses.replace(run, precision="bfloat16", optim=dataclasses.replace(run.optim, name=name))


def costs(jobs: Mapping[str, Run], rounds: int) -> dict[str, tuple[float, int, int]]:
    """Return (median seconds of a step, bytes of state on a device, on the host) of runs, timed in turn.

    Of a run in stages the seconds are the mean over its steps. Batches are made up.
    """
    ones = lambda x: jnp.ones(x.shape, x.dtype, device=x.sharding)
    batches = {arm: jax.tree.map(ones, job.batch_shapes) for arm, job in jobs.items()}
    states = {arm: job.init(jax.random.key(0)) for arm, job in jobs.items()}
    seconds: dict = {(arm, stage): [] for arm, job in jobs.items() for stage in range(len(job.steps))}
    for turn in range(rounds + 1):
        for arm, stage in seconds:
            begun = time.perf_counter()
            step = jobs[arm].steps[stage][1]
            states[arm] = jax.block_until_ready(step(states[arm], batches[arm])[0])
            if turn:  # the first one compiles
                seconds[arm, stage].append(time.perf_counter() - begun)
    found = {}
    for arm, job in jobs.items():
        lengths = np.diff([0, *(end for end, _ in job.steps)])
        medians = [statistics.median(seconds[arm, stage]) for stage in range(len(job.steps))]
        held = dataclasses.replace(job.shapes, frozen=None)
        found[arm] = (float(lengths @ medians / lengths.sum()), *_bytes(held))
    return found


def _bytes(shapes) -> tuple[int, int]:
    """Return the bytes that arrays take on a device, and in the host's memory."""
    totals = [0, 0]
    for x in jax.tree.leaves(shapes):
        of_shard = int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        totals[x.sharding.memory_kind == HOST_MEMORY] += of_shard
    return totals[0], totals[1]


def hidden_states(config, params, tokenizer, texts: Sequence[str], longest: int) -> np.ndarray:
    """Return the hidden states of texts' beginnings, float32 [N, D]."""
    rows = [ids[:longest] for ids in tokenizer.encode_batch(list(texts)) if len(ids) >= longest]
    hidden_BTD = jax.jit(models.trunk, static_argnums=0)(config, params, np.array(rows, np.int32))
    return np.asarray(hidden_BTD, np.float32).reshape(-1, config.embed_dim)


def refusal(call: Callable[[], object]) -> str:
    """Return the sentence that says why a call cannot be.

    Raises:
      AssertionError: it could.
    """
    try:
        call()
    except UserError as error:
        return str(error)
    raise AssertionError("this combination was not refused")


def losses_of(job: TextRun, steps: int) -> list[float]:
    """Return the training losses of a run's first steps."""
    state, batches, losses = job.init(jax.random.key(job.config.seed)), job.batches(), []
    for number in range(steps):
        state, told = job.train_step_at(number)(state, job.put(next(batches)))
        losses.append(float(told["loss"]))
    return losses
