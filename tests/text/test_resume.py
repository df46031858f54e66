"""A run that stops and resumes is the run that never stopped, bit for bit."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.parallel import MeshConfig
from jaxllm.text import prepare, train
from jaxllm.text.load import load_run
from jaxllm.train import NonFiniteLoss
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.writers import read_metrics

pytestmark = pytest.mark.usefixtures("steps_shared")
ONE = jax.devices()[:1]


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize(
    "precision, num_devices",
    [
        pytest.param("float32", 8, marks=pytest.mark.slow),
        pytest.param("mixed_o2", 1, marks=pytest.mark.smoke),
        pytest.param("float32", 1, marks=pytest.mark.slow),
        pytest.param("mixed_o2", 8, marks=pytest.mark.slow),
    ],
)
def test_two_steps_resume_two_steps_equal_four(tiny, tmp_path, precision, num_devices):
    devices = jax.devices()[:num_devices]
    config = tiny(precision=precision, save_every=2, out=str(tmp_path / "straight"))
    straight = train(config, devices=devices)
    halves = dataclasses.replace(config, out=str(tmp_path / "halves"))
    train(dataclasses.replace(halves, stop_after=2), devices=devices)
    resumed = train(halves, devices=devices)
    assert resumed.steps == 2  # begun anew it would end alike
    assert_same(straight.params, resumed.params)
    assert straight.evaluation == resumed.evaluation
    losses = [[r["loss"] for r in read_metrics(c.out) if "loss" in r] for c in (config, halves)]
    assert len(losses[0]) == 4 and losses[0] == losses[1]


@pytest.mark.parametrize(
    "mesh", [MeshConfig(fsdp=8), pytest.param(MeshConfig(fsdp=2, tensor=4), marks=pytest.mark.slow)]
)
def test_a_checkpoint_restores_onto_another_mesh(tiny, mesh):
    config = tiny()
    straight = train(dataclasses.replace(config, out=config.out + "-straight"))
    train(dataclasses.replace(config, stop_after=2))
    moved = train(dataclasses.replace(config, mesh=mesh))
    assert moved.steps == 2
    spec = moved.params["layers"]["mlp"]["in"].sharding.spec
    assert "fsdp" in spec, spec
    np.testing.assert_allclose(moved.evaluation["loss"], straight.evaluation["loss"], atol=1e-5)


def test_a_run_refuses_a_checkpoint_of_another_config_and_names_the_difference(tiny):
    config = tiny(stop_after=1)
    train(config)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=1))
    with pytest.raises(UserError, match=r"model.num_layers=2, this run asks for 1; use .* another --out"):
        train(other)


def test_a_refused_run_leaves_the_tokenizer_of_the_earlier_one(tiny):
    config = tiny(stop_after=1)
    train(config)
    files = {p: p.read_bytes() for p in Path(config.out).rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="was written with"):
        train(dataclasses.replace(config, tokenizer="char"))
    assert {p: p.read_bytes() for p in Path(config.out).rglob("*") if p.is_file()} == files


def test_more_steps_go_on_and_logged_steps_stand_once(tiny):
    config = tiny(save_every=2)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, schedule="constant"))
    train(config, devices=ONE)
    metrics = Path(config.out) / "metrics.jsonl"
    # A run that was killed after logging steps that its checkpoint does not hold, mid-line.
    with metrics.open("a") as file:
        file.write(json.dumps({"step": 5, "loss": -1.0}) + '\n{"step": 6, "lo')
    train(dataclasses.replace(config, steps=6), devices=ONE)
    rows = [row for row in read_metrics(config.out) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] > 0 for row in rows)


def test_the_last_and_the_best_checkpoints_are_kept(tiny, tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: np.inf, 5: 4.0, 6: 5.0}
    job = prepare(tiny(), devices=ONE)
    with Checkpoints(tmp_path / "kept", keep_last=2, keep_best=1) as kept:
        state = job.init(jax.random.key(0))
        for number, loss in losses.items():
            kept.save(state, step=number, data={}, config={}, heldout_loss=loss)
        kept.wait()
        assert kept.best() == 2 and kept.latest() == 6
    left = sorted(int(p.name) for p in (tmp_path / "kept").iterdir() if p.name.isdigit())
    assert left == [2, 5, 6]


@pytest.mark.parametrize(  # from a checkpoint, and from the beginning
    "save_every", [2, pytest.param(100, marks=pytest.mark.slow)]
)
def test_the_state_before_an_update_that_is_not_finite_is_made_again_and_saved(tiny, save_every):
    def update(grads, state, params):
        spoil = jnp.where(state.count == 3, jnp.nan, 0.0)
        updates, state = adam.update(grads, state, params)
        return jax.tree.map(lambda u: u + spoil, updates), state

    adam = optax.scale_by_adam()
    optimizer = optax.chain(optax.GradientTransformation(adam.init, update), optax.scale(-1e-2))
    config = tiny(steps=6, save_every=save_every, log_every=1)
    with pytest.raises(NonFiniteLoss, match="the update was not finite at step 4 .* is saved"):
        train(config, optimizer=optimizer, devices=ONE)
    good = dataclasses.replace(config, out=config.out + "-good", stop_after=3)
    expected = train(good, optimizer=optimizer, devices=ONE)  # which ends before that step
    job = prepare(config, optimizer=optimizer, devices=ONE)
    with Checkpoints(config.out + "/checkpoints") as kept:
        assert kept.latest() == 3
        state, position = kept.restore(3, job.shapes)
    assert position["step"] == 3
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)


def test_the_non_finite_step_is_named_and_the_state_before_it_is_saved(tiny):
    config = tiny(steps=6, save_every=100)

    def loss(params, batch, key):
        mean, aux = models.loss(
            dataclasses.replace(config.model, vocab_size=257), params, batch["tokens"],
            batch["targets"], mask=batch["mask"],
        )  # fmt: skip
        # Adam moves a bias by about the learning rate a step: infinite after a few.
        return mean / (params["layers"]["mlp"]["in_bias"].max() < 0.025), aux

    with pytest.raises(NonFiniteLoss, match=r"not finite at step [3-6] \(loss inf") as caught:
        train(config, loss=loss, devices=ONE)
    assert f"step {caught.value.updates + 1} " in str(caught.value)
    with Checkpoints(config.out + "/checkpoints") as kept:
        assert kept.latest() == caught.value.updates
        _, position = kept.restore(kept.latest(), prepare(config, devices=ONE).shapes)
        assert position["step"] == caught.value.updates  # the offending batch comes next
    _, params, _ = load_run(config.out)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(params))
    with pytest.raises(NonFiniteLoss) as again:  # resuming meets the same batch
        train(config, loss=loss, devices=ONE)
    assert again.value.updates == caught.value.updates
