"""Rollouts say what the model says of them, and a policy learns on the ordinary loop."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jaxllm import models
from jaxllm.adapt import Lora, LoraConfig
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from jaxllm.reward import PolicyConfig, draw_rollouts, policy_log_probs, policy_task
from jaxllm.train import train

MODEL = models.get_preset("gpt2-nano", vocab_size=5, context_length=12, num_layers=1, embed_dim=16,
                          num_heads=2)  # fmt: skip
PARAMS = models.init(MODEL, jax.random.key(0))
PARAMS["embed"]["tokens"] *= 20  # so that its five tokens are not equally likely, nor stay so
ONE = dict(devices=jax.devices()[:1])


def test_rollouts_are_the_models_own_distribution_and_masked_after_the_end():
    prompts = [[1, 2, 3], [4]] * 512
    drawn = draw_rollouts(Decoder(MODEL, PARAMS), prompts, max_new_tokens=4, end_id=0, key=jax.random.key(1))
    assert drawn.tokens_BU.shape == (1024, 7)
    said = np.asarray(jax.jit(policy_log_probs, static_argnums=0)(MODEL, PARAMS, drawn.tokens_BU))
    np.testing.assert_allclose(drawn.log_probs_BT, said * drawn.mask_BT, atol=2e-5)
    for row, (prompt, ids) in enumerate(zip(prompts[:64], drawn.drawn()[:64], strict=True)):
        assert 0 not in ids
        whole = [*prompt, *ids, *([0] if drawn.ended_B[row] else [])]
        assert drawn.tokens_BU[row, : len(whole)].tolist() == whole
        assert not drawn.tokens_BU[row, len(whole) :].any()
        assert drawn.mask_BT[row].sum() == len(whole) - len(prompt)
        assert len(ids) == 4 or drawn.ended_B[row]
    # The first token of the second prompt against its exact chances, within 4 standard errors.
    first = jax.jit(lambda params: jax.nn.softmax(models.apply(MODEL, params, np.array([[4]]))[0, 0]))
    chances = np.asarray(first(PARAMS))
    counts = np.bincount(drawn.tokens_BU[1::2, 1], minlength=5)
    assert (np.abs(counts / 512 - chances) < 4 * np.sqrt(chances * (1 - chances) / 512)).all()
    with pytest.raises(UserError, match="prompts of up to 3 tokens and max_new_tokens=10 exceed"):
        draw_rollouts(Decoder(MODEL, PARAMS), prompts, max_new_tokens=10, end_id=0, key=jax.random.key(1))


def wants_twos(samples):
    return np.array([sum(token == 2 for token in ids) / 4 for ids in samples]), {}


def run(out, told=None, view=None, **values):
    values = dict(rollouts=16, max_new_tokens=4, progress=False, kl=0.01) | values
    config = PolicyConfig(out=str(out), **values)
    if view is None:
        task = policy_task(config, MODEL, PARAMS, [[1], [3]], wants_twos, end_id=0, on_draw=told)
        return train(task, config, optimizer=optax.adam(0.02), start=PARAMS, **ONE)
    start, frozen = view.begin(PARAMS, jax.random.key(0))
    task = policy_task(
        config, MODEL, PARAMS, [[1], [3]], wants_twos, end_id=0, on_draw=told,
        policy=lambda trained: view.merge(trained, frozen),
    )  # fmt: skip
    part = dict(init=view.init, axes=view.axes(), frozen=frozen, frozen_axes=view.frozen_axes())
    task = dataclasses.replace(task, **part)
    return train(task, config, optimizer=optax.adam(0.05), start=start, views=(view,), **ONE)


@pytest.mark.slow
def test_a_policy_learns_what_is_rewarded_and_says_how(tmp_path):
    told = []
    run(tmp_path, told=lambda number, drawn, figures: told.append(figures), steps=16)
    rewards = [figures["reward"] for figures in told]
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.25
    assert told[0]["kl"] == pytest.approx(0, abs=1e-4) and told[-1]["kl"] > 0.05
    assert {"length", "entropy", "ended"} < set(told[0])


@pytest.mark.slow
def test_clipped_epochs_an_adapter_and_a_resumed_run(tmp_path):
    told = []
    view = Lora(MODEL, LoraConfig(rank=4, targets="all"))
    options = dict(clip=0.2, epochs=2, group=4, baseline="group")
    run(tmp_path / "lora", lambda *draw: told.append(draw[2]["reward"]), view, steps=24, **options)
    assert np.mean(told[-3:]) > np.mean(told[:3]) + 0.1
    whole = run(tmp_path / "whole", steps=6)
    run(tmp_path / "halves", steps=6, stop_after=3)
    resumed = run(tmp_path / "halves", steps=6)
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


def test_parts_of_a_draw_count_their_own_rollouts():
    """What accumulation sums is the draw's, and each part is the mean over its rows."""
    config = PolicyConfig(rollouts=16, max_new_tokens=4)
    task = policy_task(config, MODEL, PARAMS, [[1]], wants_twos, end_id=0)
    whole = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), task.batch_shapes)
    counts = []
    for rows in (slice(4), slice(4, 16)):
        part = jax.tree.map(lambda x, rows=rows: x[rows], whole)
        jax.eval_shape(lambda part: counts.append(task.loss(PARAMS, part, None)[1]["token_count"]), part)
    assert counts == [4, 12]


def test_bad_values_are_named():
    with pytest.raises(UserError, match="epochs=2 trains on what older parameters drew, which needs clip"):
        PolicyConfig(epochs=2)
    with pytest.raises(UserError, match="rollouts=6 in groups of 4"):
        PolicyConfig(rollouts=6, group=4)
    with pytest.raises(UserError, match="there are no prompts to continue"):
        policy_task(PolicyConfig(), MODEL, PARAMS, [], wants_twos, end_id=0)
