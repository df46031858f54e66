"""What a model's layers cost a training step, whatever they are: FLOPs, bytes kept and moved.

Of transformers of one stack in closed form. Of others the bytes that the backward pass keeps are what jax's
autodiff saves of a traced layer, and those that products move the sizes of their inputs and outputs.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.adapt.names import flat, layer_matrices

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
KEEP_INPUTS = ("full", "nothing_saveable", "offload")  # remats that keep layers' inputs alone
SCORE_BLOCKS = 4
# Arrays of [rows, F] that a plain feed-forward block keeps for its backward pass; a gated one keeps
# two more. Counted from jax's autodiff of each activation.
_KEPT_BY_ACTIVATION = {"gelu_tanh": 6, "gelu": 4, "silu": 4, "relu": 2.5}
_CAUSAL_PART = 5 / 8  # of the square of scores: attention cuts it into four blocks


class Stack(NamedTuple):
    """Layers of one kind. FLOPs are a token's, bytes those of a row (a token) on one tensor shard."""

    layers: int
    weights: int  # of a layer that multiply a token
    attend: float  # FLOPs of a layer's forward pass beside those of weights: scores, and the mix of values
    attend_backward: float  # the same of the backward pass
    last: float  # FLOPs of a layer's last product, which no gradient needs again
    blocks: int  # that add to the stream, each after one gather of tokens and before one sum
    kept: Callable[[str], float]  # remat -> bytes that a layer keeps for the backward pass
    streams: float  # bytes that a layer's products read and write, weights aside
    working: float  # bytes of a layer's backward pass beside what is kept
    scores: float  # bytes of the scores that are in memory at once


def tensor_ways(config: models.LanguageModel) -> int:
    """Return the size that the tensor axis of a mesh must divide."""
    if isinstance(config, models.MambaConfig):
        return config.inner_dim
    if isinstance(config, models.HybridConfig):
        return math.gcd(*map(tensor_ways, config.parts))
    if isinstance(config, models.StripedConfig):
        return math.gcd(config.num_heads, config.mlp_dim, config.inner_dim)
    heads = config.num_heads if isinstance(config, models.EncoderDecoderConfig) else config.num_kv_heads
    return math.gcd(heads, config.mlp_dim)


@functools.singledispatch
def stacks(config: models.LanguageModel, seq_len: int, tensor: int = 1) -> list[Stack]:
    """Return the stacks of layers of a model that reads texts of so many tokens, on tensor shards."""
    raise TypeError(f"no cost of layers is known for {type(config).__name__}; see targets/stacks.py")


@stacks.register
def _of_transformer(config: models.ModelConfig, seq_len: int, tensor: int = 1) -> list[Stack]:
    a, D, F = ITEMSIZE[config.dtype], config.embed_dim, config.mlp_dim
    HK, GK = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attend = 4 * HK * _keys_computed(config, seq_len)
    return [
        Stack(
            layers=config.num_layers,
            weights=config.layer_weights,
            attend=attend,
            attend_backward=2.5 * attend,  # scores once more, and four products
            last=2 * D * F,
            blocks=2,
            kept=lambda remat: kept_bytes(config, remat, tensor),
            # Every product reads its input and writes its output once; the rest fuses with a neighbour.
            streams=a * (8 * D + (3 * HK + 4 * GK + F * (2 + 2 * config.gated_mlp)) / tensor),
            working=a * F * 2 * (1 + config.gated_mlp) / tensor + 4 * 4 * D,
            scores=3 * 4 * config.num_heads / tensor * seq_len / SCORE_BLOCKS,
        )
    ]


def kept_bytes(model: models.ModelConfig, remat: str, tensor: int = 1) -> float:
    """Count the bytes that one layer of a transformer keeps for the backward pass, per row and shard."""
    a = ITEMSIZE[model.dtype]
    D, F = model.embed_dim, model.mlp_dim
    HK, GK = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    if remat in KEEP_INPUTS:
        return a * D / tensor  # each shard has a part of a sequence's tokens
    if remat in ("dots", "dots_with_no_batch_dims_saveable"):
        products = (HK + 2 * GK + F * (1 + model.gated_mlp)) / tensor
        return a * (2 * D + products)  # the layer's input and attention's output projection
    # Without rematerialisation, and with policies that save about as much.
    norm = 12 * D + 8 + (a * D if a < 4 or model.norm_bias or model.norm != "layernorm" else 0)
    attention = (a * 2 * (HK + GK) + 4 * model.num_heads) / tensor
    arrays = _KEPT_BY_ACTIVATION[model.activation] + 2 * model.gated_mlp
    return 2 * norm + attention + a * arrays * F / tensor


def _keys_computed(model: models.ModelConfig, seq_len: int) -> float:
    """Return how many keys a query is multiplied with, averaged over queries and layers."""
    block = seq_len / SCORE_BLOCKS
    full = _CAUSAL_PART * seq_len
    keys = [min(full, window + block) if window else full for window in model.windows]
    return sum(keys) / len(keys)


