"""What a training step costs, in closed form: bytes, FLOPs, traffic and a roofline time a device.

Bytes of state are exact: they come from the library's own shapes and sharding rules. What the
backward pass keeps is counted array by array, as jax's autodiff saves them (the tests compare).
Working space and memory traffic are estimates, good enough to rank plans; `targets.compile_train_step`
asks the compiler.

Suffixes as everywhere: B batch, T time, D width, F feed-forward, H heads, G key heads, K head width, V
vocabulary, L layers. A "row" is one token of one sequence.
"""

import math
from dataclasses import dataclass

from jaxllm.errors import UserError
from jaxllm.models import LanguageModel
from jaxllm.parallel import MeshConfig
from jaxllm.parallel.streaming import BLOCK_BYTES
from jaxllm.targets.catalog import Target, get_target
from jaxllm.targets.stacks import ITEMSIZE, KEEP_INPUTS, stacks
from jaxllm.targets.trained import StateBytes, Trained, count_state, model_flops, trained_products
from jaxllm.text import TrainConfig
from jaxllm.text.precision import with_precision

_LOGITS_AT_A_TIME = 64 * 2**20  # elements: linear_cross_entropy's LOGITS_BYTES in float32
# Part of the memory traffic that no matrix product hides. Steps of GPT-2 small compiled for v5e have
# 0.73 (remat full) and 0.78 (none) of it, by their operations' rooflines added up.
_EXPOSED = 0.75
# Part of the copies from and to the host that nothing is computed beside: 0.84 in a step of gpt2-xl whose
# layers are streamed, compiled for h100, and 0.91 for v5e.
_EXPOSED_LINK = 0.87


@dataclass(frozen=True)
class Estimate:
    """One device's share of a training step."""

    parameters: int  # bytes
    optimizer: int  # bytes of its state, and the step's own counters
    gradients: int  # bytes, with the float32 sums of accumulation
    activations: int  # bytes kept from the forward pass of one part of the batch
    temporaries: int  # bytes of working space at the widest point
    matmul_flops: float  # recomputation included
    model_flops: float  # what the model needs, by PaLM's count (arXiv 2204.02311, appendix B)
    bytes_moved: float  # between a device and its memory
    collective_bytes: dict[str, float]  # sent by a device, by mesh axis
    compute_seconds: float  # at the peak of the data sheet
    memory_seconds: float
    network_seconds: float
    host_seconds: float  # at the full speed of the link to the host's memory
    host_bytes: int  # a device's part of what lies in the host's memory
    host_limit: int  # and of that memory
    efficiency: float  # the part of the roofline's speed that measured runs of this chip reach
    peak_flops: float
    hbm_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Bytes a device needs at once."""
        held = self.parameters + self.optimizer + self.gradients
        return held + self.activations + self.temporaries

    @property
    def fits(self) -> bool:
        """Whether the peak is within the device's memory, and the rest within the host's."""
        return self.peak_bytes <= self.hbm_bytes and self.host_bytes <= self.host_limit

    @property
    def bound(self) -> str:
        """Which of compute, memory, network and the link to the host takes longest by itself."""
        times = dict(compute=self.compute_seconds, memory=self.memory_seconds, network=self.network_seconds,
                     host=self.host_seconds)  # fmt: skip
        return max(times, key=times.__getitem__)

    @property
    def roofline_seconds(self) -> float:
        """Products at peak, and the memory traffic between them: as if added up operation by operation."""
        return max(self.compute_seconds + _EXPOSED * self.memory_seconds, self.memory_seconds)

    @property
    def seconds(self) -> float:
        """Seconds a step: the roofline, or the network if slower, at the chip's efficiency; and the link."""
        on_device = max(self.roofline_seconds, self.network_seconds) / self.efficiency
        return on_device + _EXPOSED_LINK * self.host_seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs a second, over the chip's peak."""
        return self.model_flops / self.seconds / self.peak_flops


