"""What a run tells while it trains: numbers, parameters, what it is; and which checkpoint was best."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxllm.train import Every, Interrupted, RunConfig, plot, train
from jaxllm.train.announce import short
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.writers import read_metrics
from tests.train.test_task import TASK


def run(tmp_path, task=TASK, name="run", on_metrics=None, callbacks=(), **config):
    config = RunConfig(
        **dict(steps=5, progress=False, save_every=100, log_every=1, out=str(tmp_path / name)) | config
    )
    return train(task, config, optimizer=optax.sgd(0.1), devices=jax.devices()[:1], on_metrics=on_metrics,
                 callbacks=callbacks)  # fmt: skip


def by_step(*losses):
    """An evaluation that finds these losses, one after the other."""
    left = iter(losses)
    return dataclasses.replace(TASK, evaluate=lambda params, mean_loss: {"loss": next(left)})


def test_numbers_are_told_as_they_are_written(tmp_path):
    told = []
    run(tmp_path, on_metrics=lambda step, numbers: told.append({"step": step, **numbers}), eval_every=2)
    rows = read_metrics(tmp_path / "run")
    assert told == rows and [row["step"] for row in rows if "heldout_loss" in row] == [2, 4, 5]
    # The speed is of steps alone: the first one holds a compile, and has none.
    assert [row["step"] for row in rows if "steps_per_second" in row] == [2, 3, 4, 5]


def test_parameters_are_told_every_so_many_steps_and_in_the_end(tmp_path):
    seen = {}
    run(
        tmp_path,
        callbacks=[Every(2, lambda step, params: seen.update({step: jax.tree.map(np.array, params)}))],
    )
    assert list(seen) == [2, 4, 5]
    for step, params in seen.items():
        there = run(tmp_path, name=f"of-{step}", steps=step).params
        jax.tree.map(np.testing.assert_array_equal, params, there)


@pytest.mark.parametrize("where", ["on_metrics", "callbacks"])
def test_what_a_callback_raises_costs_no_step(tmp_path, where):
    def fail(step, told):
        if step == 3:
            raise RuntimeError("the network is down")

    options = {where: fail if where == "on_metrics" else [Every(1, fail)]}
    with pytest.raises(RuntimeError, match="the network is down"):
        run(tmp_path, **options)
    # The numbers of a step are read when the next has been dispatched.
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [4 if where == "on_metrics" else 3]
    resumed = run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, run(tmp_path, name="straight").params)


def test_the_checkpoint_that_was_evaluated_best_is_kept(tmp_path):
    """Whatever save_every says; without keep_best none is saved for it."""
    kept = Checkpoints(tmp_path / "run" / "checkpoints")
    run(tmp_path, by_step(3.0, 1.0, 2.0, 1.5, 2.0), eval_every=1, keep_last=1)
    assert kept.steps() == [2, 5] and kept.best() == 2 and kept.best_loss() == 1.0
    run(tmp_path, by_step(3.0, 1.0, 2.0, 1.5, 2.0), name="none", eval_every=1, keep_last=1, keep_best=0)
    assert Checkpoints(tmp_path / "none" / "checkpoints").steps() == [5]
    # A run that goes on knows what was best before.
    run(tmp_path, by_step(2.0, 1.5, 0.5, 4.0), eval_every=1, keep_last=1, steps=9)
    assert kept.steps() == [8, 9] and kept.best() == 8


def test_the_evaluation_after_the_last_step_may_read_more(tmp_path, capsys):
    task = dataclasses.replace(
        by_step(2.0, 3.0), evaluate_last=lambda params, mean_loss: {"loss": 2.5, "n": 7}
    )
    trained = run(tmp_path, task, eval_every=3)
    rows = read_metrics(tmp_path / "run")
    assert trained.evaluation == {"loss": 2.5, "n": 7}
    assert rows[-1] == {"step": 5, "final_loss": 2.5, "final_n": 7}
    assert [row["heldout_loss"] for row in rows if "heldout_loss" in row] == [2.0, 3.0]
    again = run(tmp_path, dataclasses.replace(task, evaluate=None), eval_every=3)  # nothing is left to do
    assert again.steps == 0 and again.evaluation == trained.evaluation
    assert read_metrics(tmp_path / "run") == rows


def test_what_is_due_after_the_last_step_is_done_also_where_the_run_is_stopped_there(tmp_path):
    """A callback before the run leaves; the evaluation after the last step when it goes on, and once."""
    called, stops = [], True

    def stopping(params, mean_loss):
        if stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": mean_loss(params, [next(TASK.batches())])[0]}

    def go_on(name, **evaluations):
        task = dataclasses.replace(TASK, **{"evaluate": None} | evaluations)
        return run(tmp_path, task, name, callbacks=[Every(2, lambda step, params: called.append(step))])

    with pytest.raises(Interrupted, match="stopped after step 5"):
        go_on("callback", evaluate=stopping)
    assert called == [2, 4, 5]
    with pytest.raises(Interrupted, match="in the evaluation after the last step"):
        go_on("final", evaluate_last=stopping)
    assert not any("final_loss" in row for row in read_metrics(tmp_path / "final"))
    stops = False
    for _ in range(2):
        scores = go_on("final", evaluate_last=stopping).evaluation
        rows = [row for row in read_metrics(tmp_path / "final") if "final_loss" in row]
        assert rows == [{"step": 5, "final_loss": scores["loss"]}]


def test_a_run_says_what_it_is_before_it_compiles(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plot, "plot_curves", lambda folder: None)
    run(tmp_path, progress=True, keep_last=2)
    said = capsys.readouterr().err.splitlines()
    begin = said.index("starting from scratch")
    assert [line.split("  ")[0] for line in said[:begin]] == ["steps", "parameters", "devices", "writes to"]
    assert said[1].split() == ["parameters", "4"] and said[2].split("  ", 1)[1].strip() == "1 x cpu"
    assert str(tmp_path / "run") in said[3] and "the last 2 and the best are kept" in said[3]
    assert said[begin + 1] == "compiling the step ..."
    assert said[begin + 2].startswith("compiled, and step 1 taken, in ")
    run(tmp_path, progress=True, steps=7)
    assert "resuming" in capsys.readouterr().err
    run(tmp_path, name="quiet")
    assert capsys.readouterr().err == "starting from scratch\n"


def test_every_folder_has_the_config_and_one_that_was_watched_its_curves(tmp_path):
    run(tmp_path, progress=True, keep_steps=(1, 3))
    config = json.loads(Path(tmp_path, "run", "config.json").read_text())
    assert RunConfig(**config | {"mesh": RunConfig().mesh}) == RunConfig(
        steps=5, save_every=100, log_every=1, out=str(tmp_path / "run"), keep_steps=(1, 3)
    )
    assert Path(tmp_path, "run", "curves.png").read_bytes().startswith(b"\x89PNG")

    def stop(step, params):
        raise Interrupted(15, "stopped")

    with pytest.raises(Interrupted):
        run(tmp_path, name="stopped", progress=True, callbacks=[Every(2, stop)])
    assert Path(tmp_path, "stopped", "curves.png").exists()


@pytest.mark.parametrize(
    "count, said", [(999, "999"), (858_880, "858,880"), (1_000_000, "1.0M"), (1.1e9, "1.1B")]
)
def test_large_numbers_are_said_short(count, said):
    assert short(int(count)) == said
