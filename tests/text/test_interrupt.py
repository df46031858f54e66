"""Signals: SIGTERM, SIGHUP and Ctrl-C save and leave; kill -9 loses nothing that was saved."""

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxllm.text import train
from jaxllm.train import Run, loop
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.interrupt import Interrupted, StopRequest
from jaxllm.train.writers import heldout_curve

STEPS = 90


def command(folder, out):
    return [
        sys.executable, "-m", "jaxllm.cli", "train", "--preset", "gpt2-nano", "--data", str(folder),
        "--tokenizer", "bytes", "--seq-len", "16", "--batch-size", "4", "--steps", str(STEPS),
        "--save-every", "3", "--eval-every", "1000", "--log-every", "1", "--out", str(out),
        "--final-eval-batches", "2", "--optim.warmup-steps", "4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return os.environ | {
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "XLA_FLAGS": re.sub(r"\S+device_count=\d+", "", os.environ["XLA_FLAGS"]),  # one device
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }


@pytest.fixture(scope="module")
def uninterrupted(env, text_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(text_folder, out), env=env, check=True, capture_output=True, timeout=240)
    return final_params(out)


def final_params(out):
    from jaxllm.text.load import load_run

    with Checkpoints(Path(out) / "checkpoints") as kept:
        assert kept.latest() == STEPS
    return load_run(out)[1]


def logged_steps(out):
    path = Path(out) / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def start_and_wait(folder, out, env, more_steps):
    """Start the run; return it once it has logged so many steps more than before."""
    before = logged_steps(out)
    process = subprocess.Popen(
        command(folder, out), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        # A resumed run first drops the lines that its checkpoint does not hold.
        if logged_steps(out) >= max(1, before - 3) + more_steps:
            break
        time.sleep(0.005)
    return process


def assert_equal_trees(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_sigterm_within_a_step_saves_that_step_and_the_same_call_goes_on(tiny, monkeypatch, steps_shared):
    config, [cpu] = tiny(), jax.devices()[:1]
    whole = train(dataclasses.replace(config, out=config.out + "-whole"), devices=[cpu])
    received = loop.StopRequest.received

    def kill_at_two(request, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return received(request, step)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped after step 2") as stopped:
        patch.setattr(loop.StopRequest, "received", kill_at_two)
        train(config, devices=[cpu])
    assert stopped.value.exit_code == 143
    with Checkpoints(f"{config.out}/checkpoints") as kept:
        assert kept.latest() == 2
    assert_equal_trees(train(config, devices=[cpu]).params, whole.params)


@pytest.mark.parametrize("killed", [False, True])
def test_an_evaluation_during_which_a_run_is_stopped_is_not_lost(tiny, monkeypatch, steps_shared, killed):
    """The state is saved at once and the evaluation ended; where there is no time for that, made up for."""
    config, [cpu] = tiny(eval_every=2), jax.devices()[:1]
    train(dataclasses.replace(config, out=config.out + "-whole"), devices=[cpu])
    evaluated = Run.mean_loss

    def stopped_in_it(run, params, batches, *, before_batch=lambda: None, **options):
        def between():
            os.kill(os.getpid(), signal.SIGTERM)
            before_batch()
            if killed:
                raise KeyboardInterrupt

        return evaluated(run, params, batches, before_batch=between, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt if killed else Interrupted):
        patch.setattr(Run, "mean_loss", stopped_in_it)
        train(config, devices=[cpu])
    with Checkpoints(f"{config.out}/checkpoints") as kept:
        assert kept.latest() == 2
    assert len(heldout_curve(config.out)) == (0 if killed else 1)
    train(config, devices=[cpu])
    assert heldout_curve(config.out) == heldout_curve(config.out + "-whole")


def test_a_hangup_is_noted_like_sigterm_unless_it_is_ignored(capfd):
    jax.devices(), capfd.readouterr()  # what a backend says where this test is the first to need one
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
    try:
        with StopRequest() as stop:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received(1) and Interrupted(stop.signum, "").exit_code == 129
        said = capfd.readouterr().err  # at once, once: a step may take a minute
        assert said == "\nstopping after this step, and saving; Ctrl-C once more stops at once\n"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.received(1)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_run_stopped_and_killed_in_turn_ends_bit_identical(env, text_folder, tmp_path, uninterrupted):
    """A signal saves the very step, a kill loses nothing saved, and the same command goes on from either.

    `python -m experiments.benchmarks.kill_resume` kills twenty times.
    """
    draw, killed, stopped = random.Random(0), None, 0
    for signum in (signal.SIGTERM, killed, signal.SIGINT, killed):
        more_steps = 4 if signum else draw.randint(0, 12)
        process = start_and_wait(text_folder, tmp_path, env, more_steps)
        if signum is killed:
            time.sleep(draw.random() * 0.05)
            process.kill()
            process.communicate()
            continue
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signum, err
        assert "the same command" in err and "Traceback" not in err
        before, stopped = stopped, int(err.split("stopped after step ")[1].split(";")[0])
        assert before + 4 <= stopped < STEPS
        assert (tmp_path / "checkpoints" / str(stopped)).is_dir()  # this very step, not the last third
    subprocess.run(command(text_folder, tmp_path), env=env, check=True, capture_output=True)
    assert_equal_trees(final_params(tmp_path), uninterrupted)
