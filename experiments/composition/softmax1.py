"""Softmax-1 in a hybrid of a transformer and a Mamba."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.composition.runs import Finding, over_seeds, refusal, text_run
from jaxllm import models
from jaxllm.generate import Decoder
from jaxllm.interpret import activation_statistics, kurtosis
from jaxllm.quantize import SCHEMES, quantize_weights
from jaxllm.text import TrainConfig, evaluate, prepare, train

SINKS = {"softmax": -np.inf, "softmax-1": 0.0}


def parts(config, wide: int) -> tuple[models.ModelConfig, models.MambaConfig]:
    """Return a transformer and a Mamba of unequal width, of a vocabulary that is not known yet."""
    gpt = models.ModelConfig(
        vocab_size=None, context_length=4 * config.seq_len, num_layers=config.layers, embed_dim=wide,
        num_heads=4, position="rotary",
    )  # fmt: skip
    mamba = models.MambaConfig(
        vocab_size=None, context_length=4 * config.seq_len, num_layers=config.layers, embed_dim=wide // 2
    )
    return gpt, mamba


def softmax1_hybrid(config) -> Finding:
    """Train a hybrid whose attention may attend to nothing, beside one whose must attend."""
    found, of = over_seeds(config, _attending)
    found.claim("held-out loss within 2 % of softmax's",
                of["heldout_loss/softmax-1"] / of["heldout_loss/softmax"] - 1,
                at_least=-0.02, at_most=0.02)  # fmt: skip
    cached = of["cached_differs/softmax-1"]
    found.exact("token by token from its caches, hidden states differ by", cached, 1e-3)
    found.claim("kurtosis of the common stream: softmax-1's less softmax's",
                of["kurtosis/softmax-1"] - of["kurtosis/softmax"], at_most=0)  # fmt: skip
    one, seed = jax.devices()[:1], config.seeds[0]
    jobs = {arm: prepare(_attending_run(config, arm, seed), devices=one) for arm in SINKS}
    found.costs(jobs, config.rounds)
    job = jobs["softmax-1"]
    found.refused["the sink's share of a hybrid's attention"] = refusal(
        lambda: activation_statistics(job.model, job.init(jax.random.key(0)).params, [next(job.batches())])
    )
    return found


def _attending_run(config, arm: str, seed: int) -> TrainConfig:
    gpt, mamba = parts(config, config.width)
    model = models.HybridConfig(parts=(dataclasses.replace(gpt, sink_logit=SINKS[arm]), mamba), blocks=2)
    return text_run(config, f"hybrid-{arm}", seed, model=model)


def _attending(config, seed: int) -> dict[str, float]:
    found = {}
    for arm in SINKS:
        trained = train(_attending_run(config, arm, seed), devices=jax.devices()[:1])
        model, params, loss = trained.run.model, trained.params, trained.evaluation["loss"]
        tokens = next(trained.run.batches())["tokens"]
        rounded = quantize_weights(params, models.axes(model), SCHEMES["zeropoint4"])
        found |= {
            f"heldout_loss/{arm}": loss,
            f"nats_of_4_bit_weights/{arm}": evaluate(trained.run, rounded, max_batches=16)["loss"] - loss,
            f"kurtosis/{arm}": stream_kurtosis(model, params, tokens),
            f"cached_differs/{arm}": cache_difference(model, params, tokens[:2]),
        }
    return found


def stream_kurtosis(model: models.HybridConfig, params: dict, tokens_BT: np.ndarray) -> float:
    """Return the largest mean kurtosis of the common stream after any block."""

    @jax.jit
    def read(params, tokens_BT):
        sites = models.Sites(capture=("resid_post",))
        return models.capture(model, params, tokens_BT, sites)[1]["resid_post"]

    return float(jnp.mean(kurtosis(read(params, tokens_BT)), axis=(1, 2)).max())


def cache_difference(model: models.HybridConfig, params: dict, tokens_BT: np.ndarray) -> float:
    """Return how far hidden states token by token are from those of a text that is read at once."""
    T = min(8, tokens_BT.shape[1])
    at_once = jax.jit(models.trunk, static_argnums=0)(model, params, tokens_BT[:, :T])
    decoder = Decoder(model, params)
    hidden_BD, cache = decoder.prefill(tokens_BT[:, :1], slots=T)
    states = [hidden_BD]
    for t in range(1, T):
        hidden_BD, cache = decoder.step(tokens_BT[:, t], cache)
        states.append(hidden_BD)
    return float(jnp.abs(jnp.stack(states, axis=1) - at_once).max())