def estimate(config: TrainConfig, target: Target | str) -> Estimate:
    """Estimate a training step on a target, computing and compiling nothing.

    Args:
      config: the run; the model's vocabulary must be known.
      target: a machine or its name.

    Raises:
      UserError: the mesh does not cover the target's devices, or the batch cannot be split.

    Examples:
      >>> from jaxllm.text.presets import TRAIN_PRESETS
      >>> one = estimate(TRAIN_PRESETS["gpt2"](), "v5e-1")
      >>> one.parameters == 4 * 124_439_808
      True
      >>> one.bound, one.fits
      ('memory', True)
    """
    target = get_target(target)
    config = with_precision(config)
    mesh = mesh_sizes(config.mesh, target.num_devices)
    model, rows = config.model, _Rows(config, mesh)
    state = count_state(config, mesh)
    host = _Host(config, rows, mesh, state)
    kind = "f32" if model.dtype == "float32" else "bf16"
    trained = trained_products(model, config.lora, config.train_only)
    flops = matmul_flops(model, config.seq_len, mesh["tensor"], trained) * rows.step
    moved = _bytes_moved(config, rows, mesh, state.trained + state.rest)
    sent = _collective_bytes(config, rows, mesh, state, target)
    return Estimate(
        parameters=state.parameters,
        optimizer=state.rest,
        gradients=_gradient_bytes(config, state.trained),
        activations=int(_activation_bytes(config, rows, mesh)),
        temporaries=int(_temporary_bytes(config, rows, mesh) + host.block_bytes),
        matmul_flops=flops,
        model_flops=model_flops(config) / target.num_devices,
        bytes_moved=moved,
        collective_bytes=sent,
        compute_seconds=flops / target.peak_flops[kind],
        memory_seconds=moved / target.hbm_bandwidth,
        network_seconds=sum(b / _bandwidth(axis, mesh, target) for axis, b in sent.items()),
        host_seconds=host.bytes_moved / target.host_link_bandwidth,
        host_bytes=int(host.bytes),
        host_limit=target.host_bytes,
        efficiency=target.efficiency,
        peak_flops=target.peak_flops[kind],
        hbm_bytes=target.hbm_bytes,
    )


def matmul_flops(model: LanguageModel, seq_len: int, tensor: int = 1, trained: Trained = Trained()) -> float:
    """Count the FLOPs of matrix products that training does per token, recomputation included.

    Unlike `ModelConfig.flops_per_token` this leaves out the scores that a causal mask lets attention
    skip, and adds what the backward pass computes again.
    """
    layers = 0.0
    for stack in stacks(model, seq_len, tensor):
        forward = 2 * (stack.weights + trained.beside) + stack.attend
        # Of the inputs and of the weights.
        backward = 2 * stack.weights * (1 + trained.layer) + 4 * trained.beside + stack.attend_backward
        again = {"none": 0.0, "everything_saveable": 0.0, "dots_saveable": 0.0}
        again |= dict.fromkeys(("dots", "dots_with_no_batch_dims_saveable"), stack.attend)
        layers += stack.layers * (forward + backward + again.get(model.remat, forward - stack.last))
    vocabulary = model.logits_per_token
    head_ways = tensor if vocabulary % tensor == 0 else 1
    return layers / tensor + (4 + 2 * trained.head) * model.embed_dim * vocabulary / head_ways


class _Rows:
    """How many rows (tokens) a device works on."""

    def __init__(self, config: TrainConfig, mesh: dict[str, int]):
        ways = mesh["data"] * mesh["fsdp"]
        if config.batch_size % (ways * config.accumulate):
            raise UserError(
                f"batch_size {config.batch_size} cannot be split over {ways} devices x "
                f"accumulate={config.accumulate}; choose a multiple of {ways * config.accumulate}"
            )
        self.step = config.tokens_per_step / ways  # in a step
        self.part = self.step / config.accumulate  # at a time
        self.parts = config.accumulate


class _Host:
    """What lies in the host's memory, and crosses the link to it in a step."""

    def __init__(self, config: TrainConfig, rows: _Rows, mesh: dict[str, int], state: StateBytes):
        model, kept = config.model, 0.0
        parameters, optimizer = state.host_trained, state.host_rest
        layers = stacks(model, config.seq_len, mesh["tensor"])
        if model.remat == "offload":
            kept = sum(stack.kept("full") * stack.layers for stack in layers)
        gradients = parameters
        self.bytes = parameters + gradients + optimizer
        self.bytes += kept * (rows.step if config.offload == "state" else rows.part)
        # Weights go out for each pass, to be updated, and back; gradients back, and out for their norm and
        # for the update; what the optimizer keeps, and activations, out and back.
        weights, slopes = 4, 3
        self.bytes_moved = weights * parameters + slopes * gradients + 2 * optimizer + 2 * kept * rows.step
        # While they are updated: a block of rows of each array, and of two layers what is computed with.
        count = sum(stack.layers for stack in layers)
        self.block_bytes = 2 * BLOCK_BYTES * (optimizer > 0) + 4 * parameters / count


def mesh_sizes(mesh: MeshConfig, devices: int) -> dict[str, int]:
    """Return the size of each mesh axis, the free one filled in.

    Raises:
      UserError: they do not multiply to the number of devices.
    """
    sizes = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 1:
        fixed = math.prod(size for size in sizes.values() if size != -1)
        sizes[free[0]] = devices // fixed
    if math.prod(sizes.values()) != devices or min(sizes.values()) < 1:
        shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise UserError(
            f"mesh {shown} does not cover {devices} device{'s' * (devices > 1)}; "
            f"choose sizes whose product is {devices}"
        )
    return sizes


