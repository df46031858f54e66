"""Precision policies, named for what the literature compares."""

from dataclasses import dataclass

import optax

from jaxllm.errors import unknown
from jaxllm.optim import with_master_weights


@dataclass(frozen=True)
class Precision:
    """Which types a run keeps its parameters in and multiplies in.

    Norms, softmax, loss and optimizer arithmetic are float32 under every policy; gradients and
    moments have the type of the parameters the optimizer sees.
    """

    param_dtype: str
    dtype: str  # of matrix products and activations
    master_weights: bool = False  # a float32 copy in the optimizer's state

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
