"""What a notebook prints of a value is a line or two, and never its arrays."""

import jax
import numpy as np
import optax
import pytest

from jaxllm import data, models
from jaxllm.generate import Decoder, stream
from jaxllm.optim import OptimConfig
from jaxllm.parallel import MeshConfig
from jaxllm.pretrained import Pretrained
from jaxllm.text import TrainConfig, prepare
from jaxllm.text.labels import TrainedLabels
from jaxllm.text.presets import TRAIN_PRESETS
from jaxllm.train import RunConfig, Task, train
from tests.models.random_params import random_params


def test_a_config_shows_what_differs_from_its_defaults():
    assert repr(models.ModelConfig()) == "ModelConfig()"  # GPT-2 small
    small = models.ModelConfig(num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2)
    assert repr(small) == "ModelConfig(num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2)"
    run = TrainConfig(steps=5, mesh=MeshConfig(fsdp=2), optim=OptimConfig(name="lion"))
    assert repr(run) == "TrainConfig(steps=5, mesh=MeshConfig(fsdp=2), optim=OptimConfig(name='lion'))"


@pytest.mark.parametrize("name", sorted(TRAIN_PRESETS))
def test_a_preset_s_model_is_its_repr(name):
    """What is not shown has its default, derived sizes included."""
    model = TRAIN_PRESETS[name]().model
    assert eval(repr(model), vars(models) | vars(models.config) | {"inf": np.inf}) == model
    assert len(repr(model)) < 600


def test_what_holds_arrays_prints_how_much(tmp_path):
    config = models.get_preset("gpt2-nano", vocab_size=257)
    params = random_params(config)
    tokenizer = data.load_tokenizer("bytes")
    count = f"{config.num_params:,} numbers of float32"
    corpus = data.prepare("sotu", tokenizer, seq_len=16)
    asked = TrainConfig(tokenizer="bytes", model=config, batch_size=8, seq_len=16)
    run = prepare(asked, devices=jax.devices()[:1])
    for value, words in (
        (Decoder(config, params), count),
        (Pretrained(config, params, tokenizer), count),
        (run, count),
        (run.shapes, count),
        (run.init(jax.random.key(0)), count),
        (corpus.train, f"{len(corpus.train):,} ids"),
        (corpus, f"{len(corpus.valid):,} ids"),
        (data.batches(corpus.train, batch_size=2, seq_len=16, seed=0), "0 done"),
        (data.load_tokenizer("gpt2"), "50,257 ids"),
        (data.load_tokenizer("char", documents=["banana"]), "5 ids"),
        (stream(*Decoder(config, params), [[1, 2]], max_new_tokens=40), "40 more tokens"),
    ):
        assert words in repr(value) and len(repr(value)) < 500 and "\n" not in repr(value), repr(value)


def test_a_finished_run_prints_what_it_came_to(tmp_path):
    def loss(params, batch, key):
        return ((batch - params["w"]) ** 2).mean(), {"token_count": batch.size}

    task = Task(lambda key: {"w": np.zeros(3, np.float32)}, {"w": ("embed",)},
                lambda: iter([np.ones((8, 3), np.float32)] * 3), loss,
                lambda params, mean_loss: {"loss": 0.25})  # fmt: skip
    done = train(task, RunConfig(steps=2, out=str(tmp_path), progress=False), optimizer=optax.sgd(0.1))
    assert repr(done).startswith("Trained(2 steps, loss 0.25; ") and "3 numbers of float32" in repr(done)
    labels = TrainedLabels(**vars(done), labeller=(np.ones(3),))
    assert repr(labels) == repr(done).replace("Trained(", "TrainedLabels(")
