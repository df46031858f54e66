"""What a training step in tiles would cost on a machine: its tasks scheduled on the machine's data sheet."""

import dataclasses
import math
from dataclasses import dataclass

from jaxllm.errors import UserError
from jaxllm.parallel import MeshConfig
from jaxllm.targets.candidates import Search
from jaxllm.targets.catalog import Target
from jaxllm.text import TrainConfig
from jaxllm.text.precision import with_precision
from jaxllm.tiles.config import TilesConfig, TileSizes
from jaxllm.tiles.cost_model import DataSheet
from jaxllm.tiles.gpt2 import StepOptions, check_model, gpt2_step
from jaxllm.tiles.machines import Machine, gpu_machine
from jaxllm.tiles.simulate import Schedule, set_priorities, simulate

_USED = 0.9  # of a device's memory: StarPU's share; the rest is the kernels' working space
_DISPATCH = 30e-6  # seconds a task of the host's one thread: 12e-6 measured on a CPU, and its copies
_WIDEST = 8192  # columns of a tile of a weight, at most
_PARTS = (1, 2, 4, 8)  # numbers of parts of a batch worth simulating
_KIND, _ONE_HOST = "device", 8


@dataclass(frozen=True)
class Simulation:
    """One training step in tiles, scheduled; the figures that plans are compared by."""

    seconds: float
    peak_bytes: int  # of tiles on the fullest device
    hbm_bytes: int
    host_bytes: int  # a device's part of what lies in the host's memory at most
    host_limit: int
    host_bytes_moved: float  # by a device, from and to the host's memory and other devices
    host_seconds: float  # these at the link's full bandwidth, both ways at once
    mfu: float  # the model's FLOPs a second over the peak for float32
    bound: str  # what takes longest by itself: "compute", "memory", "host" (the link to its memory) or
    # "dispatch" (of tasks, by the host's one thread)
    tasks: int
    failure: str = ""  # what does not fit where

    @property
    def fits(self) -> bool:
        """Whether there is a schedule; tiles that do not fit a device lie on the host."""
        return not self.failure


