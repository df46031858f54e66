import dataclasses

import jax
import pytest

from jaxllm import models
from jaxllm.optim import OptimConfig
from jaxllm.text import TrainConfig, training

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
            "gpt2-nano", vocab_size=None, embed_dim=32, num_heads=4, context_length=32,
            attention_implementation="xla",  # a third less to trace than one for every platform
        ),
        data=str(text_folder), tokenizer="bytes", seq_len=16, batch_size=8, steps=4,
        eval_every=100, save_every=100, eval_batches=2, final_eval_batches=2, log_every=1,
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2), progress=False,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    return lambda **values: dataclasses.replace(config, **values)


# What decides where a run writes and when it stops, and nothing that its steps compute.
OUTSIDE_OF_STEPS = ("out", "stop_after", "eval_every", "save_every", "log_every", "tensorboard", "profile")


@pytest.fixture(scope="module")
def steps_shared():
    """Runs of a module that take the same steps share the compiled ones, as if of one process that goes on.

    test_interrupt.py resumes in new processes, which compile their own.
    """
    jobs, prepare = {}, training.prepare

    def prepare_once(config, **options):
        if config.engine == "tiles":  # its step holds arrays
            return prepare(config, **options)
        own = {name: getattr(config, name) for name in OUTSIDE_OF_STEPS}
        defaults = {name: getattr(TrainConfig(), name) for name in OUTSIDE_OF_STEPS}
        devices = tuple(options.pop("devices") or jax.devices())
        options |= {"views": tuple(options["views"])}
        key = dataclasses.replace(config, **defaults), devices, *sorted(options.items())
        if key not in jobs:
            jobs[key] = prepare(config, devices=devices, **options)
        return dataclasses.replace(jobs[key], config=dataclasses.replace(jobs[key].config, **own))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "prepare", prepare_once)
        yield
