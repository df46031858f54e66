"""Targets by name, their devices, and what is said when there are none."""

import os
import subprocess
import sys

import jax
import pytest

from jaxllm import targets
from jaxllm.errors import UserError
from jaxllm.targets import topology

needs_tpu = [
    pytest.mark.targets,
    pytest.mark.skipif(not targets.is_available("v5e-1"), reason="needs jaxllm[tpu-targets]"),
]
needs_cuda = [
    pytest.mark.targets,
    pytest.mark.skipif(not targets.is_available("h100"), reason="needs jaxllm[cuda-targets]"),
]


@pytest.mark.parametrize(
    "name, chips",
    [("v4-8", 4), ("v5p-8", 4), ("v5p-128", 64), ("v5e-8", 8), ("v6e-256", 256), ("tpu7x-8", 8),
     ("h100", 1), ("h100x8", 8), ("a100-80gb", 1), ("a100-40gbx2", 2), ("t4", 1), ("cpu", 1), ("cpux8", 8)],
)  # fmt: skip
def test_names_count_devices_as_their_vendor_does(name, chips):
    assert targets.get_target(name).num_devices == chips


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("v5e-12", "not a slice of TPU v5e (sizes count chips); the nearest are v5e-4, v5e-8, v5e-16"),
        ("v5p-4", "(sizes count TensorCores); the nearest are v5p-8, v5p-16, v5p-32"),
        ("v6e", "does not say how large the slice is; choose one of v6e-1, v6e-4"),
        ("h100x3", "the nearest are h100x1, h100x2, h100x4"),
        ("h100x", "the nearest are h100x1"),
        ("cpux0", "choose cpu or cpuxN"),
        ("gtx970", "unknown target 'gtx970'"),
        ("v5e-", "the nearest are v5e-1"),
        ("", "unknown target ''"),
    ],
)
def test_a_wrong_name_is_told_the_nearest(name, sentence):
    with pytest.raises(UserError) as error:
        targets.get_target(name)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_every_listed_name_is_a_target():
    for name in targets.target_names():
        target = targets.get_target(name)
        assert target.name == name and target.hbm_bytes > 0 and 0 < target.efficiency <= 1


@pytest.mark.parametrize("name, extra", [("v5e-4", "tpu-targets"), ("h100", "cuda-targets")])
def test_a_missing_compiler_is_named_with_its_extra(monkeypatch, name, extra):
    monkeypatch.setattr(topology, "_installed", lambda module: False)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError) as error:
        targets.devices(name)
    assert str(error.value).startswith(f"target '{name}': compiling for ")
    assert str(error.value).endswith(f"which is not installed; pip install 'jaxllm[{extra}]'")


def test_cpu_devices_are_this_process_own():
    assert targets.devices("cpu") == jax.devices()[:1]
    with pytest.raises(UserError, match="needs 100 CPU devices and this process has"):
        targets.devices("cpux100")


@pytest.mark.parametrize(
    "name, kind",
    [
        pytest.param("v4-8", "TPU v4", marks=needs_tpu),
        pytest.param("v5e-8", "TPU v5 lite", marks=needs_tpu),
        pytest.param("v5p-128", "TPU v5", marks=needs_tpu),
        pytest.param("v6e-256", "TPU v6 lite", marks=needs_tpu),
        pytest.param("h100x8", "NVIDIA H100 80GB HBM3", marks=needs_cuda),
        pytest.param("a100-80gb", "NVIDIA A100-SXM4-80GB", marks=needs_cuda),
        pytest.param("l4", "NVIDIA L4", marks=needs_cuda),
        pytest.param("t4", "Tesla T4", marks=needs_cuda),
    ],
)
def test_devices_are_there_and_the_default_backend_stays(name, kind):
    found = targets.devices(name)
    assert len(found) == targets.get_target(name).num_devices
    assert {device.device_kind for device in found} == {kind}
    assert targets.devices(name)[0] is found[0]
    assert jax.default_backend() == "cpu" and jax.devices()[0].platform == "cpu"


PROCESS = """
import jax, jax.numpy as jnp
from jaxllm import targets
names = [n for n in ("v5e-1", "h100") if targets.is_available(n)]
for name in names:
    x = jax.ShapeDtypeStruct((128, 128), jnp.float32)
    assert targets.compile(lambda x: x @ x, [x], name).flops
assert jax.default_backend() == "cpu" and float(jnp.ones(3).sum()) == 3
"""


@pytest.mark.targets
def test_two_processes_compile_at_once_and_print_nothing_of_their_own():
    runs = [
        subprocess.Popen([sys.executable, "-c", PROCESS], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=300)
        # jax's CUDA package says on import that there is no driver.
        said = [line for line in errors.splitlines() if "cudart_stub" not in line and "absl" not in line]
        assert run.returncode == 0 and not said, errors


CACHED = """
import os, sys, jax, jax.numpy as jnp
from jaxllm import targets
folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
x = jax.ShapeDtypeStruct((128, 128), jnp.float32)
for name in sys.argv[1:]:
    forecasts, written = [], []
    for _ in range(2):
        jax.clear_caches()
        forecasts.append(targets.compile(lambda x: jnp.sin(x @ x), [x], name))
        written.append(len(os.listdir(folder)))
    assert forecasts[0].breakdown == forecasts[1].breakdown and forecasts[0].flops == forecasts[1].flops
    print(*written)
"""


@pytest.mark.targets
def test_a_program_for_a_machine_that_is_not_here_stays_out_of_the_cache_on_disk(tmp_path):
    """jax writes such a program there, cannot read it back, and says so; a CPU's own is cached after it."""
    names = [name for name in ("h100", "v5e-1") if targets.is_available(name)]
    if not names:
        pytest.skip("needs jaxllm[tpu-targets] or jaxllm[cuda-targets]")
    env = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-W", "always", "-c", CACHED, *names, "cpu"]
    run = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=300)
    said = [words for words in ("compilation cache", "Unsupported runtime") if words in run.stderr]
    assert run.returncode == 0 and not said, run.stderr
    *absent, own = run.stdout.splitlines()
    assert absent == ["0 0"] * len(names) and own == "1 1"


@pytest.mark.parametrize(
    "name, devices",
    [("v5p-512", 64), ("v5e-256", 256), ("v5e-1", 1), ("tpu7x-16", 8), ("h100x16", 16), ("cpux8", 8)],
)
def test_the_plane_of_a_slice(name, devices):
    assert targets.get_target(name).plane_devices == devices
