"""GPT-2's training step as a program of tile tasks, over the ordinary parameter tree.

Legend: B batch, T time, D model width, F feed-forward, H heads, K head dim, V vocabulary, L layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.models import ModelConfig, check_transformer
from jaxllm.optim.decay import decay_mask
from jaxllm.tiles import kernels, layers
from jaxllm.tiles.access import Mode
from jaxllm.tiles.config import TileSizes
from jaxllm.tiles.graph import Graph, Program
from jaxllm.tiles.tensor import Tensor

Path = tuple[str | int, ...]  # ("layers", 3, "mlp", "in"): a layer of its own, not of a stack
_ONLY = dict(
    activation="gelu_tanh", gated_mlp=False, norm="layernorm", norm_bias=True, qkv_bias=True, out_bias=True,
    mlp_bias=True, position="learned", vocab_groups=None, sink_logit=float("-inf"), windows=(0,),
    parallel_residual=False, norm_place="pre", qk_norm=False, causal=True, scale_embeddings=False,
    num_token_types=0, embed_norm=False, head="tokens", dropout=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class StepOptions:
    """What a training step does besides forward and backward."""

    accumulate: int = 1  # parts the batch is computed in, one after another
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None  # None: the norm is not computed; 0: computed, and nothing clipped
    first: bool = False  # step 1: moments are written and not read
    update: bool = True  # False: gradients alone, which stay
    flash: bool = False  # compute scores twice rather than keep them
    ordered: bool = False  # sums in one order: the same bits in every schedule
    drops: bool = True  # tell the runtime what is invalidated
    rests: bool = True  # tell it what is not used for a while


@dataclass(frozen=True)
class TiledStep:
    """A step's graph and the tensors that are put in and taken out."""

    graph: Graph
    inputs: tuple[Mapping[str, Tensor], ...]  # of each part: tokens, positions, segments, targets, weights
    count: Tensor  # [], the sum of all weights
    rates: Tensor  # [3], learning rate, 1 - b1^t, 1 - b2^t
    constants: Mapping[Tensor, np.ndarray]
    params: Mapping[Path, Tensor]
    moments: tuple[Mapping[Path, Tensor], Mapping[Path, Tensor]]  # first, and root of the second
    grads: Mapping[Path, Tensor]
    loss: Tensor  # [], summed
    squares: Tensor | None  # [], of the gradient
    failed: Tensor | None  # [], whether this or an earlier step's loss, gradient or update was not finite
    updates: Tensor | None  # [], how many steps were not


def check_model(config: ModelConfig) -> None:
    """Check that a model is one that `gpt2_step` computes.

    Raises:
      UserError: names the first field that differs.
    """
    check_transformer(config, "a step in tiles")
    known = _ONLY | dict(num_kv_heads=config.num_heads, remat="none", param_dtype="float32", dtype="float32")
    for name, value in known.items():
        if getattr(config, name) != value:
            raise UserError(
                f"tiles compute GPT-2 and the model has {name}={getattr(config, name)}; use {name}={value}, "
                "or the engine 'jit'"
            )


