"""What the tests of `rotate` compare with: a small tree, its matrices in float64, and steps of a chain."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxllm_kernels.adamw_update import fold_in
from jaxllm_kernels.hadamard_rotate import random_signs
from jaxllm_kernels.hadamard_rotate.reference import rotation_matrix

from jaxllm.optim import scale_by_ortho_adam
from jaxllm.optim.stochastic_round import seed_words

AXES = {"w": ("layers", "embed", "mlp"), "table": ("vocab", "embed"), "gain": ("embed",), "scale": ()}
SHAPES = {"w": (2, 20, 12), "table": (7, 20), "gain": (20,), "scale": ()}
STRATEGIES = {"hadamard": 8, "block": 8, "kronecker": None}  # to block sizes that do not divide 20 or 12


def tree(seed, dtype="float32"):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    drawn = zip(SHAPES.items(), keys, strict=True)
    return {name: jax.random.normal(key, shape).astype(dtype) for (name, shape), key in drawn}


def matrix(strategy, block_size, seed, path, axis, length):
    """The documented recipe in float64: Q of one axis, from (seed, path, axis) alone."""
    words = seed_words(seed)
    leaf = fold_in(words, jnp.uint32(zlib.crc32(path.encode())))
    signs = np.asarray(random_signs(fold_in(leaf, axis), length), np.float64)
    if strategy == "hadamard":
        return rotation_matrix(length, block_size, signs)
    M, start = np.zeros((length, length)), 0
    while start < length:
        size = min(block_size or 4096, length - start)
        key = jax.random.wrap_key_data(fold_in(words, size), impl="threefry2x32")
        gaussian = np.asarray(jax.random.normal(key, (size, size)), np.float64)
        M[start : start + size, start : start + size] = np.linalg.qr(gaussian)[0]
        start += size
    return M * signs


def dense(strategy, block_size, name, seed=0):
    """Q of a whole parameter in `SHAPES`: the Kronecker product over its axes, 1 where it is kept."""
    Q = np.eye(1)
    for axis, (kind, length) in enumerate(zip(AXES[name], SHAPES[name], strict=True)):
        kept = kind in ("layers", "vocab")
        path = f"['{name}']"
        one = np.eye(length) if kept else matrix(strategy, block_size, seed, path, axis, length)
        Q = np.kron(Q, one)
    return Q


def run(optimizer, params, steps, gradient=None, state=None, start=0):
    """Take some jitted steps; gradient(t, params) defaults to noise that depends on t alone."""
    state = jax.jit(optimizer.init)(params) if state is None else state

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for t in range(start, start + steps):
        params, state = step(params, state, (gradient or (lambda t, p: tree(100 + t)))(t, params))
    return params, state


def assert_trees(a, b, **tolerance):
    compare = functools.partial(np.testing.assert_allclose, **tolerance) if tolerance else (
        np.testing.assert_array_equal)  # fmt: skip
    jax.tree.map(compare, a, b)


def adam(learning_rate=0.1):
    return optax.chain(optax.scale_by_adam(0.9, 0.95), optax.scale(-learning_rate))


def ortho_adam(learning_rate=0.1, axes=AXES, **options):
    return optax.chain(scale_by_ortho_adam(axes, **options), optax.scale(-learning_rate))
