"""The long-range tasks: real files read strictly, a label read at a sequence's last token, the debug run."""

import dataclasses
import fnmatch
import gzip
import json
import os
import struct

import jax
import numpy as np
import pytest

from experiments import long_range_arena as arena
from experiments.long_range_arena.tasks import (
    PUBLISHED,
    LongRangeTask,
    load_task,
    original_listops,
    read_digits,
)
from experiments.long_range_arena.training import labelling_task, labels_logits
from jaxllm import targets
from jaxllm.errors import UserError
from jaxllm.synthetic import ListOpsConfig, PathfinderConfig, evaluate_listops
from jaxllm.train import RunConfig
from jaxllm.train.prepare import prepare

real = pytest.mark.skipif(not os.environ.get("JAXLLM_DATA"), reason="JAXLLM_DATA names no folder")
TINY = arena.PartSizes(embed_dim=8, num_heads=2, mlp_dim=8)


def test_a_kept_cell_is_of_the_code_that_it_comes_from(monkeypatch):
    """Its key has a digest of every module of experiments that is called."""
    keys = []
    monkeypatch.setattr(arena, "code_digest", lambda *patterns: patterns, raising=False)
    monkeypatch.setattr(arena, "kept_result", lambda path, measure, **decisive: keys.append(decisive))
    arena.run_cell(arena.LongRangeConfig(), "listops", "mamba", 0)
    called = {getattr(value, "__module__", None) or "" for value in vars(arena).values()}
    called = {name for name in called if name.startswith("experiments.")} - {"experiments.grid"}
    for name in called - {arena.__name__}:
        path = name.removeprefix("experiments.").replace(".", "/") + ".py"
        assert any(fnmatch.fnmatch(path, pattern) for pattern in keys[0]["code"]), path
    assert len(called) > 5


