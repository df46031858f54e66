"""Layers that do not run as they are kept: each is made smaller when its turn comes, or is left out."""

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
    """A stack of layers, and what of each is run; `params["layers"]` may be one, and is scanned like a stack.

    For where the whole stack, cut before it is scanned, would need too much memory: in the host's.
    """

    stack: dict  # parameters, each [L, ...]
    rows: Any  # arrays, each [L, ...]: by which a layer is cut
    kept: jax.Array | None  # bool [L]: a layer that is not kept passes its input on; None: all are
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
