"""Combine the papers: one run each of what no single one of them describes, beside controls.

VERDICT: In part: all six combinations train, and streamed layers change nothing; four training systems at
once end 0.134 of plain training's loss above it (undecided against 0.05), and a hybrid 0.27 nats above its
better part.

RESULT (30 November 2026, small, 85 minutes on one shared core, three seeds): all six train, and 12 of 24
claims hold. The four training systems together end 13 % above plain training's loss (4 to 23) with half the
state; on 8 devices each step's loss is one device's for 20 steps, then bfloat16 lets sums in another order
drift apart, up to 4.8 % in a step. Streamed layers change nothing, and stochastic rounding stays within 0.2 %
of float32 in the hybrid, which is 0.27 nats worse than its better part. Test-time training through an int8
store takes off 0.33 % of a document's bits, random texts nothing. The penalty halves copying under
subnetworks too. The policy rises alike in bfloat16, whichever way it is rounded. Digits hardly occur, so
their expert is undecided.

    python -m experiments.composition                                  # small: 85 minutes on one core
    python -m experiments.composition --preset debug                   # tiny models of 15 steps
    python -m experiments.composition --combinations llama test_time   # some of them

On your own model: `jaxllm train --subnetwork est-gpt2-like --vocab-groups merge_tree --precision bfloat16
--optim.name orthoadam_bf16_sr`, then `jaxllm.vocabulary.to_dense_head` to export it;
`jaxllm.models.pretrained_hybrid`, whatever its parts.

- llama: evolving subnetworks, OrthoAdam, stochastic rounding and a grouped head at once, over 8 simulated
  devices; the result exported, tuned by LoRA, probed, calibrated. Beside one device, and a plain run.
- hybrid: a Manticore of a transformer and a Mamba that were trained apart, in bfloat16 rounded
  stochastically, its layers in the host's memory, decoded beside EXPOSED's expert. Beside resident layers,
  float32 weights, its parts alone, no expert and one of ordinary text.
- test_time: test-time training of LoRA adapters of that tuned Llama, neighbours by int8 vectors of its own.
  Beside float32 vectors, random texts, all weights. It trains what llama does, unless that was.
- softmax1: softmax-1 in a hybrid of attention and a Mamba. Beside softmax.
- penalty: the phase transition's penalty on copying, under evolving subnetworks. Beside each alone.
- policy: punctuation's policy gradient with adamw_bf16_sr. Beside float32, and rounding to nearest.

What a combination costs is a step's median seconds, all arms timed in turn, and the bytes of its state. What
cannot be combined is refused in a sentence before anything is compiled: the report's last table. A mesh that
splits heads (tensor=2) is not one of those, but draws other subnetworks, half of each shard; so the mesh here
is data=2, fsdp=4. A combination that ended is kept in OUT and not run again.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax

from experiments.composition import llama as llamas
from experiments.composition import penalty, policy, softmax1, streamed
from experiments.composition.runs import Finding, write_texts
from experiments.grid import check_seeds, code_digest, publish
from jaxllm.config import Config, Count, Positive, Seed, UserPath
from jaxllm.errors import UserError, unknown
from jaxllm.kept_result import kept_result
from jaxllm.report import Claim, Report, markdown_table
from jaxllm.train import to_dict

DEVICES = 8
COMBINATIONS: dict[str, Callable[["CompositionConfig"], Finding]] = {
    "llama": llamas.trained_llama,
    "hybrid": streamed.streamed_hybrid,
    "test_time": llamas.trained_at_test_time,
    "softmax1": softmax1.softmax1_hybrid,
    "penalty": penalty.penalised_subnetworks,
    "policy": policy.policy_in_bfloat16,
}


@dataclass(frozen=True)
class CompositionConfig(Config):
    """Which combinations, and how large."""

    combinations: tuple[str, ...] = tuple(COMBINATIONS)
    seeds: tuple[Seed, ...] = (0, 1, 2)
    tokenizer: UserPath = "bpe:512"
    paragraphs: Count = 3000  # of the embedded addresses
    layers: Count = 4
    width: Count = 64
    streamed_width: Count = 256  # stacks of less than a mebibyte are not streamed
    seq_len: Count = 64
    batch_size: Count = 16
    steps: Count = 200
    tune_steps: Count = 60
    learning_rate: Positive = 3e-3
    documents: Count = 16  # that are adapted to; lines of each era that are labelled
    penalty: Positive = 1.0  # weight of the copying penalty, a token
    updates: Count = 24  # of the policy
    rollouts: Count = 32
    policy_rate: Positive = 3e-4
    rounds: Count = 5  # turns in which steps are timed
    out: UserPath = "runs/composition"

    def __post_init__(self):
        super().__post_init__()
        for name in self.combinations:
            if name not in COMBINATIONS:
                raise unknown("combination", name, COMBINATIONS)
        check_seeds(self.seeds)


def _debug() -> CompositionConfig:
    return CompositionConfig(
        seeds=(0, 1), tokenizer="bytes", paragraphs=400, layers=2, width=32, seq_len=32, batch_size=8,
        steps=15, tune_steps=4, documents=4, updates=3, rollouts=8, rounds=2, out="runs/composition-debug",
    )  # fmt: skip


PRESETS = {"debug": _debug, "small": CompositionConfig}


def main(config: CompositionConfig, preset: str = "custom") -> Report:
    """Run each combination, unless it was; write the report into `config.out`."""
    if jax.device_count() != DEVICES:
        raise UserError(
            f"a combination is sharded over {DEVICES} devices, and jax has {jax.device_count()}; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={DEVICES}, as python -m does by itself"
        )
    started = time.time()
    write_texts(config.out, config.paragraphs)
    results = {name: _kept(config, name) for name in config.combinations}
    metrics = {
        f"{name}/{key}": value for name, one in results.items() for key, value in one["metrics"].items()
    }
    claims = [
        Claim(**(claim | {"claim": f"{name}: {claim['claim']}"}))
        for name, one in results.items() for claim in one["claims"]
    ]  # fmt: skip
    refused = [(what, said) for one in results.values() for what, said in one["refused"].items()]
    table = markdown_table(("combination", "it is said"), refused)
    report = Report(
        experiment="composition", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=metrics, claims=claims, seconds=time.time() - started,
        sections={"Refused, before anything is compiled": table},
    )  # fmt: skip
    return publish(report, config.out)


def _kept(config: CompositionConfig, name: str) -> dict:
    decisive = {key: value for key, value in to_dict(config).items() if key not in ("combinations", "out")}

    def measure():
        begun, found = time.time(), COMBINATIONS[name](config)
        print(f"{name}: {time.time() - begun:.0f} s")
        return asdict(found)

    path = Path(config.out, "kept", f"{name}.json")
    return kept_result(path, measure, run=decisive, code=code_digest("composition/*.py"))
