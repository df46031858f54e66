"""What tile tasks compute: pure functions of tiles, jitted and dispatched by the executor.

Legend: B batch, T and S time (queries and keys), D model width, F feed-forward, H heads, K head dim,
V vocabulary, N rows, each of one tile. A function returns what it writes and the parts that it adds.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxllm.tiles.access import Mode
from jaxllm.tiles.graph import Kernel, Op, add


@functools.cache
def compiled(kernel: Kernel):
    """Return the jitted kernel: (values read, accumulators added to) in order of access -> what is written.

    The tiles that it changes are donated. Parts are merged into their accumulators inside.
    """
    op, modes = kernel.op, kernel.modes
    merges = op.merges or (add,) * len(modes)
    taken = [mode for mode in modes if mode not in (Mode.W, Mode.SCRATCH)]
    changed = [mode for mode in modes if mode not in (Mode.R, Mode.SCRATCH)]
    static = dict(kernel.static)

    def run(*values):
        sums = iter([v for v, mode in zip(values, taken, strict=True) if mode.adds])
        results = op.function(*[v for v, mode in zip(values, taken, strict=True) if not mode.adds], **static)
        return tuple(
            merge(next(sums), result) if mode.adds else result
            for mode, merge, result in zip(changed, merges, results, strict=False)
        )

    run.__name__ = op.name
    return jax.jit(run, donate_argnums=[i for i, mode in enumerate(taken) if mode is not Mode.R])


def _gemm(a, b, *addends, a_rows: int, b_rows: int, transpose_a=False, transpose_b=False):
    """Multiply two tiles as matrices, and add the rest (a bias, a residual).

    Args:
      a: its first `a_rows` axes are the rows.
      b: likewise.
    """
    a_NK, b_KM = (x.reshape(math.prod(x.shape[:rows]), -1) for x, rows in ((a, a_rows), (b, b_rows)))
    dims = ((0 if transpose_a else 1,), (1 if transpose_b else 0,))
    product = jax.lax.dot_general(a_NK, b_KM, (dims, ((), ())))
    rows = a.shape[a_rows:] if transpose_a else a.shape[:a_rows]
    columns = b.shape[:b_rows] if transpose_b else b.shape[b_rows:]
    total = product.reshape(*rows, *columns)
    for addend in addends:
        total = total + jax.lax.broadcast_to_rank(addend, total.ndim)
    return (total,)


def _embedding(ids_BT, table_VD, origin):
    """Return the rows of a table's tile, zeros where an id is in another tile."""
    ids_BT = ids_BT - jnp.reshape(origin, ())
    mine = (ids_BT >= 0) & (ids_BT < len(table_VD))
    return (jnp.where(mine[..., None], jnp.take(table_VD, ids_BT, axis=0, mode="clip"), 0),)


def _embedding_backward(ids_BT, dx_BTD, origin, *, rows: int):
    ids_BT = ids_BT - jnp.reshape(origin, ())
    ids_BT = jnp.where(ids_BT < 0, rows, ids_BT)  # out of range is dropped, -1 would be the last
    zeros_VD = jnp.zeros((rows, dx_BTD.shape[-1]), dx_BTD.dtype)
    return (zeros_VD.at[ids_BT].add(dx_BTD, mode="drop"),)


def _moments(x_BTD):
    """Return (count, mean, sum of squared deviations) of each row, [B, T, 3]."""
    mean_BT = jnp.mean(x_BTD, axis=-1)
    squares_BT = jnp.sum(jnp.square(x_BTD - mean_BT[..., None]), axis=-1)
    return (jnp.stack([jnp.full_like(mean_BT, x_BTD.shape[-1]), mean_BT, squares_BT], axis=-1),)


def merge_moments(a, b):
    """Merge the moments of two parts of a row (Chan et al. 1979), in any order."""
    count = a[..., 0] + b[..., 0]
    share = b[..., 0] / jnp.maximum(count, 1)
    gap = b[..., 1] - a[..., 1]
    squares = a[..., 2] + b[..., 2] + jnp.square(gap) * a[..., 0] * share
    return jnp.stack([count, a[..., 1] + gap * share, squares], axis=-1)


def _normed(x_BTD, state_BT3, eps):
    """Return (the normalised x, 1 / its standard deviation)."""
    count, mean, squares = (state_BT3[..., i : i + 1] for i in range(3))
    inverse = jax.lax.rsqrt(squares / count + eps)
    return (x_BTD - mean) * inverse, inverse


def _normalize(x_BTD, state_BT3, scale_D, bias_D, *, eps: float):
    return (_normed(x_BTD, state_BT3, eps)[0] * scale_D[None, None] + bias_D[None, None],)


def _norm_sums(x_BTD, state_BT3, scale_D, dy_BTD, *, eps: float):
    """Return parts of the sums over a row that its gradient needs [B, T, 2], of dscale and of dbias [D]."""
    t_BTD, _ = _normed(x_BTD, state_BT3, eps)
    g_BTD = dy_BTD * scale_D[None, None]
    sums_BT2 = jnp.stack([jnp.sum(g_BTD, axis=-1), jnp.sum(g_BTD * t_BTD, axis=-1)], axis=-1)
    return sums_BT2, jnp.sum(dy_BTD * t_BTD, axis=(0, 1)), jnp.sum(dy_BTD, axis=(0, 1))


