"""What a training step of each output head costs: memory, time, and how much fits a budget of bytes.

    python -m experiments.benchmarks.vocabulary_heads                 # 25 minutes on 2 quiet cores
    python -m experiments.benchmarks.vocabulary_heads --rounds 0      # compiled memory alone, 10 minutes

A GPT of a TinyStories run's size with GPT-2's vocabulary. Memory is the compiled step's own account, at the
shape of the paper's example, 32 sequences of 512 tokens, on this CPU and for machines that are not here
(extras: tpu-targets, cuda-targets). Time is measured on this CPU, heads in processes of their own that
take turns, on tokens as unequally frequent as words: with equally many sequences, and each with the most
that fit the budget. The baseline that the paper's figures are over is full_tied, optax's loss on logits
that are all in memory; fused_tied is the same model with this library's chunked loss, the best rival on a
CPU. A head that ends in +remat computes layers again in the backward pass: with fewer logits there is
time for that, and it is how a step of equal time needs less memory.
"""

import functools
import statistics
import time
from dataclasses import dataclass

from tqdm import tqdm

from experiments.benchmarks.turns import take_turns
from experiments.vocabulary_compression.heads import compile_step, get_head, largest_batch, make_step
from jaxllm import targets
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, CountOrZero, UserPath
from jaxllm.models import ModelConfig
from jaxllm.report import Claim, Report, markdown_table
from jaxllm.text import TrainConfig

MIB = 2**20
_FULL, _FUSED = "full_tied", "fused_tied"
_PAPER, _ISSUE = "Vennam et al. (abstract)", "issue: vocabulary compression"


@dataclass(frozen=True)
class VocabularyHeadsConfig(Config):
    """The model, its step, and where it is compiled for."""

    num_layers: Count = 4
    embed_dim: Count = 256
    num_heads: Count = 8
    vocab: Count = 50257
    seq_len: Count = 512
    heads: tuple[str, ...] = (
        _FULL, _FUSED, "hidden/merge_tree", "own/merge_tree",
        "hidden/merge_tree+remat", "own/merge_tree+remat",
    )  # fmt: skip
    machines: tuple[str, ...] = ("cpu", "v5e-1", "h100")
    batch_size: Count = 32  # of the steps whose memory is compared
    timed_batch_size: Count = 4  # of those timed with equally many sequences
    budget_mib: Count = 2048  # of the steps with as many sequences as fit
    rounds: CountOrZero = 5  # turns of each head; 0: time nothing
    out: UserPath = "runs/vocabulary-heads"

    def __post_init__(self):
        super().__post_init__()
        for name in self.heads:
            get_head(name)  # raises for a name that is not known


def main(config: VocabularyHeadsConfig, preset: str = "small") -> Report:
    """Compile and time every head's step; write the report into `config.out`."""
    started = time.time()
    metrics, sections = {}, {}
    _compare_memory(config, metrics, sections)
    if config.rounds:
        _compare_time(config, metrics, sections)
    report = Report(
        experiment="benchmarks/vocabulary_heads", preset=preset, config=vars(config), seeds=[0],
        metrics=metrics, claims=_claims(config, metrics), seconds=time.time() - started, sections=sections,
    )  # fmt: skip
    report.write(config.out)
    print(report.to_text())
    return report


def _run(config: VocabularyHeadsConfig, batch_size: int, precision: str = "float32") -> TrainConfig:
    model = ModelConfig(
        num_layers=config.num_layers, embed_dim=config.embed_dim, num_heads=config.num_heads,
        context_length=config.seq_len, vocab_size=config.vocab,
    )  # fmt: skip
    return TrainConfig(
        model=model, seq_len=config.seq_len, batch_size=batch_size, precision=precision,
        isolate_documents=False,
    )  # fmt: skip


