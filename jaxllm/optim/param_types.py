"""The types that parameters had at `init`, so that weights which lost theirs are noticed."""

import jax

from jaxllm.errors import UserError


class ParamTypes:
    """What one transformation's `init` was given.

    Kept by the transformation, which only checks with it, and not in the state: a checkpoint holds arrays.
    (`optax.inject_hyperparams` makes the transformation anew in every update, so nothing is noticed there.)
    """

    def __init__(self, link: str):
        self._link = link
        self._known: set[tuple[str, ...]] = set()

    def note(self, params) -> None:
        """Remember the types of a tree of arrays."""
        self._known.add(_names(params))

    def check(self, params) -> None:
        """Check that some `init` was given parameters of these types.

        Raises:
          UserError: names the first that changed, both types, and the call that keeps them.
        """
        names = _names(params)
        initial = next((known for known in self._known if len(known) == len(names)), names)
        if names in self._known or names == initial:
            return
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        path, was, now = next(row for row in zip(paths, initial, names, strict=True) if row[1] != row[2])
        raise UserError(
            f"{self._link} was initialised with {jax.tree_util.keystr(path) or 'the parameter'} in {was} and "
            f"now gets it in {now}: adding float32 updates with + (or equinox.apply_updates) widens weights; "
            "add them with optax.apply_updates, which keeps each weight's type"
        )


def _names(params) -> tuple[str, ...]:
    return tuple(x.dtype.name for x in jax.tree.leaves(params))