def gpt2_step(
    config: ModelConfig, sizes: TileSizes, batch: int, seq: int, options: StepOptions = StepOptions(),
    dtype: str = "float32",
) -> TiledStep:  # fmt: skip
    """Return the program of a training step: forward, backward and AdamW.

    Args:
      config: the model.
      sizes: of the tiles.
      batch: sequences a step.
      seq: tokens a sequence.
      options: see StepOptions.
      dtype: of every number.

    Raises:
      UserError: a model that is not GPT-2, or parts that the batch cannot be cut into.
    """
    check_model(config)
    if batch % options.accumulate:
        raise UserError(
            f"a batch of {batch} cannot be computed in accumulate={options.accumulate} equal parts; "
            "choose a multiple"
        )
    return _Builder(config, sizes, batch // options.accumulate, seq, options, dtype).build()


class _Builder:
    """Declares tensors and submits the tasks of a step; one use."""

    def __init__(self, config, sizes, batch, seq, options, dtype):
        self.config, self.options, self.batch, self.seq, self.dtype = config, options, batch, seq, dtype
        self.program = Program(options.ordered, options.drops, options.rests)
        V, D, F, H = config.known_vocab_size, config.embed_dim, config.mlp_dim, config.num_heads
        whole = dict(batch=batch, seq=seq, embed=D, mlp=F, heads=H, vocab=V)
        self.tile = {name: min(getattr(sizes, name) or size, size) for name, size in whole.items()}
        self.dim = whole
        self.tile |= {"head_dim": config.head_dim, "kv_heads": self.tile["heads"]}
        self.tile["position"] = config.context_length  # small, and any tile of tokens may read all of it
        self.params, self.grads, self.first, self.second = {}, {}, {}, {}

    def build(self) -> TiledStep:
        p, options = self.program, self.options
        self._declare_params()
        self.inputs = [self._declare_inputs(part) for part in range(options.accumulate)]
        self.count = p.tensor("count", (), (), self.dtype, given=True)
        self.rates = p.tensor("rates", (3,), (3,), self.dtype, given=True)
        self.loss = p.tensor("loss", (), (), self.dtype)
        self.squares = self.unsound = self.failed = self.updates = None
        if options.clip_norm is not None:
            self.squares = p.tensor("squares", (), (), self.dtype)
            self.unsound = p.tensor("unsound", (), (), self.dtype)
            self.failed = p.tensor("failed", (), (), "bool", given=True)
            self.updates = p.tensor("updates", (), (), "int32", given=True)
        constants = self._declare_origins()
        self._declare_activations()
        for inputs in self.inputs:
            self._forward(inputs)
            self._backward(inputs)
        if options.update:
            self._update()
        return TiledStep(
            p.graph(), tuple(self.inputs), self.count, self.rates, constants, self.params,
            (self.first, self.second), self.grads, self.loss, self.squares, self.failed, self.updates,
        )  # fmt: skip

    def _declare_params(self):
        kept = self.options.update and not self.options.first
        axes = models.axes(self.config)
        shapes = flat(self.config, models.shapes(self.config))
        for path, names in flat(self.config, axes).items():
            shape = shapes[path].shape
            tile = [self.tile[name] for name in names]
            label = ".".join(map(str, path))
            for tree, prefix, given in (
                (self.params, "", True), (self.grads, "d ", False),
                (self.first, "m ", kept), (self.second, "r ", kept),
            ):  # fmt: skip
                if prefix in ("", "d ") or self.options.update:
                    tensor = self.program.tensor(prefix + label, shape, tile, self.dtype, given=given)
                    tree[path] = tensor

    def _declare_inputs(self, part):
        types = dict(tokens="int32", positions="int32", segments="int32", targets="int32",
                     weights=self.dtype)  # fmt: skip
        shape, tile = (self.batch, self.seq), (self.tile["batch"], self.tile["seq"])
        return {n: self.program.tensor(f"{n}{part}", shape, tile, t, given=True) for n, t in types.items()}

    def _declare_origins(self):
        tables = {"vocab": self.params["embed", "tokens"], "position": self.params["embed", "positions"]}
        self.origins, constants = {}, {}
        for name, table in tables.items():
            origins = self.program.tensor(f"{name} origins", (table.grid[0],), (1,), "int32", given=True)
            constants[origins] = np.arange(table.grid[0], dtype=np.int32) * table.tile_shape[0]
            self.origins[name] = origins
        return constants

    def _tensor(self, name, *axes, rest=()):
        """Declare an activation; `axes` are names of sizes, `rest` sizes that are not cut."""
        sizes = [self.dim.get(axis, self.tile[axis]) for axis in axes]
        shape, tile = [*sizes, *rest], [*(self.tile[axis] for axis in axes), *rest]
        return self.program.tensor(name, shape, tile, self.dtype)

    def _declare_activations(self):
        BT, heads = ("batch", "seq"), ("batch", "seq", "heads", "head_dim")
        flash = self.options.flash

        def layer(i):
            made = {name: self._tensor(f"{name}{i}", *BT, "embed") for name in ("norm1", "mid", "norm2", "x")}
            made |= {name: self._tensor(f"{name}{i}", *heads) for name in "qkvy"}
            made |= {name: self._tensor(f"{name}{i}", *BT, "mlp") for name in ("pre", "act")}
            made |= {name: self._tensor(f"{name}{i}", *BT, rest=(3,)) for name in ("state1", "state2")}
            made["softmax"] = self._tensor(f"softmax{i}", "batch", "heads", "seq", rest=(2,))
            made["scores"] = scratch if flash else self._tensor(f"scores{i}", "batch", "heads", "seq", "seq")
            return made

        scratch = self._tensor("scratch", "batch", "heads", "seq", "seq") if flash else None
        self.layers = [layer(i) for i in range(self.config.num_layers)]
        self.embedded = self._tensor("embedded", *BT, "embed")
        self.final, self.final_state = (
            self._tensor("final", *BT, "embed"),
            self._tensor("state", *BT, rest=(3,)),
        )
        self.logits = self._tensor("logits", *BT, "vocab")
        self.maxsumexp = self._tensor("maxsumexp", *BT, rest=(2,))
        # Gradients of activations: one of each kind, used again by every layer.
        self.d = {name: self._tensor(f"d {name}", *BT, "embed") for name in ("norm", "x", "mid")}
        self.d |= {name: self._tensor(f"d {name}", *heads) for name in "qkvy"}
        self.d["act"] = self._tensor("d act", *BT, "mlp")
        self.norm_sums = self._tensor("norm sums", *BT, rest=(2,))
        self.rows = self._tensor("rows", "batch", "heads", "seq")

    def _norm(self, *path):
        return [self.params[*path, name] for name in ("scale", "bias")]

    def _forward(self, inputs):
        p, params, eps = self.program, self.params, self.config.norm_eps
        layers.embed(p, inputs["tokens"], params["embed", "tokens"], self.origins["vocab"], self.embedded)
        layers.embed(
            p, inputs["positions"], params["embed", "positions"], self.origins["position"], self.embedded
        )
        x = self.embedded
        for i, a in enumerate(self.layers):
            at = ("layers", i)
            layers.layernorm(p, x, *self._norm(*at, "attn_norm"), a["state1"], a["norm1"], eps)
            for name, y in (("query", "q"), ("key", "k"), ("value", "v")):
                w, bias = params[*at, "attn", name], params[*at, "attn", f"{name}_bias"]
                layers.linear(p, a["norm1"], w, a[y], bias=bias)
            layers.attention(p, a["q"], a["k"], a["v"], inputs["segments"], a["softmax"], a["y"],
                             **self._attention(a))  # fmt: skip
            layers.linear(p, a["y"], params[*at, "attn", "out"], a["mid"],
                          bias=params[*at, "attn", "out_bias"], residual=x)  # fmt: skip
            layers.layernorm(p, a["mid"], *self._norm(*at, "mlp_norm"), a["state2"], a["norm2"], eps)
            layers.linear(
                p, a["norm2"], params[*at, "mlp", "in"], a["pre"], bias=params[*at, "mlp", "in_bias"]
            )
            layers.elementwise(p, kernels.GELU, a["pre"], a["act"])
            layers.linear(p, a["act"], params[*at, "mlp", "out"], a["x"],
                          bias=params[*at, "mlp", "out_bias"], residual=a["mid"])  # fmt: skip
            self._rest(i, a, x)
            x = a["x"]
        layers.layernorm(p, x, *self._norm("final_norm"), self.final_state, self.final, eps)
        layers.linear(p, self.final, self._head(params), self.logits, turned=self.config.tie_embeddings)

    def _backward(self, inputs):
        p, params, grads, d = self.program, self.params, self.grads, self.d
        eps, tied = self.config.norm_eps, self.config.tie_embeddings
        layers.cross_entropy(p, self.logits, inputs["targets"], inputs["weights"], self.count,
                             self.origins["vocab"], self.maxsumexp, self.loss)  # fmt: skip
        layers.linear_backward(p, self.final, self._head(params), self.logits, dw=self._head(grads),
                               dx=d["norm"], turned=tied)  # fmt: skip
        p.invalidate(self.logits, self.final)

        def norm_backward(x, state, dx, *path):
            layers.layernorm_backward(
                p, x, params[*path, "scale"], state, d["norm"], self.norm_sums, dx=dx,
                dscale=grads[*path, "scale"], dbias=grads[*path, "bias"], eps=eps,
            )  # fmt: skip
            p.invalidate(d["norm"], state)

        norm_backward(self.layers[-1]["x"], self.final_state, d["x"], "final_norm")
        for i, a in reversed(list(enumerate(self.layers))):
            at, x = ("layers", i), self.layers[i - 1]["x"] if i else self.embedded
            p.invalidate(a["x"])
            # The residual stream's gradient is one tensor, to which each block adds.
            layers.linear_backward(
                p, a["act"], params[*at, "mlp", "out"], d["x"], dw=grads[*at, "mlp", "out"], dx=d["act"],
                dbias=grads[*at, "mlp", "out_bias"],
            )  # fmt: skip
            p.invalidate(a["act"])
            layers.elementwise(p, kernels.GELU_BACKWARD, a["pre"], d["act"], mode=Mode.RW)
            p.invalidate(a["pre"])
            layers.linear_backward(
                p, a["norm2"], params[*at, "mlp", "in"], d["act"], dw=grads[*at, "mlp", "in"], dx=d["norm"],
                dbias=grads[*at, "mlp", "in_bias"],
            )  # fmt: skip
            p.invalidate(d["act"], a["norm2"])
            norm_backward(a["mid"], a["state2"], d["x"], *at, "mlp_norm")
            p.invalidate(a["mid"])
            layers.linear_backward(
                p, a["y"], params[*at, "attn", "out"], d["x"], dw=grads[*at, "attn", "out"], dx=d["y"],
                dbias=grads[*at, "attn", "out_bias"],
            )  # fmt: skip
            layers.attention_backward(
                p, a["q"], a["k"], a["v"], inputs["segments"], a["softmax"], a["y"], d["y"], self.rows,
                dq=d["q"], dk=d["k"], dv=d["v"], **self._attention(a),
            )  # fmt: skip
            p.invalidate(*(a[name] for name in ("q", "k", "v", "y", "softmax")), d["y"])
            for name, y in (("query", "q"), ("key", "k"), ("value", "v")):
                layers.linear_backward(
                    p, a["norm1"], params[*at, "attn", name], d[y], dw=grads[*at, "attn", name], dx=d["norm"],
                    dbias=grads[*at, "attn", f"{name}_bias"],
                )  # fmt: skip
            p.invalidate(d["q"], d["k"], d["v"], a["norm1"])
            norm_backward(x, a["state1"], d["x"], *at, "attn_norm")
            p.wont_use(*(t for path, t in (*params.items(), *grads.items()) if path[:2] == at))
        layers.embed_backward(p, inputs["tokens"], self.origins["vocab"], d["x"], grads["embed", "tokens"])
        layers.embed_backward(
            p, inputs["positions"], self.origins["position"], d["x"], grads["embed", "positions"]
        )
        p.invalidate(d["x"], self.embedded, *(t for n, t in inputs.items()))

    def _rest(self, i, a, x):
        """Hint that a layer's weights and activations rest until its backward pass."""
        weights = (t for path, t in self.params.items() if path[:2] == ("layers", i))
        self.program.wont_use(*weights, x, *(t for name, t in a.items() if name not in ("x", "scores")))
        if not self.options.flash:
            self.program.wont_use(a["scores"])

    def _update(self):
        p, o = self.program, self.options
        decays = flat(self.config, decay_mask(models.axes(self.config)))

        def submit(op, path, index, moment, *more, read=()):
            moments = () if moment is None else (tree[path][index] for tree in (self.first, self.second))
            p.submit(
                op, (Mode.R, self.grads[path][index]), (Mode.R, self.rates[0]), *read,
                (Mode.R if more else Mode.RW, self.params[path][index]), *((moment, m) for m in moments),
                *more, b1=o.b1, b2=o.b2, eps=o.eps, clip=o.clip_norm, first=o.first,
                decay=o.weight_decay if decays[path] else 0.0,
            )  # fmt: skip

        extra = []
        if o.clip_norm is not None:
            for tensor in self.grads.values():
                for handle in tensor.handles():
                    p.submit(kernels.SQUARE_SUM, (Mode.R, handle), p.adding(self.squares[()], Mode.REDUX))
            squares = (Mode.R, self.squares[()])
            # All updates are tried before the first is written: one that is not finite changes nothing.
            for path, tensor in self.params.items():
                for index in tensor.indices():
                    submit(kernels.ADAMW_UNSOUND, path, index, None if o.first else Mode.R,
                           p.adding(self.unsound[()], Mode.REDUX), read=(squares,))  # fmt: skip
            p.submit(kernels.JUDGE, (Mode.R, self.loss[()]), squares, (Mode.R, self.unsound[()]),
                     (Mode.RW, self.failed[()]), (Mode.RW, self.updates[()]))  # fmt: skip
            extra = [squares, (Mode.R, self.failed[()])]
        for path, tensor in self.params.items():
            for index in tensor.indices():
                submit(kernels.ADAMW, path, index, Mode.W if o.first else Mode.RW, read=extra)
            p.invalidate(self.grads[path])
            p.wont_use(tensor, self.first[path], self.second[path])

    def _attention(self, a):
        scale = self.config.attention_scale
        scale = self.config.head_dim**-0.5 if scale is None else scale
        return dict(scale=scale, scores=a["scores"], flash=self.options.flash)

    def _head(self, tree):
        return tree["embed", "tokens"] if self.config.tie_embeddings else tree["head", "kernel"]


def flat(config: ModelConfig, tree) -> dict[Path, object]:
    """Return a parameter-like tree as {path: leaf}, a stack of layers as one leaf a layer.

    Leaves may be arrays, ShapeDtypeStructs, tuples of axis names or single values.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    result = {}
    for keys, leaf in leaves:
        path = tuple(key.key for key in keys)
        if path[0] != "layers":
            result[path] = leaf
            continue
        for i in range(config.num_layers):
            result["layers", i, *path[1:]] = _part(leaf, i)
    return result


def _part(leaf, i):
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    if isinstance(leaf, tuple):  # names
        return leaf[1:]
    return leaf[i] if getattr(leaf, "ndim", 0) else leaf


def stacked(config: ModelConfig, leaves: Mapping[Path, np.ndarray]) -> dict:
    """Return the tree of which `flat` gave the leaves."""
    tree: dict = {}
    for path, leaf in leaves.items():
        if path[0] == "layers":
            if path[1]:
                continue
            leaf = np.stack([leaves["layers", i, *path[2:]] for i in range(config.num_layers)])
            path = ("layers", *path[2:])
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree
