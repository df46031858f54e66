"""A hybrid is trained on text from scratch, as any model is, saved, loaded and written with."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import generate_text
from jaxllm.optim import OptimConfig
from jaxllm.parallel import HOST_MEMORY
from jaxllm.text import TrainConfig, load_run, train
from jaxllm.train import state
from tests.models.test_hybrid import GPT, MAMBA
from tests.text.steps import take_steps

PARTS = tuple(dataclasses.replace(part, vocab_size=None) for part in (GPT, MAMBA))
MODEL = models.HybridConfig(parts=PARTS, blocks=2)


@pytest.mark.slow
def test_a_run_trains_and_its_folder_is_a_model(tmp_path):
    options = dict(
        model=MODEL,
        tokenizer="bytes",
        seq_len=16,
        batch_size=2,
        eval_batches=1,
        final_eval_batches=1,
        progress=False,
    )
    run = train(TrainConfig(steps=2, out=str(tmp_path), **options), devices=jax.devices()[:1])
    model, params, tokenizer = load_run(tmp_path)
    assert model.vocab_size == tokenizer.vocab_size and model.parts[1].vocab_size == tokenizer.vocab_size
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(run.params))
    assert not np.array_equal(models.mixture(params), np.full((2, 2), 0.5))
    assert isinstance(generate_text(model, params, tokenizer, "My", max_new_tokens=2), str)


def test_stacks_that_blocks_cut_are_not_streamed():
    with pytest.raises(UserError, match="blocks=2 cut each part's in the host's memory; set model.blocks"):
        TrainConfig(model=MODEL, offload="state", seq_len=16)


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA for CPUs aborts")
def test_layers_of_both_parts_come_from_the_host_s_memory_for_the_same_weights(monkeypatch):
    """With stochastic rounding, whose draws are the same wherever the weights lie: no bit differs."""
    monkeypatch.setattr(state, "_WORTH_MOVING", 2**8)
    config = TrainConfig(
        model=dataclasses.replace(MODEL, blocks=1, running=None, remat="full"), tokenizer="bytes", seq_len=16,
        batch_size=2, steps=2, precision="bfloat16",
        optim=OptimConfig(name="adamw_bf16_sr", learning_rate=3e-3, warmup_steps=1), progress=False,
    )  # fmt: skip
    one = jax.devices()[:1]
    losses, resident = take_steps(config, 2, devices=one)
    losses_streamed, streamed = take_steps(dataclasses.replace(config, offload="state"), 2, devices=one)
    assert losses_streamed == losses
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (resident.params, streamed.params)))
    for part in ("0", "1"):
        places = [x.sharding.memory_kind for x in jax.tree.leaves(streamed.params["parts"][part])]
        assert HOST_MEMORY in places