def write_digits(folder, images, labels):
    for name, array in (("t10k-images-idx3-ubyte.gz", images), ("t10k-labels-idx1-ubyte.gz", labels)):
        head = struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape)
        (folder / name).write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def test_files_of_digits_are_read_strictly(tmp_path):
    draw = np.random.default_rng(0)
    images, labels = draw.integers(256, size=(3, 28, 28)), np.array([1, 2, 3])
    write_digits(tmp_path, images, labels)
    read, numbers = read_digits(tmp_path)
    np.testing.assert_array_equal(read, images)
    np.testing.assert_array_equal(numbers, labels)
    wrong = {
        r"have 27 x 28 pixels, and digits have 28 x 28; give MNIST's own": (images[:, 1:], labels),
        "holds 3 images and 2 labels; give files of one set": (images, labels[:2]),
    }
    for message, files in wrong.items():
        write_digits(tmp_path, *files)
        with pytest.raises(UserError, match=message):
            read_digits(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    for content in (path.read_bytes()[:-9], b"no idx", gzip.compress(b"\0\0\x08\x03\0\0\0\3")):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no whole idx file of bytes with 3 axes"):
            read_digits(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="does not exist; give the folder of MNIST's files"):
        read_digits(tmp_path)


def test_drawn_tasks_are_split_and_padded_on_the_right():
    task = LongRangeTask("listops", train=30, test=20)
    train, test = load_task(task, 0)
    assert len(train.labels_N) == 30 and len(test.labels_N) == 20 and train.inputs_NT.shape[1] == task.length
    assert not {row.tobytes() for row in train.inputs_NT} & {row.tobytes() for row in test.inputs_NT}
    for row, last, label, depth in zip(*test, strict=True):
        assert evaluate_listops(row[: last + 1]) == (label, depth) and (row[last + 1 :] == 15).all()
    drawn = PathfinderConfig(size=16, distractors=1)
    paths = LongRangeTask("pathfinder", train=20, test=10, pathfinder=drawn, dashes=(2, 3))
    train, test = load_task(paths, 0)
    assert train.inputs_NT.shape == (20, 256) and set(train.labels_N) == {0, 1}
    assert set(train.difficulty_N) == set(test.difficulty_N) == {2, 3}


def test_what_cannot_be_run_is_told():
    with pytest.raises(UserError, match="unknown task 'listop'; did you mean 'listops'"):
        arena.LongRangeConfig(tasks=("listop",))
    with pytest.raises(UserError, match="shrink is 3; it must divide 28"):
        LongRangeTask("digits", shrink=3)


def test_a_label_is_read_at_the_last_token_and_padding_changes_nothing():
    task = LongRangeTask("listops", train=4, test=4, listops=ListOpsConfig(shortest=5, longest=12, depth=3))
    model = arena.make_model(TINY, task, "mamba")
    labelling = labelling_task(model, task, 4)
    params = labelling.init(jax.random.key(0))
    some = {"inputs": np.tile(np.arange(12, dtype=np.int32), (2, 1)), "last": np.array([5, 11], np.int32)}
    other = {"inputs": some["inputs"].copy(), "last": some["last"]}
    other["inputs"][0, 6:] = 3
    read = jax.jit(lambda params, some: labels_logits(model, params, some))
    one, two = read(params, some), read(params, other)
    assert one.shape == (2, 10)
    np.testing.assert_array_equal(one, two)
    other["inputs"][0, 5] = 3
    assert np.abs(read(params, other)[0] - one[0]).max() > 1e-6


def test_a_report_reads_its_cells(tmp_path):
    """Of made-up cells: the hybrid is above its better part by what it was made above it, on every seed."""
    config = arena.LongRangeConfig(tasks=("listops", "digits"), out=str(tmp_path))
    accuracy = dict(zip(arena.ARMS, (0.3, 0.5, 0.6, 0.4, 0.7), strict=True))

    def cell(arm, seed):
        point = {"step": 4, "accuracy": accuracy[arm], "mixture": [[0.2, 0.8], [0.5, 0.5]]}
        found = {"curve": [point | {"step": 2}, point], "accuracy": accuracy[arm] + 0.01 * seed, "flops": 1,
                 "by_difficulty": {"1": 0.5, "2": 0.1, "all": 0.4}, "parameters": 10, "commonest": 0.1,
                 "cpu_seconds": 1.0}  # fmt: skip
        return found | {"original": {"1": 0.2, "all": 0.2}}

    variants = [(name, arm) for name in config.tasks for arm in arena.ARMS]
    cells = {variant: [cell(variant[1], seed) for seed in range(3)] for variant in variants}
    claims = arena.judge(config, cells)
    np.testing.assert_allclose([claim.measured for claim in claims], [0.1, -0.1, 0.51, 0.51])
    assert [claim.verdict for claim in claims] == ["holds", "fails", "holds", "holds"]
    tables = arena.sections(config, cells)
    assert {"Accuracy", "By difficulty: listops", "By difficulty: listops, original items"} <= set(tables)
    assert abs(arena.metrics(cells)["accuracy/original_listops/hybrid"] - 0.2) < 1e-9
    arena.plot(config, cells, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves.png", "difficulty.png", "mixtures.png"}


@real
@pytest.mark.slow
def test_real_files_are_what_they_should_be():
    original = original_listops(128)  # whose labels it checks by working them out
    assert 9000 < len(original.labels_N) <= 10_000 and original.inputs_NT.max() <= 15
    train, test = load_task(LongRangeTask("reviews", train=1500, test=500, longest=64), 0)
    assert abs(train.labels_N.mean() - 0.5) < 0.05 and set(test.difficulty_N) == {0, 1, 2, 3}
    train, test = load_task(LongRangeTask("digits", train=8000, test=2000, shrink=4), 0)
    assert train.inputs_NT.shape == (8000, 49) and len(set(test.labels_N)) == 10
    with pytest.raises(UserError, match="digits has 10,000 items, and 9,000 to train on"):
        load_task(LongRangeTask("digits", train=9000, test=2000), 0)


@pytest.mark.slow
def test_the_debug_run_writes_its_report(tmp_path):
    report = arena.main(dataclasses.replace(arena.PRESETS["debug"](), out=str(tmp_path)), "debug")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["metrics"] == report.metrics and len(report.claims) == 3
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves.png", "difficulty.png", "mixtures.png"}


@pytest.mark.targets
@pytest.mark.skipif(not targets.is_available("h100"), reason="needs the compiler of an H100")
def test_the_papers_hybrid_trains_within_an_h100():
    config = arena.PRESETS["paper"]()
    task = PUBLISHED["pathfinder"]
    model = arena.make_model(config.sizes("pathfinder"), task, "hybrid")
    labelling = labelling_task(model, task, config.batch_size)
    optimizer = arena.arena_optimizer(config, model, labelling.axes)
    job = prepare(labelling, RunConfig(), optimizer=optimizer, devices=targets.devices("h100"))
    forecast = targets.compile(job.steps[0][1], (job.shapes, job.batch_shapes), "h100")
    assert forecast.fits and forecast.peak_bytes > 3 * 4 * model.num_params
