"""hadamard_rotate in the TPU simulator; it and adamw_update compiled for TPU and GPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import SingleDeviceSharding
from jaxllm_kernels.adamw_update import adamw_update
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


@pytest.mark.parametrize(
    ("shape", "block_size"),
    [
        ((33, 256), 64),
        pytest.param((2, 16, 512), 256, marks=pytest.mark.slow),
        pytest.param((300, 1024), 1024, marks=pytest.mark.slow),
    ],
)
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
@pytest.mark.parametrize(
    ("target", "round_moments"),
    [*((target, True) for target in TPUS + GPUS), ("v5e-1", False), ("h100", False)],
)
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
@pytest.mark.parametrize(
    ("target", "block_size", "dtype"),
    [
        ("v5e-1", 64, "bfloat16"), ("v5p-8", 512, "float32"), ("v6e-1", 512, "float32"),
        ("h100", 64, "bfloat16"), ("a100-80gb", 512, "float32"),
    ],
)  # fmt: skip
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
