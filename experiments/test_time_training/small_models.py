"""Small models that read some of the domains, and the same model trained on what others retrieve from."""

import hashlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.test_time_training.domains import Domains
from jaxllm import models, train
from jaxllm.atomic import write_file
from jaxllm.data import Tokenizer, load_tokenizer
from jaxllm.data.bpe import train as train_bpe
from jaxllm.pretrained.load import Pretrained


def train_seen(
    out: Path,
    name: str,
    config: models.ModelConfig,
    domains: Domains,
    vocab: int,
    steps: int,
    batch: int,
    seed: int,
) -> Pretrained:
    """Return a model of the seen domains' texts that may be retrieved, as a finished run in `out` left it."""
    seen = [text for name, texts in domains.index.items() if name not in domains.unseen for text in texts]
    words = _words(out, seen, vocab)
    config = models.ModelConfig(**vars(config) | {"vocab_size": words.vocab_size})
    stream = np.concatenate([[words.eos_id, *ids] for ids in words.encode_batch(seen)]).astype(np.int32)
    T = config.context_length

    def batches():
        draw = np.random.default_rng([seed, 41])
        while True:
            starts = draw.integers(0, max(1, len(stream) - T - 1), batch)
            rows = np.stack([np.resize(stream[start : start + T + 1], T + 1) for start in starts])
            yield {"tokens": rows[:, :-1], "targets": rows[:, 1:]}

    def loss(params, batch, key):
        return models.loss(config, params, batch["tokens"], batch["targets"], key=key)

    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, max(1, steps // 20), steps + 1, 3e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.1))
    task = train.Task(partial(models.init, config), models.axes(config), batches, loss)
    run = train.RunConfig(
        steps=steps, seed=seed, out=str(out / f"{name}-seed-{seed}"), save_every=200, eval_every=steps,
        keep_best=0,
    )  # fmt: skip
    trained = train.train(task, run, optimizer=optimizer, devices=jax.devices()[:1])
    return Pretrained(config, trained.params, words)


def _words(out: Path, texts: list[str], vocab: int) -> Tokenizer:
    """Return a tokenizer trained on texts, or the one that an earlier call left."""
    digest = hashlib.sha256("\0".join([str(vocab), *texts]).encode()).hexdigest()[:16]
    path = out / f"bpe-{digest}" / "tokenizer.json"
    if not path.is_file():
        write_file(path, train_bpe(texts, vocab).backend.to_str().encode())
    return load_tokenizer(path)


def train_on(
    model: Pretrained, texts: list[str], rate: float, window: int, batch: int = 8
) -> tuple[dict, int]:
    """Return (the parameters after one pass over texts in chunks, tokens that were read)."""
    config, params, words = model
    rows = [ids[at : at + window] for ids in words.encode_batch(texts) for at in range(0, len(ids), window)]
    rows = [ids for ids in rows if len(ids) > 1]
    order = np.random.default_rng(42).permutation(len(rows))
    order = np.concatenate([order, order[: -len(order) % batch]])
    tokens, lengths = np.zeros((len(order), window), np.int32), np.zeros(len(order), np.int32)
    for place, row in enumerate(order):
        tokens[place, : len(rows[row])], lengths[place] = rows[row], len(rows[row])
    split = tokens.reshape(-1, batch, window), lengths.reshape(-1, batch)
    return _one_pass(config, params, *split, rate), int(lengths.sum())


@partial(jax.jit, static_argnums=0)
def _one_pass(config, params, tokens_SBT, lengths_SB, rate):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))

    def step(carry, given):
        params, state = carry
        tokens_BT, lengths_B = given
        mask = jnp.arange(1, tokens_BT.shape[1]) < lengths_B[:, None]
        of = lambda params: models.loss(config, params, tokens_BT[:, :-1], tokens_BT[:, 1:], mask=mask)[0]
        updates, state = optimizer.update(jax.grad(of)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), (tokens_SBT, lengths_SB))
    return params
