"""A hybrid of trained parts, its layers in the host's memory, decoded beside an expert."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from experiments.composition.runs import (
    Finding,
    losses_of,
    over_seeds,
    paragraphs,
    refusal,
    text_run,
    with_optimizer,
)
from experiments.composition.softmax1 import parts
from jaxllm import models
from jaxllm.atomic import write_file
from jaxllm.generate import Decoder, Suppress, combine_models, generate, suppression
from jaxllm.pretrained.load import Pretrained
from jaxllm.text import TrainConfig, load_run, prepare, train

STREAMED, RESIDENT = "streamed", "resident"
EXPERTS = ("none", "numbers", "ordinary text")
_STRENGTH = 50.0  # of the expert: Self-Debias' default


def streamed_hybrid(config) -> Finding:
    """Train a hybrid of trained parts in bfloat16, layers in the host's memory; suppress numbers in it."""
    found, of = over_seeds(config, _streamed)
    found.exact("streamed layers: training losses differ from resident ones by", of["streamed_differs"], 1e-3)
    loss = {arm: of[f"heldout_loss/{arm}"] for arm in ("hybrid", "float32 weights", "part 0", "part 1")}
    found.claim("stochastic rounding: held-out loss within 2 % of float32 weights'",
                loss["hybrid"] / loss["float32 weights"] - 1, at_least=-0.02, at_most=0.02)  # fmt: skip
    found.claim("the hybrid's held-out loss below its better part's, trained as long, by",
                np.minimum(loss["part 0"], loss["part 1"]) - loss["hybrid"], above=0)  # fmt: skip
    digits = {expert: of[f"share_of_digits/{expert}"] for expert in EXPERTS}
    found.claim("an expert of numbers takes off the share of digits in drawn text",
                digits["none"] - digits["numbers"], above=0)  # fmt: skip
    found.claim("and more than an expert of ordinary text does, by",
                digits["ordinary text"] - digits["numbers"], above=0)  # fmt: skip
    runs, start = _runs(config, _trained_parts(config, config.seeds[0]), config.seeds[0])
    one = jax.devices()[:1]
    found.costs({arm: prepare(run, start=start, devices=one) for arm, run in runs.items()}, config.rounds)
    two = models.HybridConfig(parts=parts(config, config.streamed_width), blocks=2, remat="full")
    found.refused |= {
        "streamed layers of a hybrid of two blocks": refusal(lambda: TrainConfig(model=two, offload="state")),
        "evolving subnetworks of a hybrid": refusal(
            lambda: TrainConfig(model=two, subnetwork="est-gpt2-like")
        ),
        "a grouped head on a hybrid": refusal(
            lambda: dataclasses.replace(two, vocab_groups=models.VocabGroups.of(np.arange(64)))
        ),
    }
    return found


def _streamed(config, seed: int) -> dict[str, float]:
    one, trained = jax.devices()[:1], _trained_parts(config, seed)
    runs, start = _runs(config, trained, seed)
    curves = [losses_of(prepare(run, start=start, devices=one), config.tune_steps) for run in runs.values()]
    losses = {
        "hybrid": train(runs[STREAMED], start=start, devices=one),
        "float32 weights": train(_float32(runs[RESIDENT]), start=start, devices=one),
    }
    for number, part in enumerate(trained):
        alone = _tuning(config, f"hybrid-alone-{number}", seed, model=part.config)
        losses[f"part {number}"] = train(alone, start=part.params, devices=one)
    found = {f"heldout_loss/{arm}": run.evaluation["loss"] for arm, run in losses.items()}
    hybrid = load_run(runs[STREAMED].out)
    for name in EXPERTS:
        share, surprisal = _numbers(hybrid, _expert(config, trained[0], name, seed), config, seed)
        found |= {f"share_of_digits/{name}": share, f"surprisal_of_what_is_drawn/{name}": surprisal}
    return found | {"streamed_differs": float(np.abs(np.subtract(*curves)).max())}


def _runs(config, trained: list[Pretrained], seed: int):
    """Return (the runs of a hybrid of these parts, streamed and resident; what they start from)."""
    model = models.HybridConfig(parts=tuple(part.config for part in trained), tables="parts", remat="full")
    start = models.pretrained_hybrid(model, [part.params for part in trained], jax.random.key(seed))
    return {arm: _hybrid_run(config, model, arm, seed) for arm in (STREAMED, RESIDENT)}, start


def _trained_parts(config, seed: int) -> list[Pretrained]:
    kinds = enumerate(parts(config, config.streamed_width))
    return [_trained(config, f"hybrid-part-{number}", kind, seed) for number, kind in kinds]


def _trained(config, name: str, model: models.LanguageModel, seed: int) -> Pretrained:
    run = text_run(config, name, seed, model=model)
    train(run, devices=jax.devices()[:1])
    return load_run(run.out)


def _tuning(config, name: str, seed: int, **changes) -> TrainConfig:
    return text_run(config, name, seed, steps=config.tune_steps, **changes)


def _hybrid_run(config, model: models.HybridConfig, arm: str, seed: int) -> TrainConfig:
    run = _tuning(config, f"hybrid-{arm}", seed, model=model)
    run = with_optimizer(run, "adamw_bf16_sr")
    return dataclasses.replace(run, offload="state" if arm == STREAMED else "none")


def _float32(run: TrainConfig) -> TrainConfig:
    optim = dataclasses.replace(run.optim, name="adamw")
    return dataclasses.replace(run, precision="float32", optim=optim, out=f"{run.out}-float32")


def _expert(config, part: Pretrained, name: str, seed: int) -> Pretrained | None:
    """Return what is decoded beside: nothing, or the part tuned on lines with numbers, or on any."""
    if name == "none":
        return None
    some = [one for one in paragraphs(config.paragraphs) if not one.held_out]
    lines = [line for one in some for line in one.text.split("\n")]
    if name == "numbers":
        lines = [line for line in lines if sum(map(str.isdigit, line)) > 3]
    data = Path(config.out, f"{name.split()[0]}.jsonl")
    write_file(data, "".join(json.dumps({"text": line}) + "\n" for line in lines).encode())
    run = _tuning(config, f"expert-{name.split()[0]}", seed, model=part.config, data=str(data))
    train(run, start=part.params, devices=jax.devices()[:1])
    return load_run(run.out)


def _numbers(hybrid: Pretrained, expert: Pretrained | None, config, seed: int) -> tuple[float, float]:
    """Return (the share of digits among characters drawn, nats a token of them under the hybrid itself)."""
    decoder, processors = Decoder(hybrid.config, hybrid.params), []
    if expert is not None:
        beside = Decoder(expert.config, expert.params)
        processors = [combine_models(beside, Suppress(), suppression(strength=_STRENGTH))]
    begin = hybrid.tokenizer.encode("In the year ").tolist()
    drawn = generate(
        *decoder, [begin] * config.rollouts, max_new_tokens=config.seq_len, processors=processors,
        key=jax.random.key(seed),
    )  # fmt: skip
    text = "".join(hybrid.tokenizer.decode(ids) for ids in drawn.tokens)
    return float(np.mean([c.isdigit() for c in text])), -float(np.mean(drawn.log_probs))


