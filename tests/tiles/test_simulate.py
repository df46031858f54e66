"""Schedules against brute force, bounds, and what memory and hints must do."""

import dataclasses
import itertools
import time

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.tiles import cost_model
from jaxllm.tiles.access import Mode
from jaxllm.tiles.config import TileSizes
from jaxllm.tiles.cost_model import A100_TF32, DataSheet
from jaxllm.tiles.gpt2 import StepOptions, gpt2_step
from jaxllm.tiles.graph import Op, Program
from jaxllm.tiles.machines import HOST, Link, Machine, Worker, get_machine, gpu_machine, local_machine
from jaxllm.tiles.memory import Memory
from jaxllm.tiles.policies import POLICIES
from jaxllm.tiles.simulate import bounds, set_priorities, simulate

R, W, RW = Mode.R, Mode.W, Mode.RW
MODEL = models.get_preset("gpt2-nano")


@dataclasses.dataclass
class Table:
    """Seconds of each op, by its name, and of each kind of worker."""

    of: dict[str, dict[str, float]]

    def seconds(self, graph, kind):
        return [self.of[kernel.op.name][kind] for kernel in graph.kernels]


def machine_of(kinds, capacity=1 << 40, bandwidth=1e30):
    """Return workers with a memory each, copies between which take no time unless asked."""
    nodes = range(len(kinds) + 1)
    links = {(a, b): Link("bus", bandwidth, 0.0) for a in nodes for b in nodes if a != b}
    workers = tuple(Worker(f"{kind}{i}", kind, i) for i, kind in enumerate(kinds, 1))
    return Machine("test", workers, (1 << 40, *[capacity] * len(kinds)), links)


def random_graph(seed, tasks=6):
    """Return a graph of a few tasks of three ops, and their seconds on two kinds of workers."""
    draw = np.random.default_rng(seed)
    program = Program()
    x = program.tensor("x", (4,), (1,), given=True)
    ops = [Op(name, lambda *values: values) for name in "abc"]
    for _ in range(tasks):
        source, target = draw.choice(4, 2, replace=False)
        program.submit(ops[draw.integers(3)], (R, x[int(source)]), (RW, x[int(target)]))
    table = Table({name: {kind: float(draw.integers(1, 9)) for kind in ("slow", "fast")} for name in "abc"})
    return program.graph(), table


def best(graph, table, kinds):
    """Return the least makespan of any assignment and order, trying them all."""
    seconds = {kind: table.seconds(graph, kind) for kind in kinds}
    least = float("inf")
    before = [[a for a, after in enumerate(graph.successors) if b in after] for b in range(len(graph.tasks))]
    for order in itertools.permutations(range(len(graph.tasks))):
        place = {number: i for i, number in enumerate(order)}
        if any(place[a] > place[b] for b in range(len(order)) for a in before[b]):
            continue
        for workers in itertools.product(range(len(kinds)), repeat=len(order)):
            free, ends = [0.0] * len(kinds), {}
            for number, worker in zip(order, workers, strict=True):
                start = max([free[worker], *(ends[a] for a in before[number])])
                free[worker] = ends[number] = start + seconds[kinds[worker]][graph.tasks[number].kernel]
            least = min(least, max(free))
    return least


@pytest.mark.parametrize("seed", range(4))
def test_no_policy_beats_brute_force_and_dm_comes_near(seed):
    graph, table = random_graph(seed, tasks=5)
    kinds = ["slow", "fast"]
    least = best(graph, table, kinds)
    for policy in POLICIES:
        made = simulate(graph, machine_of(kinds), table, policy)
        assert made.seconds >= least - 1e-9
        if policy.startswith("dm"):
            assert made.seconds <= 1.5 * least


def test_a_schedule_by_hand():
    """Two chains of two tasks, and transfers of a second each over one bus."""
    program = Program()
    x = program.tensor("x", (200,), (100,), "int8", given=True)
    for i in (0, 1, 0, 1):
        program.submit(Op("step", lambda x: (x,)), (RW, x[i]))
    made = simulate(
        program.graph(), machine_of(["one", "one"], bandwidth=100), Table({"step": {"one": 3.0}}), "dmda"
    )
    # x[0] arrives at 1 and x[1], behind it on the bus, at 2; each chain then takes 6.
    assert sorted((span.start, span.end) for span in made.spans) == [(1, 4), (2, 5), (4, 7), (5, 8)]
    assert made.seconds == 8 and made.moved == 200 and made.evictions == 0
    assert made.idle == pytest.approx(1 - 12 / 16)


