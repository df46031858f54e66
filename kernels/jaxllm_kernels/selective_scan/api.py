"""Mamba's selective scan, forward and backward, and one step of it for cached decoding."""

import functools

import jax
import jax.numpy as jnp

from jaxllm_kernels.compat import varying_like
from jaxllm_kernels.dispatch import dispatch
from jaxllm_kernels.dtypes import widened
from jaxllm_kernels.selective_scan import xla

IMPLEMENTATIONS = ("xla", "pallas_tpu")


def selective_scan(
    u_BTD: jax.Array,
    delta_BTD: jax.Array,
    A_DN: jax.Array,
    B_BTN: jax.Array,
    C_BTN: jax.Array,
    *,
    skip_D: jax.Array | None = None,
    state_BDN: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return (y [B, T, D] in u's type, the state after the last position [B, D, N]).

        h_t = exp(delta_t A) h_(t-1) + delta_t u_t B_t        y_t = C_t . h_t + skip u_t

    Equations 2 and 3 of Mamba (arXiv 2312.00752), B discretised as its code does, by delta B. B, T:
    rows and positions; D channels, N states a channel. Neither pass holds [B, T, D, N]: states are
    saved once in 32 positions, and the backward pass computes the others again. States and
    arithmetic are float32 (float64 where u is). Differentiable once, in everything but the ids.

    A Mamba block brings delta = softplus(projection + bias) and A = -exp(A_log), and multiplies y by
    silu(gate): elementwise work, which the compiler fuses with the projections around it.

    Padding, left or right: where delta is 0 the state stays as it is, whatever u, B and C are. So
    `delta * mask` decodes on from the last real position.

    On a mesh call it inside `jax.shard_map`, rows and channels split (u, delta: batch and mlp; A, skip,
    state: mlp; B, C: batch): no device needs another's part, and the gradients of B and C are summed over
    the channels' axis once. Left to itself the compiler sums them in each step of the loop.

    Args:
      u_BTD: [B, T, D], the convolution's output; float32 or bfloat16, as delta, B and C are, each by itself.
      delta_BTD: [B, T, D], the step sizes, at least 0.
      A_DN: [D, N], negative.
      B_BTN, C_BTN: [B, T, N].
      skip_D: [D]; None: no skip.
      state_BDN: [B, D, N] before the first position; None: zeros.
      segment_ids_BT: int [B, T], of packed documents: the state starts from zero where an id differs from
        the one to its left. The first position goes on from `state_BDN`.
      implementation: "xla", "pallas_tpu" (channels in multiples of 128, states of 8, up to 64), or None for
        the best one that can run this on the platform the program is lowered for.

    Raises:
      ValueError: shapes or types that do not fit, an implementation that cannot run this.

    Examples:
      >>> one = jnp.ones((1, 3, 1))
      >>> y, state = selective_scan(one, one, -one[0, :1], one, one)
      >>> print(y.round(3).ravel())  # 1, 1 + 1/e, 1 + 1/e + 1/e^2
      [1.    1.368 1.503]
      >>> y, state = selective_step(one[:, 0], one[:, 0], -one[0, :1], one[:, 0], one[:, 0], state)
      >>> print(f"{y.item():.3f}")
      1.553
    """
    _check((u_BTD, delta_BTD, A_DN, B_BTN, C_BTN, skip_D, state_BDN), segment_ids_BT, "BT")
    (B, T, D), N, wide = u_BTD.shape, A_DN.shape[1], widened(u_BTD.dtype)
    skip_D = jnp.zeros(D, wide) if skip_D is None else skip_D.astype(wide)
    state_BND = jnp.zeros((B, N, D), wide) if state_BDN is None else state_BDN.astype(wide).swapaxes(1, 2)
    keep_BT = None
    if segment_ids_BT is not None:
        same = segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]
        keep_BT = jnp.pad(same, ((0, 0), (1, 0)), constant_values=True).astype(wide)
    if 0 in (B, T, D, N):
        return u_BTD * skip_D.astype(u_BTD.dtype)[None, None], state_BND.swapaxes(1, 2)
    arrays = u_BTD, delta_BTD, A_DN.astype(wide).T, B_BTN, C_BTN, skip_D, state_BND, keep_BT
    # Here and not in the rules: the transpose of this cast sums gradients over the mesh axes of shard_map.
    arrays = [None if x is None else varying_like(x, *(a for a in arrays if a is not None)) for x in arrays]
    y_BTD, last_BND = _scan(*arrays, implementation)
    return y_BTD, last_BND.swapaxes(1, 2)


def selective_step(
    u_BD: jax.Array,
    delta_BD: jax.Array,
    A_DN: jax.Array,
    B_BN: jax.Array,
    C_BN: jax.Array,
    state_BDN: jax.Array,
    *,
    skip_D: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return (y [B, D], the next state [B, D, N]): one position of `selective_scan`, for decoding.

    Args:
      u_BD, delta_BD: [B, D]; B_BN, C_BN: [B, N]; others as in `selective_scan`.

    Raises:
      ValueError: shapes or types that do not fit.
    """
    _check((u_BD, delta_BD, A_DN, B_BN, C_BN, skip_D, state_BDN), None, "B")
    wide = widened(u_BD.dtype)
    u, delta, A, B, C, state = (x.astype(wide) for x in (u_BD, delta_BD, A_DN, B_BN, C_BN, state_BDN))
    state = jnp.exp(delta[..., None] * A[None]) * state + (delta * u)[..., None] * B[:, None]
    y = jnp.sum(state * C[:, None], axis=-1)
    if skip_D is not None:
        y = y + skip_D.astype(wide)[None] * u
    return y.astype(u_BD.dtype), state


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _scan(u, delta, A_ND, B, C, skip, state_BND, keep_BT, implementation):
    arrays = u, delta, A_ND, B, C, skip, state_BND, keep_BT
    return _dispatch("forward", implementation, arrays, save=False)[:2]


def _forward(u, delta, A_ND, B, C, skip, state_BND, keep_BT, implementation):
    arrays = u, delta, A_ND, B, C, skip, state_BND, keep_BT
    y, last_BND, starts = _dispatch("forward", implementation, arrays, save=True)
    return (y, last_BND), (u, delta, A_ND, B, C, skip, keep_BT, starts)


def _backward(implementation, saved, cotangents):
    u, *_, keep_BT, _ = saved
    d_y, d_last_BND = cotangents
    d_u, d_delta, d_A_ND, d_B, d_C, d_state_BND = _dispatch(
        "backward", implementation, (*saved, d_y, d_last_BND)
    )
    d_skip = jnp.einsum("btd,btd->d", d_y, u, preferred_element_type=d_A_ND.dtype)
    d_keep_BT = None if keep_BT is None else jnp.zeros_like(keep_BT)
    return d_u, d_delta, d_A_ND, d_B, d_C, d_skip, d_state_BND, d_keep_BT


_scan.defvjp(_forward, _backward)


def _dispatch(rule, implementation, arrays, **options):
    from jaxllm_kernels.selective_scan import pallas_tpu  # here: Pallas is slow to import

    modules = {"xla": xla, "pallas_tpu": pallas_tpu}
    candidates = {name: functools.partial(getattr(m, rule), **options) for name, m in modules.items()}
    cannot = {"pallas_tpu": pallas_tpu.cannot(arrays[0], arrays[2])}
    if implementation is None:
        # Without a warning: a shape that the kernel does not take is nothing the caller got wrong.
        candidates = {name: f for name, f in candidates.items() if not cannot.get(name)}
    return dispatch("selective_scan", implementation, candidates, cannot, *arrays)


def _check(arrays, segment_ids_BT, leading):
    """Raise unless u, delta, A, B, C, skip, state and the ids fit together."""
    names = ("u", "delta", "A", "B", "C", "skip", "state")
    u, A = arrays[0], arrays[2]
    if u.ndim != len(leading) + 1 or A.ndim != 2:
        raise ValueError(
            f"u has shape {u.shape} and A {A.shape}; expected [{', '.join(leading)}, D] and [D, N]"
        )
    rows, D, N = u.shape[:-1], u.shape[-1], A.shape[1]
    expected = ((*rows, D), (*rows, D), (D, N), (*rows, N), (*rows, N), (D,), (rows[0], D, N))
    for name, x, shape in zip(names, arrays, expected, strict=True):
        if x is None:
            continue
        if x.shape != shape:
            raise ValueError(f"{name} has shape {x.shape}; u {u.shape} and A {A.shape} need {shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} is {x.dtype}; expected a float")
    if segment_ids_BT is not None and segment_ids_BT.shape != rows:
        raise ValueError(f"segment_ids have shape {segment_ids_BT.shape}; u {u.shape} needs {rows}")