def _norm_backward(x_BTD, state_BT3, scale_D, dy_BTD, sums_BT2, *, eps: float):
    t_BTD, inverse = _normed(x_BTD, state_BT3, eps)
    means = sums_BT2 / state_BT3[..., :1]
    return (inverse * (dy_BTD * scale_D[None, None] - means[..., :1] - t_BTD * means[..., 1:]),)


def _gelu(x):
    return (jax.nn.gelu(x, approximate=True),)


def _gelu_backward(x, dy):
    return jax.vjp(functools.partial(jax.nn.gelu, approximate=True), x)[1](dy)


def _scores(q_BTHK, k_BSHK, segments_BT, segments_BS, *, scale: float, diagonal: int | None):
    """Return masked scores [B, H, T, S] and their (maximum, sum) [B, H, T, 2].

    Args:
      diagonal: position of the first query less that of the first key; None: all keys are earlier.
    """
    scores = _masked(q_BTHK, k_BSHK, segments_BT, segments_BS, scale, diagonal)
    return scores, _maxsumexp(scores)[0]


def _masked(q_BTHK, k_BSHK, segments_BT, segments_BS, scale, diagonal):
    scores_BHTS = scale * jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK)
    seen = segments_BT[:, :, None] == segments_BS[:, None, :]
    if diagonal is not None:
        T, S = seen.shape[1:]
        t, s = jnp.arange(T, dtype=jnp.int32), jnp.arange(S, dtype=jnp.int32)
        seen &= (t[:, None] + diagonal >= s[None])[None]
    return jnp.where(seen[:, None], scores_BHTS, -jnp.inf)


def _maxsumexp(x):
    """Return the state of a softmax over the last axis: (m, s) with s = sum exp(x - m); (0, 0) is empty."""
    m = jnp.max(x, axis=-1)
    m = jnp.where(m == -jnp.inf, 0, m)
    return (jnp.stack([m, jnp.sum(jnp.exp(x - m[..., None]), axis=-1)], axis=-1),)


def merge_maxsumexp(a, b):
    """Merge the states of two parts of a row, in any order; an empty one changes nothing."""
    m_a, m_b = (jnp.where(x[..., 1] == 0, -jnp.inf, x[..., 0]) for x in (a, b))
    m = jnp.maximum(m_a, m_b)
    m = jnp.where(m == -jnp.inf, 0, m)
    return jnp.stack([m, a[..., 1] * jnp.exp(m_a - m) + b[..., 1] * jnp.exp(m_b - m)], axis=-1)


def _softmax(state, x):
    """Return exp(x - m) / s over the last axis; a row in which all is masked gives zeros."""
    m, s = state[..., :1], state[..., 1:]
    return (jnp.exp(x - m) / jnp.where(s == 0, 1, s),)


def _mix(v_BSHK, state_BHT2, scores_BHTS):
    """Return probabilities in the scores' place, and part of the heads' output [B, T, H, K]."""
    (probs,) = _softmax(state_BHT2, scores_BHTS)
    return probs, jnp.einsum("bhts,bshk->bthk", probs, v_BSHK)


def _sumprod(a_BTHK, b_BTHK):
    """Return the sum over K of a product, [B, H, T]."""
    return (jnp.einsum("bthk,bthk->bht", a_BTHK, b_BTHK),)


def _attention_backward(q_BTHK, k_BSHK, v_BSHK, dy_BTHK, rows_BHT, probs_BHTS, *, scale: float):
    """Return parts of dq, dk and dv."""
    dprobs = jnp.einsum("bthk,bshk->bhts", dy_BTHK, v_BSHK)
    dscores = probs_BHTS * (dprobs - rows_BHT[..., None]) * scale
    return (
        jnp.einsum("bhts,bshk->bthk", dscores, k_BSHK),
        jnp.einsum("bhts,bthk->bshk", dscores, q_BTHK),
        jnp.einsum("bhts,bthk->bshk", probs_BHTS, dy_BTHK),
    )


def _flash_state(q, k, segments_BT, segments_BS, *, scale, diagonal):
    return _maxsumexp(_masked(q, k, segments_BT, segments_BS, scale, diagonal))


def _flash_mix(q, k, segments_BT, segments_BS, v, state, *, scale, diagonal):
    return _mix(v, state, _masked(q, k, segments_BT, segments_BS, scale, diagonal))[1:]


def _flash_backward(q, k, segments_BT, segments_BS, v, state, dy, rows, *, scale, diagonal):
    (probs,) = _softmax(state, _masked(q, k, segments_BT, segments_BS, scale, diagonal))
    return _attention_backward(q, k, v, dy, rows, probs, scale=scale)


