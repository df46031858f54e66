"""Which logical axes each array of a tree has, from what a user gives for them."""

from typing import Any

import jax

from jaxllm.axis_names import is_names
from jaxllm.errors import UserError


def axis_names(axes: Any, tree: Any) -> dict[tuple, tuple[str | None, ...]]:
    """Return {path: names of its axes} of every array of a tree.

    Found path by path, so that `axes` may name more arrays than the tree holds (`optax.masked` leaves
    some out), and containers of any kind may hold them, tuples and NamedTuples included. What wraps a
    single array, as flax nnx's variables do, may be on one side alone.

    Args:
      axes: pytree of tuples of logical axis names, structured like the parameters; a function of the
        tree to it; None: every axis has a name of its own.
      tree: pytree of arrays.

    Raises:
      UserError: an array without axis names, or with another number of them than it has axes.
    """
    if callable(axes):
        axes = axes(tree)
        if axes is None:
            raise UserError("the function given as axes returned None; it must return a tree of axis names")
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        where = jax.tree_util.keystr(path) or "the parameter"
        names = tuple(f"axis_{i}" for i in range(x.ndim)) if axes is None else _find(axes, path)
        if names is None:
            raise UserError(f"{where} has no axis names; give axes structured like the parameters")
        if len(names) != x.ndim:
            raise UserError(f"{where} has shape {x.shape}, but its axis names are {names}; give one an axis")
        found[path] = names
    return found


def _find(node, path):
    for key in path:
        children = {keys[0]: child for keys, child in _children(node) if keys}
        if key not in children:
            is_wrapper = isinstance(key, jax.tree_util.GetAttrKey)
            return node if is_names(node) and is_wrapper else None
        node = children[key]
    if is_names(node):
        return node
    inside = jax.tree.leaves(node, is_leaf=is_names)
    return inside[0] if len(inside) == 1 and is_names(inside[0]) else None


def _children(node):
    return jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda child: child is not node)
