"""Tensor operations: each submits the tasks of one layer's forward or backward pass, tile by tile.

Legend: B batch, T and S time (queries and keys), D model width, F feed-forward, H heads, K head dim,
V vocabulary. Activations are [B, T, ...]; a weight is [in..., out...].
"""

import itertools
import math

from jaxllm.tiles import kernels
from jaxllm.tiles.access import Mode
from jaxllm.tiles.graph import Program
from jaxllm.tiles.tensor import Tensor

R, W, RW = Mode.R, Mode.W, Mode.RW


def _grid(*sizes: int):
    return itertools.product(*map(range, sizes))


def _size(tensor: Tensor, index) -> int:
    return math.prod(tensor.shape_of(*index))


def linear(
    program: Program, x: Tensor, w: Tensor, y: Tensor, *, bias: Tensor | None = None,
    residual: Tensor | None = None, turned: bool = False,
) -> None:  # fmt: skip
    """Write y = x w (+ bias) (+ residual), a chain of products for each tile of y.

    Args:
      x: [B, T, in...].
      w: [in..., out...]; [out..., in...] if `turned`.
      y: [B, T, out...].
    """
    ins = x.grid[2:]
    for row in _grid(*y.grid[:2]):
        for out in _grid(*y.grid[2:]):
            for into in _grid(*ins):
                first = not program.has_value(y[row + out])
                addends = [(R, bias[out])] if bias and first else []
                addends += [(R, residual[row + out])] if residual and first else []
                program.submit(
                    kernels.GEMM,
                    (R, x[row + into]), (R, w[out + into if turned else into + out]), *addends,
                    program.adding(y[row + out]),
                    flops=2 * _size(y, row + out) * math.prod(x.shape_of(*row, *into)[2:]),
                    a_rows=2, b_rows=len(out) if turned else len(into), transpose_b=turned,
                )  # fmt: skip


def linear_backward(
    program: Program, x: Tensor, w: Tensor, dy: Tensor, *, dw: Tensor, dx: Tensor | None = None,
    dbias: Tensor | None = None, turned: bool = False,
) -> None:  # fmt: skip
    """Add the gradients of `linear` to dw, dx and dbias."""
    for row in _grid(*dy.grid[:2]):
        for out in _grid(*dy.grid[2:]):
            for into in _grid(*x.grid[2:]):
                flops = 2 * _size(dy, row + out) * math.prod(x.shape_of(*row, *into)[2:])
                place = out + into if turned else into + out
                left, right = (dy[row + out], x[row + into]) if turned else (x[row + into], dy[row + out])
                program.submit(
                    kernels.GEMM, (R, left), (R, right), program.adding(dw[place]),
                    flops=flops, a_rows=2, b_rows=2, transpose_a=True,
                )  # fmt: skip
                if dx is not None:
                    program.submit(
                        kernels.GEMM, (R, dy[row + out]), (R, w[place]), program.adding(dx[row + into]),
                        flops=flops, a_rows=2, b_rows=len(out if turned else into), transpose_b=not turned,
                    )  # fmt: skip
            if dbias is not None:
                program.submit(kernels.SUM_ROWS, (R, dy[row + out]), program.adding(dbias[out]))


def embed(program: Program, ids: Tensor, table: Tensor, origins: Tensor, x: Tensor) -> None:
    """Add the rows of a table to x.

    Args:
      ids: [B, T].
      table: [V, D].
      origins: [tiles of V], where each tile of the table starts.
      x: [B, T, D].
    """
    for b, t, d in x.indices():
        for v in range(table.grid[0]):
            program.submit(
                kernels.EMBEDDING,
                (R, ids[b, t]),
                (R, table[v, d]),
                (R, origins[v]),
                program.adding(x[b, t, d]),
            )


def embed_backward(program: Program, ids: Tensor, origins: Tensor, dx: Tensor, dtable: Tensor) -> None:
    """Add to the gradient of a table."""
    for b, t, d in dx.indices():
        for v in range(dtable.grid[0]):
            program.submit(
                kernels.EMBEDDING_BACKWARD,
                (R, ids[b, t]), (R, dx[b, t, d]), (R, origins[v]), program.adding(dtable[v, d]),
                rows=dtable.shape_of(v, d)[0],
            )  # fmt: skip


