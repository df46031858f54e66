"""MAD's sequences are what the paper says: each test target follows from what was read, and nothing else."""

import dataclasses

import numpy as np
import pytest

from experiments.mad.solvers import accuracy, look_up, most_frequent
from jaxllm.errors import UserError
from jaxllm.synthetic import HARDER, IGNORED, MAD, MANTICORE, TASKS, MadTask, draw_instances, fact_table

SMALL = {name: dataclasses.replace(task, train=min(task.train, 256), test=200) for name, task in MAD.items()}
RECALL = ("in_context_recall", "noisy_recall", "fuzzy_recall")


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_function_of_its_seed_and_part(name):
    task = SMALL[name]
    one, same, other = (draw_instances(task, "test", seed) for seed in (0, 0, 1))
    train = draw_instances(task, "train", 0)
    np.testing.assert_array_equal(one.inputs_NT, same.inputs_NT)
    np.testing.assert_array_equal(one.targets_NT, same.targets_NT)
    assert (one.inputs_NT != other.inputs_NT).any() and len(train.inputs_NT) == task.train
    assert (one.inputs_NT[:100] != train.inputs_NT[:100]).any()
    for part in (one, train):
        assert part.inputs_NT.dtype == part.targets_NT.dtype == np.int32
        assert part.inputs_NT.min() >= 0 and part.inputs_NT.max() < task.vocab_size
        counted = part.targets_NT[part.targets_NT != IGNORED]
        assert counted.min() >= 0 and counted.max() < task.vocab_size


@pytest.mark.parametrize("name", [name for name in TASKS if name != "memorisation"])
@pytest.mark.parametrize("sizes", [SMALL, MANTICORE])
def test_looking_up_reaches_every_test_target(name, sizes):
    task = sizes.get(name, SMALL[name])
    test = draw_instances(dataclasses.replace(task, test=200), "test", 3)
    assert accuracy(test, look_up(task, None, test.inputs_NT)) == 1.0


@pytest.mark.parametrize("name", RECALL)
def test_targets_of_recall_are_shifted_once(name):
    """Of training: the next input, everywhere; of the test: values, that the next input is too."""
    train, test = (draw_instances(SMALL[name], part, 0) for part in ("train", "test"))
    np.testing.assert_array_equal(train.targets_NT[:, :-1], train.inputs_NT[:, 1:])
    next_NT, counted_NT = test.inputs_NT[:, 1:], test.targets_NT[:, :-1] != IGNORED
    np.testing.assert_array_equal(test.targets_NT[:, :-1][counted_NT], next_NT[counted_NT])
    counted = test.targets_NT[test.targets_NT != IGNORED]
    task = SMALL[name]
    assert counted.min() >= task.keys and counted.max() < task.keys + task.values
    assert (test.targets_NT[:, -1] != IGNORED).all()


def test_recall_counts_exactly_the_keys_that_were_shown():
    """Against a loop over pairs that knows nothing of arrays; at least one pair is no noise, at any share."""
    task = dataclasses.replace(MAD["noisy_recall"], noise=0.95, length=12, test=300)
    test = draw_instances(task, "test", 0)
    for inputs_T, targets_T in zip(test.inputs_NT.tolist(), test.targets_NT.tolist(), strict=True):
        shown, expected = {}, [IGNORED] * 11
        for at in range(0, 11, 2):
            key, value = inputs_T[at], targets_T[at] if at == 10 else inputs_T[at + 1]
            if key >= task.keys:
                assert key >= 16 and value >= 16  # noise, in pairs
                continue
            if at == 10 or key in shown:
                expected[at] = value
            assert shown.setdefault(key, value) == value
        assert targets_T == expected and len(shown) >= 1


def test_draws_are_as_the_paper_says():
    """Keys evenly, values evenly, a pair noise one time in five; bounds of five standard errors."""
    noisy = draw_instances(MAD["noisy_recall"], "test", 0)
    first_NP = noisy.inputs_NT[:, :-1:2]
    share = (first_NP >= 16).mean()
    assert abs(share - 0.2 * 62 / 63) < 5 * (0.16 / first_NP.size) ** 0.5
    plain = draw_instances(dataclasses.replace(MAD["in_context_recall"], length=32), "test", 0)
    for at, (low, high) in {0: (0, 8), 1: (8, 16), 29: (8, 16)}.items():
        counts = np.bincount(plain.inputs_NT[:, at], minlength=16)[low:high]
        assert counts.sum() == 1280 and abs(counts - 160).max() < 5 * 160**0.5


def _runs(row):
    """Return runs of key tokens and of value tokens: keys and values repeat none of theirs."""
    runs, kind = [], None
    for token in row:
        if (token < 7) != kind:
            runs, kind = [*runs, []], token < 7
        runs[-1].append(token)
    return runs


