"""What of a model a run trains: the bytes of its training state, and the products that need no gradient."""

import functools
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType

from jaxllm.adapt import LoraConfig
from jaxllm.adapt.names import flat, layer_matrices
from jaxllm.models import LanguageModel, axes, shapes
from jaxllm.optim import OptimConfig, make_optimizer
from jaxllm.parallel import HOST_MEMORY
from jaxllm.text import TrainConfig
from jaxllm.text.adapted import adaptation, adapted
from jaxllm.text.precision import get_precision, with_precision
from jaxllm.text.task import text_task
from jaxllm.train.state import init_state, state_shardings


class StateBytes(NamedTuple):
    """One device's part of a training state. What lies in the host's memory is apart."""

    trained: int  # parameters with gradients and moments
    frozen: int  # parameters without
    rest: int  # what the optimizer keeps, and the step's own counters
    host_trained: int
    host_rest: int

    @property
    def parameters(self) -> int:
        """Bytes of parameters on the device."""
        return self.trained + self.frozen


def count_state(config: TrainConfig, mesh: dict[str, int]) -> StateBytes:
    """Count a training state's bytes exactly, from the library's own shapes and sharding rules."""
    config = with_precision(config)
    # What is not part of the key would only make the cache miss.
    model = replace(config.model, remat="none")
    adapter = (config.lora, config.train_only)
    return _count(model, config.optim, config.precision, adapter, tuple(mesh.items()), config.offload)


@functools.lru_cache(maxsize=4096)
def _count(model, optim: OptimConfig, precision: str, adapter, mesh_items, offload: str) -> StateBytes:
    names, sizes = zip(*mesh_items, strict=True)
    mesh = AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))
    task, optimizer, state = _shapes(model, optim, precision, adapter)
    places = state_shardings(state, optimizer, task.axes, mesh, offload=offload, frozen_axes=task.frozen_axes)

    def count(name, on_host):
        leaves = (jax.tree.leaves(getattr(tree, name) if name else tree) for tree in (state, places))
        here = ((x, s) for x, s in zip(*leaves, strict=True) if (s.memory_kind == HOST_MEMORY) is on_host)
        return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in here)

    trained, frozen, whole = (count(name, False) for name in ("params", "frozen", ""))
    host_trained = count("params", True)
    return StateBytes(trained, frozen, whole - trained - frozen, host_trained, count("", True) - host_trained)


@functools.lru_cache(maxsize=64)
def _shapes(model: LanguageModel, optim: OptimConfig, precision: str, adapter):
    lora, train_only = adapter
    config = TrainConfig(model=model, seq_len=1, lora=lora, train_only=train_only)
    task = text_task(config, None)
    if config.adapts:
        task = adapted(config, task, None, apart=False)[0]
    # The schedule's length changes no shape.
    optimizer = get_precision(precision).wrap(make_optimizer(optim, 1000, task.axes))
    init = partial(init_state, task.init, optimizer)
    return task, optimizer, replace(jax.eval_shape(lambda: init(jax.random.key(0))), frozen=task.frozen)


@dataclass(frozen=True)
class Trained:
    """Which products have a gradient of their weights. By default all of the model's."""

    layer: float = 1.0  # part of the weights of a layer's products
    head: bool = True
    beside: int = 0  # weights of an adapter in a layer


@functools.lru_cache(maxsize=64)
def trained_products(model: LanguageModel, lora: LoraConfig, train_only: str | None) -> Trained:
    """Return which products of a run have a gradient of their weights."""
    view = adaptation(model, lora, train_only)
    if view is None:
        return Trained()
    if lora.rank is not None:
        adapter = jax.eval_shape(view.init, jax.random.key(0))
        narrow = sum(x.size for path, x in flat(adapter).items() if path not in view.whole)
        return Trained(0.0, any(path[0] == "head" for path in view.whole), narrow // _layers(model)[0])
    sizes, names = flat(shapes(model)), flat(axes(model))
    chosen = flat(view.axes())
    trained = sum(sizes[path].size for path in chosen if "layers" in path and names[path].inputs)
    head = any(path[0] == "head" or (model.tie_embeddings and path[0] == "embed") for path in chosen)
    return Trained(trained / _layers(model)[1], head)


def _layers(model: LanguageModel) -> tuple[int, int]:
    """Return (how many layers there are in all stacks, the weights of their products)."""
    sizes = flat(shapes(model))
    stacked = {path[: path.index("layers") + 1]: sizes[path].shape[0] for path in sizes if "layers" in path}
    weights = sum(sizes[path].size for path, _ in layer_matrices(model).values())
    return sum(stacked.values()), weights


def model_flops(config: TrainConfig) -> float:
    """Return the FLOPs of matrix products that a step needs, over all devices, without recomputation.

    `ModelConfig.flops_per_token`; of the 6 for each weight, 2 are its gradient's, which frozen weights leave
    out.
    """
    model = config.model
    if not config.adapts:
        return model.flops_per_token(config.seq_len) * config.tokens_per_step
    trained = trained_products(model, config.lora, config.train_only)
    layers, weights = _layers(model)
    frozen = weights * (1 - trained.layer)
    frozen += 0 if trained.head else model.embed_dim * model.logits_per_token
    beside = 6 * layers * trained.beside
    return (model.flops_per_token(config.seq_len) - 2 * frozen + beside) * config.tokens_per_step
