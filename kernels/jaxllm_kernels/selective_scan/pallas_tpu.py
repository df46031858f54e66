"""Selective scan for TPU: the state stays on the chip, and every array is read and written once a pass.

A program takes 128 positions of one row and a block of channels; the last grid axis goes through time,
and the state waits in VMEM for the next program. States lie [N, channels]: a row of u or delta is
broadcast over sublanes. B and C come transposed, [N, time]: a position is a column, broadcast over lanes.

The backward pass goes through time in reverse. From the state saved before each chunk it runs the chunk
again, keeping the decayed states in VMEM, then backward. Exponentials are in base 2, as the hardware's.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxllm_kernels.compat import shape_like
from jaxllm_kernels.selective_scan.xla import CHUNK

TIME = 128  # positions of a program: as many lanes as a block of B and C must have
CHUNKS = TIME // CHUNK
LANES = 128
GROUP = 8  # positions between two rotations of B and C
FORWARD_CHANNELS, BACKWARD_CHANNELS = 256, 128  # at most, of a program: with more, vectors spill


def cannot(u_BTD, A_ND) -> str | None:
    """Return why the kernels cannot run a call, or None if they can."""
    N, D = A_ND.shape
    if A_ND.dtype != jnp.float32 or u_BTD.dtype == jnp.float16:
        return "TPUs have no float16 or float64"
    if D % 128 or N % 8 or N > 64:
        return f"it takes multiples of 128 channels and of 8 states up to 64, not {D} and {N}"
    return None


def forward(
    u_BTD, delta_BTD, A_ND, B_BTN, C_BTN, skip_D, state_BND, keep_BT, *, save, interpret=False
):  # fmt: skip
    """Return (y [B, T, D], last state [B, N, D], states before each chunk or None); see `xla.forward`."""
    (B, T, D), N = u_BTD.shape, A_ND.shape[0]
    channels = _channels(D, FORWARD_CHANNELS)
    operands, specs = _operands(u_BTD, delta_BTD, A_ND, B_BTN, C_BTN, skip_D, keep_BT, channels)
    steps = operands[0].shape[1] // TIME
    of_state = pl.BlockSpec((1, N, channels), lambda b, d, t: (b, 0, d))
    of_starts = pl.BlockSpec((1, CHUNKS, N, channels), lambda b, d, t: (b, t, 0, d))
    results = [
        (specs[0], shape_like(operands[0].shape, u_BTD.dtype, u_BTD)),
        (of_state, shape_like((B, N, D), jnp.float32, u_BTD)),
        (of_starts, shape_like((B, steps * CHUNKS, N, D), jnp.float32, u_BTD)),
    ][: 3 if save else 2]
    found = pl.pallas_call(
        functools.partial(_forward_kernel, segmented=keep_BT is not None, save=save),
        grid=(B, D // channels, steps),
        in_specs=[*specs, of_state],
        out_specs=[spec for spec, _ in results],
        out_shape=[shape for _, shape in results],
        scratch_shapes=[
            pltpu.VMEM((N, channels), jnp.float32),
            _sums_scratch(channels),
            *[pltpu.VMEM((TIME, channels), jnp.float32)] * 3,
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=_cost(operands, N, exponentials=1, flops=7),
        interpret=interpret,
        name="selective_scan_forward",
    )(*operands, state_BND)
    starts_BcND = found[2][:, : pl.cdiv(T, CHUNK)] if save else None
    return found[0][:, :T], found[1], starts_BcND


def backward(
    u_BTD, delta_BTD, A_ND, B_BTN, C_BTN, skip_D, keep_BT, starts_BcND, d_y_BTD, d_last_BND,
    *, interpret=False,
):  # fmt: skip
    """Return the cotangents (u, delta, A [N, D], B, C, state); see `xla.backward`."""
    (B, T, D), N = u_BTD.shape, A_ND.shape[0]
    channels = _channels(D, BACKWARD_CHANNELS)
    operands, specs = _operands(u_BTD, delta_BTD, A_ND, B_BTN, C_BTN, skip_D, keep_BT, channels, reverse=True)
    steps = operands[0].shape[1] // TIME

    of_state = pl.BlockSpec((1, N, channels), lambda b, d, t: (b, 0, d))
    of_starts = pl.BlockSpec((1, CHUNKS, N, channels), lambda b, d, t: (b, steps - 1 - t, 0, d))
    of_narrow = pl.BlockSpec((1, 1, N, TIME), lambda b, d, t: (d, b, 0, steps - 1 - t))
    starts_BcND = _pad(starts_BcND, 1, CHUNKS)
    narrow = (D // channels, B, N, steps * TIME)
    f32 = jnp.float32
    d_u, d_delta, d_B, d_C, d_A_BND, d_state_BND = pl.pallas_call(
        functools.partial(_backward_kernel, segmented=keep_BT is not None),
        grid=(B, D // channels, steps),
        in_specs=[*specs, of_starts, specs[0], of_state],
        out_specs=[specs[0], specs[0], of_narrow, of_narrow, of_state, of_state],
        out_shape=[
            shape_like(operands[0].shape, u_BTD.dtype, u_BTD),
            shape_like(operands[0].shape, delta_BTD.dtype, u_BTD),
            shape_like(narrow, f32, u_BTD),
            shape_like(narrow, f32, u_BTD),
            shape_like((B, N, D), f32, u_BTD),
            shape_like((B, N, D), f32, u_BTD),
        ],
        scratch_shapes=[
            pltpu.VMEM((CHUNK, N, channels), f32),
            pltpu.VMEM((N, channels), f32),
            *[_sums_scratch(channels)] * 2,
            *[pltpu.VMEM((TIME, channels), f32)] * 5,
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=_cost(operands, N, exponentials=2, flops=24),
        interpret=interpret,
        name="selective_scan_backward",
    )(*operands, starts_BcND, _pad(d_y_BTD, 1, TIME), d_last_BND)
    d_B, d_C = (
        jnp.sum(x, axis=0).swapaxes(1, 2)[:, :T].astype(like.dtype)
        for x, like in ((d_B, B_BTN), (d_C, C_BTN))
    )
    return d_u[:, :T], d_delta[:, :T], jnp.sum(d_A_BND, axis=0), d_B, d_C, d_state_BND


def _forward_kernel(u_ref, delta_ref, A_ref, B_ref, C_ref, skip_ref, *refs, segmented, save):
    keep_ref, refs = (refs[0], refs[1:]) if segmented else (None, refs)
    state_ref, y_ref, last_ref = refs[:3]
    h_ref, sums_ref, delta_rows, delta_u_rows, y_rows = refs[-5:]

    @pl.when(pl.program_id(2) == 0)
    def _start():
        h_ref[...] = state_ref[0]

    delta_rows[...] = delta_ref[0].astype(jnp.float32)
    delta_u_rows[...] = delta_rows[...] * u_ref[0].astype(jnp.float32)

    def chunk(c, h_Nd):
        if save:
            refs[3][0, c] = h_Nd

        def group(g, h_Nd):
            first = c * CHUNK + g * GROUP
            B_Nt, C_Nt, keep_Nt = (_turned(ref, first) for ref in (B_ref, C_ref, keep_ref))
            for j in range(GROUP):
                at = pl.ds(first + j, 1)
                kept_Nd = _decay(delta_rows[at], A_ref, keep_Nt, j) * h_Nd
                h_Nd = kept_Nd + B_Nt[:, j : j + 1] * delta_u_rows[at]
                _put(sums_ref, j, h_Nd * C_Nt[:, j : j + 1])
            y_rows[pl.ds(first, GROUP)] = _sums(sums_ref)
            return h_Nd

        return jax.lax.fori_loop(0, CHUNK // GROUP, group, h_Nd)

    h_Nd = jax.lax.fori_loop(0, CHUNKS, chunk, h_ref[...])
    h_ref[...] = h_Nd
    last_ref[0] = h_Nd
    y_ref[0] = (y_rows[...] + skip_ref[...] * u_ref[0].astype(jnp.float32)).astype(y_ref.dtype)


def _backward_kernel(u_ref, delta_ref, A_ref, B_ref, C_ref, skip_ref, *refs, segmented):
    keep_ref, refs = (refs[0], refs[1:]) if segmented else (None, refs)
    starts_ref, d_y_ref, d_last_ref, d_u_ref, d_delta_ref, d_B_ref, d_C_ref, d_A_ref, d_state_ref = refs[:9]
    kept_ref, d_h_ref, sums_ref, A_sums_ref, *rows = refs[9:]
    delta_rows, delta_u_rows, d_y_rows, d_delta_u_rows, by_A_rows = rows
    N = A_ref.shape[0]

    @pl.when(pl.program_id(2) == 0)
    def _start():
        d_h_ref[...] = d_last_ref[0]
        d_A_ref[0] = jnp.zeros(d_A_ref.shape[1:], jnp.float32)

    delta_rows[...], d_y_rows[...] = delta_ref[0].astype(jnp.float32), d_y_ref[0].astype(jnp.float32)
    delta_u_rows[...] = delta_rows[...] * u_ref[0].astype(jnp.float32)
    lanes = jax.lax.broadcasted_iota(jnp.int32, (N, TIME), 1)
    groups = CHUNK // GROUP

    def chunk(i, carry):
        c = CHUNKS - 1 - i

        def again(g, h_Nd):
            first = c * CHUNK + g * GROUP
            B_Nt, keep_Nt = _turned(B_ref, first), _turned(keep_ref, first)
            for j in range(GROUP):
                at = pl.ds(first + j, 1)
                kept_Nd = _decay(delta_rows[at], A_ref, keep_Nt, j) * h_Nd
                kept_ref[g * GROUP + j] = kept_Nd
                h_Nd = kept_Nd + B_Nt[:, j : j + 1] * delta_u_rows[at]
            return h_Nd

        jax.lax.fori_loop(0, groups, again, starts_ref[0, c])

        def group(k, carry):
            d_h_Nd, d_B_Nt, d_C_Nt = carry
            g = groups - 1 - k
            first = c * CHUNK + g * GROUP
            B_Nt, C_Nt, keep_Nt = (_turned(ref, first) for ref in (B_ref, C_ref, keep_ref))
            for j in reversed(range(GROUP)):
                at, here = pl.ds(first + j, 1), lanes == first + j
                kept_Nd, B_N1 = kept_ref[g * GROUP + j], B_Nt[:, j : j + 1]
                h_Nd = kept_Nd + B_N1 * delta_u_rows[at]
                d_h_Nd = d_h_Nd + C_Nt[:, j : j + 1] * d_y_rows[at]
                d_C_N1 = jnp.sum(h_Nd * d_y_rows[at], axis=1, keepdims=True)
                d_B_N1 = jnp.sum(d_h_Nd * delta_u_rows[at], axis=1, keepdims=True)
                d_B_Nt, d_C_Nt = jnp.where(here, d_B_N1, d_B_Nt), jnp.where(here, d_C_N1, d_C_Nt)
                _put(sums_ref, j, d_h_Nd * B_N1)
                d_exponent_Nd = d_h_Nd * kept_Nd
                _put(A_sums_ref, j, d_exponent_Nd * A_ref[...])
                d_A_ref[0] += d_exponent_Nd * delta_rows[at]
                d_h_Nd = _decay(delta_rows[at], A_ref, keep_Nt, j) * d_h_Nd
            d_delta_u_rows[pl.ds(first, GROUP)] = _sums(sums_ref)
            by_A_rows[pl.ds(first, GROUP)] = _sums(A_sums_ref)
            return d_h_Nd, d_B_Nt, d_C_Nt

        return jax.lax.fori_loop(0, groups, group, carry)

    nothing = jnp.zeros((N, TIME), jnp.float32)
    d_h_Nd, d_B_Nt, d_C_Nt = jax.lax.fori_loop(0, CHUNKS, chunk, (d_h_ref[...], nothing, nothing))
    d_h_ref[...] = d_h_Nd
    d_state_ref[0] = d_h_Nd
    d_B_ref[0, 0], d_C_ref[0, 0] = d_B_Nt, d_C_Nt
    d_delta_td = by_A_rows[...] * math.log(2) + d_delta_u_rows[...] * u_ref[0].astype(jnp.float32)
    d_delta_ref[0] = d_delta_td.astype(d_delta_ref.dtype)
    d_u_td = d_delta_u_rows[...] * delta_rows[...] + d_y_rows[...] * skip_ref[...]
    d_u_ref[0] = d_u_td.astype(d_u_ref.dtype)


def _turned(ref, first):
    """Return [N, TIME] of B, C or the factors, rotated so that column 0 is position `first`."""
    return None if ref is None else pltpu.roll(ref[0], (TIME - first) % TIME, 1)


def _decay(delta_1d, A_ref, keep_Nt, j):
    """Return exp(delta A) of position j of a group, 0 where a document starts."""
    decay_Nd = jnp.exp2(delta_1d * A_ref[...])
    return decay_Nd if keep_Nt is None else decay_Nd * keep_Nt[:, j : j + 1]


def _put(sums_ref, j, x_Nd):
    """Leave position j's terms of a sum over states, added up to one tile of 8 sublanes."""
    tile = sum(x_Nd[i : i + 8] for i in range(0, x_Nd.shape[0], 8))
    for i in range(tile.shape[1] // LANES):
        start = (i * GROUP + j) * 8
        sums_ref[start : start + 8] = tile[:, i * LANES : (i + 1) * LANES]


def _sums(sums_ref):
    """Return the sums over states of a group's positions [8, channels]: strided loads, no rotations."""
    tiles = [
        sum(sums_ref[pl.ds(start + sublane, GROUP, stride=8)] for sublane in range(8))
        for start in range(0, sums_ref.shape[0], GROUP * 8)
    ]
    return jnp.concatenate(tiles, axis=1)


def _operands(u_BTD, delta_BTD, A_ND, B_BTN, C_BTN, skip_D, keep_BT, channels, reverse=False):
    """Return (arrays, specs) that both kernels take first, in whole blocks of time."""
    N = A_ND.shape[0]
    steps = pl.cdiv(u_BTD.shape[1], TIME)

    def when(t):
        return steps - 1 - t if reverse else t

    wide = pl.BlockSpec((1, TIME, channels), lambda b, d, t: (b, when(t), d))
    narrow = pl.BlockSpec((1, N, TIME), lambda b, d, t: (b, 0, when(t)))
    of_A = pl.BlockSpec((N, channels), lambda b, d, t: (0, d))
    of_skip = pl.BlockSpec((1, channels), lambda b, d, t: (0, d))
    u, delta, B, C = (_pad(x, 1, TIME) for x in (u_BTD, delta_BTD, B_BTN, C_BTN))
    B, C = (x.astype(jnp.float32).swapaxes(1, 2) for x in (B, C))
    arrays = [u, delta, A_ND * math.log2(math.e), B, C, skip_D[None]]
    specs = [wide, wide, of_A, narrow, narrow, of_skip]
    if keep_BT is not None:
        arrays.append(jnp.broadcast_to(_pad(keep_BT, 1, TIME, 1)[:, None], B.shape))
        specs.append(narrow)
    return arrays, specs


def _pad(x, axis, multiple, filler=0):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=filler)


def _channels(D, most):
    return next(size for size in (256, 128) if size <= most and D % size == 0)


def _sums_scratch(channels):
    return pltpu.VMEM((channels // LANES * GROUP * 8, LANES), jnp.float32)


def _cost(operands, N, exponentials, flops):
    u = operands[0]
    return pl.CostEstimate(
        flops=flops * u.size * N,
        transcendentals=exponentials * u.size * N,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in operands) * (exponentials + 1),
    )
