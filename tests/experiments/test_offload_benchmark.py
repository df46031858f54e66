"""The search for the largest model that fits, with a fake estimate and a fake compiler."""

import dataclasses
from types import SimpleNamespace

import pytest

from experiments.benchmarks import offload
from jaxllm.errors import UserError
from jaxllm.targets import get_target
from jaxllm.targets.candidates import candidates
from jaxllm.targets.planner import Plan, Row


@pytest.fixture
def machines(monkeypatch):
    """Return (set the sizes that fit by estimate and by compiler) and the sizes that were compiled."""
    compiled = []

    def pretend(estimated: float, real: float):
        def judge(run, target, fitting):  # memory in proportion to the size
            size = run.model.num_params / 1e9
            peak = target.hbm_bytes * size / max(fitting, 1e-9)
            return SimpleNamespace(peak_bytes=peak, fits=size <= fitting, host_bytes=0, host_limit=1)

        def plan(run, target, search):
            compiled.append(run.model.num_params / 1e9)
            made = judge(run, target, real)
            if not made.fits:
                raise UserError("none of the plans fits")
            chosen = candidates(run, target, search)[0]
            return Plan(chosen, target, [Row(chosen, judge(run, target, estimated), made, "")])

        monkeypatch.setattr(offload, "plan", plan)
        monkeypatch.setattr(offload, "rank", lambda c, target: [(c[0], judge(c[0], target, estimated))])
        return compiled

    return pretend


@pytest.mark.parametrize("machine", ["h100", "a100-80gbx8"])
@pytest.mark.parametrize("estimated, real", [(5.0, 5.0), (5.0, 2.0), (5.0, 9.0), (0.0, 9.0), (1e3, 9.0)])
def test_the_largest_model_that_the_compiler_accepts_is_found(machine, estimated, real, machines):
    compiled = machines(estimated, real)
    config = offload.OffloadConfig(most=20.0)
    found = offload.largest(config, machine, "streamed", "adamw")
    sizes = [model.num_params / 1e9 for model in offload._models(machine, config.most)]
    assert found.config.model.num_params / 1e9 == max(size for size in sizes if size <= real)
    assert len(compiled) == len(set(compiled))
    # What is out of the question by then is not compiled.
    assert max(compiled) <= max(estimated, offload._HOPE * real)


def test_tiles_are_simulated_and_the_host_s_memory_ends_them(monkeypatch):
    gpu = dataclasses.replace(get_target("h100"), hbm_bytes=3 * 2**30, host_bytes=8_000_000_000)
    monkeypatch.setattr(offload, "_target", lambda name: gpu)
    best = offload.largest(offload.OffloadConfig(most=1.0, seq_len=128), "h100", "tiles", "adamw")
    # Weights, gradients and moments are 16 bytes a parameter, so 0.5 B are all that the host can hold.
    assert 0.3 < best.config.model.num_params / 1e9 < 0.5 and best.config.engine == "tiles"
    assert best.best.forecast.peak_bytes < gpu.hbm_bytes and best.best.forecast.host_bytes < 8e9


def test_a_machine_that_fits_nothing_has_no_largest_model(machines):
    machines(5.0, 0.0)
    assert offload.largest(offload.OffloadConfig(most=1.0), "h100", "device", "adamw") is None


def test_the_paper_s_node_has_the_paper_s_memory():
    assert offload._target("a100-80gbx8").host_bytes * 8 == pytest.approx(900e9)
    with pytest.raises(UserError, match="unknown way 'moon'"):
        offload.OffloadConfig(ways=("moon",))