@pytest.fixture(scope="module")
def step():
    return gpt2_step(MODEL, TileSizes(batch=2, embed=32, mlp=128, vocab=128), 8, 32, StepOptions(rests=True))


SHEET = DataSheet({"gpu": 1e12}, {"gpu": 1e11}, launch=1e-6)


def gpus(count, gpu_bytes=1 << 40):
    return gpu_machine(
        "test", count, kind="gpu", gpu_bytes=gpu_bytes, host_bytes=1 << 40, pcie=1e9, nvlink=1e10
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_schedules_respect_bounds_workers_and_inputs(step, policy):
    made = simulate(step.graph, gpus(3), SHEET, policy)
    least = bounds(step.graph, gpus(3), SHEET)
    assert made.seconds >= max(least.values()) > 0
    end = {span.task: span.end for span in made.spans}
    start = {span.task: span.start for span in made.spans}
    assert sorted(start) == [task.number for task in step.graph.tasks if task.kernel >= 0]
    for number, finished in end.items():
        assert all(start.get(after, finished) >= finished for after in step.graph.successors[number])
    for worker in range(3):
        mine = sorted((s.start, s.end) for s in made.spans if s.worker == worker)
        assert all(b[0] >= a[1] - 1e-12 for a, b in itertools.pairwise(mine))


def replay_bytes(made):
    """Return the largest number of bytes that the actions of a schedule have in each memory."""
    graph, nodes = made.graph, len(made.machine.capacities)
    held = [dict() for _ in range(nodes)]
    for handle, node in made.start.items():
        held[node][handle] = graph.nbytes[handle]
    largest = [0] * nodes
    for kind, what, *rest in made.actions:
        if kind == "copy":
            assert what in held[rest[0]], "a copy of what is not there"
            held[rest[1]][what] = held[rest[0]][what]
        elif kind == "drop":
            held[rest[0]].pop(what, None)
        else:
            node = made.machine.workers[rest[0]].node
            task = graph.tasks[what]
            assert all(handle in held[node] for handle in task.reads), "a task before its inputs"
            held[node] |= {handle: graph.nbytes[handle] for handle in task.writes}
        largest = [max(most, sum(h.values())) for most, h in zip(largest, held, strict=True)]
    return largest


@pytest.mark.parametrize("policy", ["eager", "dmdas"])
def test_a_device_that_is_too_small_for_all_evicts_and_never_holds_more(step, policy):
    roomy = simulate(step.graph, gpus(2), SHEET, policy)
    tight = simulate(step.graph, gpus(2, gpu_bytes=300_000), SHEET, policy)
    assert roomy.evictions == 0 and tight.evictions > 100
    assert max(roomy.peak[1:]) > 300_000 >= max(tight.peak[1:])
    assert tight.moved > roomy.moved and tight.seconds > roomy.seconds
    assert max(replay_bytes(tight)[1:]) <= 300_000
    assert replay_bytes(roomy)[1] <= roomy.peak[1]


def test_hints_lower_the_peak():
    peaks = {}
    for drops, rests in itertools.product((False, True), repeat=2):
        options = StepOptions(drops=drops, rests=rests)
        graph = gpt2_step(MODEL, TileSizes(batch=2), 8, 32, options).graph
        made = simulate(graph, gpus(1), SHEET)
        peaks[drops, rests] = made.peak[1]
    assert peaks[True, False] < 0.8 * peaks[False, False]
    assert peaks[True, True] <= peaks[True, False] and peaks[False, True] <= peaks[False, False]


def test_what_rests_is_evicted_first_and_alone_makes_room_ahead():
    """Two tiles fill a device. The one used last rests, and so goes before the other."""
    memory = Memory(machine_of(["one"], capacity=200), [100] * 4, dict.fromkeys(range(4), HOST), [])
    for key in (0, 1):
        memory.fetch(key, 1, 0.0)
        memory.unpin(key, 1)
    memory.prefetch(2, 1, 0.0)
    assert 1 not in memory.copies[2]  # for which a tile that may be used would have to go
    memory.wont_use(1, 0.0)
    memory.prefetch(2, 1, 0.0)
    assert [1 in memory.copies[key] for key in range(3)] == [True, False, True]
    memory.wont_use(2, 0.0)
    memory.fetch(3, 1, 0.0)
    assert [1 in memory.copies[key] for key in range(4)] == [True, False, False, True]


def test_dmda_moves_less_than_eager(step):
    moved = {policy: simulate(step.graph, gpus(4), SHEET, policy).moved for policy in POLICIES}
    assert moved["dmda"] < moved["dm"] and moved["dmda"] < moved["eager"]


def test_priorities_follow_the_longest_chain(step):
    seconds = SHEET.seconds(step.graph, "gpu")
    set_priorities(step.graph, seconds)
    longest = step.graph.longest_path_after(seconds)
    for task in step.graph.tasks:
        after = [longest[number] for number in step.graph.successors[task.number]]
        own = seconds[task.kernel] if task.kernel >= 0 else 0.0
        assert longest[task.number] == pytest.approx(own + max(after, default=0.0))
        assert task.priority == int(64 * longest[task.number] / max(longest))
    for task in step.graph.tasks:
        task.priority = 0


def test_the_longest_chain_begins_first_where_priorities_count():
    """Three short tasks are submitted before a chain of three; one worker, a second a task."""
    program = Program()
    x = program.tensor("x", (400,), (100,), "int8", given=True)
    for i in (0, 1, 2, 3, 3, 3):
        program.submit(Op("step", lambda x: (x,)), (RW, x[i]))
    graph, table = program.graph(), Table({"step": {"one": 1.0}})
    set_priorities(graph, table.seconds(graph, "one"))
    order = {}
    for policy in ("dmda", "dmdas"):
        spans = simulate(graph, machine_of(["one"]), table, policy).spans
        order[policy] = [span.task for span in sorted(spans, key=lambda span: span.start)]
    assert order["dmda"] == [0, 1, 2, 3, 4, 5]
    assert order["dmdas"][-3:] != [3, 4, 5] and order["dmdas"].index(4) < order["dmdas"].index(2)


def test_ten_thousand_tasks_take_under_three_seconds():
    """A tenth of what is asked of the simulator, 100,000 tasks in 30 s."""
    graph = gpt2_step(MODEL, TileSizes(batch=1, embed=32, mlp=64, vocab=128), 24, 32).graph
    assert len(graph.tasks) > 10_000
    begun = time.process_time()
    simulate(graph, gpus(8), SHEET, "dmdasd")
    assert (time.process_time() - begun) / len(graph.tasks) < 300e-6


def test_what_cannot_run_is_one_sentence(step):
    with pytest.raises(
        UserError,
        match=r"task attention_backward\(.*\) needs \d+ bytes of tiles at once and a device of test",
    ):
        simulate(step.graph, gpus(2, gpu_bytes=20_000), SHEET)
    with pytest.raises(UserError, match="unknown policy 'dmdsa'; did you mean 'dmda"):
        simulate(step.graph, gpus(2), SHEET, "dmdsa")
    with pytest.raises(UserError, match="the data sheet has no worker of kind 'gpu'; it has a100"):
        simulate(step.graph, gpus(2), A100_TF32)
    small = dataclasses.replace(gpus(2), capacities=(100_000, 1 << 40, 1 << 40))
    with pytest.raises(
        UserError, match="the host's 0.0001 GB of test are full; use a machine with more memory"
    ):
        simulate(step.graph, small, SHEET)
    with pytest.raises(UserError, match="unknown machine 'a100x9'; did you mean 'a100x"):
        get_machine("a100x9")
    with pytest.raises(UserError, match="0 devices with 1 bytes each"):
        local_machine([], device_bytes=1, host_bytes=1)
    assert jax.devices()


def test_links_are_measured_pair_by_pair_and_named_by_what_they_share(monkeypatch):
    """Copies that take 1 ms, and 1 ns a byte to the first device, 2 ns to the second, ..."""

    def pretend(source, target, nbytes):
        return 1e-3 + (nbytes - 1) * 1e-9 * (1 + places.index(target))

    places = [jax.devices("cpu")[0], *jax.devices()[1:4]]
    monkeypatch.setattr(cost_model, "_seconds_a_copy", pretend)
    links = cost_model.measure_links(places[1:])
    assert set(links) == {(a, b) for a in range(4) for b in range(4) if a != b}
    for (_, b), link in links.items():
        assert link.latency == 1e-3 and link.bandwidth == pytest.approx(1e9 / (1 + b), rel=1e-6)
        assert link.channel == "copies"  # simulated devices are the CPU's
    host, one, two = (0, "cpu"), (1, "gpu"), (2, "gpu")
    pairs = [(host, one), (host, two), (one, host), (two, host), (one, two), (two, one)]
    assert len({cost_model._channel(*pair) for pair in pairs}) == 6  # a GPU waits for none of another's
