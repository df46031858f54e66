"""The selective scan's TPU kernels: equal to plain XLA when interpreted, and compiled for TPUs."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from jaxllm_kernels.selective_scan import pallas_tpu, selective_scan, xla

from jaxllm import targets
from tests.kernels.selective_scan_cases import NAMES, draw, draw_ids

TPUS = ["v5e-1", "v6e-1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype", "packed"),
    [((2, 130, 128, 8), "float32", True), ((1, 40, 256, 16), "bfloat16", False)],
)
def test_interpreted_kernels_equal_xla(shape, dtype, packed):
    """Two blocks of time, two of channels; a length that no block divides."""
    arrays = draw(*shape, dtype)
    keep_BT = None
    if packed:
        ids = draw_ids(*shape[:2])
        keep_BT = jnp.ones(shape[:2]).at[:, 1:].set(ids[:, 1:] == ids[:, :-1])
    u, delta, A, B, C, skip, state = (arrays[name] for name in NAMES)
    inputs, state_BND = (u, delta, A.T, B, C, skip), state.swapaxes(1, 2)
    tolerance = 3e-6 if dtype == "float32" else 2.0**-8
    forward = jax.jit(functools.partial(pallas_tpu.forward, save=True, interpret=True))
    ours = forward(*inputs, state_BND, keep_BT)
    theirs = jax.jit(functools.partial(xla.forward, save=True))(*inputs, state_BND, keep_BT)
    d_y = jnp.asarray(np.random.default_rng(1).normal(size=u.shape), dtype)
    saved = *inputs, keep_BT, theirs[2], d_y, jnp.cos(state_BND)
    ours += jax.jit(functools.partial(pallas_tpu.backward, interpret=True))(*saved)
    theirs += jax.jit(xla.backward)(*saved)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), i


def test_a_kernel_asked_for_by_name_says_why_it_cannot():
    arrays = draw(1, 7, 5, 3)
    five = (arrays[name] for name in NAMES[:5])
    with pytest.raises(ValueError, match="multiples of 128 channels and of 8 states up to 64, not 5 and 3"):
        selective_scan(*five, implementation="pallas_tpu")


def gradients(u, delta, A, B, C):
    def loss(*arrays):
        y, state = selective_scan(*arrays)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))) + jnp.sum(state)

    return jax.grad(loss, argnums=tuple(range(5)))(u, delta, A, B, C)


def compiled(target, B, T, D, N, dtype):
    """Compile the gradients of Mamba-130M's scan, or another's, for a machine that is not here."""
    if not targets.is_available(target):
        pytest.skip(f"the compiler for {target} is not installed")
    sharding = SingleDeviceSharding(targets.devices(target)[0])
    wide, narrow = ((B, T, D), dtype), ((B, T, N), dtype)
    arguments = [wide, wide, ((D, N), "float32"), narrow, narrow]
    arguments = [jax.ShapeDtypeStruct(s, d, sharding=sharding) for s, d in arguments]
    options = targets.compiler_options(target) or None
    return jax.jit(gradients).lower(*arguments).compile(compiler_options=options)


@pytest.mark.targets
@pytest.mark.parametrize(  # Mamba-130M's on the others: by the spills, below
    ("target", "shape"),
    [("v5p-8", (4, 1024, 1536, 16, "bfloat16")), *((name, (1, 300, 128, 64, "float32")) for name in TPUS)],
    ids=str,
)
def test_a_tpu_gets_both_kernels_and_they_fit(target, shape):
    text = compiled(target, *shape).as_text()
    assert "selective_scan_forward" in text and "selective_scan_backward" in text


@pytest.mark.targets
@pytest.mark.parametrize("target", ["v5e-1", "h100"])
def test_other_shapes_get_xla_which_compiles(target):
    assert "selective_scan_forward" not in compiled(target, 2, 100, 96, 16, "bfloat16").as_text()


@pytest.mark.targets
@pytest.mark.parametrize("target", TPUS)
def test_no_vector_register_spills_on_a_tpu(target, tmp_path):
    """By the bundles that the compiler writes out, in a process of its own: libtpu reads flags once."""
    if not targets.is_available(target):
        pytest.skip(f"the compiler for {target} is not installed")
    flags = f"--xla_jf_dump_to={tmp_path} --xla_jf_dump_llo_text=true"
    program = f"from {__name__} import compiled\n" + "".join(
        f"compiled({target!r}, 4, 1024, 1536, 16, {dtype!r})\n" for dtype in ("float32", "bfloat16")
    )
    environment = os.environ | {"LIBTPU_INIT_ARGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=280)
    for kernel in ("forward", "backward"):
        paths = list(tmp_path.glob(f"*selective_scan_{kernel}*[0-9]-final_bundles.txt"))
        assert len(paths) == 2, paths
        for path in paths:
            bundles = path.read_text()
            assert "vpow2" in bundles  # the file is what it is taken for
            assert not re.search(r"vst \[vmem:\[#allocation\d+_spill", bundles), path.name