@stacks.register
def _of_encoder_decoder(config: models.EncoderDecoderConfig, seq_len: int, tensor: int = 1) -> list[Stack]:
    # All scores are computed and in memory, twice in a layer of the decoder; sources are as long as answers.
    attend = 4 * config.num_heads * config.head_dim * seq_len
    last = 2 * config.embed_dim * config.mlp_dim
    encoder, decoder = (
        _traced_stack(config, field, seq_len, tensor, last, attend=attend * blocks, blocks=1 + blocks)
        for field, blocks in (("num_encoder_layers", 1), ("num_layers", 2))
    )
    return [encoder, decoder]


@stacks.register
def _of_mamba(config: models.MambaConfig, seq_len: int, tensor: int = 1) -> list[Stack]:
    last = 2 * config.inner_dim * config.embed_dim
    return [_traced_stack(config, "num_layers", seq_len, tensor, last, attend=0.0, blocks=1)]


@stacks.register
def _of_striped(config: models.StripedConfig, seq_len: int, tensor: int = 1) -> list[Stack]:
    # Its last block may be any: the least that a last product is.
    last, attention = 2 * config.embed_dim**2, config.pattern.count("attention")
    attend = 4 * config.embed_dim * _CAUSAL_PART * seq_len * attention
    blocks = len(config.pattern)
    return [_traced_stack(config, "num_layers", seq_len, tensor, last, attend=attend, blocks=blocks)]


@stacks.register
def _of_hybrid(config: models.HybridConfig, seq_len: int, tensor: int = 1) -> list[Stack]:
    """Return the stacks of its parts, of layers in blocks that run them, and their projectors as layers."""
    found = []
    for index, part in enumerate(config.parts):
        blocks = [names for names in config.running if index in names]
        for stack in stacks(part, seq_len, tensor) if blocks else ():
            found.append(stack._replace(layers=stack.layers * len(blocks) // config.blocks))
        mixed = sum(len(names) > 1 for names in blocks)
        if mixed and config.projector != "none":
            found.append(_projectors(config, index, mixed))
    return found


def _projectors(config: models.HybridConfig, part: int, blocks: int) -> Stack:
    """Return the projectors of a part in so many blocks; nothing of them is computed again."""
    a, D, d = ITEMSIZE[config.dtype], config.embed_dim, config.parts[part].embed_dim
    weights = config.projector_weights(part)
    return Stack(
        layers=blocks, weights=weights, attend=0.0, attend_backward=0.0, last=2 * weights, blocks=1,
        # What both multiply; in float32 what the gate on the way in mixes, and that out with its sum.
        kept=lambda remat: a * (D + d) + 4 * (2 * d + 3 * D),
        streams=2 * (a + 4) * (D + d), working=8 * (D + d), scores=0.0,
    )  # fmt: skip


def _traced_stack(config, field, seq_len, tensor, last, *, attend, blocks) -> Stack:
    stack = ("encoder", "layers") if field == "num_encoder_layers" else ("layers",)
    sizes = flat(models.shapes(config))
    matrices = [(sizes[path].shape[1:], len(names.inputs)) for path, names in layer_matrices(config).values()
                if path[: len(stack)] == stack]  # fmt: skip
    a = ITEMSIZE[config.dtype]
    moved = sum(math.prod(shape[:inputs]) + math.prod(shape[inputs:]) for shape, inputs in matrices)
    wide = isinstance(config, models.MambaConfig | models.StripedConfig)
    stream = 4 if wide else a  # which they add up in float32

    def kept(remat):
        if remat in KEEP_INPUTS:
            return stream * config.embed_dim / tensor
        traced = replace(config, param_dtype="float32", vocab_size=2, vocab_groups=None, remat=remat)
        return _kept(traced, field, seq_len) / tensor

    return Stack(
        layers=getattr(config, field),
        weights=sum(math.prod(shape) for shape, _ in matrices),
        attend=attend,
        attend_backward=2 * attend,
        last=last,
        blocks=blocks,
        kept=kept,
        streams=a * moved / tensor + 4 * config.embed_dim * blocks,
        working=a * moved / tensor + 4 * 4 * config.embed_dim,
        scores=0.0,  # they are kept, and counted there
    )


def _kept(config, field: str, seq_len: int) -> float:
    """Return the bytes a row that one more layer saves for the backward pass, by jax's own account."""
    few = {name: 2 for name in ("num_layers", "num_encoder_layers") if hasattr(config, name)}
    # The difference of rows leaves out weights; that of layers leaves out what is no layer's.
    of_layers = [
        _saved(replace(config, **(few | {field: layers})), seq_len, 2)
        - _saved(replace(config, **(few | {field: layers})), seq_len, 1)
        for layers in (2, 4)
    ]
    return (of_layers[1] - of_layers[0]) / 2 / seq_len


@functools.lru_cache(maxsize=256)
def _saved(config, seq_len: int, rows: int) -> int:
    """Return the bytes that the backward pass of hidden states takes from the forward pass."""
    tokens = jax.ShapeDtypeStruct((rows, seq_len), jnp.int32)

    def forward(params, tokens):
        context = models.encode(config, params, tokens) if config.start_id is not None else None
        return models.trunk(config, params, tokens, context=context)

    residuals = lambda params, tokens: jax.vjp(lambda p: forward(p, tokens), params)[1]
    found = jax.eval_shape(residuals, models.shapes(config), tokens)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(found))
