"""A run of a Mamba: resumed bit for bit, back as its class, fine-tuned, generated from and scored."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.adapt import LoraConfig
from jaxllm.generate import generate
from jaxllm.optim import OptimConfig
from jaxllm.score import score_choices, score_sequences
from jaxllm.text import TrainConfig, load_run, train

pytestmark = pytest.mark.slow
ONE = jax.devices()[:1]


def test_a_mamba_is_trained_resumed_adapted_generated_from_and_scored(tmp_path):
    model = models.get_preset("mamba-nano", embed_dim=16, state_dim=4, vocab_size=None)
    run = TrainConfig(
        model=model, tokenizer="bytes", steps=4, seq_len=32, batch_size=8, eval_batches=1,
        final_eval_batches=1, progress=False, optim=OptimConfig(schedule="constant"),
        out=str(tmp_path / "straight"),
    )  # fmt: skip
    straight = train(run, devices=ONE)
    half = dataclasses.replace(run, out=str(tmp_path / "resumed"))
    train(dataclasses.replace(half, steps=2), devices=ONE)
    resumed = train(half, devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)

    config, params, tokenizer = load_run(half.out)
    assert type(config) is models.MambaConfig
    jax.tree.map(np.testing.assert_array_equal, params, resumed.params)
    prompts = [tokenizer.encode("The state of"), tokenizer.encode("We")]
    drawn = generate(config, params, [*prompts, prompts[0]], max_new_tokens=5)
    rows = [[*prompt, *tokens] for prompt, tokens in zip(prompts, drawn.tokens, strict=False)]
    for row, prompt, log_probs in zip(
        score_sequences(config, params, rows), prompts, drawn.log_probs, strict=False
    ):
        np.testing.assert_allclose(row[len(prompt) - 1 :], log_probs, atol=1e-4)
    [[one, _]] = score_choices(config, params, prompts[:1], [[drawn.tokens[0], prompts[1]]])
    assert abs(one.log_prob - sum(drawn.log_probs[0])) < 1e-3

    lora = LoraConfig(rank=2, targets="mamba_in,mamba_select,mamba_out")
    adapted = dataclasses.replace(half, start=half.out, lora=lora, steps=2, out=str(tmp_path / "lora"))
    train(adapted, devices=ONE)
    assert type(load_run(adapted.out)[0]) is models.MambaConfig