def _gradient_bytes(config: TrainConfig, trained: int) -> int:
    if config.accumulate == 1 or config.offload == "state":
        return trained
    itemsize = 4 if config.lora.rank is not None else ITEMSIZE[config.model.param_dtype]
    return trained + trained * 4 // itemsize


def _activation_bytes(config: TrainConfig, rows: _Rows, mesh: dict[str, int]) -> float:
    model = config.model
    # Layers that are streamed take the batch's parts one after another, each layer all of them.
    held = rows.step if config.offload == "state" else rows.part
    kept, shards = 0.0, mesh["fsdp"] * mesh["tensor"]
    for stack in stacks(model, config.seq_len, mesh["tensor"]):
        layers = min(2, stack.layers) if model.remat == "offload" else stack.layers
        kept += layers * held * stack.kept(model.remat)
        if model.remat == "none" and model.param_dtype != model.dtype:
            # The weights as they were multiplied with are kept as well.
            kept += stack.layers * stack.weights * ITEMSIZE[model.dtype] / shards
    return kept


def _temporary_bytes(config: TrainConfig, rows: _Rows, mesh: dict[str, int]) -> float:
    model, tensor = config.model, mesh["tensor"]
    a, D = ITEMSIZE[model.dtype], model.embed_dim
    # One layer's backward pass: what it keeps, made again unless it was kept, and its gradients.
    widest = 0.0
    for stack in stacks(model, config.seq_len, tensor):
        again = stack.kept("none") if model.remat != "none" else 0.0
        layer = rows.part * (stack.working + again + stack.scores)
        if mesh["fsdp"] > 1:
            layer += 2 * stack.weights * a / tensor  # gathered: this layer's and the next one's
        widest = max(widest, layer)
    V = model.logits_per_token
    head_ways = tensor if V % tensor == 0 else 1
    logits = min(rows.part * V / head_ways, _LOGITS_AT_A_TIME * tensor / head_ways)
    head = (4 + 4 + a) * logits + 4 * V * D / head_ways / mesh["fsdp"] + 2 * a * rows.part * D
    return max(widest, head)


def _bytes_moved(config: TrainConfig, rows: _Rows, mesh: dict[str, int], state: int) -> float:
    model, tensor = config.model, mesh["tensor"]
    a = ITEMSIZE[model.dtype]
    passes = 3 + (model.remat not in ("none", "everything_saveable"))
    layers = 0.0
    for stack in stacks(model, config.seq_len, tensor):
        activations = rows.step * (passes * stack.streams + 2 * stack.kept(model.remat))
        layers += stack.layers * (activations + rows.parts * passes * stack.weights * a / tensor)
    head_ways = tensor if model.logits_per_token % tensor == 0 else 1
    logits = rows.step * model.logits_per_token / head_ways * (2 * 4 + 3 * a)
    return layers + logits + 2 * state


def _collective_bytes(config, rows: _Rows, mesh: dict[str, int], state: StateBytes, target: Target):
    """Count what a device sends in a step, by mesh axis; rings: a gather sends (n - 1) / n of the whole."""
    model = config.model
    a, wide = ITEMSIZE[model.dtype], ITEMSIZE[model.param_dtype]
    data, fsdp, tensor = mesh["data"], mesh["fsdp"], mesh["tensor"]
    whole, slopes = state.parameters * fsdp, state.trained * fsdp  # bytes over the fsdp axis
    gathers = 2  # for the forward and the backward pass
    # XLA for TPUs gathers and scatters in a plane of a slice; beyond, each is a sum of whole arrays.
    beyond = 1 + (fsdp * tensor > target.plane_devices)
    sent = {
        # Gathered in the type that is multiplied in; gradients are summed in the parameters' type.
        "fsdp": beyond * rows.parts * (fsdp - 1) / fsdp * (whole * gathers * a / wide + slopes),
        # Each part of the batch sums its gradients: the loop over parts cannot put it off.
        "data": rows.parts * 2 * (data - 1) / data * state.trained,
    }
    # Before and after each of a layer's blocks tokens are gathered, or summed and scattered, and so
    # backward; all but the last once more where the layer is recomputed.
    again = model.remat in KEEP_INPUTS
    exchanges = sum(
        stack.layers * (4 * stack.blocks + (2 * stack.blocks - 1) * again)
        for stack in stacks(model, config.seq_len, tensor)
    )
    sent["tensor"] = exchanges * (tensor - 1) / tensor * rows.step * a * model.embed_dim
    return {axis: float(b) for axis, b in sent.items() if b}


def _bandwidth(axis: str, mesh: dict[str, int], target: Target) -> float:
    """Return the bandwidth of a mesh axis: the fast network's, if its groups stay inside one."""
    inner = {"data": ("fsdp", "tensor"), "fsdp": ("tensor",), "tensor": ()}[axis]
    span = mesh[axis] * math.prod(mesh[name] for name in inner)
    return target.network_bandwidth if span <= target.fast_devices else target.host_network_bandwidth
