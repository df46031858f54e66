"""Plans in tiles: what is offered, what the simulated step is bound by, and when it is chosen."""

import dataclasses
import json

import pytest

from jaxllm import models
from jaxllm.cli import plan as command
from jaxllm.errors import UserError
from jaxllm.optim import OptimConfig
from jaxllm.parallel import MeshConfig
from jaxllm.targets.candidates import Search
from jaxllm.targets.catalog import get_target
from jaxllm.targets.planner import plan
from jaxllm.targets.tiled import simulate_step, tiled_plans
from jaxllm.text import TrainConfig
from jaxllm.text.config_file import config_from_dict
from jaxllm.train import to_dict
from tests.targets.test_planner import FakeCompiler

# A quarter of GPT-2 XL's 48 layers: its simulation takes a quarter of the time.
XL = TrainConfig(model=models.get_preset("gpt2-xl", num_layers=12), seq_len=1024, batch_size=8)
H100 = get_target("h100")


def simulated(target, config=XL, **search):
    return [simulate_step(c, target) for c in tiled_plans(config, target, Search(**search))]


def test_a_step_takes_no_less_than_its_products_and_its_copies():
    """The floor is worked out by hand: 6 FLOPs a weight and token, and the weights through the link."""
    tokens, model = 8 * 1024, XL.model
    weights = model.num_layers * 12 * model.embed_dim**2
    for name in ("h100", "a100-80gb"):
        target = get_target(name)
        [made] = simulated(target, accumulates=(1,))
        products = 6 * tokens * (weights + model.vocab_size * model.embed_dim)
        floor = products / (target.efficiency * target.peak_flops["f32"])
        assert floor < made.seconds < 4 * floor and made.fits  # what is elementwise is not fused
        assert made.mfu == pytest.approx(XL.model.flops_per_token(1024) * tokens / made.seconds
                                         / target.peak_flops["f32"])  # fmt: skip
    slow_link = dataclasses.replace(H100, host_link_bandwidth=1e9)
    [made] = simulated(slow_link, accumulates=(1,))
    assert made.seconds > 16 * weights / 1e9 / 2  # weights and moments come, and go, on separate ways
    assert made.bound == "host"


def test_less_memory_on_the_device_costs_time_and_none_on_the_host_fails():
    seconds = []
    for gib in (20, 6, 3):
        target = dataclasses.replace(H100, hbm_bytes=gib * 2**30, host_link_bandwidth=2e10)
        [made] = simulated(target, accumulates=(4,))
        assert made.fits and made.peak_bytes <= 0.9 * target.hbm_bytes
        seconds.append(made.seconds)
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]
    [made] = simulated(dataclasses.replace(H100, host_bytes=8 * 2**30), accumulates=(1,))
    assert not made.fits and "the host's" in made.failure


def test_many_small_tasks_wait_for_the_thread_that_hands_them_over():
    [few, many] = simulated(get_target("h100x8"), dataclasses.replace(XL, batch_size=64), accumulates=(1, 4))
    assert many.tasks > 3 * few.tasks and many.bound == "dispatch"
    assert many.seconds == pytest.approx(30e-6 * many.tasks)


def test_tiles_are_chosen_where_no_compiled_step_fits():
    small = dataclasses.replace(H100, hbm_bytes=3 * 2**30)
    found = plan(XL, small, compile=FakeCompiler(memory=20.0))
    assert found.config.engine == "tiles" and found.config.offload == "state"
    fitting = [r.forecast.seconds for r in found.rows if r.forecast and r.forecast.fits]
    assert found.best.forecast.seconds == min(fitting) and len(fitting) > 1
    assert "simulator" in next(line for line in found.table().splitlines() if line.startswith("1 "))
    again = config_from_dict(json.loads(json.dumps(to_dict(found.config))))
    assert again == found.config and 0 < again.tiles.device_bytes < small.hbm_bytes


def test_tiles_lose_to_a_compiled_step_that_is_faster_and_say_by_how_much():
    found = plan(XL, H100, Search(offloads=("optimizer", "state")), compile=FakeCompiler())
    assert found.config.engine == "jit"
    tiled = [row for row in found.rows if row.config.engine == "tiles"]
    assert tiled and all("% slower, " in row.reason for row in tiled)


def test_tiles_are_not_simulated_where_a_compiled_step_holds_everything_on_the_device(monkeypatch):
    monkeypatch.setattr("jaxllm.targets.planner.simulate_step", None)
    found = plan(XL, H100, compile=FakeCompiler())
    assert found.config.offload == "none" and all(row.config.engine == "jit" for row in found.rows)


def test_a_simulated_plan_has_to_be_a_fifth_faster_than_a_compiled_one():
    [made] = simulated(H100, accumulates=(1,))
    search = Search(accumulates=(1,), offloads=("state",), remats=("none", "full"))
    for factor, engine in ((1.1, "jit"), (1.3, "tiles")):
        def compile(config, target, seconds=factor * made.seconds):
            return dataclasses.replace(FakeCompiler()(config, target), seconds=seconds)

        found = plan(XL, H100, search, compile=compile)
        assert found.config.engine == engine
    found = plan(XL, H100, search, compile=lambda c, t: compile(c, t, 1.1 * made.seconds))
    [tiled] = [row for row in found.rows if row.config.engine == "tiles"]
    assert tiled.reason == "simulated alone, and not 1.2 times as fast as what was compiled"


@pytest.mark.parametrize(
    "changes, target, message",
    [
        (dict(model=models.get_preset("llama-2-7b")), "h100", "tiles compute GPT-2"),
        (dict(precision="bfloat16"), "h100", "the search allows bfloat16"),
        (dict(optim=OptimConfig(name="lion")), "h100", "the search allows lion"),
        (dict(z_loss=1e-4), "h100", "neither z_loss"),
        ({}, "h100x16", "up to 8 accelerators of one host, not h100x16"),
        (dict(batch_size=6), "h100x8", "a multiple of 8"),
    ],
)
def test_a_plan_in_tiles_alone_says_why_there_is_none(changes, target, message):
    config = dataclasses.replace(XL, **changes)
    with pytest.raises(UserError, match=message):
        plan(config, target, Search(engines=("tiles",)))


def test_the_command_takes_the_engine(tmp_path, capsys):
    out = tmp_path / "plan.json"
    command.main(["--preset", "gpt2", "--target", "h100", "--batch", "8", "--precision", "float32",
                  "--engine", "tiles", "--out", str(out)])  # fmt: skip
    assert "simulator" in capsys.readouterr().out
    config = config_from_dict(json.loads(out.read_text()))
    assert (config.engine, config.mesh) == ("tiles", MeshConfig(1, 1, 1))
