"""Lazily sliced layers: shrunk or skipped when the scan reaches them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


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
        """

        def run(x_BTD):
            return layer(self.cut(self.stack, self.rows), x_BTD)[0]

        if self.kept is not None:
            x_BTD = jax.lax.cond(self.kept, run, lambda x_BTD: x_BTD, x_BTD)
        else:
            x_BTD = run(x_BTD)
        return x_BTD, {}, None
