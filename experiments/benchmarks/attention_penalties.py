"""What penalties on attention patterns cost a training step, compiled for machines that are not here.

    python -m experiments.benchmarks.attention_penalties                    # minutes on 2 CPU cores
    python -m experiments.benchmarks.attention_penalties --machines v5e-1 --models gpt2

The copying and the syntactic penalty (`jaxllm.interpret`, arXiv 2502.18802) need the attention weights
themselves, which a fused attention kernel never writes. Compiled here: loss and gradients of the paper's own
model (2 layers of 768, 8 heads) and of GPT-2 small (12 layers of 12 heads of 64), 4 rows of 1024 tokens,
bfloat16 products, layers computed again in the backward pass: plain, and with either penalty.
`ratio/CASE/seconds` and `ratio/CASE/peak` are the penalised step over the plain one, by the compiler's own
account. The copying penalty reads as many synthetic rows again, the syntactic one the same rows again.
Compiled for these machines, not run on them.

RESULT (29 November 2026): the paper's model takes 1.65 (v5e) and 2.2 (H100) times a plain step with either
penalty, at 1.2 and 1.5 times its peak; GPT-2 small 3.2 and 4.4 times, 1.7 and 2.3 GiB in all.
"""

import time
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
from tqdm import tqdm

from experiments.grid import publish
from jaxllm import interpret, models, targets
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.errors import UserError, unknown
from jaxllm.report import Claim, Report, markdown_table

MODELS = {
    "paper": lambda: models.get_preset("gpt2", num_layers=2, num_heads=8, dtype="bfloat16", remat="full"),
    "gpt2": lambda: models.get_preset("gpt2", dtype="bfloat16", remat="full"),
    "nano": lambda: models.get_preset("gpt2-nano", dtype="bfloat16", remat="full"),
}
PENALTIES = ("copying", "syntactic")
_WEIGHT = 1e-3


@dataclass(frozen=True)
class AttentionPenaltiesConfig(Config):
    """Which models, for which machines."""

    models: tuple[str, ...] = ("paper", "gpt2")
    machines: tuple[str, ...] = ("v5e-1", "h100")
    batch_size: Count = 4
    seq_len: Count = 1024
    out: UserPath = "runs/attention-penalties"

    def __post_init__(self):
        super().__post_init__()
        for name in self.models:
            if name not in MODELS:
                raise unknown("model", name, MODELS)


PRESETS = {
    "debug": lambda: AttentionPenaltiesConfig(
        models=("nano",), machines=("v5e-1",), seq_len=128, out="runs/attention-penalties-debug"
    ),
    "small": AttentionPenaltiesConfig,
}


def main(config: AttentionPenaltiesConfig, preset: str = "small") -> Report:
    """Compile every step; write the report into `config.out`."""
    started = time.time()
    if missing := [name for name in config.machines if not targets.is_available(name)]:
        raise UserError(f"the compiler for {missing[0]} is not installed; pip install 'jaxllm[tpu-targets]' "
                        "for a TPU, 'jaxllm[cuda-targets]' for a GPU")  # fmt: skip
    metrics, claims, rows = {}, [], []
    kinds = (None, *PENALTIES)
    steps = [(m, name, kind) for m in config.models for name in config.machines for kind in kinds]
    found = {}
    for model, machine, kind in tqdm(steps, desc="compiling", unit="step"):
        found[model, machine, kind] = forecast = compile_step(config, model, machine, kind)
        case = f"{model}/{machine}/{kind or 'plain'}"
        plain = found[model, machine, None]
        times, peak = forecast.seconds / plain.seconds, forecast.peak_bytes / plain.peak_bytes
        metrics |= {
            f"seconds/{case}": forecast.seconds, f"peak_gib/{case}": forecast.peak_bytes / 2**30,
        }  # fmt: skip
        rows.append((case, f"{forecast.seconds * 1e3:.1f}", f"{times:.2f}",
                     f"{forecast.peak_bytes / 2**30:.2f}", f"{peak:.2f}"))  # fmt: skip
        if kind is not None:
            metrics |= {f"ratio/{case}/seconds": times, f"ratio/{case}/peak": peak}
            claims.append(
                Claim(f"{case}: fits", "issue: phase transition", measured=forecast.peak_bytes / 2**30,
                      holds=forecast.fits)  # fmt: skip
            )
    head = ("step", "ms (estimate)", "over plain", "peak GiB", "over plain")
    report = Report(
        experiment="benchmarks/attention_penalties", preset=preset, config=asdict(config), seeds=[],
        metrics=metrics, claims=claims, seconds=time.time() - started,
        sections={"Steps": markdown_table(head, rows)},
    )  # fmt: skip
    return publish(report, config.out)


def compile_step(config: AttentionPenaltiesConfig, name: str, machine: str, kind: str | None):
    """Return the forecast of loss and gradients for a machine, with a penalty or None."""
    model = MODELS[name]()
    B, T = config.batch_size, config.seq_len
    ints = jax.ShapeDtypeStruct((B, T), jnp.int32)
    shapes = models.shapes(model)

    def loss(params, tokens, targets_BT, words, key):
        mean, _ = models.loss(model, params, tokens, targets_BT)
        if kind == "copying":
            spans = interpret.draw_repeated_spans(
                key, B, T, model.vocab_size, shortest=T // 20, longest=T // 2
            )
            mean += _WEIGHT * interpret.copying_penalty(model, params, spans)
        elif kind == "syntactic":
            governor_of_BW = words  # of as many words as tokens
            mean += _WEIGHT * interpret.syntactic_penalty(model, params, tokens, words, governor_of_BW)
        return mean

    key = jax.eval_shape(lambda: jax.random.key(0))
    return targets.compile(jax.value_and_grad(loss), [shapes, ints, ints, ints, key], machine)


if __name__ == "__main__":
    run_experiment(main, AttentionPenaltiesConfig, PRESETS)
