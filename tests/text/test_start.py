"""A run on text that begins with a trained model, and techniques that compose with any loss."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.adapt import add_sink
from jaxllm.errors import UserError
from jaxllm.pretrained import save_pretrained
from jaxllm.subnetwork import Rates, Schedule, Stage
from jaxllm.text import load_run, prepare, train
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.writers import read_metrics
from tests.models.random_params import random_params
from tests.text.steps import take_steps

ONE = jax.devices()[:1]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_a_run_is_fine_tuned_with_its_own_model_and_tokenizer_and_goes_on_without_it(tiny, tmp_path, capsys):
    base = tiny(tokenizer="bpe:270", steps=2, out=str(tmp_path / "base"))
    train(base, devices=ONE)
    model, params, tokenizer = load_run(base.out)
    tuned = tiny(start=base.out, steps=2, model=models.get_preset("llama-nano", remat="full"))
    run = prepare(tuned, devices=ONE)
    assert run.model == dataclasses.replace(model, remat="full", attention_implementation=None)
    assert run.corpus.tokenizer.fingerprint == tokenizer.fingerprint
    assert_same(run.init(jax.random.key(0)).params, params)
    train(dataclasses.replace(tuned, stop_after=1), devices=ONE)
    shutil.rmtree(base.out)
    assert train(tuned, devices=ONE).steps == 1
    said = capsys.readouterr().err
    assert f"fine-tuning '{base.out}'" in said and f"resuming {tuned.out} after step 1" in said


@pytest.mark.slow
def test_a_model_that_was_given_sinks_goes_on_and_comes_back(tiny):
    model = models.get_preset("gpt2-nano", vocab_size=257, num_layers=1, context_length=32)
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, 256)
    config, params = add_sink(model, models.init(model, jax.random.key(0)), tokens)
    sink_LH = np.asarray(params["layers"]["attn"]["sink"])
    run = tiny(model=config, steps=2)
    trained = train(run, start=params, devices=ONE).params["layers"]["attn"]["sink"]
    moved = np.abs(np.asarray(trained) - sink_LH)
    # AdamW's step is about the rate in size: half of it, then all, each 0.01 at most.
    assert moved.min() > 1e-4 and moved.max() <= 0.0151
    loaded, again, _ = load_run(run.out)
    assert loaded.sink_logit == "learned"
    np.testing.assert_array_equal(again["layers"]["attn"]["sink"], trained)


def test_a_pretrained_folder_is_fine_tuned(tiny, tmp_path):
    config = models.get_preset("gpt2-nano", vocab_size=257, num_layers=1, context_length=32)
    params = jax.tree.map(np.asarray, random_params(config))
    save_pretrained(tmp_path / "hf", config, params)
    run = prepare(tiny(start=str(tmp_path / "hf"), precision="bfloat16"), devices=ONE)
    started = run.init(jax.random.key(0)).params
    assert run.model.num_layers == 1 and started["embed"]["tokens"].dtype == "bfloat16"
    want = jax.tree.map(lambda x: np.asarray(jax.numpy.asarray(x).astype("bfloat16")), params)
    assert_same(started, want)


def test_parameters_are_given_from_python(tiny):
    config = tiny(steps=1)
    params = jax.tree.map(np.asarray, prepare(config, devices=ONE).init(jax.random.key(7)).params)
    assert_same(prepare(config, start=params, devices=ONE).init(jax.random.key(0)).params, params)
    del params["final_norm"]["bias"]
    with pytest.raises(UserError, match=r"no 'final_norm/bias', and the run's .* of shape \(32,\)"):
        prepare(config, start=params, devices=ONE)
    with pytest.raises(UserError, match="both give parameters"):
        prepare(tiny(start="x"), start=params, devices=ONE)
    with pytest.raises(UserError, match="'nowhere' is not a file"):
        prepare(tiny(start="nowhere"), devices=ONE)


def test_chosen_steps_are_kept_for_curves(tiny):
    config = tiny(steps=4, keep_steps=(1, 2), keep_last=1, keep_best=0, eval_every=1)
    train(config, devices=ONE)
    assert Checkpoints(Path(config.out) / "checkpoints").steps() == [1, 2, 4]
    assert {row["step"] for row in read_metrics(config.out) if "heldout_loss" in row} == {1, 2, 3, 4}
    model, params, _ = load_run(config.out)
    assert model.num_layers == 2 and params["embed"]["tokens"].shape == (257, 32)


@pytest.mark.slow
def test_subnetworks_and_other_views_compose_with_any_loss(tiny):
    """A loss of one's own on random subnetworks seen through one more view: the same as the run's own."""
    config, seen = tiny(), []
    schedule = Schedule((Stage(1.0, Rates(layers=0.5, heads=0.5, mlp=0.25)),))

    def own(params, batch, key):
        seen.append(jax.tree.map(lambda x: x.shape, params["layers"]["mlp"]["in"]))
        options = dict(mask=batch["mask"], segment_ids=batch["segment_ids"])
        return models.loss(model, params, batch["tokens"], batch["targets"], **options)

    def halved(params, frozen, key):
        layers = params["layers"]
        return params | {"layers": layers | {"mlp": layers["mlp"] | {"in": 0.5 * layers["mlp"]["in"]}}}

    def own_of_halved(params, batch, key):
        return own(halved(params, None, None), batch, key)

    model = prepare(config, devices=ONE).model
    on = dict(subnetworks=schedule, devices=ONE)
    plain, own_alone = take_steps(config, 2, **on)[0], take_steps(config, 2, loss=own, **on)[0]
    np.testing.assert_allclose(own_alone, plain, rtol=1e-6)
    want = take_steps(config, 2, loss=own_of_halved, **on)[0]
    got = take_steps(config, 2, loss=own, views=(halved,), **on)[0]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert np.abs(np.subtract(got, plain)).max() > 1e-3
    assert (1, 32, 32) in seen  # half of the layers and a quarter of 128 neurons, in training
