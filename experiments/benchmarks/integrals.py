"""Integral discovery's two speeds: curves integrated and regressed, and training steps of its translators.

    python -m experiments.benchmarks.integrals     # a minute or two on 2 cores; extra: torch

10,000 functions of all families are measured and regressed, in one process. Training steps of both models of
`experiments.integral_discovery` stand beside the same networks of transformers in torch (Llama and T5 of the
same sizes, on the same batch shapes), eager and compiled, in turns, each in a process of its own.

RESULT (30 November 2026, 2 idle cores): 10,000 functions in 1.6 seconds. Training steps: the decoder 1.53
times the faster of torch's two (1.31 to 1.97), the encoder-decoder 1.55 times (1.42 to 1.63):
undecided against 1.5.
"""

import dataclasses
import functools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.benchmarks.turns import take_turns, waiting_batch_step
from experiments.integral_discovery import IntegralConfig
from experiments.integral_discovery.corpus import closed_form, grid_of, measure, regressed
from experiments.integral_discovery.translation import ARCHITECTURES, train_config
from jaxllm import host_memory
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.errors import UserError
from jaxllm.integrals import draw_distinct
from jaxllm.report import Claim, Report, decide

VOCABULARY = 28  # characters of the pairs, the unknown one and the end
THREADS = 2


@dataclass(frozen=True)
class IntegralsConfig(Config):
    """How many curves, and how often a step is timed."""

    curves: Count = 10_000
    rounds: Count = 7
    steps: Count = 5  # of a turn
    out: UserPath = "runs/integrals-benchmark"


def main(config: IntegralsConfig) -> Report:
    """Time both; write the report into `config.out`."""
    begun = time.time()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"the comparison needs torch and transformers (extra: torch): {error}") from error
    metrics, claims = curves(config)
    for name in ARCHITECTURES:
        contenders = {
            "jaxllm": functools.partial(_jaxllm, name),
            "torch-eager": functools.partial(_torch, name),
            "torch-compile": functools.partial(_torch, name, compiled=True),
        }
        seconds, starts = take_turns(contenders, config.rounds, steps=config.steps, title=name)
        run = _run(name)
        tokens = run.batch_size * run.seq_len
        for contender, values in seconds.items():
            metrics[f"tokens_per_second/{name}/{contender}"] = tokens / statistics.median(values)
            metrics[f"first_step_s/{name}/{contender}"] = starts[contender]
        rivals = [contender for contender in seconds if contender != "jaxllm"]
        for rival in rivals:
            metrics[f"ratio/{name}/{rival}"] = statistics.median(_ratios(seconds, rival))
        best = min(rivals, key=lambda rival: statistics.median(seconds[rival]))
        ratios = _ratios(seconds, best)
        between = min(ratios), max(ratios)
        claims.append(Claim(
            f"{name}: training is at least 1.5 x as fast as the faster of torch's ({best})",
            "issue: integral discovery", statistics.median(ratios), decide(between, at_least=1.5),
            interval=between,
        ))  # fmt: skip
    report = Report(
        experiment="benchmarks/integrals", preset="custom", config=vars(config), seeds=[], metrics=metrics,
        claims=claims, seconds=time.time() - begun,
    )  # fmt: skip
    report.write(config.out)
    print(report.to_text())
    return report


def curves(config: IntegralsConfig) -> tuple[dict[str, float], list[Claim]]:
    """Measure and regress functions of all families; return figures and the claim."""
    functions = [f for _, f in draw_distinct(np.random.default_rng(0), config.curves)]
    x_M = grid_of(3.0, 512)
    measure(functions[:600], x_M)  # compiled, and not timed
    begun = time.perf_counter()
    measure(functions, x_M)
    measured = time.perf_counter() - begun
    begun, cpu = time.perf_counter(), time.process_time()
    found = regressed(functions, x_M, most_power=7, rates=5)
    seconds = time.perf_counter() - begun
    right = np.mean([one == closed_form(f) for one, f in zip(found, functions, strict=True)])
    metrics = {"curves/measured_s": measured, "curves/measured_and_regressed_s": seconds,
               "curves/cpu_s": time.process_time() - cpu, "curves/exact": float(right)}  # fmt: skip
    claim = f"{config.curves:,} functions are integrated and regressed in under a minute, seconds"
    return metrics, [Claim(claim, "issue: integral discovery", seconds, bool(seconds < 60))]


def _ratios(seconds, rival: str) -> list[float]:
    return [theirs / ours for theirs, ours in zip(seconds[rival], seconds["jaxllm"], strict=True)]


def _run(name: str):
    """Return the run of the experiment's small preset."""
    run = train_config(IntegralConfig(), name, Path("pairs.jsonl"), 0, Path("runs/none"))
    return dataclasses.replace(run, model=dataclasses.replace(run.model, vocab_size=VOCABULARY))


def _batch(name: str) -> dict[str, np.ndarray]:
    """Return a batch of random tokens, all of it counted, of the shapes that a run has."""
    run, draw = _run(name), np.random.default_rng(0)
    shape = (run.batch_size, run.seq_len)
    drawn = lambda: draw.integers(0, VOCABULARY, shape).astype(np.int32)
    batch = {"tokens": drawn(), "targets": drawn(), "mask": np.ones(shape, np.float32)}
    if name == "decoder":
        return batch | {"segment_ids": np.zeros(shape, np.int32)}
    return batch | {"source": drawn(), "source_mask": np.ones(shape, np.int32)}


def _jaxllm(name: str):
    """Return the step of the experiment's run, waiting for its loss."""
    host_memory.keep_freed_memory()
    from jaxllm.text import prepare_shapes

    return waiting_batch_step(prepare_shapes(_run(name)), _batch(name))


def _torch(name: str, compiled: bool = False):
    """Return a training step of the same network of transformers, on the same batch."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    transformers.utils.logging.set_verbosity_error()
    ours, batch = _run(name).model, {key: torch.from_numpy(x) for key, x in _batch(name).items()}
    if name == "decoder":
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=ours.embed_dim, intermediate_size=ours.mlp_dim,
            num_hidden_layers=ours.num_layers, num_attention_heads=ours.num_heads,
            num_key_value_heads=ours.num_kv_heads, use_cache=False,
            bos_token_id=0, eos_token_id=0, pad_token_id=None,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
        inputs = dict(input_ids=batch["tokens"].long())
    else:
        config = transformers.T5Config(
            vocab_size=VOCABULARY, d_model=ours.embed_dim, d_kv=ours.head_dim, d_ff=ours.mlp_dim,
            num_layers=ours.num_encoder_layers, num_decoder_layers=ours.num_layers, num_heads=ours.num_heads,
            dropout_rate=0.0, feed_forward_proj="gelu_new", use_cache=False,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
        inputs = dict(
            input_ids=batch["source"].long(), attention_mask=batch["source_mask"].long(),
            decoder_input_ids=batch["tokens"].long(),
        )  # fmt: skip
    targets = batch["targets"].long().ravel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    call = torch.compile(model) if compiled else model

    def step():
        logits = call(**inputs).logits
        torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    run_experiment(main, IntegralsConfig)
