"""Which parameters decay: the matrices that read or write the residual stream."""

import jax

from jaxllm.optim.axis_names import is_names


def decay_mask(axes):
    """Return True for every weight matrix and embedding, False for gains, biases and sinks.

    A matrix has an "embed" axis and at least one more besides those that stack gains, "layers" and
    "vocab_groups"; this equals the "two or more dimensions" rule of GPT-2's recipe, without mistaking
    a [heads, head_dim] bias for a matrix.

    Args:
      axes: pytree of tuples of logical axis names, structured like the parameters.

    Examples:
      >>> decay_mask({"weight": ("layers", "embed", "mlp"), "gain": ("layers", "embed"), "bias": ("mlp",)})
      {'bias': False, 'gain': False, 'weight': True}
    """

    def is_matrix(names):
        return "embed" in names and len([n for n in names if n not in ("layers", "vocab_groups")]) > 1

    return jax.tree.map(is_matrix, axes, is_leaf=is_names)
