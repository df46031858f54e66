"""Processes joined by jax.distributed on this machine: the same numbers, and what if one is lost."""

import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments.benchmarks import local_processes
from jaxllm import parallel
from jaxllm.cli.train import parse_config
from jaxllm.errors import UserError
from jaxllm.text import train
from jaxllm.text.load import load_run
from jaxllm.train.writers import read_metrics

STEPS = 20


@pytest.fixture
def command(text_folder, monkeypatch):
    """A function that makes the arguments of a small run, whose numbers do not depend on its length."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(text_folder.parent / "cache"))
    return lambda out, *more: [
        "--preset", "gpt2-nano", "--model.embed-dim", "32", "--model.num-heads", "4",
        "--data", str(text_folder), "--tokenizer", "bytes", "--seq-len", "16", "--batch-size", "8",
        "--save-every", "2", "--eval-every", "4", "--eval-batches", "2", "--final-eval-batches", "2",
        "--log-every", "1", "--no-progress",
        "--optim.schedule", "constant", "--optim.warmup-steps", "2", "--mesh.data", "2", "--mesh.fsdp", "2",
        "--out", str(out), *more,
    ]  # fmt: skip


def run_here(arguments, devices):
    train(parse_config(arguments, prog="", description=""), devices=jax.devices()[:devices])


def figures(out):
    return [(row["step"], name, row[name]) for row in read_metrics(out) for name in ("loss", "heldout_loss")
            if name in row]  # fmt: skip


def assert_same_figures(found, expected):
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([r[2] for r in found], [r[2] for r in expected], atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_like_one_which_goes_on_when_the_other_is_killed(command, tmp_path):
    """Each has its part of the data, the parameters and the checkpoints."""
    one, two = tmp_path / "one", tmp_path / "two"
    run_here(command(one, "--steps", str(STEPS)), devices=4)
    running = local_processes.start([command(two, "--steps", "4000")] * 2, devices=2)
    deadline = time.time() + 120
    while len(read_metrics(two)) < 8 and running[1].poll() is None and time.time() < deadline:
        time.sleep(0.005)
    running[1].kill()
    killed = time.time()
    _, said = running[0].communicate(timeout=240)
    running[1].communicate()
    assert time.time() - killed < parallel.distributed.HEARTBEAT_SECONDS + 10
    assert running[0].returncode == 75, said
    assert said.splitlines()[-1].startswith("another process of the run was lost")
    assert "Traceback" not in said

    before = figures(two)
    assert_same_figures(before, figures(one)[: len(before)])
    saved = max(int(p.name) for p in (two / "checkpoints").iterdir() if p.name.isdigit())
    state = two / "checkpoints" / str(saved) / "state"
    assert all(any((state / f"ocdbt.process_{index}").rglob("d/*")) for index in range(2))

    run_here(command(two, "--steps", str(STEPS)), devices=4)
    assert_same_figures(figures(two), figures(one))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), load_run(one)[1], load_run(two)[1])


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused_by_all(command, tmp_path):
    started = local_processes.start([command(tmp_path / name) for name in "01"], devices=2)
    for process in started:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 2, said
        assert "error: process 1 does not see what process 0 writes" in said
    assert not list(tmp_path.rglob(".shared-*"))


def test_an_abort_inside_jax_ends_with_a_sentence():
    program = "from jaxllm import parallel; parallel.initialize(); import os; os.abort()"
    ended = subprocess.run([sys.executable, "-c", program], env=local_processes.environment(1, 1)[0],
                           capture_output=True, text=True, timeout=60)  # fmt: skip
    assert ended.returncode == 75, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("another process of the run was lost")


@pytest.mark.parametrize(
    "error, count, lost",
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), 2, True),
        (RuntimeError("DEADLINE_EXCEEDED: Barrier timed out"), 2, True),
        (RuntimeError("DEADLINE_EXCEEDED: Barrier timed out"), 1, False),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, False),
        (UserError("connection reset by peer is not a tokenizer"), 2, False),
        (OSError("Connection reset by peer"), 2, False),
    ],
)
def test_only_what_a_lost_process_raises_is_taken_for_one(error, count, lost, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: count)
    with pytest.raises(parallel.ProcessLost if lost else type(error)), parallel.losses_told():
        raise error
