"""Punctuation's policy gradient in bfloat16: weights of 8 bytes beside 16."""

import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax

from experiments.composition.runs import Finding, over_seeds, paragraphs, text_run
from jaxllm import models, optim
from jaxllm.data import start_id
from jaxllm.optim import OptimConfig
from jaxllm.pretrained.load import Pretrained
from jaxllm.punctuate import Marks, TaggerReward, train_punctuator
from jaxllm.reward import PolicyConfig, Reward, diversity, policy_task
from jaxllm.reward.task import SampleReward
from jaxllm.text import LabelConfig, load_run, train
from jaxllm.train import prepare as prepare_task
from jaxllm.train import train_run

_MARKS = Marks(",.?")
_BATCH = 16  # windows of the tagger


def policy_in_bfloat16(config) -> Finding:
    """Reinforce a generator by what its marked text is worth to a tagger: weights of 8 bytes beside 16."""
    found, of = over_seeds(config, _rises)
    rounded = of["rise/adamw_bf16_sr"]
    found.claim("adamw_bf16_sr: the tagger's log-probability of the drawn marks rises by", rounded, above=0)
    found.claim("its rise less float32 AdamW's, at least -0.2", rounded - of["rise/float32"], at_least=-0.2)
    generator = _generator(config, config.seeds[0])
    with tempfile.TemporaryDirectory() as scratch:
        given = generator, lambda drawn: (np.zeros(len(drawn)), {})
        jobs = {arm: policy_job(config, *given, arm, 0, [], scratch) for arm in POLICIES}
        found.costs(jobs, config.rounds)
    return found


def _rises(config, seed: int) -> dict[str, float]:
    """Return by how much each policy raises the tagger's log-probability of what it writes."""
    generator = _generator(config, seed)
    rewarded, found = _rewarded(config, generator, seed), {}
    for arm in POLICIES:
        told: list[dict[str, float]] = []
        with tempfile.TemporaryDirectory() as scratch:  # a run that goes on would not draw what it drew
            train_run(policy_job(config, generator, rewarded, arm, seed, told, scratch))
        third, curve = max(1, len(told) // 3), [one["soundness"] for one in told]
        found[f"rise/{arm}"] = float(np.mean(curve[-third:]) - np.mean(curve[:third]))
    return found


# The type of the weights, and the last link of the optimizer's chain.
POLICIES = {
    "float32": ("float32", lambda rate: optax.adamw(rate, weight_decay=0.0)),
    "adamw_bf16_sr": ("bfloat16", lambda rate: optim.adamw_bf16_sr(rate, weight_decay=0.0)),
    "bfloat16, rounded to nearest": ("bfloat16", lambda rate: optax.adamw(rate, weight_decay=0.0)),
}


def _generator(config, seed: int) -> Pretrained:
    model = models.get_preset(
        "gpt2-nano", vocab_size=None, num_layers=config.layers, embed_dim=config.width, num_heads=4,
        position="rotary", context_length=4 * config.seq_len,
    )  # fmt: skip
    run = text_run(config, "generator", seed, model=model)
    train(run, devices=jax.devices()[:1])
    return load_run(run.out)


def _rewarded(config, generator: Pretrained, seed: int) -> SampleReward:
    """Train a tagger of marks; return what text that the generator draws is worth to it."""
    texts = [one.text.replace("\n", " ") for one in paragraphs(config.paragraphs)]
    wanted = 16 + _BATCH * config.steps  # held out; one window a paragraph, each read once
    documents = [_MARKS.read(text) for text in texts[:: max(1, len(texts) // wanted)]]
    words = generator.tokenizer
    encoder = models.get_preset(
        "bert-nano", vocab_size=words.vocab_size, context_length=64, num_layers=config.layers,
        embed_dim=config.width, num_heads=4,
    )  # fmt: skip
    run = LabelConfig(
        steps=config.steps, longest=64, batch_size=_BATCH, eval_every=config.steps, save_every=config.steps,
        progress=False, seed=seed, optim=OptimConfig(learning_rate=config.learning_rate, warmup_steps=5),
        out=str(Path(config.out, "tagger", f"seed-{seed}")),
    )  # fmt: skip
    punctuator, _ = train_punctuator(
        run, documents[16:], documents[:8], _MARKS, start=(encoder, None, words), devices=jax.devices()[:1]
    )
    tagger = TaggerReward(punctuator.labeller, documents[8:16])
    reward = Reward({
        "utility": (1.0, tagger.utility), "soundness": (1.0, tagger.soundness),
        "diversity": (0.5, lambda samples: diversity([words for words, _ in samples])),
    })  # fmt: skip
    return lambda drawn: reward([_MARKS.read(words.decode(ids)) for ids in drawn])


def policy_job(config, generator: Pretrained, rewarded: SampleReward, arm: str, seed: int, told: list, out):
    """Return the prepared run of a policy; `told` gets the figures of each draw."""
    kind, last = POLICIES[arm]
    run = PolicyConfig(
        steps=config.updates, rollouts=config.rollouts, max_new_tokens=config.seq_len // 2, seed=seed,
        progress=False, save_every=config.updates, eval_every=config.updates, keep_best=0, keep_last=1,
        out=str(out),
    )  # fmt: skip
    model = dataclasses.replace(generator.config, param_dtype=kind, dtype=kind)
    start = jax.tree.map(lambda x: x.astype(kind), generator.params)
    words = generator.tokenizer
    task = policy_task(
        run, model, start, [[start_id(words)]], rewarded, end_id=words.eos_id,
        on_draw=lambda number, rollouts, figures: told.append(figures),
    )  # fmt: skip
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), last(config.policy_rate))
    return prepare_task(task, run, optimizer=optimizer, start=start, devices=jax.devices()[:1])
