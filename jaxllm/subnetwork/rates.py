"""How much of a model a training step runs, checked against the model."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from jaxllm.config import Config, Range
from jaxllm.errors import UserError
from jaxllm.models import ModelConfig

_Rate = Annotated[float, Range(above=0, most=1)]


@dataclass(frozen=True)
class Rates(Config):
    """The parts of a model that are kept, each in (0, 1]: p_L, p_H and p_M of the paper.

    Raises:
      UserError: a rate that is not above 0 and at most 1.

    Examples:
      >>> Rates(layers=0.5, heads=1.5)
      Traceback (most recent call last):
      jaxllm.errors.UserError: rates.heads is 1.5; it must be a number of at most 1
    """

    # Of all layers; or for each layer how likely it is to be kept, which sums to a whole number of them.
    layers: _Rate | tuple[_Rate, ...] = 1.0
    heads: _Rate = 1.0  # of every layer's attention heads, by whole groups that share keys where it can be
    mlp: _Rate = 1.0  # of every layer's neurons

    _prefix = "rates."


def shrink(config: ModelConfig, rates: Rates) -> ModelConfig:
    """Return the config of a subnetwork: the same model with fewer layers, heads and neurons.

    Raises:
      UserError: a rate that does not keep a whole number; names some that do.

    Examples:
      >>> from jaxllm.models import get_preset
      >>> small = shrink(get_preset("gpt2"), Rates(layers=0.5, heads=0.5, mlp=0.25))
      >>> small.num_layers, small.num_heads, small.head_dim, small.mlp_dim
      (6, 6, 64, 768)
      >>> shrink(get_preset("gpt2"), Rates(heads=0.3))
      Traceback (most recent call last):
      jaxllm.errors.UserError: rates.heads=0.3 of 12 heads is 3.6; give one that keeps a whole number, such as 3/12 or 4/12
    """  # noqa: E501
    groups, queries = kept_heads(config, rates)
    return dataclasses.replace(
        config,
        num_layers=kept_layers(config, rates),
        num_kv_heads=groups,
        num_heads=groups * queries,
        mlp_dim=whole(rates.mlp, config.mlp_dim, "mlp", "neurons"),
    )


def layer_probabilities(config: ModelConfig, rates: Rates) -> np.ndarray:
    """Return how likely each layer is to be kept, float64 [num_layers].

    Raises:
      UserError: another number of probabilities than layers, or layers with alternating attention
        windows (`config.windows`) that would not be kept together.
    """
    if not isinstance(rates.layers, tuple):
        return np.full(config.num_layers, rates.layers)
    if len(rates.layers) != config.num_layers:
        raise UserError(f"rates.layers has {len(rates.layers)} entries; give one for each of "
                        f"{config.num_layers} layers, or a single number")  # fmt: skip
    probabilities = np.array(rates.layers)
    together = probabilities.reshape(-1, len(config.windows))
    if np.any(together != together[:, :1]):
        raise UserError(f"rates.layers={rates.layers}: the {len(config.windows)} layers over which "
                        f"windows={config.windows} repeat are kept together; give them the same")  # fmt: skip
    return probabilities


def kept_layers(config: ModelConfig, rates: Rates) -> int:
    """Return how many layers are kept; where attention windows alternate, whole rounds of them."""
    windows = len(config.windows)
    mean = float(layer_probabilities(config, rates).mean())
    kind = "layers" if windows == 1 else f"groups of {windows} layers, over which windows repeat,"
    return windows * whole(mean, config.num_layers // windows, "layers", kind)


def kept_heads(config: ModelConfig, rates: Rates) -> tuple[int, int]:
    """Return (how many key heads are kept, how many query heads of each of them).

    Whole groups, where a whole number of them is kept; else all groups, and of each the same number of
    query heads.
    """
    groups, queries = config.num_kv_heads, config.num_heads // config.num_kv_heads
    if _kept(rates.heads, groups) is None and _kept(rates.heads, queries) is not None:
        return groups, _kept(rates.heads, queries)
    kind = "heads" if queries == 1 else f"groups of {queries} heads that share their keys"
    return whole(rates.heads, groups, "heads", kind), queries


def whole(rate: float, total: int, name: str, kind: str) -> int:
    """Return rate * total, which must be a whole number.

    Raises:
      UserError: it is not; names the rates next to it.
    """
    kept = _kept(rate, total)
    if kept is None:
        below = int(rate * total)
        near = " or ".join(f"{n}/{total}" for n in (below, below + 1) if n)
        raise UserError(f"rates.{name}={rate:g} of {total} {kind} is {rate * total:.4g}; "
                        f"give one that keeps a whole number, such as {near}")  # fmt: skip
    return kept


def _kept(rate: float, total: int) -> int | None:
    kept = round(rate * total)
    return kept if kept and abs(kept - rate * total) < 1e-3 else None