def layernorm(
    program: Program, x: Tensor, scale: Tensor, bias: Tensor, state: Tensor, y: Tensor, eps: float
) -> None:
    """Write y, and into `state` [B, T, 3] the moments of each row."""
    for b, t, d in x.indices():
        program.submit(kernels.MOMENTS, (R, x[b, t, d]), program.adding(state[b, t, 0]))
    for b, t, d in x.indices():
        program.submit(
            kernels.NORMALIZE,
            (R, x[b, t, d]), (R, state[b, t, 0]), (R, scale[d]), (R, bias[d]), (W, y[b, t, d]), eps=eps,
        )  # fmt: skip


def layernorm_backward(
    program: Program, x: Tensor, scale: Tensor, state: Tensor, dy: Tensor, sums: Tensor, *, dx: Tensor,
    dscale: Tensor, dbias: Tensor, eps: float,
) -> None:  # fmt: skip
    """Add the gradients of `layernorm`; `sums` [B, T, 2] is written and invalidated."""
    for b, t, d in x.indices():
        program.submit(
            kernels.NORM_SUMS,
            (R, x[b, t, d]), (R, state[b, t, 0]), (R, scale[d]), (R, dy[b, t, d]),
            program.adding(sums[b, t, 0]), program.adding(dscale[d]), program.adding(dbias[d]), eps=eps,
        )  # fmt: skip
    for b, t, d in x.indices():
        program.submit(
            kernels.NORM_BACKWARD,
            (R, x[b, t, d]), (R, state[b, t, 0]), (R, scale[d]), (R, dy[b, t, d]), (R, sums[b, t, 0]),
            program.adding(dx[b, t, d]), eps=eps,
        )  # fmt: skip
    program.invalidate(sums)


def _pairs(q: Tensor, k: Tensor):
    """Yield (b, h, t, s, diagonal) of the tiles of scores that a causal mask does not empty."""
    for b, h, t in _grid(q.grid[0], q.grid[2], q.grid[1]):
        rows = q.shape_of(b, t, h, 0)[1]
        for s in range(k.grid[1]):
            diagonal = t * q.tile_shape[1] - s * k.tile_shape[1]
            if diagonal + rows - 1 >= 0:
                whole = diagonal >= k.shape_of(b, s, h, 0)[1] - 1
                yield b, h, t, s, None if whole else diagonal


def _pair_flops(q: Tensor, k: Tensor, b, h, t, s) -> int:
    return 2 * _size(q, (b, t, h, 0)) * k.shape_of(b, s, h, 0)[1]


def attention(
    program: Program, q: Tensor, k: Tensor, v: Tensor, segments: Tensor, state: Tensor, y: Tensor, *,
    scale: float, scores: Tensor, flash: bool,
) -> None:  # fmt: skip
    """Write the heads' outputs, causal and within segments.

    Args:
      q: [B, T, H, K], as k, v and y are.
      segments: [B, T]; queries see keys of the same number.
      state: [B, H, T, 2], written: maximum and sum of each row's softmax.
      scores: [B, H, T, S], written: the probabilities; or with `flash` one tile of scratch memory, and
        scores are computed twice.
    """
    for b, h, t, s, diagonal in _pairs(q, k):
        inputs = [(R, q[b, t, h, 0]), (R, k[b, s, h, 0]), (R, segments[b, t]), (R, segments[b, s])]
        sums = program.adding(state[b, h, t, 0])
        options = dict(flops=_pair_flops(q, k, b, h, t, s), scale=scale, diagonal=diagonal)
        if flash:
            program.submit(kernels.FLASH_STATE, *inputs, (Mode.SCRATCH, scores[0, 0, 0, 0]), sums, **options)
        else:
            program.submit(kernels.SCORES, *inputs, (W, scores[b, h, t, s]), sums, **options)
    for b, h, t, s, diagonal in _pairs(q, k):
        part, flops = program.adding(y[b, t, h, 0]), _pair_flops(q, k, b, h, t, s)
        values = [(R, v[b, s, h, 0]), (R, state[b, h, t, 0])]
        if flash:
            program.submit(
                kernels.FLASH_MIX,
                (R, q[b, t, h, 0]), (R, k[b, s, h, 0]), (R, segments[b, t]), (R, segments[b, s]), *values,
                (Mode.SCRATCH, scores[0, 0, 0, 0]), part, flops=2 * flops, scale=scale, diagonal=diagonal,
            )  # fmt: skip
        else:
            program.submit(kernels.MIX, *values, (RW, scores[b, h, t, s]), part, flops=flops)


