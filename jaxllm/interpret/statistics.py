"""Outliers and the attention sink of a model, summed over batches of text layer by layer."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.interpret.first_token import first_token_attention, first_token_of_weights
from jaxllm.interpret.kurtosis import kurtosis


@dataclass(frozen=True)
class ActivationStatistics:
    """Means over the tokens of a text, float64; first tokens of documents apart from all others.

    The residual stream is read where it leaves each layer (site "resid_post").
    """

    kurtosis_first: np.ndarray  # [L] over channels; see `kurtosis`
    kurtosis_other: np.ndarray  # [L]
    max_first: np.ndarray  # [L] of a token's largest |activation|
    max_other: np.ndarray  # [L]
    sink_argmax: np.ndarray  # [L, H] share of queries that attend most to the first token
    sink_mass: np.ndarray  # [L, H] mean weight on it; for both see `first_token_attention`

    def summary(self) -> dict[str, float]:
        """Return the mean of each over layers and heads, by its name.

        A layer in which no query has a choice (a window of one) is left out of the sink's means.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: float(np.nanmean(value)) for name, value in values.items()}


def activation_statistics(
    config: models.ModelConfig, params: dict, batches: Iterable[Mapping[str, jax.Array]]
) -> ActivationStatistics:
    """Return the outliers and the sink of a model on some text, one batch in memory at a time.

    Within a batch each layer is reduced where it is computed: neither attention weights nor the
    activations of several layers are kept. Of an encoder, or of relative positions (DeBERTa), the weights of
    one layer are in memory.

    Args:
      config: a decoder or an encoder.
      params: its parameters, layers stacked.
      batches: {"tokens": int [B, T], "segment_ids": [B, T] optional}, as `jaxllm.data` makes them, of one
        shape; other entries are not read. Padding counts as text: leave it out.

    Raises:
      UserError: the model is no transformer of one stack, or a batch holds no token.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> found = activation_statistics(config, params, [{"tokens": jnp.zeros((2, 16), int)}])
      >>> found.kurtosis_other.shape, found.sink_mass.shape
      ((2,), (2, 2))
    """
    models.check_transformer(config, "the share of a sink")
    totals = None
    for batch in batches:
        if 0 in batch["tokens"].shape:
            raise UserError(f"a batch of shape {batch['tokens'].shape} holds no token; leave it out")
        sums = jax.device_get(_sums(config, params, batch["tokens"], batch.get("segment_ids")))
        sums = jax.tree.map(np.float64, sums)
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
    if totals is None:
        raise ValueError("activation_statistics was given no batches; give at least one")

    def mean(total, count):
        count = count.reshape(-1, *[1] * (total.ndim - 1))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    return ActivationStatistics(**{name: mean(*total) for name, total in totals.items()})


@functools.partial(jax.jit, static_argnums=0)
def _sums(config, params, tokens_BT, segment_ids_BT) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return {statistic: (sum over a batch, number of terms)}, stacked over layers."""
    first_BT = jnp.zeros(tokens_BT.shape, bool).at[:, 0].set(True)
    if segment_ids_BT is not None:
        first_BT = first_BT.at[:, 1:].set(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1])

    by_products = config.causal and config.position != "disentangled"  # of queries and keys alone

    def reduce_layer(captured, layer):
        learned = config.sink_logit == "learned"
        window = jnp.array(config.windows, jnp.int32)[layer % len(config.windows)]
        if by_products:
            attention = first_token_attention(
                captured["query"],
                captured["key"],
                scale=config.attention_scale,
                window=window,
                sink=params["layers"]["attn"]["sink"][layer] if learned else config.sink_logit,
                segment_ids_BT=segment_ids_BT,
            )
        else:
            attention = first_token_of_weights(captured["attn_probs"], window, segment_ids_BT)
        kurtosis_BT = kurtosis(captured["resid_post"])
        max_BT = jnp.max(jnp.abs(captured["resid_post"].astype(jnp.float32)), axis=-1)

        def over(tokens_BT, x_BT):
            return jnp.sum(x_BT, where=tokens_BT), jnp.sum(tokens_BT)

        queries = jnp.sum(attention.counts_BT)
        return {
            "kurtosis_first": over(first_BT, kurtosis_BT),
            "kurtosis_other": over(~first_BT, kurtosis_BT),
            "max_first": over(first_BT, max_BT),
            "max_other": over(~first_BT, max_BT),
            "sink_argmax": (jnp.sum(attention.argmax_BTH, axis=(0, 1)), queries),
            "sink_mass": (jnp.sum(attention.mass_BTH, axis=(0, 1)), queries),
        }

    read = ("query", "key") if by_products else ("attn_probs",)
    sites = models.Sites(capture=(*read, "resid_post"), keep=reduce_layer)
    return models.capture(config, params, tokens_BT, sites, segment_ids=segment_ids_BT)[1]