def _cross_entropy(state_BT2, targets_BT, weights_BT, count, origin, logits_BTV):
    """Return the gradient in the logits' place, and part of the summed loss, its targets in this tile."""
    targets_BT = targets_BT - jnp.reshape(origin, ())
    (probs,) = _softmax(state_BT2, logits_BTV)
    hit = jnp.arange(logits_BTV.shape[-1], dtype=jnp.int32)[None, None] == targets_BT[..., None]
    logsumexp_BT = state_BT2[..., 0] + jnp.log(state_BT2[..., 1])
    losses = jnp.sum(jnp.where(hit, logsumexp_BT[..., None] - logits_BTV, 0), axis=-1)
    gradient = (probs - hit.astype(probs.dtype)) * (weights_BT / count)[..., None]
    return gradient, jnp.sum(losses * weights_BT)


def _sum_rows(dy):
    """Return the sum over the first two axes: a bias's gradient."""
    return (jnp.sum(dy, axis=(0, 1)),)


def _square_sum(x):
    return (jnp.sum(jnp.square(x)),)


def _judge(loss, squares, unsound, failed, updates):
    """Return whether this or an earlier step is not finite, and the steps before."""
    failed = failed | ~jnp.isfinite(loss) | ~jnp.isfinite(squares) | (unsound > 0)
    return failed, jnp.where(failed, updates, updates + 1)


def _adamw(gradient, rates, *rest, first: bool, clip, **options):
    """Return parameter and moments after a step; the second moment is kept as its square root.

    Args:
      rates: [3], the learning rate, 1 - b1^t and 1 - b2^t.
      rest: [squared gradient norm, failed,] parameter[, first moment, root of the second].
      clip: largest gradient norm; 0: none. None: norm and `failed` are not among the rest.
      first: step 1, which writes the moments and does not read them.
      options: b1, b2, eps, decay.
    """
    if clip is None:
        return _after_adamw(gradient, rates, *_old(first, *rest), **options)
    squares, failed, *rest = rest
    old = _old(first, *rest)
    new = _after_adamw(_clipped(gradient, squares, clip), rates, *old, **options)
    return tuple(jnp.where(failed, a, b) for a, b in zip(old, new, strict=True))


def _adamw_unsound(gradient, rates, squares, *rest, first: bool, clip, **options):
    """Return how many of `_adamw`'s new parameters are not finite or moments are NaN; it writes none."""
    new = _after_adamw(_clipped(gradient, squares, clip), rates, *_old(first, *rest), **options)
    bad = ~jnp.isfinite(new[0]) | jnp.isnan(new[1]) | jnp.isnan(new[2])
    return (jnp.sum(bad, dtype=squares.dtype),)


def _old(first: bool, parameter, *moments):
    return (parameter, *((jnp.zeros_like(parameter),) * 2 if first else moments))


def _clipped(gradient, squares, clip):
    norm = jnp.sqrt(squares)
    return jnp.where(norm < clip, gradient, gradient / norm * clip) if clip else gradient


def _after_adamw(gradient, rates, parameter, m, r, *, b1, b2, eps, decay):
    rate, bias1, bias2 = rates[0], rates[1], rates[2]
    # hypot(sqrt(b2) r, sqrt(1 - b2) g), whose squares a float32 holds for any gradient that trains.
    new_m = b1 * m + (1 - b1) * gradient
    new_r = jnp.sqrt(b2 * jnp.square(r) + (1 - b2) * jnp.square(gradient))
    step = new_m / bias1 / (new_r / jnp.sqrt(bias2) + eps) + decay * parameter
    return parameter - rate * step, new_m, new_r


EMBEDDING = Op("embedding", _embedding)
EMBEDDING_BACKWARD = Op("embedding_backward", _embedding_backward)
GEMM = Op("gemm", _gemm)
MOMENTS = Op("moments", _moments, (merge_moments,))
NORMALIZE = Op("normalize", _normalize)
NORM_SUMS = Op("norm_sums", _norm_sums)
NORM_BACKWARD = Op("norm_backward", _norm_backward)
GELU = Op("gelu", _gelu)
GELU_BACKWARD = Op("gelu_backward", _gelu_backward)
SCORES = Op("scores", _scores, (add, merge_maxsumexp))
MAXSUMEXP = Op("maxsumexp", _maxsumexp, (merge_maxsumexp,))
SOFTMAX = Op("softmax", _softmax)
MIX = Op("mix", _mix)
SUMPROD = Op("sumprod", _sumprod)
ATTENTION_BACKWARD = Op("attention_backward", _attention_backward)
FLASH_STATE = Op("flash_state", _flash_state, (merge_maxsumexp,))
FLASH_MIX = Op("flash_mix", _flash_mix)
FLASH_BACKWARD = Op("flash_backward", _flash_backward)
CROSS_ENTROPY = Op("cross_entropy", _cross_entropy)
SUM_ROWS = Op("sum_rows", _sum_rows)
SQUARE_SUM = Op("square_sum", _square_sum)
JUDGE = Op("judge", _judge)
ADAMW = Op("adamw", _adamw)
ADAMW_UNSOUND = Op("adamw_unsound", _adamw_unsound)
