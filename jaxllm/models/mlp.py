"""The feed-forward block, plain or gated."""

import functools

import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig
from jaxllm.models.declarations import declare_mlp
from jaxllm.models.linear import linear, linears
from jaxllm.models.norms import normalize
from jaxllm.models.sites import Tap
from jaxllm.parallel import constrain

ACTIVATION_FUNCTIONS = {
    "tanh": jnp.tanh,  # of a head of labels alone
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def mlp_block(config: ModelConfig, params: dict, x_BTD: jax.Array, tap: Tap) -> jax.Array:
    """Return out(activation(in(x))), or out(activation(gate(x)) * in(x)) if gated: [B, T, D].

    Args:
      params: one layer's {"in": [D, F], "out": [F, D], "gate": [D, F] if gated, biases,
        "out_norm" if the output is normed}.
      x_BTD: the normed residual stream, in `config.dtype`.
      tap: names the sites mlp_hidden (what `out` multiplies) and mlp_out.
    """
    activation, declared = ACTIVATION_FUNCTIONS[config.activation], declare_mlp(config)
    if config.gated_mlp:
        hidden_BTF, gate_BTF = linears(x_BTD, params, declared, "in", "gate")
        hidden_BTF = activation(gate_BTF) * hidden_BTF
    else:
        hidden_BTF = activation(linear(x_BTD, params, declared, "in"))
    hidden_BTF = constrain(hidden_BTF, "batch", None, "mlp")
    hidden_BTF = tap("mlp_hidden", hidden_BTF)
    out_BTD = linear(hidden_BTF, params, declared, "out")
    if config.norm_place == "sandwich":
        out_BTD = normalize(out_BTD, params["out_norm"], config.norm, config.norm_eps)
    return tap("mlp_out", out_BTD)
