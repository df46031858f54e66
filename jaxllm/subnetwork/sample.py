"""Draw which layers, heads and neurons a step runs."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError
from jaxllm.models import ModelConfig
from jaxllm.subnetwork.rates import Rates, kept_heads, kept_layers, layer_probabilities, whole


def sample(
    config: ModelConfig,
    rates: Rates,
    key: jax.Array,
    *,
    per_layer: bool = True,
    mlp_block: int = 1,
    shards: int = 1,
) -> dict[str, jax.Array]:
    """Draw a subnetwork: exactly so many units of each kind, without replacement, each equally likely.

    The sizes do not depend on the draw, so that inside `jax.jit` another key compiles nothing.

    Args:
      config: the whole model.
      rates: how much of it to keep.
      key: a random key; the same one draws the same subnetwork on every device.
      per_layer: every layer draws units of its own; False: all keep the same ones.
      mlp_block: draw neurons in aligned blocks of so many neighbours, which are faster to read. Each is
        as likely as before, but no longer on its own: not the paper's method.
      shards: ways that heads and neurons are split (tensor parallelism). Of each part equally many are
        kept, so that no device needs units of another. An axis that cannot be split equally is not
        split by `parallel.RULES` either. The draw depends on this number.

    Returns:
      {logical axis name: int32 indices, ascending}. "layers": [L'], of all layers; "heads",
      "kv_heads" and "mlp": [L', parts, n], the units kept of each equal part of the axis, counted from
      the part's first, for each layer that is kept. An axis that is kept whole is left out.

    Raises:
      UserError: a rate that does not keep a whole number of units in each part.

    Examples:
      >>> from jaxllm.models import get_preset
      >>> indices = sample(get_preset("llama-nano"), Rates(layers=0.5, heads=0.5), jax.random.key(0))
      >>> {name: index.shape for name, index in indices.items()}  # the two heads of one of two groups
      {'layers': (1,), 'kv_heads': (1, 1, 1), 'heads': (1, 1, 2)}
    """
    layers_key, heads_key, mlp_key = jax.random.split(key, 3)
    num_layers = kept_layers(config, rates)
    rows = num_layers if per_layer else 1

    def draw(key, name, total, kind):
        """Return the units kept, [L', parts, n]."""
        parts = shards if total % shards == 0 else 1
        kind = kind if parts == 1 else f"{kind} in each of {parts} shards"
        kept = whole(getattr(rates, name), total // parts, name, kind)
        return _draw(key, (rows, parts, total // parts), kept)

    indices = {}
    if num_layers < config.num_layers:
        windows = len(config.windows)
        indices["layers"] = _neighbours(
            _draw_layers(layers_key, layer_probabilities(config, rates)[::windows]), windows
        )
    groups, queries = kept_heads(config, rates)
    all_queries = config.num_heads // config.num_kv_heads
    if groups < config.num_kv_heads:
        indices["kv_heads"] = draw(heads_key, "heads", config.num_kv_heads, "groups of heads")
        indices["heads"] = _neighbours(indices["kv_heads"], all_queries)
    elif queries < all_queries:  # every group is a part of its own
        indices["heads"] = _draw(heads_key, (rows, groups, all_queries), queries)
    if rates.mlp < 1:
        if mlp_block < 1 or config.mlp_dim % mlp_block:
            raise UserError(f"mlp_block={mlp_block} does not divide the {config.mlp_dim} neurons of a layer; "
                            "choose one that does, or 1")  # fmt: skip
        kind = "neurons" if mlp_block == 1 else f"blocks of {mlp_block} neurons"
        blocks = draw(mlp_key, "mlp", config.mlp_dim // mlp_block, kind)
        indices["mlp"] = _neighbours(blocks, mlp_block)
    return {
        name: index if name == "layers" else jnp.broadcast_to(index, (num_layers, *index.shape[1:]))
        for name, index in indices.items()
    }


def sampled_units(config: ModelConfig, indices: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return which units of the whole model were drawn: {logical axis name: bool}.

    "layers" is [L] and the others are [L, units], False everywhere in a layer that was skipped.

    Examples:
      >>> from jaxllm.models import get_preset
      >>> indices = {"layers": jnp.array([1]), "heads": jnp.array([[[0]]]), "kv_heads": jnp.array([[[0]]])}
      >>> print(sampled_units(get_preset("gpt2-nano"), indices)["heads"])
      [[False False]
       [ True False]]
    """
    layers = indices.get("layers", jnp.arange(config.num_layers, dtype=jnp.int32))
    sizes = {"heads": config.num_heads, "kv_heads": config.num_kv_heads, "mlp": config.mlp_dim}
    drawn = {}
    if "layers" in indices:
        drawn["layers"] = jnp.zeros(config.num_layers, bool).at[layers].set(True)
    for name in sizes.keys() & indices.keys():
        parts = indices[name].shape[1]
        none = jnp.zeros((config.num_layers, parts, sizes[name] // parts), bool)
        rows, columns = layers[:, None, None], jnp.arange(parts, dtype=jnp.int32)[None, :, None]
        here = none.at[rows, columns, indices[name]].set(True)
        drawn[name] = here.reshape(config.num_layers, sizes[name])
    return drawn


def _draw(key, shape, kept: int) -> jax.Array:
    """Return `kept` of the last axis's positions, drawn anew for each row; ascending."""
    order = jnp.argsort(jax.random.uniform(key, shape, jnp.float32))
    return jnp.sort(order[..., :kept]).astype(jnp.int32)


def _draw_layers(key, probabilities: np.ndarray) -> jax.Array:
    """Return layers, each kept with its own probability, their number always the sum; ascending.

    Systematic sampling of a shuffled list (Madow 1949): lay the probabilities end to end and take what
    lies at u, u + 1, u + 2, ... for a uniform u. Where they are equal every subset is equally likely.
    """
    certain, others = np.flatnonzero(probabilities == 1), np.flatnonzero(probabilities < 1)
    order_key, start_key = jax.random.split(key)
    order = jax.random.permutation(order_key, jnp.asarray(others))
    ends = jnp.cumsum(jnp.asarray(probabilities, jnp.float32)[order])
    ends = ends.at[-1].set(jnp.inf)  # no point is lost to rounding
    points = jnp.arange(round(probabilities[others].sum()), dtype=jnp.float32)
    points = points + jax.random.uniform(start_key, (), jnp.float32)
    drawn = order[jnp.searchsorted(ends, points, side="right")]
    return jnp.sort(jnp.concatenate([jnp.asarray(certain), drawn])).astype(jnp.int32)


def _neighbours(index: jax.Array, count: int) -> jax.Array:
    """Return the `count` members of each unit of the last axis, [..., n] to [..., n * count]."""
    members = index[..., None] * count + jnp.arange(count, dtype=index.dtype).reshape([1] * index.ndim + [-1])
    return members.reshape(*index.shape[:-1], -1)
