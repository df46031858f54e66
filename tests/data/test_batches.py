import itertools
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jaxllm import data
from jaxllm.errors import UserError

T = 8
EOS = 0


def make_tokens(lengths) -> data.Tokens:
    """Return documents of these lengths (eos included) whose ids are all different but for eos."""
    documents = []
    for length in lengths:
        first = 1 + sum(map(len, documents))
        documents.append(np.append(np.arange(first, first + length - 1), EOS))
    starts = np.cumsum([0, *lengths[:-1]])
    return data.Tokens(np.concatenate(documents).astype(np.uint16), starts, num_bytes=sum(lengths))


TOKENS = make_tokens([30, 3, 1, 20, 8, 8, 25, 2, 40, 61])  # 198 ids: 24 windows of 8.


def take(iterator, count) -> list[dict]:
    return list(itertools.islice(iterator, count))


def places(batches) -> list[int]:
    """Return where in TOKENS each row begins."""
    rows = {tuple(TOKENS.ids[i : i + T].tolist()): i for i in range(0, len(TOKENS) - T, T)}
    return [rows[tuple(row.tolist())] for batch in batches for row in batch["tokens"]]


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
        assert left[name].dtype == right[name].dtype


def joined(parts) -> dict:
    """Stack the rows of several processes' batches."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.smoke
def test_targets_segments_and_mask_at_document_boundaries():
    tokens = make_tokens([3, 1, 6, 7])
    (batch,) = take(data.batches(tokens, batch_size=1, seq_len=16, seed=0, epochs=1), 2)
    assert batch["tokens"].tolist() == [[1, 2, 0, 0, 5, 6, 7, 8, 9, 0, 11, 12, 13, 14, 15, 16]]
    assert batch["targets"].tolist() == [[2, 0, 0, 5, 6, 7, 8, 9, 0, 11, 12, 13, 14, 15, 16, 0]]
    assert batch["segment_ids"].tolist() == [[0] * 3 + [1] + [2] * 6 + [3] * 6]
    assert batch["mask"].tolist() == [[1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]]
    assert {name: str(array.dtype) for name, array in batch.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "segment_ids": "int32",
        "mask": "float32",
    }


def test_every_window_agrees_with_a_plain_loop():
    document_of = np.searchsorted(TOKENS.starts, np.arange(len(TOKENS)), side="right")
    iterator = data.batches(TOKENS, batch_size=24, seq_len=T, seed=0, shuffle=False, epochs=1)
    (batch,) = take(iterator, 2)
    for row in range(24):
        for t in range(T):
            at = row * T + t
            assert batch["tokens"][row, t] == TOKENS.ids[at]
            assert batch["targets"][row, t] == TOKENS.ids[at + 1]
            assert batch["segment_ids"][row, t] == document_of[at] - document_of[row * T]
            assert batch["mask"][row, t] == (document_of[at] == document_of[at + 1])


def test_each_epoch_is_another_permutation_of_all_windows():
    batches = take(data.batches(TOKENS, batch_size=8, seq_len=T, seed=3), 9)
    epochs = [places(batches[i : i + 3]) for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, 24 * T, T))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_batches_straddle_epochs_and_drop_only_the_last_remainder():
    batches = list(data.batches(TOKENS, batch_size=7, seq_len=T, seed=3, epochs=2))
    seen = places(batches)
    assert len(seen) == 42  # Of 48: 6 rows are no full batch.
    assert sorted(seen[:24]) == list(range(0, 24 * T, T))


def test_the_seed_decides_the_order():
    def order(seed, **options):
        return places(take(data.batches(TOKENS, batch_size=8, seq_len=T, seed=seed, **options), 6))

    assert order(0) == order(0)
    assert order(0) != order(1) and order(0, shuffle=False) == list(range(0, 24 * T, T)) * 2
    # Grain itself adds the epoch to the seed: neighbours must not share epochs all the same.
    assert order(0)[24:] != order(1)[:24]


@pytest.mark.smoke
@pytest.mark.parametrize("step", [0, 1, 3, 7])  # Epochs of 24 windows end inside a batch of 10.
def test_a_restored_iterator_gives_the_exact_next_batch(step):
    iterator = data.batches(TOKENS, batch_size=10, seq_len=T, seed=1)
    take(iterator, step)
    saved = json.loads(json.dumps(iterator.state()))
    assert len(json.dumps(saved)) < 200
    expected = take(iterator, 4)
    other = data.batches(TOKENS, batch_size=10, seq_len=T, seed=1)
    take(other, 2)
    other.restore(saved)
    assert other.state() == saved
    for left, right in zip(take(other, 4), expected, strict=True):
        assert_equal(left, right)
    iterator.restore(saved)  # Backwards, on the same iterator.
    assert_equal(next(iterator), expected[0])


@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_processes_hold_the_rows_of_the_single_batch_in_order(process_count):
    options = dict(batch_size=12, seq_len=T, seed=5)
    single = take(data.batches(TOKENS, **options), 5)
    parts = [
        take(data.batches(TOKENS, **options, process_index=i, process_count=process_count), 5)
        for i in range(process_count)
    ]
    for step in range(5):
        assert_equal(joined([part[step] for part in parts]), single[step])


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_end_at_the_same_step(process_count):
    options = dict(batch_size=20, seq_len=T, seed=5, epochs=2, process_count=process_count)
    counts = {
        len(list(data.batches(TOKENS, **options, process_index=i))) for i in range(process_count)
    }
    assert counts == {2}


def test_a_run_resumes_on_another_number_of_processes():
    options = dict(batch_size=12, seq_len=T, seed=5)
    two = [data.batches(TOKENS, **options, process_index=i, process_count=2) for i in range(2)]
    for iterator in two:
        take(iterator, 3)
    saved = two[1].state()
    assert saved == two[0].state()
    halves = [next(iterator) for iterator in two]
    three = [data.batches(TOKENS, **options, process_index=i, process_count=3) for i in range(3)]
    for iterator in three:
        iterator.restore(saved)
    thirds = [next(iterator) for iterator in three]
    assert_equal(joined(thirds), joined(halves))


@pytest.mark.parametrize(
    "change", [{"batch_size": 6}, {"seq_len": 4}, {"seed": 2}, {"shuffle": False}]
)
def test_a_state_of_other_settings_is_refused(change):
    options = {"batch_size": 4, "seq_len": T, "seed": 1, "shuffle": True}
    saved = data.batches(TOKENS, **options).state()
    other = data.batches(TOKENS, **{**options, **change})
    (name,) = change
    with pytest.raises(
        UserError, match=f"the saved place in the data has {name}={saved[name]} but"
    ):
        other.restore(saved)


@pytest.mark.parametrize("batch_size", [1, 4, 24, 30])
@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_holds_each_target_once(batch_size, process_count):
    batch_size *= process_count
    seen, scored = [], 0
    for index in range(process_count):
        for batch in data.eval_batches(
            TOKENS,
            batch_size=batch_size,
            seq_len=T,
            process_index=index,
            process_count=process_count,
        ):
            assert batch["tokens"].shape == (batch_size // process_count, T)
            seen += batch["targets"][batch["mask"] == 1].tolist()
            scored += batch["mask"].sum()
    # All but the first token of each document, which follows another document's eos.
    expected = np.delete(TOKENS.ids, TOKENS.starts)
    assert sorted(seen) == sorted(expected.tolist())
    assert scored == len(TOKENS) - TOKENS.num_documents


def test_evaluation_is_in_order_and_counts_the_same_on_all_processes():
    batches = list(data.eval_batches(TOKENS, batch_size=4, seq_len=T))
    stream = np.concatenate([batch["tokens"].ravel() for batch in batches])
    np.testing.assert_array_equal(stream[: len(TOKENS) - 1], TOKENS.ids[:-1])
    last = data.eval_batches(TOKENS, batch_size=4, seq_len=T, process_index=3, process_count=4)
    assert len(list(last)) == len(batches)


EXIT = """
    import numpy as np
    from jaxllm import data
    tokens = data.Tokens(np.arange(5000, dtype=np.uint16), np.array([0]), 5000)
    kept = [data.batches(tokens, batch_size=4, seq_len=8, seed=i) for i in range(3)]
    print([int(next(it)["tokens"].sum()) > 0 for it in kept])
"""


def test_the_interpreter_exits_while_iterators_read_ahead():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXIT)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.strip() == "[True, True, True]", done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 500}, "198 tokens, shorter than one sequence of seq_len 500"),
        ({"seq_len": 0}, "seq_len=0: expected both to be at least 1"),
        ({"batch_size": 0}, "batch_size=0, seq_len=8: expected both"),
        ({"process_count": 3}, "batch_size 4 does not divide by the 3 processes"),
        ({"process_index": 2, "process_count": 2}, "process_index=2, process_count=2: expected an"),
        ({"seed": -1}, "seed=-1, epochs=None: expected seed >= 0"),
        ({"epochs": 0}, "seed=0, epochs=0: expected seed >= 0 and epochs >= 1"),
        ({"epochs": 1, "batch_size": 25}, "batch_size 25 is more than the 24 sequences"),
    ],
)
def test_numbers_that_do_not_fit_are_told_in_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        data.batches(TOKENS, **{"batch_size": 4, "seq_len": T, "seed": 0, **options})
    if not options.keys() & {"seed", "epochs"}:
        with pytest.raises(UserError, match=message):
            data.eval_batches(TOKENS, **{"batch_size": 4, "seq_len": T, **options})