def attention_backward(
    program: Program, q: Tensor, k: Tensor, v: Tensor, segments: Tensor, state: Tensor, y: Tensor, dy: Tensor,
    sums: Tensor, *, dq: Tensor, dk: Tensor, dv: Tensor, scale: float, scores: Tensor, flash: bool,
) -> None:  # fmt: skip
    """Write dq, dk and dv; `sums` [B, H, T] is written and invalidated, and `scores` are."""
    for b, h, t in sums.indices():
        program.submit(kernels.SUMPROD, (R, dy[b, t, h, 0]), (R, y[b, t, h, 0]), (W, sums[b, h, t]))
    for b, h, t, s, diagonal in _pairs(q, k):
        inputs = [(R, q[b, t, h, 0]), (R, k[b, s, h, 0])]
        parts = [program.adding(dx) for dx in (dq[b, t, h, 0], dk[b, s, h, 0], dv[b, s, h, 0])]
        flops = _pair_flops(q, k, b, h, t, s)
        if flash:
            program.submit(
                kernels.FLASH_BACKWARD, *inputs, (R, segments[b, t]), (R, segments[b, s]), (R, v[b, s, h, 0]),
                (R, state[b, h, t, 0]), (R, dy[b, t, h, 0]), (R, sums[b, h, t]),
                (Mode.SCRATCH, scores[0, 0, 0, 0]), *parts, flops=5 * flops, scale=scale, diagonal=diagonal,
            )  # fmt: skip
        else:
            program.submit(
                kernels.ATTENTION_BACKWARD, *inputs, (R, v[b, s, h, 0]), (R, dy[b, t, h, 0]),
                (R, sums[b, h, t]), (R, scores[b, h, t, s]), *parts, flops=4 * flops, scale=scale,
            )  # fmt: skip
    program.invalidate(sums, scores)


def elementwise(program: Program, op, source: Tensor, target: Tensor, *, mode: Mode = W, **static) -> None:
    """Submit one task a tile: source R, target in `mode`."""
    for here, there in zip(source.handles(), target.handles(), strict=True):
        program.submit(op, (R, here), (mode, there), **static)


def cross_entropy(
    program: Program, logits: Tensor, targets: Tensor, weights: Tensor, count: Tensor, origins: Tensor,
    state: Tensor, loss: Tensor,
) -> None:  # fmt: skip
    """Put the gradient of the mean loss in the logits' place, and add to the summed `loss` [].

    Args:
      targets: [B, T]; one outside of the vocabulary must have weight 0.
      weights: [B, T].
      count: [], what the loss is divided by.
      origins: [tiles of V], where each tile of the logits starts.
      state: [B, T, 2], written and invalidated.
    """
    for b, t, v in logits.indices():
        program.submit(kernels.MAXSUMEXP, (R, logits[b, t, v]), program.adding(state[b, t, 0]))
    for b, t, v in logits.indices():
        program.submit(
            kernels.CROSS_ENTROPY,
            (R, state[b, t, 0]), (R, targets[b, t]), (R, weights[b, t]), (R, count[()]), (R, origins[v]),
            (RW, logits[b, t, v]), program.adding(loss[()]),
        )  # fmt: skip
    program.invalidate(state)
