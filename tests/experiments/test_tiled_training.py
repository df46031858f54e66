"""The experiment in its debug size, and what it says of machines that are not here."""

import dataclasses
import json

import pytest

from experiments import tiled_training as tiled
from experiments.tiled_training import machines as published
from jaxllm.errors import UserError
from jaxllm.tiles.machines import get_machine


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return (folder, report) of the debug preset."""
    out = tmp_path_factory.mktemp("tiled")
    return out, tiled.main(dataclasses.replace(tiled.PRESETS["debug"](), out=str(out)), "debug")


@pytest.mark.slow
def test_the_report_holds_every_figure(found):
    out, report = found
    assert json.loads((out / "report.json").read_text())["metrics"] == report.metrics
    for name in (
        "error/gradient", "policy/roomy/dmdas/ms", "hints/device_megabytes/none", "overhead/share/1",
        "ratio/step/cut-1/jit", "largest/tiles/8MB-32MB", "measured/ms/1", "paper/a100x4/4/1.5/tflops",
    ):  # fmt: skip
        assert report.metrics[name] >= 0
    assert {"Policies", "Tile sizes", "Tflop/s, simulated and published"} <= set(report.sections)
    assert (out / "gantt.png").stat().st_size > 10_000 and (out / "published.png").exists()


@pytest.mark.slow
def test_claims_that_do_not_depend_on_the_machine_s_load_hold(found):
    claims = {claim.claim: claim for claim in found[1].claims}
    for start in (
        "relative error of the tiled", "peak bytes on the device", "largest model in tiles per byte",
        "a100x4, 4 layers: billions of parameters",
    ):  # fmt: skip
        (claim,) = (claim for name, claim in claims.items() if name.startswith(start))
        assert claim.holds, claim


@pytest.mark.slow
def test_the_trace_has_every_task_once_and_no_worker_does_two_things_at_once(found):
    events = json.loads((found[0] / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len({span["args"]["task"] for span in spans}) > 50
    for worker in {span["tid"] for span in spans}:
        mine = sorted((s["ts"], s["ts"] + s["dur"]) for s in spans if s["tid"] == worker)
        assert all(b[0] >= a[1] - 1e-3 for a, b in zip(mine, mine[1:], strict=False))


@pytest.mark.parametrize("case", published.PUBLISHED)
def test_published_sizes_are_those_of_their_widths(case):
    for width, row in published.PUBLISHED[case].items():
        assert published.published_model(width, case[1]).num_params / 1e9 == pytest.approx(row[0], rel=0.08)


def test_flops_are_counted_as_published():
    """Per sequence and block 4 S E I + 8 S E^2 + 4 S^2 E forward, twice that backward, and the head."""
    S, E, V = 1024, 4608, 50257
    want = 3 * (4 * (4 * S * E * 4 * E + 8 * S * E**2 + 4 * S**2 * E) + 2 * S * E * V)
    assert published.flops(published.published_model(E, 4), 2) == 2 * want


def test_a_model_beyond_the_host_s_memory_does_not_run():
    machine = get_machine("a100x4")
    setting = published.Setting(sequences=16)
    assert published.tiled_speed(4608, 4, machine, setting)["tflops"] > 0
    small = dataclasses.replace(machine, capacities=(20 * 10**9, *machine.capacities[1:]))
    assert published.tiled_speed(4608, 4, small, setting)["tflops"] == 0


def test_fsdp_s_bytes_grow_with_what_they_are_made_of():
    few = published.fsdp_bytes(4608, 4, 8, 4)
    assert few < published.fsdp_bytes(4608, 8, 8, 4) and few < published.fsdp_bytes(5632, 4, 8, 4)
    assert published.fsdp_bytes(4608, 4, 8, 2) < few < published.fsdp_bytes(4608, 4, 4, 4)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(simulate=("a100x9",)), "unknown machine 'a100x9'; did you mean 'a100x"),
        (dict(cuts=()), "cuts is empty; give at least one number"),
        (dict(rounds=0), "rounds is 0; it must be a whole number of at least 1"),
        (dict(sequences=17), "sequences is 17; choose a multiple of 16"),
    ],
)
def test_bad_input_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(tiled.PRESETS["debug"](), **changes)
