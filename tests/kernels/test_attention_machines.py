"""The kernels of attention compiled for TPUs and GPUs that are not here."""

import functools
import pathlib
import re
import subprocess

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from jaxllm import targets
from tests.kernels.attention_cases import cases

CASES = {case.name: case for case in cases()}
# Each case and each machine, not every pair: v5p has the least VMEM, 256 channels need the most registers.
FOR_TPU = [
    ("GPT-2, softmax-1", "v5e-1"),
    ("GPT-2, softmax-1", "v6e-1"),
    ("80 channels, documents, window", "v5p-8"),
]
FOR_GPU = [
    ("GPT-2: 64 channels", "h100"),
    ("80 channels, documents, window", "a100-40gb"),
    ("256 channels, window", "h100"),
    ("256 channels, window", "a100-40gb"),
]


def compiled(case, target, **options):
    if not targets.is_available(target):
        pytest.skip(f"{target}'s compiler is not installed")
    sharding = SingleDeviceSharding(targets.devices(target)[0])
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in case.shapes]
    options = dict(targets.compiler_options(target)) | options
    return jax.jit(case.run).lower(*shapes).compile(compiler_options=options or None)


@pytest.mark.targets
@pytest.mark.parametrize(("name", "target"), FOR_TPU)
def test_compiled_for_tpu_within_its_vmem(name, target):
    text = compiled(CASES[name], target).as_text()  # more VMEM than there is fails to compile
    assert text.count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.targets
@pytest.mark.parametrize(("name", "target"), FOR_GPU)
def test_compiled_for_gpu_without_spills(name, target, tmp_path):
    compiled(CASES[name], target, xla_dump_to=str(tmp_path))
    figures = ptxas_figures(tmp_path, {"h100": "sm_90a", "a100-40gb": "sm_80"}[target])
    assert len(figures) == 3, figures
    for kernel, (registers, spilled) in figures.items():
        assert spilled == 0 and registers <= 255, f"{kernel}: {registers} registers, {spilled} spilled"


def ptxas_figures(folder: pathlib.Path, architecture: str) -> dict[str, tuple[int, int]]:
    """Return each kernel's registers and bytes spilled, by the assembler's own account."""
    figures = {}
    for path in folder.glob("*.ptx"):
        if ".entry attention" not in path.read_text():
            continue
        command = [_ptxas(), "-v", f"-arch={architecture}", str(path), "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        for name, part in re.findall(r"entry function '(attention\w+)'(.*?Used \d+ registers)", said, re.S):
            spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
            figures[name] = int(re.search(r"Used (\d+)", part)[1]), spilled
    return figures


@functools.cache
def _ptxas() -> str:
    nvcc = pytest.importorskip("nvidia.cuda_nvcc")
    return str(pathlib.Path(next(iter(nvcc.__path__))) / "bin" / "ptxas")
