"""adamw_update and hadamard_rotate in the TPU simulator, and compiled for TPU and GPU."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import SingleDeviceSharding
from jaxllm_kernels.adamw_update import adamw_update, random_words
from jaxllm_kernels.adamw_update import pallas_tpu as adamw_tpu
from jaxllm_kernels.adamw_update.arithmetic import scalars
from jaxllm_kernels.hadamard_rotate import hadamard_rotate, random_signs
from jaxllm_kernels.hadamard_rotate import pallas_tpu as hadamard_tpu
from jaxllm_kernels.hadamard_rotate.reference import rotation_matrix

from experiments.benchmarks.kernel_cases import CASES
from experiments.benchmarks.kernel_resources import measure
from jaxllm import targets

SEED = jnp.array([123, 456], jnp.uint32)
HYPER = dict(learning_rate=3e-3, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)
TPUS = ["v5e-1", "v5p-8", "v6e-1"]
GPUS = ["h100", "a100-80gb"]


def adamw_inputs(shape, dtype):
    keys = jax.random.split(jax.random.key(len(shape)), 4)
    w, m, v, g = (jax.random.normal(key, shape) for key in keys)
    return [x.astype(dtype) for x in (w, m, jnp.square(v), g)]


def adamw_kernel(arrays, words, interpret, **rounds):
    s = scalars(HYPER["learning_rate"], HYPER["b1"], HYPER["b2"], HYPER["eps"], HYPER["weight_decay"], 3)
    rounds = {"round_weights": words is not None, "round_moments": False} | rounds
    return adamw_tpu.adamw_update(*arrays, s, words, jnp.zeros(2, jnp.int32), **rounds, interpret=interpret)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(1, 1), (8, 128), (33, 130), (2, 16, 129), (300, 1100)])
def test_adamw_kernel_is_the_xla_loop(shape, dtype):
    arrays = adamw_inputs(shape, dtype)
    words = random_words(SEED, shape)
    for rounds in ({}, {"round_moments": True}):
        expected = jax.jit(functools.partial(adamw_update, **HYPER, step=3, round_weights=True, **rounds))(
            *arrays, random_bits=words
        )
        got = jax.jit(lambda *xs, r=rounds: adamw_kernel(xs[:-1], xs[-1], True, **r))(*arrays, words)
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.dtype == theirs.dtype
            ours, theirs = (np.asarray(x.astype(jnp.float32)) for x in (ours, theirs))
            # The same arithmetic; a fused multiply-add may tip one rounding in thousands.
            np.testing.assert_allclose(ours, theirs, rtol=2.0**-7 if dtype == "bfloat16" else 1e-6, atol=1e-7)
            assert np.mean(ours != theirs) < (0.01 if dtype == "bfloat16" else 1)


@pytest.fixture
def simulator():
    if not hasattr(pltpu, "InterpretParams"):
        pytest.skip("this jax has no TPU simulator")
    return pltpu.InterpretParams(
        detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan"
    )


def races_found():
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    return interpret_pallas_call.races.races_found


# Not several ragged blocks: jax 0.10's simulator returns aliased outputs with their padding.
@pytest.mark.parametrize("shape", [(33, 130), (256, 2048)])
def test_adamw_kernel_in_the_simulator(shape, simulator):
    arrays = adamw_inputs(shape, "bfloat16")
    words = random_words(SEED, shape)
    got = adamw_kernel(arrays, words, simulator, round_moments=True)
    expected = adamw_kernel(arrays, words, True, round_moments=True)
    for ours, theirs in zip(got, expected, strict=True):
        assert not jnp.any(jnp.isnan(ours))
        assert np.mean(np.asarray(ours != theirs)) < 1e-4  # a fused multiply-add may tip one
    assert not races_found()


@pytest.mark.parametrize(("shape", "block_size"), [((33, 256), 64), ((2, 16, 512), 256), ((300, 1024), 1024)])
def test_hadamard_kernel_in_the_simulator(shape, block_size, simulator):
    x, signs = jax.random.normal(jax.random.key(0), shape), random_signs(SEED, shape[-1])
    got = hadamard_tpu.hadamard_rotate(x, signs, block_size=block_size, inverse=False, interpret=simulator)
    expected = np.asarray(x, np.float64) @ rotation_matrix(shape[-1], block_size, signs).T
    np.testing.assert_allclose(got, expected, atol=4e-6)
    assert not races_found()


def compiled(target, f, *args, donate=()):
    if not targets.is_available(target):
        pytest.skip(f"the compiler for {target} is not installed")
    sharding = SingleDeviceSharding(targets.devices(target)[0])
    args = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in args]
    lowered = jax.jit(f, donate_argnums=donate).lower(*args)
    return lowered.compile(compiler_options=targets.compiler_options(target) or None)


def loops_over(text, elements):
    """Count the fusions of the entry computation that read or write arrays of so many elements."""
    entry = text[text.index("ENTRY") :]
    return len(re.findall(rf"\[{elements}\]\S* fusion\(|\[{elements}\]\S*\) fusion\(", entry))


@pytest.mark.targets
@pytest.mark.parametrize("round_moments", [False, True])
@pytest.mark.parametrize("target", TPUS + GPUS)
def test_adamw_compiles_to_one_loop_without_temporaries(target, round_moments):
    def step(w, m, v, g, seed, t):
        rounds = dict(round_weights=True, round_moments=round_moments)
        return adamw_update(w, m, v, g, **HYPER, step=t, seed=seed, **rounds)

    array = ((1024, 768), "bfloat16")
    program = compiled(target, step, *[array] * 4, ((2,), "uint32"), ((), "int32"), donate=(0, 1, 2))
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == 3 * 1024 * 768 * 2
    assert memory.temp_size_in_bytes < 1024 * 768 * 2 / 8  # scalars and the compiler's own, no array
    assert loops_over(program.as_text(), "1024,768") == 1


@pytest.mark.targets
@pytest.mark.parametrize("target", TPUS)
def test_adamw_kernel_with_the_hardware_generator_compiles(target):
    def step(w, m, v, g, seed, t):
        rounds = dict(round_weights=True, round_moments=True)
        return adamw_update(
            w, m, v, g, **HYPER, step=t, seed=seed, **rounds, generator="hardware",
            implementation="pallas_tpu",
        )  # fmt: skip

    array = ((1000, 770), "bfloat16")
    program = compiled(target, step, *[array] * 4, ((2,), "uint32"), ((), "int32"), donate=(0, 1, 2))
    assert "tpu_custom_call" in program.as_text()
    assert program.memory_analysis().alias_size_in_bytes >= 3 * 1000 * 770 * 2


@pytest.mark.targets
@pytest.mark.parametrize("target", TPUS + GPUS)
@pytest.mark.parametrize("block_size", [64, 512])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_hadamard_kernel_is_what_the_platform_gets_and_it_compiles(target, block_size, dtype):
    def there_and_back(x, signs):
        rotated = hadamard_rotate(x, block_size=block_size, signs=signs)
        return hadamard_rotate(rotated, block_size=block_size, signs=signs, inverse=True)

    program = compiled(target, there_and_back, ((1000, 2048), dtype), ((2048,), "float32"))
    assert ("tpu_custom_call" if target in TPUS else "triton") in program.as_text()


@pytest.mark.targets
@pytest.mark.parametrize("target", ["v5e-1", "v6e-1", *GPUS])
@pytest.mark.parametrize("name", [case.name for case in CASES if case.name.startswith("hadamard")])
def test_nothing_spills_and_vmem_suffices(name, target):
    if not targets.is_available(target):
        pytest.skip(f"the compiler for {target} is not installed")
    row = measure(next(case for case in CASES if case.name == name), target)
    assert row.kernels == "hadamard_rotate"
    assert float(row.bytes_over_floor) <= 1.01
    if target in GPUS:
        assert row.spills == "0" and int(row.registers) <= 255
        assert float(row.shared.removesuffix(" KiB")) <= 163  # of an A100; an H100 has 227
    else:
        assert 0 < float(row.vmem.removesuffix(" MiB")) <= 16
