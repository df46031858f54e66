import dataclasses

import pytest

from jaxllm import models
from jaxllm.optim import OptimConfig
from jaxllm.train import TrainConfig

WORDS = "we the people of these united states in order to form a more perfect union do ordain".split()


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """Ten short documents of pseudo-English, some shorter than a training sequence."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(10):
        words = [WORDS[(i * i + number * i) % len(WORDS)] for i in range(40 + 60 * number)]
        (folder / f"{number}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture
def tiny(tmp_path, text_folder, monkeypatch):
    """A function that makes a config of a run of seconds, with some values replaced."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(text_folder.parent / "cache"))
    config = TrainConfig(
        model=models.get_preset(
            "gpt2-nano", vocab_size=None, embed_dim=32, num_heads=4, context_length=32
        ),
        data=str(text_folder), tokenizer="bytes", seq_len=16, batch_size=8, steps=4,
        eval_every=100, save_every=100, eval_batches=2, final_eval_batches=2, log_every=1,
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2), progress=False,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    return lambda **values: dataclasses.replace(config, **values)
