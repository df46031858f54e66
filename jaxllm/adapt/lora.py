"""LoRA (Hu et al., arXiv 2106.09685): beside frozen matrices W, train narrow A and B.

A layer computes x W + s (dropout(x) A) B, where A has `rank` outputs, B begins at zero, and s is alpha / rank
or, in rsLoRA, alpha / sqrt(rank) (Kalajdzievski, arXiv 2312.03732).
"""

import functools
import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxllm.adapt.names import Path, choose_matrices, choose_params, flat, nested
from jaxllm.axis_names import AxisNames
from jaxllm.config import Config, Count, Positive, Range
from jaxllm.errors import UserError
from jaxllm.models import LanguageModel, LowRank, axes, init, is_apart, layers_apart, shapes


@dataclass(frozen=True)
class LoraConfig(Config):
    """Which adapter. Without a rank there is none.

    Raises:
      UserError: a value out of range, or one that has no meaning without a rank.

    Examples:
      >>> LoraConfig(rank=16, alpha=32).scale
      2.0
      >>> LoraConfig(alpha=32)
      Traceback (most recent call last):
      jaxllm.errors.UserError: lora.alpha is set and lora.rank is not; set lora.rank too, 8 say
    """

    rank: Count | None = None  # width of A and B; None: no adapter
    targets: str = "query,value"  # matrices, with commas: all, query, key, value, out, mlp_in, mlp_gate, ...
    also: str | None = None  # parameters trained whole beside it, by name as of train_only: head, embed, ...
    alpha: Positive = 16.0  # A B is multiplied by alpha / rank
    dropout: Annotated[float, Range(0, below=1)] = 0.0  # of what A multiplies
    rslora: bool = False  # alpha / sqrt(rank) in place of alpha / rank

    _prefix = "lora."

    def __post_init__(self):
        super().__post_init__()
        for name, default in _DEFAULTS.items():
            if self.rank is None and getattr(self, name) != default:
                raise UserError(f"lora.{name} is set and lora.rank is not; set lora.rank too, 8 say")

    @property
    def scale(self) -> float:
        """What the product A B is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


_DEFAULTS = {name: getattr(LoraConfig, name) for name in ("targets", "also", "alpha", "dropout", "rslora")}


@dataclass(frozen=True)
class Lora:
    """An adapter of a model: a view (adapter, base, key) -> parameters for any loss.

    The adapter is {path of a matrix: {"A": [L, in..., R], "B": [L, R, out...]}}, nested as the model's
    parameters are, in float32, with the parameters that `config.also` names. What the view returns holds
    `models.LowRank` in place of each matrix: W + A B is never made, and W gets no gradient. Accumulated parts
    of a batch share one draw of the dropout.

    Raises:
      UserError: a target that the model does not have.

    Examples:
      >>> from jaxllm import models
      >>> model = models.get_preset("llama-nano")
      >>> lora, base = Lora(model, LoraConfig(rank=4)), models.init(model, jax.random.key(0))
      >>> adapter = lora.init(jax.random.key(1))
      >>> [x.shape for x in jax.tree.leaves(adapter["layers"]["attn"]["value"])]
      [(2, 64, 4), (2, 4, 2, 16)]
      >>> models.apply(model, lora(adapter, base, None), jnp.zeros((1, 3), int)).shape
      (1, 3, 256)
    """

    model: LanguageModel
    config: LoraConfig

    def __post_init__(self):
        twice = self.whole & {path for path, _ in choose_matrices(self.model, self.config.targets).values()}
        if twice:
            raise UserError(
                f"lora.also={self.config.also!r} trains '{'/'.join(min(twice))}' whole, and lora.targets "
                "puts an adapter beside it; leave it out of one of them"
            )

    @property
    def matrices(self) -> dict[str, tuple[Path, AxisNames]]:
        """The matrices that have an A and a B, by name."""
        return choose_matrices(self.model, self.config.targets)

    @property
    def whole(self) -> set[Path]:
        """Where the parameters lie that are trained whole."""
        also = self.config.also
        return set() if also is None else choose_params(self.model, also, "lora.also")

    def begin(self, base: dict, key: jax.Array) -> tuple[dict, dict]:
        """Return (what is trained, what is frozen) of a model before the first step."""
        leaves = flat(base)
        trained = flat(self._narrow(key)) | {path: _float32(leaves.pop(path)) for path in sorted(self.whole)}
        return nested(trained), nested(leaves)

    def axes(self) -> dict:
        """Return the logical names of the axes of what is trained."""

        def of(names):
            stack = names[: names.index(names.inputs[0])]
            return {
                "A": AxisNames((*stack, *names.inputs, "rank"), names.inputs),
                "B": AxisNames((*stack, "rank", *names.outputs), ("rank",)),
            }

        known = flat(axes(self.model))
        narrow = {path: of(names) for path, names in self.matrices.values()}
        return nested(narrow | {path: known[path] for path in self.whole})

    def frozen_axes(self, apart: bool = False) -> dict:
        """Return the logical names of the axes of the base, layers stacked or taken apart."""
        names = nested({p: names for p, names in flat(axes(self.model)).items() if p not in self.whole})
        if not apart:
            return names
        one = {path: AxisNames(names[1:], names.inputs) for path, names in flat(names["layers"]).items()}
        return names | {"layers": (nested(one),) * self.model.num_layers}

    def init(self, key: jax.Array) -> dict:
        """Draw what is trained: an adapter that changes nothing yet, the rest as `models.init` does.

        A is uniform within 1 / sqrt(inputs), as in PEFT, and B zero.
        """
        if not self.whole:
            return self._narrow(key)
        drawn = flat(init(self.model, key))
        return nested(flat(self._narrow(key)) | {path: _float32(drawn[path]) for path in self.whole})

    def _narrow(self, key: jax.Array) -> dict:
        sizes = flat(shapes(self.model))

        def draw(number, path, names):
            size = dict(zip(names, sizes[path].shape, strict=True)) | {"rank": self.config.rank}
            stack = names[: names.index(names.inputs[0])]
            down, up = (
                [size[name] for name in (*stack, *inner)]
                for inner in ((*names.inputs, "rank"), ("rank", *names.outputs))
            )
            bound = math.prod(size[name] for name in names.inputs) ** -0.5
            A = jax.random.uniform(jax.random.fold_in(key, number), down, jnp.float32, -bound, bound)
            return {"A": A, "B": jnp.zeros(up, jnp.float32)}

        places = enumerate(self.matrices.values())
        return nested({path: draw(number, path, names) for number, (path, names) in places})

    def __call__(self, adapter: dict, base: dict, key: jax.Array | None) -> dict:
        """View the base with an adapter. Without a key nothing is dropped.

        Args:
          adapter: as `init` draws it.
          base: the model's parameters, layers stacked or taken apart (`models.layers_apart`); those that
            are trained whole may be left out.
          key: of the dropout.
        """
        dropout = self.config.dropout if key is not None else 0.0
        narrow = flat(adapter)
        for number, (path, _) in enumerate(self.matrices.values() if dropout else ()):
            keys = jax.random.split(jax.random.fold_in(key, number), len(narrow[(*path, "A")]))
            narrow[(*path, "key")] = jax.random.key_data(keys)
        beside = nested(narrow)
        if not is_apart(base):
            return self._seen(base, beside, dropout)
        layers, rest = base["layers"], {name: value for name, value in base.items() if name != "layers"}
        if "layers" in beside:
            pairs = zip(layers, layers_apart(beside)["layers"], strict=True)
            stack = [self._seen({"layers": one}, {"layers": own}, dropout)["layers"] for one, own in pairs]
            layers = tuple(stack)
        rest = self._seen(rest, {name: value for name, value in beside.items() if name != "layers"}, dropout)
        return rest | {"layers": layers}

    def _seen(self, base: dict, beside: dict, dropout: float) -> dict:
        """Return parameters with their chosen matrices in `LowRank`, and those that are trained whole."""
        weights, beside = flat(base), flat(beside)
        for path, _ in self.matrices.values():
            if (*path, "A") in beside:
                A, B, key = (beside.get((*path, name)) for name in ("A", "B", "key"))
                weights[path] = LowRank(weights[path], A, B, key, self.config.scale, dropout)
        weights |= {path: beside[path] for path in self.whole & beside.keys()}
        return nested(weights)

    def merge(self, adapter: dict, base: dict) -> dict:
        """Return the parameters W + s A B of an ordinary model, in the base's types."""
        return _merge(self, adapter, base)


def _float32(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _merge(lora: Lora, adapter: dict, base: dict) -> dict:
    seen, kind = flat(lora(adapter, base, None)), jnp.dtype(lora.model.param_dtype)
    for path, names in lora.matrices.values():
        seen[path] = seen[path].merged(len(names.inputs), stacked=True)
    given = flat(base)
    seen |= {path: seen[path].astype(given[path].dtype if path in given else kind) for path in lora.whole}
    return nested(seen)
