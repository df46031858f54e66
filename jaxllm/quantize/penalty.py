"""What quantisation costs: perplexity with it, less perplexity without."""

import functools
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from jaxllm import models
from jaxllm.quantize.activations import activation_ranges, quantized_activations, shared_ranges
from jaxllm.quantize.schemes import SCHEMES, Scheme
from jaxllm.quantize.weights import quantize_weights

Batch = Mapping[str, jax.Array]


def quantization_penalties(
    config: models.ModelConfig,
    params: dict,
    batches: Sequence[Batch],
    calibration: Iterable[Batch],
    schemes: Mapping[str, Scheme] = SCHEMES,
) -> dict[str, float]:
    """Return {"perplexity": of the model as it is, scheme's name: how much it adds to that}.

    Args:
      config: the model.
      params: its parameters, layers stacked.
      batches: text to score; {"tokens", "targets", "mask", "segment_ids"}, each [B, T], the last two
        optional.
      calibration: text that fixes the grids of activations; the paper's reproduction takes 16 batches.
      schemes: by name.
    """
    ranges = activation_ranges(config, params, calibration)
    whole = perplexity(config, params, batches)
    rounded = {name: perplexity(config, params, batches, scheme, ranges) for name, scheme in schemes.items()}
    return {"perplexity": whole} | {name: value - whole for name, value in rounded.items()}


def perplexity(
    config: models.ModelConfig,
    params: dict,
    batches: Iterable[Batch],
    scheme: Scheme | None = None,
    ranges: Mapping[str, jax.Array] | None = None,
) -> float:
    """Return exp(mean loss a token) on some text, of the model as it is or quantised.

    Args:
      config: the model.
      params: its parameters, layers stacked.
      batches: see `quantization_penalties`.
      scheme: None: no quantisation.
      ranges: from `activation_ranges`, for a scheme that quantises activations.

    Raises:
      ValueError: such a scheme without ranges.
    """
    bits = None
    if scheme is not None:
        params = _rounded(config, scheme, params)
        if scheme.activations is None:
            ranges = None
        elif ranges is None:
            raise ValueError(f"{scheme} quantises activations; give the ranges of activation_ranges")
        else:
            bits = scheme.bits
            ranges = shared_ranges(ranges) if scheme.activations == "tensor" else ranges
    sums = [_loss_sums(config, bits, params, ranges, dict(batch)) for batch in batches]
    loss, count = (sum(float(one[i]) for one in sums) for i in range(2))
    return float(np.exp(loss / count))  # inf, and no exception, if a coarse grid breaks the model


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rounded(config, scheme, params):
    return quantize_weights(params, models.axes(config), scheme)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss_sums(config, bits, params, ranges, batch):
    """Return (summed loss, tokens that count) of a batch, without ranges of whole activations."""
    sites = None if ranges is None else quantized_activations(ranges, bits)
    hidden_BTD = models.trunk(
        config, params, batch["tokens"], segment_ids=batch.get("segment_ids"), sites=sites
    )
    _, sums = models.hidden_loss(config, params, hidden_BTD, batch["targets"], mask=batch.get("mask"))
    return sums["loss_sum"], sums["token_count"]
