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
from jaxllm.models import ModelConfig, check_transformer
from jaxllm.parallel import MeshConfig
from jaxllm.parallel.streaming import BLOCK_BYTES
from jaxllm.targets.catalog import Target, get_target
from jaxllm.targets.trained import StateBytes, Trained, count_state, model_flops, trained_products
from jaxllm.text import TrainConfig
from jaxllm.text.precision import with_precision

_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
# Arrays of [rows, F] that a plain feed-forward block keeps for its backward pass; a gated one keeps
# two more. Counted from jax's autodiff of each activation.
_KEPT_BY_ACTIVATION = {"gelu_tanh": 6, "gelu": 4, "silu": 4, "relu": 2.5}
_KEEP_INPUTS = ("full", "nothing_saveable", "offload")  # remats that keep layers' inputs alone
_LOGITS_AT_A_TIME = 64 * 2**20  # elements: linear_cross_entropy's LOGITS_BYTES in float32
_CAUSAL_PART = 5 / 8  # of the square of scores: attention cuts it into four blocks
_SCORE_BLOCKS = 4
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
      UserError: the mesh does not cover the target's devices, the batch cannot be split, or the model is no
        transformer.

    Examples:
      >>> from jaxllm.text.presets import TRAIN_PRESETS
      >>> one = estimate(TRAIN_PRESETS["gpt2"](), "v5e-1")
      >>> one.parameters == 4 * 124_439_808
      True
      >>> one.bound, one.fits
      ('memory', True)
    """
    check_transformer(config.model, "the estimate of a step")
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


def matmul_flops(model: ModelConfig, seq_len: int, tensor: int = 1, trained: Trained = Trained()) -> float:
    """Count the FLOPs of matrix products that training does per token, recomputation included.

    Unlike `ModelConfig.flops_per_token` this leaves out the scores that a causal mask lets attention
    skip, and adds what the backward pass computes again.
    """
    D, F, HK = model.embed_dim, model.mlp_dim, model.num_heads * model.head_dim
    layer = model.layer_weights
    attend = 4 * HK * _keys_computed(model, seq_len)  # scores and the mix of values
    forward = 2 * (layer + trained.beside) + attend
    # Of the inputs and of the weights; scores once more, and four products.
    backward = 2 * layer * (1 + trained.layer) + 4 * trained.beside + 2.5 * attend
    again = {"none": 0.0, "everything_saveable": 0.0, "dots_saveable": 0.0}
    again |= dict.fromkeys(("dots", "dots_with_no_batch_dims_saveable"), attend)
    # The last product of a layer is not needed for its gradients.
    everything = forward - 2 * D * F
    layers = model.num_layers * (forward + backward + again.get(model.remat, everything))
    vocabulary = model.logits_per_token
    head_ways = tensor if vocabulary % tensor == 0 else 1
    return layers / tensor + (4 + 2 * trained.head) * D * vocabulary / head_ways


def kept_bytes(model: ModelConfig, remat: str, tensor: int = 1) -> float:
    """Count the bytes that one layer keeps for the backward pass, per row and tensor shard."""
    a = _ITEMSIZE[model.dtype]
    D, F = model.embed_dim, model.mlp_dim
    HK, GK = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    if remat in _KEEP_INPUTS:
        return a * D / tensor  # each shard has a part of a sequence's tokens
    if remat in ("dots", "dots_with_no_batch_dims_saveable"):
        products = (HK + 2 * GK + F * (1 + model.gated_mlp)) / tensor
        return a * (2 * D + products)  # the layer's input and attention's output projection
    # Without rematerialisation, and with policies that save about as much.
    norm = 12 * D + 8 + (a * D if a < 4 or model.norm_bias or model.norm != "layernorm" else 0)
    attention = (a * 2 * (HK + GK) + 4 * model.num_heads) / tensor
    arrays = _KEPT_BY_ACTIVATION[model.activation] + 2 * model.gated_mlp
    return 2 * norm + attention + a * arrays * F / tensor


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
        if model.remat == "offload":
            kept = kept_bytes(model, "full", mesh["tensor"]) * model.num_layers
        gradients = parameters
        self.bytes = parameters + gradients + optimizer
        self.bytes += kept * (rows.step if config.offload == "state" else rows.part)
        # Weights go out for each pass, to be updated, and back; gradients back, and out for their norm and
        # for the update; what the optimizer keeps, and activations, out and back.
        weights, slopes = 4, 3
        self.bytes_moved = weights * parameters + slopes * gradients + 2 * optimizer + 2 * kept * rows.step
        # While they are updated: a block of rows of each array, and of two layers what is computed with.
        self.block_bytes = 2 * BLOCK_BYTES * (optimizer > 0) + 4 * parameters / model.num_layers


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


def _keys_computed(model: ModelConfig, seq_len: int) -> float:
    """Return how many keys a query is multiplied with, averaged over queries and layers."""
    block = seq_len / _SCORE_BLOCKS
    full = _CAUSAL_PART * seq_len
    keys = [min(full, window + block) if window else full for window in model.windows]
    return sum(keys) / len(keys)


def _gradient_bytes(config: TrainConfig, trained: int) -> int:
    if config.accumulate == 1 or config.offload == "state":
        return trained
    itemsize = 4 if config.lora.rank is not None else _ITEMSIZE[config.model.param_dtype]
    return trained + trained * 4 // itemsize


def _activation_bytes(config: TrainConfig, rows: _Rows, mesh: dict[str, int]) -> float:
    model = config.model
    layers = min(2, model.num_layers) if model.remat == "offload" else model.num_layers
    # Layers that are streamed take the batch's parts one after another, each layer all of them.
    held = rows.step if config.offload == "state" else rows.part
    kept = layers * held * kept_bytes(model, model.remat, mesh["tensor"])
    if model.remat == "none" and model.param_dtype != model.dtype:
        # The weights as they were multiplied with are kept as well.
        shards = mesh["fsdp"] * mesh["tensor"]
        kept += model.num_layers * model.layer_weights * _ITEMSIZE[model.dtype] / shards
    return kept


def _temporary_bytes(config: TrainConfig, rows: _Rows, mesh: dict[str, int]) -> float:
    model, tensor = config.model, mesh["tensor"]
    a, D, F = _ITEMSIZE[model.dtype], model.embed_dim, model.mlp_dim
    # One layer's backward pass: what it keeps, made again unless it was kept, and its gradients.
    layer = rows.part * (a * F * 2 * (1 + model.gated_mlp) / tensor + 4 * 4 * D)
    if model.remat != "none":
        layer += rows.part * kept_bytes(model, "none", tensor)
    scores = 3 * 4 * rows.part * model.num_heads / tensor * config.seq_len / _SCORE_BLOCKS
    if mesh["fsdp"] > 1:
        layer += 2 * model.layer_weights * a / tensor  # gathered: this layer's and the next one's
    V = model.logits_per_token
    head_ways = tensor if V % tensor == 0 else 1
    logits = min(rows.part * V / head_ways, _LOGITS_AT_A_TIME * tensor / head_ways)
    head = (4 + 4 + a) * logits + 4 * V * D / head_ways / mesh["fsdp"] + 2 * a * rows.part * D
    return max(layer + scores, head)


def _bytes_moved(config: TrainConfig, rows: _Rows, mesh: dict[str, int], state: int) -> float:
    model, tensor = config.model, mesh["tensor"]
    a, D, F = _ITEMSIZE[model.dtype], model.embed_dim, model.mlp_dim
    HK, GK = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    # Every product reads its input and writes its output once; the rest fuses with a neighbour.
    streams = a * (8 * D + (3 * HK + 4 * GK + F * (2 + 2 * model.gated_mlp)) / tensor)
    passes = 3 + (model.remat not in ("none", "everything_saveable"))
    layers = model.num_layers * rows.step
    activations = layers * (passes * streams + 2 * kept_bytes(model, model.remat, tensor))
    weights = rows.parts * passes * model.num_layers * model.layer_weights * a / tensor
    head_ways = tensor if model.logits_per_token % tensor == 0 else 1
    logits = rows.step * model.logits_per_token / head_ways * (2 * 4 + 3 * a)
    return activations + weights + logits + 2 * state


def _collective_bytes(config, rows: _Rows, mesh: dict[str, int], state: StateBytes, target: Target):
    """Count what a device sends in a step, by mesh axis; rings: a gather sends (n - 1) / n of the whole."""
    model = config.model
    a, wide = _ITEMSIZE[model.dtype], _ITEMSIZE[model.param_dtype]
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
    # Before and after each of a layer's two blocks tokens are gathered, or summed and scattered, and so
    # backward; all but the last once more where the layer is recomputed.
    exchanges = 8 + 3 * (model.remat in _KEEP_INPUTS)
    row = a * model.embed_dim
    sent["tensor"] = model.num_layers * exchanges * (tensor - 1) / tensor * rows.step * row
    return {axis: float(b) for axis, b in sent.items() if b}


def _bandwidth(axis: str, mesh: dict[str, int], target: Target) -> float:
    """Return the bandwidth of a mesh axis: the fast network's, if its groups stay inside one."""
    inner = {"data": ("fsdp", "tensor"), "fsdp": ("tensor",), "tensor": ()}[axis]
    span = mesh[axis] * math.prod(mesh[name] for name in inner)
    return target.network_bandwidth if span <= target.fast_devices else target.host_network_bandwidth
