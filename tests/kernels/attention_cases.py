"""Calls of attention that stand for the rest where kernels are compiled and their figures listed."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxllm_kernels.attention import attention


class Case(NamedTuple):
    name: str
    run: Callable  # forward and backward pass, a function of arrays alone
    shapes: tuple  # jax.ShapeDtypeStruct of each array


def cases() -> list[Case]:
    """Return the cases: each head dimension, with and without sinks, windows, documents and groups."""
    return [
        _case("GPT-2: 64 channels", B=8, T=1024, H=12, G=12, K=64),
        _case("GPT-2, softmax-1", B=8, T=1024, H=12, G=12, K=64, sink=0.0),
        _case("80 channels, documents, window", B=1, T=1000, H=8, G=2, K=80, window=300, documents=True),
        _case("96 channels, learned sink", B=1, T=777, H=4, G=4, K=96, learned_sink=True),
        _case("Llama: 128 channels, groups of 4", B=1, T=4096, H=8, G=2, K=128),
        _case("256 channels, window", B=1, T=1000, H=2, G=1, K=256, window=128),
    ]


def _case(
    name, B, T, H, G, K, window=None, documents=False, sink=None, learned_sink=False, dtype=jnp.bfloat16
) -> Case:
    query = jax.ShapeDtypeStruct((B, T, H, K), dtype)
    key = jax.ShapeDtypeStruct((B, T, G, K), dtype)
    shapes = [query, key, key, query]
    if learned_sink:
        shapes.append(jax.ShapeDtypeStruct((H,), jnp.float32))
    if documents:
        shapes.append(jax.ShapeDtypeStruct((B, T), jnp.int32))

    def run(query, key, value, d_out, *more):
        given = list(more)
        logits = given.pop(0) if learned_sink else sink
        ids = given.pop(0) if documents else None
        of_qkv = functools.partial(attention, window=window, segment_ids_BT=ids)
        if learned_sink:
            out, pull = jax.vjp(lambda q, k, v, s: of_qkv(q, k, v, sink=s), query, key, value, logits)
        else:
            out, pull = jax.vjp(functools.partial(of_qkv, sink=logits), query, key, value)
        return out, pull(d_out)

    return Case(name, run, tuple(shapes))
