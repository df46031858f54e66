"""The order of tasks follows from how they use tiles, and from nothing else."""

import itertools

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.tiles.access import Mode
from jaxllm.tiles.graph import Op, Program
from jaxllm.tiles.policies import POLICIES

R, W, RW, COMMUTE, REDUX = Mode.R, Mode.W, Mode.RW, Mode.COMMUTE, Mode.REDUX
STEP = Op("step", lambda *values: (values[0] if values else 1.0,))


def program_of(*accesses, tiles=2, given=True, **options):
    """Return a program with one task for each tuple of (mode, tile)."""
    program = Program(**options)
    program.tensor("x", (tiles,), (1,), given=given)
    for access in accesses:
        program.submit(STEP, *access)
    return program


def edges(program):
    graph = program.graph()
    return {(a, b) for a, after in enumerate(graph.successors) for b in after}


@pytest.mark.parametrize(
    "accesses, expected",
    [
        ([[(W, 0)], [(R, 0)], [(R, 0)]], {(0, 1), (0, 2)}),
        ([[(R, 0)], [(R, 0)], [(W, 0)]], {(0, 2), (1, 2)}),
        ([[(W, 0)], [(W, 0)]], {(0, 1)}),
        ([[(RW, 0)], [(R, 0)], [(RW, 0)]], {(0, 1), (1, 2)}),
        ([[(W, 0)], [(W, 1)]], set()),
        ([[(W, 0)], [(COMMUTE, 0)], [(COMMUTE, 0)], [(R, 0)]], {(0, 1), (0, 2), (1, 3), (2, 3)}),
        ([[(COMMUTE, 0)], [(R, 0)], [(COMMUTE, 0)]], {(0, 1), (1, 2)}),
        ([[(COMMUTE, 0)], [(COMMUTE, 0)], [(W, 0)]], {(0, 2), (1, 2)}),
        # Two that add to copies of their own, the merge (2), and a reader.
        ([[(REDUX, 0)], [(REDUX, 0)], [(R, 0)]], {(0, 2), (1, 2), (2, 3)}),
        ([[(W, 0)], [(REDUX, 0)], [(COMMUTE, 0)]], {(0, 1), (0, 2), (1, 2), (2, 3)}),
        ([[(W, 0)], [(Mode.SCRATCH, 0)]], set()),
    ],
)
def test_who_waits_for_whom(accesses, expected):
    assert edges(program_of(*accesses)) == expected


def test_ordered_sums_wait_for_each_other():
    adds = [[(COMMUTE, 0)]] * 3
    assert edges(program_of(*adds)) == set()
    assert edges(program_of(*adds, ordered=True)) == {(0, 1), (1, 2)}


def test_reading_what_has_no_value_is_an_error():
    program = program_of([(R, 0)])
    program.invalidate(0)
    with pytest.raises(UserError, match=r"task step\(x\[0\]\) reads x\[0\], which was invalidated; write it"):
        program.submit(STEP, (R, 0))
    program.submit(STEP, (W, 0))
    program.submit(STEP, (R, 0))
    with pytest.raises(UserError, match=r"reads x\[1\], which has not been written"):
        program_of([(RW, 1)], given=False)


def test_an_invalidation_waits_for_the_readers_and_a_rest_for_them_too():
    program = program_of([(W, 0)], [(R, 0)])
    program.wont_use(0)
    program.submit(STEP, (R, 0))
    program.invalidate(0)
    assert edges(program) == {(0, 1), (0, 2), (1, 2), (0, 3), (1, 4), (2, 4), (3, 4)}


def random_program(seed):
    """Return 60 tasks that use six tiles in random ways."""
    draw = np.random.default_rng(seed)
    modes = [R, R, W, RW, COMMUTE, COMMUTE, REDUX]
    accesses = []
    for _ in range(60):
        tiles = draw.choice(6, size=draw.integers(1, 4), replace=False)
        accesses.append([(modes[draw.integers(len(modes))], int(tile)) for tile in tiles])
    return program_of(*accesses, tiles=6)


def legal(graph, order):
    """Whether every task comes after all that it waits for, found without `check_order`."""
    place = {number: i for i, number in enumerate(order)}
    return all(place[a] < place[b] for a, after in enumerate(graph.successors) for b in after if b in place)


@pytest.mark.parametrize("seed", range(5))
def test_every_schedule_is_a_topological_order(seed, schedule):
    graph = random_program(seed).graph()
    assert len(graph.tasks) >= 60
    for policy, devices in itertools.product(POLICIES, (1, 3)):
        order = schedule(graph, devices, policy=policy).order()
        graph.check_order(order)
        assert legal(graph, order)


def test_an_order_that_is_not_legal_is_named():
    graph = program_of([(W, 0)], [(R, 0)]).graph()
    with pytest.raises(ValueError, match=r"task 1, step\(x\[0\]\), comes before its inputs"):
        graph.check_order([1, 0])
    with pytest.raises(ValueError, match="not each of the 2 once"):
        graph.check_order([0])


def test_tasks_that_add_to_a_tile_never_run_at_once(schedule):
    made = schedule(program_of(*[[(COMMUTE, 0), (R, 1)]] * 12).graph(), 4)
    spans = sorted(made.spans, key=lambda span: span.start)
    assert all(b.start >= a.end for a, b in itertools.pairwise(spans))


def test_workers_add_to_their_own_copies_at_once_and_one_task_merges_them(schedule):
    made = schedule(program_of(*[[(REDUX, 0), (R, 1)]] * 12, given=True).graph(), 4, policy="eager")
    assert len({span.worker for span in made.spans[:4]}) == 4
    assert sum(action[0] == "merge" for action in made.actions) == 1
    merged = next(action for action in made.actions if action[0] == "merge")
    assert len(merged[3]) == 4
