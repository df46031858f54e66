"""What the benchmarks of a GPU do where there is none: read cases, forecast, refuse to time."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from experiments.benchmarks import gpu_kernels, gpu_training
from jaxllm import targets
from jaxllm.errors import UserError


def test_forecasts_are_the_compilers(tmp_path, monkeypatch):
    forecast = lambda run, target: SimpleNamespace(seconds=0.25, peak_bytes=run.batch_size)
    monkeypatch.setattr(targets, "compile_train_step", forecast)
    case = "gpt2-nano:8:full:bfloat16:adamw_bf16_sr"  # no rival is compiled for it
    config = gpu_training.GpuTrainingConfig(
        cases=(case,), write_forecasts=True, forecasts=str(tmp_path / "f.json"), seq_len=32
    )
    gpu_training.main(config)
    expected = {case: {"jaxllm": {"seconds": 0.25, "peak_bytes": 8}}}
    assert gpu_training.read_forecasts(config) == expected
    for change in (dict(seq_len=64), dict(target="a100-80gb")):
        with pytest.raises(UserError, match=f"are of another {next(iter(change))}; write them anew"):
            gpu_training.read_forecasts(dataclasses.replace(config, **change))


@pytest.mark.parametrize("case", ["gpt2", "gpt2:many:none:mixed_o1:adamw"])
def test_a_case_that_cannot_be_read_is_named(case):
    with pytest.raises(UserError, match=f"case '{case}' is not PRESET:SEQUENCES"):
        gpu_training.run_of(gpu_training.GpuTrainingConfig(), case)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
@pytest.mark.parametrize("module", [gpu_kernels, gpu_training])
def test_without_a_gpu_nothing_is_timed(module, tmp_path):
    config = {"gpu_kernels": "GpuKernelsConfig", "gpu_training": "GpuTrainingConfig"}
    config = getattr(module, config[module.__name__.rpartition(".")[2]])(out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="times a GPU, and jax runs on cpu"):
        module.main(config)
    assert not (tmp_path / "out").exists()
