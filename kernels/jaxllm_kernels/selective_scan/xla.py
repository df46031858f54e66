"""Selective scan in plain XLA operations: a loop over time that holds one state of each row.

Only the states at the starts of chunks are saved. The backward pass takes chunks from the last to the
first: it runs one forward again, keeping its states, then backward. So the states of one chunk are all
that it holds, and both passes compute each exponential in the loop over the state that it decays.

States lie [N, D], channels last: vectors and lanes are full whatever N is. The suffixes of one step:
B rows, N states a channel, D channels; c counts chunks and t positions in one.
"""

import jax
import jax.numpy as jnp

from jaxllm_kernels.compat import varying_like

CHUNK = 32  # positions between saved states


def forward(u_BTD, delta_BTD, A_ND, B_BTN, C_BTN, skip_D, state_BND, keep_BT, *, save):
    """Return (y [B, T, D], last state [B, N, D], states before each chunk [B, c, N, D] if saved or None).

    Args:
      u_BTD, delta_BTD, B_BTN, C_BTN: any float.
      A_ND, skip_D, state_BND: of the type to compute in.
      keep_BT: factor of the state before each position, 0 or 1; None: 1.
    """
    wide = A_ND.dtype

    def chunk(h_BND, xs):
        def step(h_BND, x):
            u_BD, delta_BD, B_BN, C_BN, keep_B = (None if v is None else v.astype(wide) for v in x)
            h_BND = _decay(delta_BD, A_ND, keep_B) * h_BND + _outer(B_BN, delta_BD * u_BD)
            y_BD = jnp.sum(h_BND * C_BN[:, :, None], axis=1) + skip_D[None] * u_BD
            return h_BND, y_BD.astype(u_BTD.dtype)

        last_BND, y_tBD = jax.lax.scan(step, h_BND, xs)
        return last_BND, (y_tBD, h_BND)

    T = u_BTD.shape[1]
    xs = [_chunks(x) for x in (u_BTD, delta_BTD, B_BTN, C_BTN)] + [_chunks(keep_BT, filler=1)]
    state_BND = varying_like(state_BND, u_BTD)
    last_BND, (y_ctBD, starts_cBND) = jax.lax.scan(chunk, state_BND, tuple(xs))
    return _by_row(y_ctBD, T), last_BND, jnp.moveaxis(starts_cBND, 0, 1) if save else None


def backward(
    u_BTD, delta_BTD, A_ND, B_BTN, C_BTN, skip_D, keep_BT, starts_BcND, d_y_BTD, d_last_BND
):  # fmt: skip
    """Return the cotangents (u, delta, A [N, D], B, C, state), of `forward`'s (y, last state).

    Those of u, delta, B and C have their types; B's and C's are sums over D, A's over B and T.
    """
    wide, kinds = A_ND.dtype, [x.dtype for x in (u_BTD, delta_BTD, B_BTN, C_BTN)]

    def chunk(carry, xs):
        *inputs, d_y_tBD, start_BND = xs

        def again(h_BND, x):
            u_BD, delta_BD, B_BN, _, keep_B = (None if v is None else v.astype(wide) for v in x)
            kept_BND = _decay(delta_BD, A_ND, keep_B) * h_BND
            return kept_BND + _outer(B_BN, delta_BD * u_BD), kept_BND

        def step(carry, x):
            d_h_BND, d_A_BND = carry
            x, d_y_BD, kept_BND = x
            u_BD, delta_BD, B_BN, C_BN, keep_B = (None if v is None else v.astype(wide) for v in x)
            d_y_BD = d_y_BD.astype(wide)
            delta_u_BD = delta_BD * u_BD
            h_BND = kept_BND + _outer(B_BN, delta_u_BD)
            d_h_BND = d_h_BND + _outer(C_BN, d_y_BD)
            d_C_BN = jnp.einsum("bnd,bd->bn", h_BND, d_y_BD)
            d_B_BN = jnp.einsum("bnd,bd->bn", d_h_BND, delta_u_BD)
            d_delta_u_BD = jnp.sum(d_h_BND * B_BN[:, :, None], axis=1)
            d_exponent_BND = d_h_BND * kept_BND  # of exp(delta A)
            d_delta_BD = jnp.sum(d_exponent_BND * A_ND[None], axis=1) + d_delta_u_BD * u_BD
            d_u_BD = d_delta_u_BD * delta_BD + d_y_BD * skip_D[None]
            d_A_BND = d_A_BND + d_exponent_BND * delta_BD[:, None]
            found = d_u_BD, d_delta_BD, d_B_BN, d_C_BN
            found = tuple(x.astype(kind) for x, kind in zip(found, kinds, strict=True))
            return (_decay(delta_BD, A_ND, keep_B) * d_h_BND, d_A_BND), found

        _, kept_tBND = jax.lax.scan(again, start_BND, tuple(inputs))
        return jax.lax.scan(step, carry, (tuple(inputs), d_y_tBD, kept_tBND), reverse=True)

    T = u_BTD.shape[1]
    xs = [_chunks(x) for x in (u_BTD, delta_BTD, B_BTN, C_BTN)] + [_chunks(keep_BT, filler=1)]
    xs += [_chunks(d_y_BTD), jnp.moveaxis(starts_BcND, 1, 0)]
    carry = tuple(varying_like(x, u_BTD) for x in (d_last_BND, jnp.zeros(d_last_BND.shape, wide)))
    (d_state_BND, d_A_BND), found = jax.lax.scan(chunk, carry, tuple(xs), reverse=True)
    d_u, d_delta, d_B, d_C = (_by_row(x, T) for x in found)
    return d_u, d_delta, jnp.sum(d_A_BND, axis=0), d_B, d_C, d_state_BND


def _decay(delta_BD, A_ND, keep_B):
    decay_BND = jnp.exp(delta_BD[:, None] * A_ND[None])
    return decay_BND if keep_B is None else decay_BND * keep_B[:, None, None]


def _outer(x_BN, x_BD):
    return x_BN[:, :, None] * x_BD[:, None]


def _chunks(x_BT, filler=0):
    """Return [c, t, B, ...]; with `filler` after the last position, delta 0 leaves the state alone."""
    if x_BT is None:
        return None
    B, T = x_BT.shape[:2]
    size = min(CHUNK, T)
    widths = [(0, 0), (0, -T % size)] + [(0, 0)] * (x_BT.ndim - 2)
    x_TB = jnp.moveaxis(jnp.pad(x_BT, widths, constant_values=filler), 1, 0)
    return x_TB.reshape(-1, size, *x_TB.shape[1:])


def _by_row(x_ctB, T):
    """Undo `_chunks`."""
    return jnp.moveaxis(x_ctB.reshape(-1, *x_ctB.shape[2:]), 0, 1)[:, :T]