def _compare_memory(config, metrics, sections) -> None:
    rows = []
    for machine in config.machines:
        if not targets.is_available(machine):
            sections[f"Not compiled for {machine}"] = "Its compiler is not installed."
            continue
        on_cpu = targets.get_target(machine).platform == "cpu"
        run = _run(config, config.batch_size, "float32" if on_cpu else "mixed_o1")
        for name in tqdm(config.heads, desc=f"compiling for {machine}", unit="head"):
            step = compile_step(name, run, machine)
            metrics[f"peak_mib/{machine}/{name}"] = step.peak_bytes / MIB
            if not on_cpu:
                metrics[f"estimated_ms/{machine}/{name}"] = 1e3 * step.seconds
        for name in config.heads:
            own = metrics[f"peak_mib/{machine}/{name}"]
            for rival in (_FULL, _FUSED):
                if rival in config.heads and rival != name:
                    metrics[f"ratio/memory/{machine}/{name}/{rival}"] = (
                        metrics[f"peak_mib/{machine}/{rival}"] / own
                    )
            rows.append([machine, name, f"{own:,.0f} MiB"])
    sections["Peak memory of a step"] = markdown_table(["machine", "head", "peak"], rows)


def _compare_time(config, metrics, sections) -> None:
    budget = config.budget_mib * MIB
    equal = dict.fromkeys(config.heads, config.timed_batch_size)
    fitting = {
        name: largest_batch(name, _run(config, 2), budget)
        for name in tqdm(config.heads, desc=f"what fits {config.budget_mib} MiB", unit="head")
    }
    rows = []
    for case, batch_sizes in {"equal_batch": equal, "equal_bytes": fitting}.items():
        contenders = {
            name: functools.partial(make_step, name, _run(config, size)) for name, size in batch_sizes.items()
        }
        seconds, _ = take_turns(contenders, config.rounds, title=case)
        speed = {
            name: [batch_sizes[name] * config.seq_len / s for s in values] for name, values in seconds.items()
        }
        for name, values in speed.items():
            key = f"{case}/{name}"
            metrics[f"batch/{key}"] = batch_sizes[name]
            metrics[f"tokens_per_second/{key}"] = statistics.median(values)
            metrics[f"tokens_per_second/{key}/min"] = min(values)
            metrics[f"tokens_per_second/{key}/max"] = max(values)
            for rival in (_FULL, _FUSED):
                if rival in speed and rival != name:
                    pairs = zip(values, speed[rival], strict=True)
                    metrics[f"ratio/speed/{key}/{rival}"] = statistics.median(a / b for a, b in pairs)
            rows.append([case, name, batch_sizes[name], f"{statistics.median(values):,.0f}"])
    sections["Speed on this CPU"] = markdown_table(["case", "head", "sequences", "tokens/s"], rows)


def _claims(config, metrics) -> list[Claim]:
    """Judge the goals, of the best head of groups at each: what a user would choose for it."""
    groups, claims = [name for name in config.heads if "/" in name], []

    def add(text, source, figures, least, paper=None):
        figures = {name: value for name, value in figures.items() if value is not None}
        if figures:
            best = max(figures, key=figures.get)
            claims.append(Claim(f"{text} ({best})", source, measured=figures[best],
                                holds=figures[best] >= least, paper=paper))  # fmt: skip

    for machine in config.machines:
        memory = lambda name, rival: metrics.get(f"ratio/memory/{machine}/{name}/{rival}")  # noqa: B023
        add(f"{machine}: at least 3.4 times less memory than full logits", _PAPER,
            {name: memory(name, _FULL) for name in groups}, 3.4, paper=3.4)  # fmt: skip
    speed = lambda case, name, rival: metrics.get(f"ratio/speed/{case}/{name}/{rival}")
    # Memory on this CPU, of those heads that are no slower than the fused loss.
    as_fast = [name for name in groups if (speed("equal_batch", name, _FUSED) or 0) >= 1]
    add("cpu: at least 1.2 times less memory than the fused loss, in at most its time", _ISSUE,
        {name: metrics.get(f"ratio/memory/cpu/{name}/{_FUSED}") for name in as_fast}, 1.2)  # fmt: skip
    for case, words in (("equal_batch", "equal batches"), ("equal_bytes", f"within {config.budget_mib} MiB")):
        add(f"{words}: at least 3 times the speed of full logits", _PAPER,
            {name: speed(case, name, _FULL) for name in groups}, 3.0, paper=3.0)  # fmt: skip
        add(f"{words}: at least 1.5 times the speed of the fused loss", _ISSUE,
            {name: speed(case, name, _FUSED) for name in groups}, 1.5)  # fmt: skip
    return claims


if __name__ == "__main__":
    run_experiment(main, VocabularyHeadsConfig)
