"""A hybrid is trained on text from scratch, as any model is, saved, loaded and written with."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import generate_text
from jaxllm.text import TrainConfig, load_run, train
from tests.models.test_hybrid import GPT, MAMBA

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


def test_layers_of_several_parts_are_not_streamed():
    with pytest.raises(UserError, match="a hybrid has one for each part"):
        TrainConfig(model=MODEL, offload="state", seq_len=16)
