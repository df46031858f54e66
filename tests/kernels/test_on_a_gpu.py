"""The kernels as a real GPU runs them, against float64.

    JAX_PLATFORMS=cuda python -m pytest -m gpu

The other tests interpret the kernels or only compile them. Nothing here runs where there is no GPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxllm_kernels.attention import attention, pallas_gpu
from jaxllm_kernels.hadamard_rotate import hadamard_rotate, random_signs

from tests.kernels import test_attention_pallas, test_hadamard_rotate
from tests.kernels import test_linear_cross_entropy_implementations as cross_entropy
from tests.kernels.attention_oracle import answer, assert_close, make_call

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU: JAX_PLATFORMS=cuda"),
]

# Largest difference, relative to the largest number of the float64 answer. Triton multiplies float32
# on tensor cores, which keep 10 bits of a factor.
TOLERANCE = {"float32": 3e-3, "bfloat16": 2e-2}
LONG = {
    "GPT-2": dict(B=2, T=1024, H=3, K=64),
    "GPT-2, softmax-1": dict(T=1024, H=3, K=64, sink=0),
    "80 channels, documents, window": dict(B=2, T=1000, H=4, G=2, K=80, window=300, segmented=True),
    "96 channels, learned sink": dict(T=777, H=2, K=96, sink="learned"),
    "128 channels, groups of 4": dict(T=2048, H=4, G=1, K=128),
    "256 channels, window": dict(T=1000, H=2, G=1, K=256, window=128),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", test_attention_pallas.CASES | LONG)
def test_attention_matches_float64(case, dtype):
    call = make_call(**(test_attention_pallas.CASES | LONG)[case])
    ours = test_attention_pallas.run(pallas_gpu, call, dtype)
    assert_close(ours, call, TOLERANCE[dtype])
    again = test_attention_pallas.run(pallas_gpu, call, dtype)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)  # a race would move the error


def test_the_chosen_attention_is_cudnn_and_matches_float64():
    call = make_call(B=2, T=256, H=4, K=64)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (call.query, call.key, call.value, call.d_out)]

    def both(query, key, value, d_out):
        out, pull = jax.vjp(attention, query, key, value)
        return out, *pull(d_out)

    program = jax.jit(both).lower(*arrays).compile()
    assert "cudnn" in program.as_text()
    expected = answer(call._replace(d_lse=np.zeros_like(call.d_lse)))
    wanted = expected.out, expected.d_query, expected.d_key, expected.d_value
    for ours, theirs in zip(program(*arrays), wanted, strict=True):
        assert np.abs(np.asarray(ours, np.float64) - theirs).max() <= 2e-2 * np.abs(theirs).max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", cross_entropy.OPTIONS, ids=str)
@pytest.mark.parametrize(("N", "D", "V"), [(133, 24, 517), (1000, 768, 5003)])
@pytest.mark.parametrize("vocab_axis", [0, 1])
def test_cross_entropy_matches_float64(N, D, V, vocab_axis, options, dtype):
    arrays = cross_entropy.inputs(N, D, V, vocab_axis=vocab_axis, dtype=dtype, limited=bool(options))
    arrays = (arrays[0] / D**0.5, *arrays[1:])
    expected = cross_entropy.in_float64(*arrays, vocab_axis=vocab_axis, **options)
    got = cross_entropy.run("pallas_gpu", arrays, vocab_axis=vocab_axis, **options)
    for name, a, b in zip(("total", "nll", "z", "d_hidden", "d_weights"), got, expected, strict=True):
        error = np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-3)
        assert error <= (TOLERANCE[dtype] if name.startswith("d_") else 1e-3), (name, error)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "block_size"), [*test_hadamard_rotate.KERNEL_SHAPES, ((3072, 768), 256)])
@pytest.mark.parametrize("inverse", [False, True])
def test_hadamard_matches_float64(shape, block_size, inverse, dtype):
    x, signs = test_hadamard_rotate.draw(shape, dtype), random_signs(test_hadamard_rotate.SEED, shape[-1])
    rotate = functools.partial(hadamard_rotate, block_size=block_size, signs=signs, inverse=inverse)
    wanted = test_hadamard_rotate.exact(x, block_size, signs, inverse)
    test_hadamard_rotate.assert_close(jax.jit(rotate)(x), wanted, dtype)
