"""Bigram-Backcopy draws what its definition says, against a loop over characters."""

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.synthetic import backcopy_task

TEXT = "the rain in spain stays mainly in the plain"


@pytest.mark.parametrize("begin", [True, False])
def test_a_trigger_is_followed_by_what_stood_before_it_and_all_else_by_bigrams(begin):
    task = backcopy_task(TEXT, triggers=2)
    assert {task.characters[i] for i in task.triggers} == {" ", "i"}  # 8 and 6 times; n, too, but later
    inputs, targets = task.draw(400, 20, seed=0, begin=begin)
    assert inputs.dtype == targets.dtype == np.int32 and inputs.shape == targets.shape == (400, 20)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    assert ((inputs[:, 0] == task.begin) == begin).all() and (targets != task.begin).all()
    pairs = {(a, b) for a, b in zip(TEXT, TEXT[1:], strict=False)}
    copied = task.after_trigger(inputs)
    spelled = [*task.characters, None]
    for row, nexts, due in zip(inputs.tolist(), targets.tolist(), copied.tolist(), strict=True):
        for at, (here, then, copy) in enumerate(zip(row, nexts, due, strict=True)):
            before = row[at - 1] if at else task.begin
            assert copy == (here in task.triggers and before != task.begin)
            if copy:
                assert then == before
            elif here != task.begin:
                assert (spelled[here], spelled[then]) in pairs
    assert 0.1 < copied.mean() < 0.9


def test_characters_are_as_frequent_as_in_the_text():
    """What begins, and what follows one character that is no trigger: within four standard errors."""
    task = backcopy_task(TEXT, triggers=2)
    inputs, targets = task.draw(20_000, 4, seed=1)
    first = np.bincount(targets[:, 0], minlength=task.begin) / len(targets)
    expected = np.array([TEXT.count(c) for c in task.characters]) / len(TEXT)
    assert np.all(np.abs(first - expected) < 4 * np.sqrt(expected / len(targets)))
    t = task.characters.index("t")
    after = np.bincount(targets[inputs == t], minlength=task.begin) / (inputs == t).sum()
    assert after[task.characters.index("h")] == pytest.approx(2 / 3, abs=0.05)  # the, stays, the


def test_draws_are_a_function_of_the_seed_and_a_text_needs_characters():
    task = backcopy_task(TEXT)
    one, same, other = (task.draw(8, 10, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    with pytest.raises(UserError, match="has 2 different characters; 3 triggers need more"):
        backcopy_task("abba")
