"""The calls whose compiled kernels are accounted for in kernels/README.md."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxllm_kernels.adamw_update import adamw_update
from jaxllm_kernels.attention import attention
from jaxllm_kernels.hadamard_rotate import hadamard_rotate
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy
from jaxllm_kernels.selective_scan import selective_scan


@dataclass(frozen=True)
class Case:
    """A function, its arguments as (shape, dtype), and the least bytes it can move."""

    name: str
    function: Callable
    arguments: tuple
    floor: int
    donate: tuple[int, ...] = ()


def _adamw(w, m, v, g, seed, step, **rounding):
    return adamw_update(w, m, v, g, learning_rate=1e-3, weight_decay=0.1, step=step, seed=seed, **rounding)


def _adamw_cases():
    shape = (50257, 768)
    arrays = ((shape, "bfloat16"),) * 4 + (((2,), "uint32"), ((), "int32"))
    moments = dict(round_weights=True, round_moments=True)
    for name, rounding in {
        "nearest": {},
        "weights stochastic": dict(round_weights=True),
        "all stochastic": moments,
        "all stochastic, threefry": dict(**moments, generator="threefry"),
    }.items():
        step = functools.partial(_adamw, **rounding)
        yield Case(f"adamw_update, {name}", step, arrays, 14 * shape[0] * shape[1], (0, 1, 2))


def _hadamard_cases():
    rows, columns = 8192, 1024
    for dtype, block_size in (("bfloat16", 128), ("bfloat16", 1024), ("float32", 128), ("float32", 512)):

        def rotate(x, signs, block_size=block_size):
            return hadamard_rotate(x, signs=signs, block_size=block_size)

        yield Case(
            f"hadamard_rotate, {dtype}, blocks of {block_size}",
            rotate,
            (((rows, columns), dtype), ((columns,), "float32")),
            2 * rows * columns * jnp.dtype(dtype).itemsize,
        )


def _attention_cases():
    for B, T, H, K in ((8, 1024, 12, 64), (4, 2048, 16, 128)):
        one = B * T * H * K * 2
        arrays = (((B, T, H, K), "bfloat16"),) * 3
        forward = functools.partial(attention, causal=True)

        def backward(q, k, v, d_out):
            return jax.vjp(functools.partial(attention, causal=True), q, k, v)[1](d_out)

        title = f"attention, B={B} T={T} H={H} K={K}, causal"
        yield Case(f"{title}, forward", forward, arrays, 4 * one)
        yield Case(f"{title}, gradients", backward, (*arrays, arrays[0]), 7 * one)


def _cross_entropy_cases():
    N, D, V = 4096, 768, 50257
    arrays = (((1, N, D), "bfloat16"), ((V, D), "bfloat16"), ((1, N), "int32"))
    sizes = (N * D + V * D) * 2

    def loss(hidden, weights, labels):
        return linear_cross_entropy(hidden, weights, labels, vocab_axis=0).total

    title = f"linear_cross_entropy, N={N} D={D} V={V}"
    yield Case(f"{title}, loss", loss, arrays, sizes)
    yield Case(f"{title}, gradients", jax.grad(loss, argnums=(0, 1)), arrays, 2 * sizes)


def _selective_scan_cases():
    B, T, D, N = 4, 1024, 1536, 16
    wide, narrow, of_A = ((B, T, D), "bfloat16"), ((B, T, N), "bfloat16"), ((D, N), "float32")
    arrays = wide, wide, of_A, narrow, narrow
    sizes = [2 * B * T * D, 2 * B * T * N, 4 * D * N]

    def forward(*arrays):
        return selective_scan(*arrays)[0]

    def gradients(*arrays_and_d_y):
        *arrays, d_y = arrays_and_d_y
        return jax.vjp(forward, *arrays)[1](d_y)

    title = f"selective_scan, B={B} T={T} D={D} N={N}"
    yield Case(f"{title}, forward", forward, arrays, 3 * sizes[0] + 2 * sizes[1] + sizes[2])
    yield Case(f"{title}, gradients", gradients, (*arrays, wide), 5 * sizes[0] + 4 * sizes[1] + 2 * sizes[2])


CASES = (
    *_attention_cases(), *_cross_entropy_cases(), *_adamw_cases(), *_hadamard_cases(),
    *_selective_scan_cases(),
)  # fmt: skip
