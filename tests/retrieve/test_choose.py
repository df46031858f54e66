"""Choices of neighbours against a Gaussian process solved anew each time, and leaks that were planted."""

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.retrieve import choose_informative, find_leaks, shared_part, within_distance


def variance(query, taken, noise):
    """The posterior variance at a query, by one solve."""
    kernel = taken @ taken.T + noise * np.eye(len(taken))
    cross = taken @ query
    return query @ query - cross @ np.linalg.solve(kernel, cross)


@pytest.mark.parametrize("repeat", [False, True])
def test_each_choice_leaves_the_least_variance(repeat):
    draw = np.random.default_rng(0)
    candidates = draw.normal(size=(12, 5))
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    candidates[7] = candidates[2]
    query = candidates[2] + 0.5 * draw.normal(size=5)
    chosen = choose_informative(query, candidates, 6, noise=0.05, repeat=repeat).tolist()
    query, taken = query / np.linalg.norm(query), []
    for place in chosen:
        open_ = [c for c in range(12) if repeat or c not in taken]
        left = [variance(query, candidates[[*taken, c]], 0.05) for c in open_]
        assert left[open_.index(place)] == pytest.approx(min(left), abs=1e-9)
        taken.append(place)
    assert repeat or len(set(chosen)) == 6


def test_copies_wait_and_far_neighbours_are_left_out():
    draw = np.random.default_rng(1)
    copies, others = np.repeat(draw.normal(size=(1, 8)), 5, 0), draw.normal(size=(5, 8))
    query = copies[0] + 0.3 * others.sum(0)
    assert sum(place < 5 for place in choose_informative(query, np.concatenate([copies, others]), 4)) == 1
    assert within_distance(np.array([[0.1, 0.5], [2.0, 3.0]]), 0.5).tolist() == [2, 0]
    with pytest.raises(UserError, match="k is 11; it must be from 1 to the 10 candidates"):
        choose_informative(query, np.concatenate([copies, others]), 11)
    with pytest.raises(UserError, match="noise is 0"):
        choose_informative(query, others, 1, noise=0)


def test_planted_copies_are_found_and_nothing_else():
    draw = np.random.default_rng(2)
    text = lambda: " ".join(f"w{n}" for n in draw.integers(0, 500, 60))
    queries = [text() for _ in range(50)]
    neighbours = [[text() for _ in range(4)] for _ in queries]
    for number in (3, 17):  # 4 %, changed in case, punctuation and four words
        words = queries[number].upper().split()
        words[0:4] = ["x"] * 4
        neighbours[number][2] = ", ".join(words) + " and more"
    leaks = find_leaks(queries, neighbours)
    assert [n for n, place in enumerate(leaks.found) if place is not None] == [3, 17]
    assert leaks.found[3] == 2 and leaks.rate == 0.04
    assert leaks.shared[3] == pytest.approx(49 / 53)
    assert shared_part("one two", "say one two three") == 1.0 and shared_part("", "a") == 0.0
    edge = find_leaks(["one two", "a b"], [["one two"], []], limit=1.0)
    assert edge.found == [0, None]
    with pytest.raises(UserError, match="limit is 0"):
        find_leaks(["a"], [[]], limit=0)
    with pytest.raises(UserError, match="2 queries and 1 lists"):
        find_leaks(["a", "b"], [["a"]])
