"""Precision policies, named for what the literature compares."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import optax

from jaxllm.errors import unknown
from jaxllm.optim import with_master_weights
from jaxllm.optim.check_chain import must_be_last


@dataclass(frozen=True)
class Precision:
    """Which types a run keeps its parameters in and multiplies in.

    Norms, softmax, loss and optimizer arithmetic are float32 under every policy; gradients and
    moments have the type of the parameters the optimizer sees.
    """

    param_dtype: str
    dtype: str  # of matrix products and activations
    master_weights: bool = False  # a float32 copy in the optimizer's state

    @property
    def needs_rounding(self) -> bool:
        """Whether the stored weights are too coarse for updates that are rounded to nearest."""
        return self.param_dtype != "float32" and not self.master_weights

    def wrap(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """Return the optimizer, run on master weights if the policy keeps them."""
        return with_master_weights(optimizer) if self.master_weights else optimizer


# Bytes a parameter with AdamW, gradients included: 16, 14 to 16, 16 and 8. Under mixed_o1 a stack's
# gradients stay bfloat16, as products give them, until they are summed or the optimizer reads them.
PRECISIONS = {
    "float32": Precision("float32", "float32"),
    "mixed_o1": Precision("float32", "bfloat16"),
    "mixed_o2": Precision("bfloat16", "bfloat16", master_weights=True),
    "bfloat16": Precision("bfloat16", "bfloat16"),
}


def get_precision(name: str) -> Precision:
    """Return the policy of this name.

    Raises:
      UserError: an unknown name.

    Examples:
      >>> get_precision("mixed_o2").param_dtype
      'bfloat16'
    """
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    return PRECISIONS[name]


def with_precision(config: Any) -> Any:
    """Return a `TrainConfig` with its model's types as its precision policy sets them."""
    policy = get_precision(config.precision)
    return replace(config, model=replace(config.model, dtype=policy.dtype, param_dtype=policy.param_dtype))


def warn_of_lost_updates(precision: str, optimizer: str, opt_state) -> None:
    """Warn if weights below float32 get updates rounded to nearest, which loses the small ones.

    Args:
      precision: name of the policy.
      optimizer: what to call the optimizer.
      opt_state: its state, or the shapes of it.
    """
    if get_precision(precision).needs_rounding and must_be_last(opt_state) is None:
        warnings.warn(
            f"{optimizer} rounds its updates of {precision} weights to nearest: those below half a step of a "
            "weight are lost, and training stalls; use optim.name=adamw_bf16_sr, end your chain with "
            "jaxllm.optim.stochastic_round, or choose precision=mixed_o2",
            stacklevel=3,
        )
