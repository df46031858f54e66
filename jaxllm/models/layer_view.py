"""Lazily sliced layers: shrunk or skipped when the scan reaches them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxllm.errors import UserError


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("stack", "rows", "kept"), meta_fields=("cut",)
)
@dataclass(frozen=True)
class LayerView:
    """A stack of layers and how to shrink each; `params["layers"]` may be one, and is scanned like a stack.

    For a stack in the host's memory: slicing all of it before the scan would need too much on the device.
    """

    stack: dict  # parameters, each [L, ...]
    rows: Any  # arrays, each [L, ...]: what `cut` takes besides, such as indices of units
    kept: jax.Array | None  # bool [L]: False passes the layer's input on; None: every layer runs
    cut: Callable  # (a layer's parameters, its rows) -> the parameters that run

    def run(self, layer: Callable, x_BTD: jax.Array) -> tuple[jax.Array, dict, None]:
        """Run one layer, whose parameters and rows these are, if it is kept.

        Args:
          layer: (parameters, x_BTD) -> (x_BTD, captured, cache), the latter empty.
          x_BTD: its input.

        Raises:
          UserError: activations are captured, and some layers are skipped.
        """

        if self.kept is None:
            return layer(self.cut(self.stack, self.rows), x_BTD)

        def run(x_BTD):
            x_BTD, captured, _ = layer(self.cut(self.stack, self.rows), x_BTD)
            if captured:
                raise UserError(
                    "activations cannot be captured in layers that are skipped where they are fetched from "
                    "the host's memory: leave out offload=state, the capture (as of a penalty on attention), "
                    "or rates of layers below 1"
                )
            return x_BTD

        return jax.lax.cond(self.kept, run, lambda x_BTD: x_BTD, x_BTD), {}, None
