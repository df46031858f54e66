"""Schedules on simulated devices: eviction and transfers change no number, and a failure is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.tiles.access import Mode
from jaxllm.tiles.cost_model import History, calibrate, kernel_key
from jaxllm.tiles.execute import Executor, TaskFailed
from jaxllm.tiles.graph import Op, Program
from jaxllm.tiles.kernels import compiled
from jaxllm.tiles.policies import POLICIES

R, W, RW, COMMUTE, REDUX = Mode.R, Mode.W, Mode.RW, Mode.COMMUTE, Mode.REDUX


def _mix(a, b):
    return (a + 0.5 * b,)


MIX, DOUBLE = Op("mix", _mix), Op("double", lambda x: (2 * x,))
SUM = Op("sum", lambda x: (x,))


def many_tasks(seed=0, tiles=12, tasks=150):
    """Return a graph over tiles of 4 floats, and what NumPy makes of it in the order of submission."""
    draw = np.random.default_rng(seed)
    program = Program()
    x = program.tensor("x", (tiles * 4,), (4,), given=True)
    total = program.tensor("total", (4,), (4,), given=True)
    values = draw.normal(size=(tiles, 4)).astype(np.float32)
    want, summed = values.copy(), np.zeros(4, np.float32)
    for i in range(tasks):
        a, b = (int(tile) for tile in draw.choice(tiles, 2, replace=False))
        kind = draw.integers(4)
        if kind == 0:
            program.submit(SUM, (R, x[a]), (REDUX if i % 20 < 10 else COMMUTE, total[0]))
            summed += want[a]
        elif kind == 1:
            program.submit(DOUBLE, (R, x[a]), (W, x[b]))
            want[b] = 2 * want[a] % 7
            program.submit(Op("wrap", _wrap), (RW, x[b]))
        else:
            program.submit(MIX, (RW, x[a]), (R, x[b]))
            want[a] = (want[a] + 0.5 * want[b]) % 7
            program.submit(Op("wrap", _wrap), (RW, x[a]))
    given = {x[i]: jnp.asarray(values[i]) for i in range(tiles)} | {total[0]: jnp.zeros(4)}
    return program.graph(), given, {x[i]: want[i] for i in range(tiles)} | {total[0]: summed}


def _wrap(x):
    return (x % 7,)


@pytest.mark.parametrize("policy", POLICIES)
def test_results_do_not_depend_on_who_runs_what_or_on_what_is_evicted(run, schedule, policy):
    graph, given, want = many_tasks()
    tight = schedule(graph, 3, policy=policy, device_bytes=80)
    assert tight.evictions > 20 and max(tight.peak[1:]) <= 80
    for options in (dict(devices=3), dict(devices=3, device_bytes=80)):
        left = run(graph, given, policy=policy, **options)
        for handle, value in want.items():
            np.testing.assert_allclose(left[handle], value, rtol=1e-3, atol=1e-3)


def test_tiles_lie_where_the_schedule_says(schedule):
    graph, given, _ = many_tasks()
    made = schedule(graph, 3)
    assert {span.worker for span in made.spans} == {0, 1, 2}
    left = Executor(made, jax.devices()[:3]).run(given)
    places = [jax.devices("cpu")[0], *jax.devices()[:3]]
    assert all(left[h].devices() == {places[node]} for h, node in made.placed.items())


def _fails(x):
    raise RuntimeError("the device is on fire")


def test_a_task_that_cannot_be_handed_over_is_named(run):
    program = Program()
    x = program.tensor("x", (8,), (4,), given=True)
    program.submit(DOUBLE, (R, x[0]), (W, x[1]))
    program.submit(Op("burn", _fails), (RW, x[1]))
    values = {x[i]: jnp.ones(4) for i in range(2)}
    with pytest.raises(TaskFailed, match=r"task burn\(x\[1\]\) failed: the device is on fire"):
        run(program.graph(), values)


def test_a_task_that_fails_while_it_runs_is_named(run):
    program = Program()
    x = program.tensor("x", (16,), (4,), given=True)
    burn = Op("burn", lambda x: (jax.pure_callback(_fails, jax.ShapeDtypeStruct((4,), "float32"), x),))
    program.submit(DOUBLE, (R, x[0]), (W, x[1]))
    program.submit(burn, (R, x[1]), (W, x[2]))
    program.submit(DOUBLE, (R, x[2]), (W, x[3]))
    values = {x[i]: jnp.ones(4) for i in range(4)}
    with pytest.raises(TaskFailed, match=r"task burn\(x\[1\], x\[2\]\) failed: .*"):
        run(program.graph(), values)


def test_a_history_is_calibrated_by_timings(tmp_path):
    graph, _, _ = many_tasks(tasks=10)
    history = calibrate(graph, jax.devices()[:3], samples=4)
    kind = jax.devices()[0].device_kind
    assert set(history.samples) == {kind}
    assert all(len(s) == 4 for s in history.samples[kind].values())
    seconds = history.seconds(graph, kind)
    assert len(seconds) == len(graph.kernels) and all(0 < s < 1 for s in seconds)
    key = kernel_key(graph.kernels[0])
    history.add(key, kind, seconds[0])
    calibrate(graph, jax.devices()[:1], history, samples=4)  # holds enough: adds nothing
    assert len(history.samples[kind][key]) == 5
    history.save(tmp_path / "history.json")
    assert History.load(tmp_path / "history.json") == history


def test_kernels_are_timed_on_all_devices_at_once(monkeypatch):
    """Simulated devices share cores: beside one another none is as fast as alone."""
    graph, _, _ = many_tasks(tasks=10)
    devices, called = jax.devices()[:3], []

    def noting(kernel):
        def run(*values):
            called.append(next(iter(values[0].devices())))
            return compiled(kernel)(*values)

        return run

    monkeypatch.setattr("jaxllm.tiles.cost_model.compiled", noting)
    calibrate(graph, devices, samples=1)
    turns = [called[i : i + 3] for i in range(0, len(called), 3)]
    assert turns and all(turn == devices for turn in turns)


def test_timings_far_off_are_dropped():
    history = History()
    for seconds in (1.0, 1.1, 0.9, 1.0, 1000.0):
        history.add("key", "cpu", seconds)
    assert history.mean("key", "cpu") == pytest.approx(1.0)


def test_a_cost_model_of_other_ops_is_refused():
    graph, _, _ = many_tasks(tasks=10)
    with pytest.raises(
        UserError, match=r"holds 0 kernels of 'cpu' and not \w+\(4:float32.* calibrate it for this"
    ):
        History().seconds(graph, "cpu")


def test_samples_of_which_none_is_near_the_middle_still_have_a_mean():
    history = History()
    for sample in (1.0, 1.0, 9.0, 9.0):
        history.add("gemm", "cpu", sample)
    assert history.mean("gemm", "cpu") == 1.0
