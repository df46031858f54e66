"""Named activation sites: capture or edit what flows through a model, without touching its code.

| site        | shape           | what it is                                                   |
|-------------|-----------------|--------------------------------------------------------------|
| embed       | [B, T, D]       | token plus position embedding (once, no layer axis)          |
| resid_pre   | [L, B, T, D]    | residual stream entering the layer                           |
| attn_in     | [L, B, T, D]    | its norm: what attention reads                               |
| query       | [L, B, T, H, K] | after bias and rotary                                        |
| key, value  | [L, B, T, G, K] | key after bias and rotary                                    |
| attn_scores | [L, B, H, T, S] | scaled float32 logits before the mask                        |
| attn_probs  | [L, B, H, T, S] | float32 attention weights; with a sink, rows sum to below 1  |
| head_out    | [L, B, T, H, K] | each head's mix of values, before the output projection      |
| attn_out    | [L, B, T, D]    | what attention adds to the residual stream                   |
| resid_mid   | [L, B, T, D]    | residual stream between attention and MLP; see below         |
| mlp_in      | [L, B, T, D]    | its norm: what the MLP reads                                 |
| mlp_hidden  | [L, B, T, F]    | after the activation (and gate)                              |
| mlp_out     | [L, B, T, D]    | what the MLP adds to the residual stream                     |
| resid_post  | [L, B, T, D]    | residual stream leaving the layer                            |
| final       | [B, T, D]       | after the final norm (once, no layer axis)                   |

With parallel_residual the MLP reads resid_pre: an edit of resid_mid changes what the layer adds to alone.

The L axis is of captured values; an edit, and `keep`, see one layer at a time, without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.errors import UserError, unknown

SITES = (
    "embed", "resid_pre", "attn_in", "query", "key", "value", "attn_scores", "attn_probs",
    "head_out", "attn_out", "resid_mid", "mlp_in", "mlp_hidden", "mlp_out", "resid_post", "final",
)  # fmt: skip

Edit = Callable[[jax.Array, jax.Array], jax.Array]
Keep = Callable[[dict[str, jax.Array], jax.Array], dict[str, Any]]


def _everything(captured: dict[str, jax.Array], layer: jax.Array) -> dict[str, jax.Array]:
    return captured


@dataclass(frozen=True)
class Sites:
    """Which sites to record and which to change.

    An edit is called as `edit(value, layer)` for every layer, `layer` being a traced integer (0 at
    embed and final), and returns an array of the same shape and dtype. To change layer 3 only:
    `lambda value, layer: jnp.where(layer == 3, 0 * value, value)`. A site that is both edited and
    captured is captured after its edit.

    Captured values of all layers can be more than memory holds. `keep(captured, layer)` is called
    once a layer, within the scan over layers, with that layer's {site: value}; the dict that it
    returns is what is stacked instead. (embed and final have no layer and stay as they are.)

    Raises:
      UserError: a name that is not a site.

    Examples:
      >>> Sites(capture=("resid_pots",))
      Traceback (most recent call last):
      ...
      jaxllm.errors.UserError: unknown site 'resid_pots'; did you mean 'resid_post'? Known: ...
    """

    capture: tuple[str, ...] = ()
    edits: Mapping[str, Edit] = field(default_factory=dict)
    keep: Keep = _everything

    def __post_init__(self):
        if isinstance(self.capture, str):
            raise UserError(
                f"capture='{self.capture}' must be a tuple of names: ('{self.capture}',)"
            )
        for name in (*self.capture, *self.edits):
            if name not in SITES:
                raise unknown("site", name, SITES)


class Tap:
    """What model code calls at each site; with no sites asked it returns its argument."""

    def __init__(self, sites: Sites | None = None, layer: jax.Array | int = 0):
        self.sites = sites or Sites()
        self.layer = layer
        self.captured: dict[str, jax.Array] = {}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """Return the value of this site, edited if asked, and remember it if asked."""
        if name in self.sites.edits:
            value = _edited(name, self.sites.edits[name], value, self.layer)
        if name in self.sites.capture:
            self.captured[name] = value
        return value

    def kept(self) -> dict[str, Any]:
        """Return what `Sites.keep` makes of the captured values of this layer."""
        return self.sites.keep(self.captured, self.layer)

    def wants(self, *names: str) -> bool:
        """Return whether any of these sites is captured or edited."""
        return any(name in self.sites.capture or name in self.sites.edits for name in names)


def check_sites(sites: Sites | None, known: tuple[str, ...], model: str) -> None:
    """Refuse a site that a kind of model, named as in "a Mamba", does not have.

    Raises:
      UserError: such a site.
    """
    for name in () if sites is None else (*sites.capture, *sites.edits):
        if name not in known:
            raise UserError(f"{model} has no site '{name}'; it has {', '.join(known)}")



def _edited(name: str, edit: Edit, value: jax.Array, layer) -> jax.Array:
    new = jnp.asarray(edit(value, layer))
    if new.shape != value.shape or new.dtype != value.dtype:
        raise UserError(
            f"the edit at site '{name}' returned {new.dtype}{list(new.shape)}; "
            f"it must keep {value.dtype}{list(value.shape)}"
        )
    return new