def test_fuzzy_recall_shows_its_probe_before_it_asks():
    """Also where it is short; tests ask by keys of three tokens alone, and pad on the left."""
    task = MadTask("fuzzy_recall", vocab_size=16, length=20, train=50, test=500)
    test = draw_instances(task, "test", 0)
    assert accuracy(test, look_up(task, None, test.inputs_NT)) == 1.0
    for row in test.inputs_NT:
        text = row[row != 15]
        np.testing.assert_array_equal(row[len(row) - len(text) :], text)
        assert all(len(run) == 3 for run in _runs(text) if run[0] < 7)
    lengths = {len(run) for row in draw_instances(task, "train", 0).inputs_NT
               for run in _runs(row[row != 15]) if run[0] < 7}  # fmt: skip
    assert lengths == {1, 2, 3}
    assert all(len(set(run)) == len(run) for row in test.inputs_NT for run in _runs(row[row != 15]))


def test_memorisation_shares_one_table_and_has_its_ceiling():
    task = MANTICORE["memorisation"]
    train, test = (draw_instances(task, part, 0) for part in ("train", "test"))
    table = fact_table(task.keys, task.values, task.facts)
    assert (task.keys, task.values) == (4095, 4096) and len(set(table.tolist())) == 4095
    for part in (train, test):
        np.testing.assert_array_equal(part.targets_NT[:, 1::2], table[part.inputs_NT[:, ::2]])
        assert (part.inputs_NT[:, 1::2] == 8191).all() and (part.targets_NT[:, ::2] == IGNORED).all()
    reached = accuracy(test, look_up(task, train, test.inputs_NT))
    assert abs(task.ceiling - 0.632) < 1e-3 and abs(reached - task.ceiling) < 0.02
    assert MAD["memorisation"].ceiling > 1 - 1e-9


def test_selective_copying_keeps_the_order_and_touches_the_copy_token():
    task = SMALL["selective_copying"]
    test = draw_instances(task, "test", 0)
    assert (test.inputs_NT[:, -17] == 15).all() and (test.inputs_NT[:, -18] < 14).all()
    assert (test.inputs_NT[:, -16:] == 14).all() and (test.targets_NT[:, :-16] == IGNORED).all()
    assert ((test.inputs_NT < 14).sum(axis=1) == 16).all()
    blanks = (test.inputs_NT[:, :240] == 14).argmin(axis=1)  # before the first token: 223 / 16 on average
    assert abs(blanks.mean() - 223 / 16) < 5 * (223 / 16 / 200) ** 0.5


@pytest.mark.parametrize("name", TASKS)
def test_guessing_reaches_the_guess_level(name):
    """Evenly over the ids of values; of compression's last token, which is always the same, that one."""
    task = dataclasses.replace(SMALL[name], test=1280)
    test = draw_instances(task, "test", 0)
    draw = np.random.default_rng(0)
    first = 0 if name in ("selective_copying", "compression") else task.keys
    said_NT = first + draw.integers(task.values, size=test.targets_NT.shape)
    if name == "compression":
        said_NT[:, -1] = task.vocab_size - 1
    counted = int((test.targets_NT != IGNORED).sum())
    assert abs(accuracy(test, said_NT) - task.guess_level) < 5 * (0.25 / counted) ** 0.5


def test_the_commonest_value_is_what_stands_for_recall_before_it_is_learned():
    """The pilot's models of in-context recall wait at 0.35, at 16 ids and 32 tokens: above 1 of 8."""
    task = dataclasses.replace(MAD["in_context_recall"], length=32)
    test = draw_instances(task, "test", 0)
    assert 0.25 < accuracy(test, most_frequent(task, test.inputs_NT)) < 0.45


def test_sizes_are_told_in_a_sentence_and_harder_ones_can_be_drawn():
    wrong = [
        (dict(name="recall"), "unknown name 'recall'; did you mean 'noisy_recall'"),
        (dict(name="in_context_recall", length=33), "length is 33; .* even number"),
        (dict(name="noisy_recall", noise=0.2), "noise is 0.2 of 0 ids; noisy_recall takes both or neither"),
        (dict(name="memorisation", noise=0.2, noise_vocab=4), "memorisation takes neither: set both to 0"),
        (dict(name="noisy_recall", noise=0.2, noise_vocab=16), "vocab_size is 16, which leaves noisy_recall"),
        (dict(name="fuzzy_recall", length=12), "length is 12; fuzzy_recall needs 13 or more"),
        (dict(name="selective_copying", length=33), "selective_copying of 16 tokens needs 34 or more"),
    ]
    for fields, message in wrong:
        with pytest.raises(UserError, match=message):
            MadTask(**fields)
    with pytest.raises(UserError, match="part is 'valid'; give 'train' or 'test'"):
        draw_instances(MAD["compression"], "valid", 0)
    for name, changes in HARDER.items():
        for field, values in changes.items():
            assert all(dataclasses.replace(MAD[name], **{field: value}) for value in values)