def tiled_plans(config: TrainConfig, target: Target, search: Search) -> list[TrainConfig]:
    """Return the plans in tiles that a search allows.

    The batch of a part is cut into a tile a device, and weights where they are wider than 8192.

    Raises:
      UserError: tiles do not compute this run, or not on this machine.
    """
    count = target.num_devices
    allowed = {
        "tiles": search.engines, "float32": search.precisions or (config.precision,),
        "adamw": search.optimizers or (config.optim.name,), "none": search.remats, "state": search.offloads,
    }  # fmt: skip
    for name, names in allowed.items():
        if names is not None and name not in names:
            raise UserError(
                f"plans in tiles have '{name}' and the search allows {', '.join(names)}; allow it"
            )
    if target.platform == "cpu" or count > min(target.fast_devices, _ONE_HOST):
        raise UserError(
            f"tiles are planned for up to {_ONE_HOST} accelerators of one host, not {target.name}"
        )
    mesh = MeshConfig(1, count, 1)
    if search.meshes is not None and mesh not in search.meshes:
        raise UserError(f"a plan in tiles has the mesh 1 x {count} x 1; leave out --mesh.*")
    _check_run(config)
    plans, rows, model = [], config.batch_size // count, config.model
    cuts = -(-model.embed_dim // _WIDEST)
    heads = -(-model.num_heads // cuts)
    for parts in search.accumulates or _PARTS:
        if rows and not config.batch_size % count and parts <= rows and not rows % parts:
            sizes = TileSizes(
                batch=rows // parts, embed=heads * model.head_dim * (cuts > 1),
                heads=heads * (cuts > 1), mlp=-(-model.mlp_dim // (2 * cuts)) * (cuts > 1),
            )  # fmt: skip
            tiles = TilesConfig(sizes, device_bytes=int(_USED * target.hbm_bytes), flash=True)
            plans.append(
                dataclasses.replace(
                    config,
                    precision="float32",
                    optim=dataclasses.replace(config.optim, name="adamw"),
                    model=dataclasses.replace(model, remat="none"),
                    engine="tiles",
                    offload="state",
                    mesh=mesh,
                    accumulate=parts,
                    tiles=tiles,
                )  # fmt: skip
            )
    if not plans:
        raise UserError(f"batch {config.batch_size} cannot be cut into tiles for {count} devices; choose a "
                        f"multiple of {count}")  # fmt: skip
    return plans


def simulate_step(config: TrainConfig, target: Target) -> Simulation:
    """Schedule a step after the first on a target.

    A task takes what its FLOPs or bytes take at the part of the data sheet's speed that measured runs reach.
    """
    optim, model = config.optim, with_precision(config).model
    options = StepOptions(
        accumulate=config.accumulate, b1=optim.beta1, b2=optim.beta2, eps=optim.eps,
        weight_decay=optim.weight_decay, clip_norm=optim.clip_norm or 0.0, flash=config.tiles.flash,
    )  # fmt: skip
    graph = gpt2_step(model, config.tiles.sizes, config.batch_size, config.seq_len, options).graph
    sheet = DataSheet(
        {_KIND: target.efficiency * target.peak_flops["f32"]},
        {_KIND: target.efficiency * target.hbm_bandwidth},
    )
    set_priorities(graph, sheet.seconds(graph, _KIND))
    try:
        made = simulate(graph, _machine(target, config.tiles.device_bytes), sheet, config.tiles.policy)
    except UserError as full:  # a device's memory or the host's
        return Simulation(
            seconds=math.inf, peak_bytes=0, hbm_bytes=target.hbm_bytes, host_bytes=0,
            host_limit=target.host_bytes, host_bytes_moved=0.0, host_seconds=0.0, mfu=0.0, bound="host",
            tasks=0, failure=str(full),
        )  # fmt: skip
    return _summary(config, target, made)


def _summary(config: TrainConfig, target: Target, made: Schedule) -> Simulation:
    graph, count = made.graph, target.num_devices
    work = [graph.work[task.kernel] for task in graph.tasks if task.kernel >= 0]
    times = dict(
        compute=sum(flops for flops, _, _ in work) / count / target.peak_flops["f32"],
        memory=sum(moved for _, moved, _ in work) / count / target.hbm_bandwidth,
        host=made.moved / count / 2 / target.host_link_bandwidth,
        dispatch=_DISPATCH * len(work),
    )
    seconds = max(made.seconds, times["dispatch"])
    model_flops = config.model.flops_per_token(config.seq_len) * config.tokens_per_step / count
    return Simulation(
        seconds=seconds, peak_bytes=max(made.peak[1:]), hbm_bytes=target.hbm_bytes,
        host_bytes=made.peak[0] // count, host_limit=target.host_bytes,
        host_bytes_moved=made.moved / count, host_seconds=times["host"],
        mfu=model_flops / seconds / target.peak_flops["f32"], bound=max(times, key=times.__getitem__),
        tasks=len(work),
    )  # fmt: skip


def _machine(target: Target, device_bytes: int) -> Machine:
    return gpu_machine(
        target.name, target.num_devices, kind=_KIND, gpu_bytes=device_bytes,
        host_bytes=target.host_bytes * target.num_devices, pcie=target.host_link_bandwidth,
        nvlink=target.network_bandwidth,
    )  # fmt: skip


def _check_run(config: TrainConfig) -> None:
    """Check what `train.tiled` checks of a run that asks for tiles, but for what a plan changes."""
    if config.z_loss or config.subnetwork is not None or config.vocab_groups is not None:
        raise UserError("tiles compute neither z_loss nor subnetwork nor vocab_groups; leave these out, or "
                        "the engine 'tiles'")  # fmt: skip
    plain = dataclasses.replace(config, precision="float32")
    check_model(dataclasses.replace(with_precision(plain).model, remat="none"))
