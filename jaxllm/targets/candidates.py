"""The plans that a search may choose from: every setting that changes cost and not the run's meaning."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxllm.config import Config, Count
from jaxllm.errors import UserError
from jaxllm.models import HybridConfig, LanguageModel
from jaxllm.models.config import REMAT
from jaxllm.optim import OptimConfig
from jaxllm.optim.config import keeps_small_updates
from jaxllm.parallel import MeshConfig
from jaxllm.targets.analytic import mesh_sizes
from jaxllm.targets.catalog import Target
from jaxllm.targets.stacks import tensor_ways
from jaxllm.text import PRECISIONS, TrainConfig
from jaxllm.text.config import ENGINES
from jaxllm.text.precision import get_precision

# Policies worth trying: they differ in what they keep. The others that a model knows are variants.
REMATS = ("none", "dots", "full", "offload")
OFFLOADS = ("none", "optimizer", "state")


@dataclass(frozen=True)
class Search(Config):
    """What a plan may change. Precision and optimizer change numbers, so they stay unless allowed.

    Weights in bfloat16 alone lose small updates where each is rounded to nearest. A choice of precisions
    therefore pairs them with `adamw_bf16_sr` in place of `adamw`, and offers them with no other optimizer
    that rounds so.

    None means: the config's own precision and optimizer; every remat policy of REMATS, every number of
    parts, every mesh and every offload that is possible, as one compiled step and in tiles. On a CPU, whose
    memory is the host's, there is no offload and there are no tiles.

    Raises:
      UserError: an unknown precision or optimizer, or a number out of range.
    """

    precisions: tuple[Literal[(*PRECISIONS, "any")], ...] | None = None
    optimizers: tuple[str, ...] | None = None  # values of optim.name
    remats: tuple[Literal[REMAT], ...] | None = None
    accumulates: tuple[Count, ...] | None = None
    meshes: tuple[MeshConfig, ...] | None = None
    offloads: tuple[Literal[OFFLOADS], ...] | None = None
    engines: tuple[Literal[ENGINES], ...] | None = None  # tiles: simulated where they compute the run
    compiles: Count = 2  # plans that the compiler is asked about: each takes it a minute or so

    def __post_init__(self):
        super().__post_init__()
        if "any" in (self.precisions or ()):
            object.__setattr__(self, "precisions", tuple(PRECISIONS))
        for name in self.optimizers or ():
            OptimConfig(name=name)  # raises for an unknown one


def candidates(config: TrainConfig, target: Target, search: Search = Search()) -> list[TrainConfig]:
    """Return every config of one compiled step that the search allows and the devices can be split into.

    Raises:
      UserError: the batch or the model's sizes cannot be spread over the devices in any way.
    """
    meshes = tuple(_meshes(config, target))
    if search.meshes is not None:
        meshes = tuple(MeshConfig(**mesh_sizes(mesh, target.num_devices)) for mesh in search.meshes)
    found = [
        dataclasses.replace(
            config,
            precision=precision,
            optim=dataclasses.replace(config.optim, name=optimizer),
            model=dataclasses.replace(config.model, remat=remat),
            accumulate=parts,
            mesh=mesh,
            offload=offload,
            engine="jit",
        )
        for precision, optimizer in _numerics(config, search)
        for remat, offload in _memories(config, target, search)
        for mesh in meshes
        for parts in _parts(config, mesh, search)
    ]
    if not found:
        raise UserError(
            f"batch {config.batch_size} cannot be spread over the {target.num_devices} devices of "
            f"{target.name}; choose a batch that is a multiple of {target.num_devices}, or a smaller target"
        )
    return found


def _numerics(config: TrainConfig, search: Search) -> Iterator[tuple[str, str]]:
    """Yield (precision, optimizer)."""
    precisions = search.precisions or (config.precision,)
    names = search.optimizers or (config.optim.name,)
    for precision in precisions:
        coarse = search.precisions and get_precision(precision).needs_rounding
        coarse = coarse and config.lora.rank is None  # an adapter is float32 under any precision
        for name in names:
            if coarse and not keeps_small_updates(name):
                if name == "adamw" and search.optimizers is None:
                    name = "adamw_bf16_sr"
                elif len(precisions) > 1:
                    continue
            yield precision, name


def _memories(config: TrainConfig, target: Target, search: Search) -> Iterator[tuple[str, str]]:
    """Yield (what layers keep for the backward pass, what lies in the host's memory)."""
    host = target.platform != "cpu"
    offloads = OFFLOADS if host else ("none",)
    for remat in search.remats or (REMATS if host else REMATS[:-1]):
        for offload in search.offloads or offloads:
            streams = remat != "none" and not config.adapts and _has_whole_stacks(config.model)
            if offload != "state" or streams:
                yield remat, offload


def _has_whole_stacks(model: LanguageModel) -> bool:
    """Say whether layers can be fetched from the host's memory: no second stack, none cut by blocks."""
    return model.start_id is None and not (isinstance(model, HybridConfig) and model.blocks > 1)


def _meshes(config: TrainConfig, target: Target) -> Iterator[MeshConfig]:
    """Yield the meshes whose axes divide what they split."""
    model, count = config.model, target.num_devices
    for tensor in _divisors(math.gcd(count, tensor_ways(model))):
        # Two sums a layer wait for each other: they stay on the fast network.
        if tensor > target.fast_devices:
            continue
        for fsdp in _divisors(math.gcd(count // tensor, model.embed_dim)):
            yield MeshConfig(data=count // tensor // fsdp, fsdp=fsdp, tensor=tensor)


def _parts(config: TrainConfig, mesh: MeshConfig, search: Search) -> list[int]:
    rows, rest = divmod(config.batch_size, mesh.data * mesh.fsdp)
    if rest or not rows:
        return []
    possible = _divisors(rows)
    return possible if search.accumulates is None else [n for n in search.accumulates if n in possible]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
