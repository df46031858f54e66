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

from jaxllm.adapt.names import Path, choose_matrices, flat, nested
from jaxllm.axis_names import AxisNames
from jaxllm.config import Config, Count, Positive, Range
from jaxllm.errors import UserError
from jaxllm.models import LanguageModel, LowRank, axes, is_apart, layers_apart, shapes


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


_DEFAULTS = {name: getattr(LoraConfig, name) for name in ("targets", "alpha", "dropout", "rslora")}


@dataclass(frozen=True)
class Lora:
    """An adapter of a model: a view (adapter, base, key) -> parameters for any loss.

    The adapter is {path of a matrix: {"A": [L, in..., R], "B": [L, R, out...]}}, nested as the model's
    parameters are, in float32. What the view returns holds `models.LowRank` in place of each matrix: W + A B
    is never made, and W gets no gradient. Accumulated parts of a batch share one draw of the dropout.

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
        choose_matrices(self.model, self.config.targets)

    @property
    def matrices(self) -> dict[str, tuple[Path, AxisNames]]:
        """The matrices that have an A and a B, by name."""
        return choose_matrices(self.model, self.config.targets)

    def begin(self, base: dict, key: jax.Array) -> tuple[dict, dict]:
        """Return (what is trained, what is frozen) of a model before the first step."""
        return self.init(key), base

    def axes(self) -> dict:
        """Return the logical names of the adapter's axes."""

        def of(names):
            stack = names[: names.index(names.inputs[0])]
            return {
                "A": AxisNames((*stack, *names.inputs, "rank"), names.inputs),
                "B": AxisNames((*stack, "rank", *names.outputs), ("rank",)),
            }

        return nested({path: of(names) for path, names in self.matrices.values()})

    def frozen_axes(self, apart: bool = False) -> dict:
        """Return the logical names of the axes of the base, layers stacked or taken apart."""
        names = axes(self.model)
        if not apart:
            return names
        one = {path: AxisNames(names[1:], names.inputs) for path, names in flat(names["layers"]).items()}
        return names | {"layers": (nested(one),) * self.model.num_layers}

    def init(self, key: jax.Array) -> dict:
        """Draw an adapter that changes nothing yet: A uniform within 1 / sqrt(inputs) as in PEFT, B zero."""
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
          base: the model's parameters, layers stacked or taken apart (`models.layers_apart`).
          key: of the dropout.
        """
        dropout = self.config.dropout if key is not None else 0.0
        narrow = flat(adapter)
        for number, (path, _) in enumerate(self.matrices.values() if dropout else ()):
            keys = jax.random.split(jax.random.fold_in(key, number), self.model.num_layers)
            narrow[(*path, "key")] = jax.random.key_data(keys)
        beside = nested(narrow)
        if is_apart(base):
            pairs = zip(base["layers"], layers_apart(beside)["layers"], strict=True)
            return base | {"layers": tuple(self._layers(*pair, dropout) for pair in pairs)}
        return base | {"layers": self._layers(base["layers"], beside["layers"], dropout)}

    def _layers(self, weights: dict, beside: dict, dropout: float) -> dict:
        """Return a layer, or a stack of them, with its chosen matrices in `LowRank`."""
        weights, beside = flat(weights), flat(beside)
        for (_, *path), _ in self.matrices.values():
            A, B, key = (beside.get((*path, name)) for name in ("A", "B", "key"))
            weights[tuple(path)] = LowRank(weights[tuple(path)], A, B, key, self.config.scale, dropout)
        return nested(weights)

    def merge(self, adapter: dict, base: dict) -> dict:
        """Return the parameters W + s A B of an ordinary model, in the base's types."""
        return _merge(self, adapter, base)


@functools.partial(jax.jit, static_argnums=0)
def _merge(lora: Lora, adapter: dict, base: dict) -> dict:
    seen = flat(lora(adapter, base, None))
    for path, names in lora.matrices.values():
        seen[path] = seen[path].merged(len(names.inputs), stacked=True)
    return nested(seen)
