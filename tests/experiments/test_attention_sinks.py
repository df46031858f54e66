"""Attention sinks: what a cell measures, how claims are judged, and a run that goes on where it stopped."""

import dataclasses
import math

import numpy as np
import pytest

from experiments import attention_sinks as sinks
from experiments.attention_sinks import training
from experiments.attention_sinks.training import SINKS, AttentionSinksConfig, measure
from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.synthetic import backcopy_task
from tests.models.random_params import random_params

TINY = sinks.PRESETS["debug"]()
TASK = backcopy_task("the rain in spain stays mainly in the plain")


def cells(figures):
    """One cell a seed: untrained, then these."""
    start = dict.fromkeys(sinks.COLUMNS, 0.05)
    return [
        {"curve": [{"step": 0} | start, {"step": 4} | start | {"sink_argmax": x, "copy_loss": y}]}
        for x, y in figures
    ]


def test_losses_of_copies_and_of_the_rest_are_those_of_float64():
    model = TINY.model("softmax", TASK.vocab_size)
    params = random_params(model)
    inputs, targets = TASK.draw(16, TINY.length, seed=0)
    found = measure(model, params, TASK, {"inputs": inputs, "targets": targets})
    logits = np.asarray(models.apply(model, params, inputs), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    copies = np.zeros(inputs.shape, bool)
    for row, values in enumerate(inputs):
        for at in range(2, len(values)):
            copies[row, at] = values[at] in TASK.triggers
    assert found["copy_loss"] == pytest.approx(losses[copies].mean(), rel=1e-5)
    assert found["other_loss"] == pytest.approx(losses[~copies].mean(), rel=1e-5)
    assert set(sinks.COLUMNS) <= set(found)


def test_each_attention_gets_its_sink():
    logits = {name: TINY.model(name, 8).sink_logit for name in SINKS}
    assert logits == {"softmax": -math.inf, "softmax-1": 0.0, "learned": "learned"}


def test_claims_are_judged_seed_by_seed():
    """With a begin token softmax-1 keeps the sink, without one it takes it away but copies worse."""
    figures = {
        "softmax, begin": [(0.60, 0.1), (0.62, 0.1)], "softmax-1, begin": [(0.50, 0.1), (0.52, 0.1)],
        "learned, begin": [(0.10, 0.1), (0.11, 0.1)], "softmax, none": [(0.55, 0.1), (0.56, 0.1)],
        "softmax-1, none": [(0.02, 0.9), (0.03, 0.9)], "learned, none": [(0.02, 0.1), (0.9, 0.1)],
    }  # fmt: skip
    found = {name: cells(values) for name, values in figures.items()}
    metrics, claims, table = sinks.judge(dataclasses.replace(TINY, length=64), found)
    assert [claim.holds for claim in claims] == [True, False, True, True, True, True, None, False, False]
    assert metrics["sink_argmax/softmax, begin"] == pytest.approx(0.61)
    assert metrics["sink_argmax/softmax, none, untrained"] == pytest.approx(0.05)
    assert claims[0].measured == pytest.approx(0.61) and "| softmax, begin | 61.0% |" in table


def test_what_is_halved_is_the_share_above_uniform_and_where_there_is_no_sink_none_is():
    """Uniform attention gives the first of 64 tokens 0.059: no attention comes below half of 0.09."""
    low, none = [(0.06, 0.1), (0.061, 0.1)], [(0.09, 0.1), (0.091, 0.1)]
    figures = {
        "softmax, begin": [(0.15, 0.1), (0.151, 0.1)], "softmax-1, begin": [(0.09, 0.1), (0.091, 0.1)],
        "learned, begin": [(0.12, 0.1), (0.121, 0.1)],
        "softmax, none": none, "softmax-1, none": low, "learned, none": none,
    }  # fmt: skip
    found = {name: cells(values) for name, values in figures.items()}
    _, claims, _ = sinks.judge(dataclasses.replace(TINY, length=64), found)
    assert [claim.holds for claim in claims[:3]] == [True, True, False]
    assert [claim.holds for claim in claims[4:7]] == [False, None, None]


def test_a_cell_is_trained_anew_where_the_code_that_trains_it_changed(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(training, "_train", lambda *cell: trained.append(cell) or {"curve": []})
    config = dataclasses.replace(TINY, out=str(tmp_path))
    for code in ("as it is", "as it is", "changed"):
        monkeypatch.setattr(training, "code_digest", lambda *modules, code=code: f"{code} {modules}")
        training.kept_cell(config, TASK, "softmax, begin", 0)
    assert len(trained) == 2


@pytest.mark.slow  # six programs
def test_a_run_is_kept_and_gone_on_with(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, out=str(tmp_path))
    report = sinks.main(config, "debug")
    assert (tmp_path / "report.json").is_file() and (tmp_path / "sinks.png").is_file()
    assert len(report.claims) == 9
    monkeypatch.setattr(training, "train_epochs", lambda *_: pytest.fail("a kept cell was trained again"))
    assert sinks.main(config, "debug").metrics == report.metrics


def test_evaluations_are_at_most_one_a_step():
    with pytest.raises(UserError, match="points is 10 of 4 steps; give at most one a step"):
        AttentionSinksConfig(steps=4)
