"""A processor that lets other models read along, each with a cache of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate.decoder import Decoder
from jaxllm.generate.processors import StatefulProcessor, last_token
from jaxllm.generate.reweight import Step


class Beside(NamedTuple):
    """A model that reads along, once for each prefix, which it reads before every prompt."""

    decoder: Decoder
    prefixes: Sequence[Sequence[int]] = ((),)


def combine_models(
    beside: Decoder | Beside | Sequence[Decoder | Beside], step: Step, state: Any = None
) -> StatefulProcessor:
    """Decode by what a step makes of the model's distribution and those of models beside it.

    They read the same prompts and draws. Their weights and caches, and the step's state, are arguments of the
    compiled program: other weights or strengths compile nothing anew. Contrastive decoding, DExperts,
    Self-Debias and EXPOSED are steps (`jaxllm.generate.reweight`).

    What comes before in the list of processors changes p: [keep_top_p(0.9), combine_models(...)] truncates
    first, [combine_models(...), keep_top_p(0.9)] (or `SamplingConfig(top_p=0.9)`) reweights first.

    Args:
      beside: the other models, of the same tokenizer, in the order in which the step takes them.
      step: (log p [B, V], log q [M, B, V], state) -> log p~; pass the same function each time, or one that
        compares equal.
      state: a pytree of numbers, or of lists or arrays of one number a row.

    Raises:
      UserError: no model beside; when prompts come: one whose context is too short for them, ids that it does
        not know, another size of vocabulary, not one number of the state for each row.

    Examples:
      >>> from jaxllm.generate import Suppress, suppression
      >>> config = models.get_preset("gpt2-nano")
      >>> expert = Decoder(config, models.init(config, jax.random.key(1)))
      >>> processor = combine_models(expert, Suppress(), suppression(strength=50.0))
    """
    beside = [beside] if isinstance(beside, Decoder | Beside) else list(beside)
    if not beside:
        raise UserError("no model is given to read along; give one Decoder at least")
    beside = [one if isinstance(one, Beside) else Beside(one) for one in beside]
    prefixes = tuple(len(one.prefixes) for one in beside)
    others = _Others(tuple(one.decoder.config for one in beside), prefixes, step)

    def init(prompts):
        caches = tuple(_read_along(one, prompts) for one in beside)
        return caches, jax.tree.map(
            lambda x: _one_a_row(x, len(prompts.rows_B)), state, is_leaf=lambda x: isinstance(x, list)
        )

    return StatefulProcessor(tuple(one.decoder.params for one in beside), init, others, _Select(prefixes))


def _read_along(one: Beside, prompts):
    """Return the cache of a model that has read the prompts but for their last tokens."""
    config = one.decoder.config
    if (prompts.start_id is None) != (config.start_id is None):
        raise UserError(
            "one of the models answers sources and another continues prompts; give encoder-decoders alone, "
            "or decoders alone"
        )
    prompts = prompts.without_last().after(one.prefixes)
    longest = prompts.mask_PT.sum(axis=1).max() + prompts.new  # the last is drawn and read by nobody
    if longest > config.most_cached:
        raise UserError(
            f"the second model's context holds {config.most_cached} tokens, not the {longest} of a prompt "
            "and all but the last that is drawn; shorten the prompt or max_new_tokens"
        )
    try:
        models.check_ids(prompts.tokens_PT, config.known_vocab_size, "a prompt's ids")
    except UserError as error:
        raise UserError(f"{error}: those of the second model; both must share a tokenizer") from error
    return prompts.read_before(one.decoder)


def _one_a_row(x, B):
    x = np.asarray(x, np.float32)
    if x.shape not in ((), (B,)):
        raise UserError(f"a state of shape {x.shape} for {B} rows; give one number, or one a row")
    return jnp.broadcast_to(x, (B,))


@dataclass(frozen=True)
class _Others:
    configs: tuple[models.LanguageModel, ...]
    prefixes: tuple[int, ...]  # how many each has: its cache has as many rows for each of the batch
    step: Step

    def __call__(self, scores_BV, tokens_BS, seen_BS, weights, state):
        caches, strengths = state
        last_B, log_qs, after = last_token(tokens_BS, seen_BS), [], []
        for config, M, params, cache in zip(self.configs, self.prefixes, weights, caches, strict=True):
            hidden_N1D, cache = models.decode(config, params, jnp.tile(last_B, M)[:, None], cache)
            log_qs.append(other_log_probs(config, params, hidden_N1D[:, 0], scores_BV))
            after.append(cache)
        log_p_BV = jax.nn.log_softmax(scores_BV, axis=-1)
        return self.step(log_p_BV, jnp.concatenate(log_qs), strengths), (tuple(after), strengths)


@dataclass(frozen=True)
class _Select:
    prefixes: tuple[int, ...]

    def __call__(self, state, rows):
        caches, strengths = state
        xp, selected = jnp if isinstance(rows, jax.Array) else np, []
        for M, cache in zip(self.prefixes, caches, strict=True):
            B = models.cache_rows(cache) // M
            every = xp.concatenate([xp.asarray(rows) + m * B for m in range(M)])
            selected.append(models.select_rows(cache, every))
        return tuple(selected), jax.tree.map(lambda x: x[rows], strengths)


def other_log_probs(config, params, hidden_ND, scores_BV) -> jax.Array:
    """Return log q [N / B, B, V] of another model's hidden states, for a model's scores.

    Raises:
      UserError: it has a vocabulary of another size.
    """
    logits_NV = models.logits(config, params, hidden_ND)
    B, V = scores_BV.shape
    if logits_NV.shape[1] != V:
        raise UserError(
            f"the models have vocabularies of {V} and {logits_NV.shape[1]}; "
            "scores are combined token by token: give two models of one tokenizer"
        )
    return jax.nn.log_softmax(logits_NV, axis=-1).reshape(-1, B, V)
