"""Which parameters decay: the weights of products."""

import jax

from jaxllm.axis_names import is_names, with_inputs


def decay_mask(axes):
    """Return True for every weight matrix and embedding, False for gains, biases and sinks.

    Args:
      axes: pytree of logical axis names, structured like the parameters: `AxisNames`, of which those with
        inputs are weights; plain tuples are read by `with_inputs`.

    Examples:
      >>> decay_mask({"weight": ("layers", "embed", "mlp"), "gain": ("layers", "embed"), "bias": ("mlp",)})
      {'bias': False, 'gain': False, 'weight': True}
    """
    return jax.tree.map(lambda names: bool(with_inputs(names).inputs), axes, is_leaf=is_names)
