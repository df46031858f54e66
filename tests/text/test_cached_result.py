"""What is kept beside a run is given back only where everything that decides it is the same."""

import dataclasses
import functools
import json
import linecache
import sys

import pytest

from jaxllm import data
from jaxllm.kept_result import kept_result
from jaxllm.text import TrainConfig, cached_result

TEXT = "one two three four five six seven eight nine ten "


@pytest.fixture
def asked(tmp_path):
    """Return (ask, counts): ask(run, **decisive) -> the number of the measurement that its result is of."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    count = [0]

    def measure():
        count[0] += 1
        return {"number": count[0], "pair": (1, 2), "loss": float("inf")}

    run = TrainConfig(data=str(text), tokenizer="bytes")
    ask = functools.partial(cached_result, tmp_path / "kept" / "result.json")
    return text, run, lambda run, **decisive: ask(run, measure, **decisive)["number"]


def test_the_same_key_is_measured_once_and_comes_back_as_it_was(asked, tmp_path):
    _, run, ask = asked
    assert [ask(run, batches=8) for _ in range(3)] == [1, 1, 1]
    kept = cached_result(tmp_path / "kept" / "result.json", run, lambda: pytest.fail("measured"), batches=8)
    assert kept == {"number": 1, "pair": [1, 2], "loss": float("inf")}


@pytest.mark.parametrize("change", ["run", "decisive", "no decisive", "data", "tokenizer", "code"])
def test_a_change_of_anything_decisive_measures_again(asked, change, monkeypatch, tmp_path):
    text, run, ask = asked
    tokenizer = tmp_path / "tokenizer.json"
    data.load_tokenizer("char", documents=["abc"]).save(tokenizer)
    run = dataclasses.replace(run, tokenizer=str(tokenizer))
    decisive = dict(zero_shot="one")
    assert ask(run, **decisive) == 1
    if change == "run":
        run = dataclasses.replace(run, seed=1)
    elif change == "decisive":
        decisive = dict(zero_shot="two")
    elif change == "no decisive":
        decisive = {}
    elif change == "data":
        text.write_text(TEXT.replace("one", "two"))  # as long as before, at the same path
    elif change == "tokenizer":
        data.load_tokenizer("char", documents=["abd"]).save(tokenizer)
    else:
        module = sys.modules["jaxllm.kept_result"]
        monkeypatch.setattr(module, "source_digest", lambda: "other code")
    assert ask(run, **decisive) == 2
    assert ask(run, **decisive) == 2


def test_a_partial_function_is_known_by_the_code_it_calls(monkeypatch, tmp_path):
    module = sys.modules["jaxllm.kept_result"]
    calls = (kept_result, functools.partial(kept_result, tmp_path))
    digests = [module._code_digest(call) for call in calls]
    assert digests[0] == digests[1] != module._code_digest(dataclasses.replace)


CELL = """
def measure():
    calls.append(len(calls))
    return {VALUE: [step(1) for step in (lambda x: x, lambda x: x + 1)]}
"""


@pytest.mark.parametrize("source_known", [True, False])  # in a notebook it is, at a prompt it is not
def test_a_function_of_no_file_is_known_by_its_own_code(source_known, monkeypatch, tmp_path):
    calls = []

    def run(cell, number):
        name, names = f"<cell {number}>", {"__name__": "a notebook", "calls": calls, "one": 1}
        if source_known:
            monkeypatch.setitem(linecache.cache, name, (len(cell), None, cell.splitlines(True), name))
        exec(compile(cell, name, "exec"), names)
        return kept_result(tmp_path / "result.json", names["measure"])

    cells = [CELL.replace("VALUE", "'a'"), CELL.replace("VALUE", "'b'"), CELL.replace("VALUE", "one")]
    cells.append(cells[-1].replace("x + 1", "x + 2"))
    cells.append(cells[-1].replace("len(calls)", "sum(calls)"))
    for number, cell in enumerate(cells):
        assert run(cell, number) == run(cell, number + 10)
        assert len(calls) == number + 1
    assert run(cells[0], 20) == {"a": [1, 2]}
    method = "class Measure:\n    def __call__(self): return {'a': VALUE}\nmeasure = Measure()\n"
    assert [run(method.replace("VALUE", value), 30 + int(value)) for value in "12"] == [{"a": 1}, {"a": 2}]


def test_a_result_comes_back_as_from_the_file_the_first_time_too(tmp_path):
    for _ in range(2):
        assert kept_result(tmp_path / "a.json", lambda: {1: (2, 3)}) == {"1": [2, 3]}


def test_data_that_moved_is_the_same_data(asked, tmp_path):
    text, run, ask = asked
    tokenizer = tmp_path / "tokenizer.json"
    data.load_tokenizer("char", documents=["abc"]).save(tokenizer)
    run = dataclasses.replace(run, tokenizer=str(tokenizer), valid_data=str(text))
    assert ask(run) == 1
    moved = tmp_path / "elsewhere" / "moved.txt"
    moved.parent.mkdir()
    before = data.fingerprint(text, "bytes")
    text.rename(moved)
    tokenizer = tokenizer.rename(tmp_path / "elsewhere" / "mine.json")
    run = dataclasses.replace(run, data=str(moved), valid_data=str(moved), tokenizer=str(tokenizer))
    assert ask(run) == 1
    assert data.fingerprint(moved, "bytes") == before != data.fingerprint(moved, "gpt2")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b'{"key": 1}', b"[" * 100_000])
def test_a_damaged_file_is_written_anew(asked, tmp_path, content):
    _, run, ask = asked
    assert ask(run) == 1
    path = tmp_path / "kept" / "result.json"
    path.write_bytes(content)
    assert ask(run) == 2
    assert json.loads(path.read_text())["result"]["number"] == 2


def test_every_experiment_names_what_its_figures_depend_on(monkeypatch, tmp_path):
    """Two zero-shot corpora, two lengths of a scoring, two splits: each has a key of its own."""
    from experiments import evolving_subnetworks, vocabulary_compression

    keys = []
    for module in (evolving_subnetworks, vocabulary_compression):
        monkeypatch.setattr(
            module, "cached_result", lambda path, run, measure, **decisive: keys.append(decisive)
        )
    for text in ("first", "other"):
        corpus = tmp_path / "zero-shot.txt"
        corpus.write_text(text)
        evolving_subnetworks.train_once(TrainConfig(), str(corpus))
    config = vocabulary_compression.PRESETS["debug"]()
    heads = ("full_tied", "own/frequency")
    changes = ({}, dict(detail_batches=7), dict(heads=heads))
    for changed in (dataclasses.replace(config, **change) for change in changes):
        run = vocabulary_compression.run_config(changed, "full_tied", 0)
        vocabulary_compression.train_once("full_tied", run, changed)
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys) == 5
