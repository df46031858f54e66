"""The names of an array's axes, and which of them a product sums over."""

from collections.abc import Iterable
from typing import Any

from jaxllm.errors import UserError

_STACKED = ("layers", "vocab_groups")  # one array for each entry; no part of the product


class AxisNames(tuple):
    """The name of each axis of an array; `inputs` are those that a product sums over.

    Without inputs it is no product's weight: a gain, a bias, a sink. A table's input is its row number, as
    looking up is a product with one-hot rows. Equal to the plain tuple of names, and a leaf to `jax.tree`,
    which takes exact tuples alone as nodes.

    Raises:
      UserError: an input that is none of the names.

    Examples:
      >>> names = AxisNames(("layers", "heads", "head_dim", "embed"), inputs=("heads", "head_dim"))
      >>> names.outputs, names == ("layers", "heads", "head_dim", "embed")
      (('embed',), True)
    """

    inputs: tuple[str, ...]

    def __new__(cls, names: Iterable[str | None], inputs: Iterable[str] = ()):
        self = super().__new__(cls, names)
        self.inputs = tuple(inputs)
        for name in self.inputs:
            if name not in self:
                raise UserError(f"the input '{name}' is none of the axes {tuple(self)}; name one of them")
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return which axes a product leaves; () if there is no product."""
        return tuple(n for n in self if n not in (*self.inputs, *_STACKED)) if self.inputs else ()

    def __reduce__(self):
        return type(self), (tuple(self), self.inputs)


def with_inputs(names: tuple[str | None, ...]) -> AxisNames:
    """Return names with their inputs: their own, or for a plain tuple those of a model's usual layout.

    The one place that guesses. A matrix has an "embed" axis and at least one more besides those that stack
    arrays, "layers" and "vocab_groups"; this equals the "two or more dimensions" rule of GPT-2's recipe,
    without mistaking a [heads, head_dim] bias for a matrix. It lies as [in..., out...] and either reads the
    residual stream, so that "embed" comes first, or writes it. For any other weight say `AxisNames`.

    Examples:
      >>> with_inputs(("layers", "embed", "heads", "head_dim")).inputs
      ('embed',)
      >>> with_inputs(("layers", "heads", "head_dim", "embed")).inputs
      ('heads', 'head_dim')
      >>> with_inputs(("layers", "heads", "head_dim")).inputs
      ()
    """
    if isinstance(names, AxisNames):
        return names
    own = [name for name in names if name not in _STACKED]
    if "embed" not in own or len(own) < 2:
        return AxisNames(names)
    return AxisNames(names, ("embed",) if own[0] == "embed" else [n for n in own if n not in ("embed", None)])


def is_names(node: Any) -> bool:
    """Return whether a node of a tree of axis names is the names of one array, and not a container."""
    if isinstance(node, AxisNames):
        return True
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)
