"""Runs whose stages train subnetworks: resumed, on a mesh, and refused."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.optim import make_optimizer
from jaxllm.parallel import MeshConfig
from jaxllm.subnetwork import Rates, Schedule, Stage, evolving, subnetwork
from jaxllm.text import next_token_loss, prepare, train
from jaxllm.train.step import make_train_step
from jaxllm.train.writers import read_metrics

HALF = Rates(0.5, 0.5, 0.5)
HALF_THEN_ALL = Schedule((Stage(0.6, HALF), Stage(1.0, Rates())))


def simple(config, **model):
    """Return the run with a model that compiles quickly."""
    model = dict(attention_implementation="reference") | model
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


def test_a_run_stopped_within_a_stage_goes_on_bit_for_bit_and_compiles_each_stage_once(tiny, monkeypatch):
    """With float32 sums of parts, master weights and frozen moments."""
    config = simple(tiny(steps=5, precision="mixed_o2", accumulate=2, unsampled="freeze"))
    job = prepare(config, subnetworks=HALF_THEN_ALL, devices=jax.devices()[:1])
    # The runs below share what they compile.
    monkeypatch.setattr("jaxllm.text.training.prepare", lambda config, **_: dataclasses.replace(
        job, config=dataclasses.replace(job.config, out=config.out, stop_after=config.stop_after)
    ))  # fmt: skip
    train(dataclasses.replace(config, stop_after=2))
    resumed = train(config)

    state, batches, losses = job.init(jax.random.key(config.seed)), job.batches(), []
    (first_end, first), (last_end, last) = job.steps
    for step in range(5):
        state, metrics = (first if step < 3 else last)(state, job.put(next(batches)))
        losses.append(float(metrics["loss"]))
    assert (first_end, last_end) == (3, 5)
    assert first._cache_size() == last._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, resumed.params, state.params)
    assert [row["loss"] for row in read_metrics(config.out) if "loss" in row] == losses


@pytest.mark.slow
def test_on_a_mesh_the_losses_are_those_of_one_device_with_the_same_draws(tiny):
    """Heads, neurons and vocabulary over 4 devices, width over 2; draws balanced over the 4."""
    config = simple(
        tiny(mesh=MeshConfig(data=1, fsdp=2, tensor=4)),
        vocab_size=260,
        num_heads=8,
        num_kv_heads=8,
        head_dim=4,
    )
    wide = Rates(0.5, 0.5, 0.25)
    schedule = Schedule((Stage(1.0, wide),))
    job = prepare(config, subnetworks=schedule)

    model, axes = job.model, models.axes(job.model)
    alone = jax.jit(make_train_step(
        next_token_loss(job.config), make_optimizer(config.optim, config.steps, axes),
        views=[subnetwork(model, wide, schedule, axes, shards=4)],
    ))  # fmt: skip
    state, batches = job.init(jax.random.key(0)), job.batches()
    one = jax.device_put(jax.device_get(state), jax.devices()[0])
    for _ in range(3):
        batch = next(batches)
        state, metrics = job.train_step(state, job.put(batch))
        one, expected = alone(one, batch)
        assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-5)
    assert state.params["layers"]["mlp"]["in"].addressable_shards[0].data.shape == (2, 16, 32)


def test_what_does_not_go_together_is_refused(tiny):
    with pytest.raises(UserError, match="unknown unsampled 'frozen'"):
        tiny(unsampled="frozen")
    with pytest.raises(UserError, match="rates.layers=0.25 of 2 layers is 0.5"):
        prepare(tiny(), subnetworks=evolving(0.2, 0.4, rate=0.25))


def test_a_run_whose_only_stage_is_everything_is_the_plain_run(tiny):
    """The very same program."""
    plain, staged = (
        prepare(tiny(), subnetworks=subnetworks, devices=jax.devices()[:1])
        for subnetworks in (None, Schedule((Stage(1.0, Rates()),)))
    )
    programs = [job.train_step.lower(job.shapes, job.batch_shapes).as_text() for job in (plain, staged)]
    assert programs[0] == programs[1]
