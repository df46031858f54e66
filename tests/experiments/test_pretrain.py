"""The main job in its debug size: a report whose figures follow from what is in it."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

from experiments import pretrain
from jaxllm import data
from jaxllm.optim import OptimConfig
from jaxllm.text import train
from jaxllm.train.writers import read_metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """On one device: steps for eight take twice as long to compile."""
    config = dataclasses.replace(
        pretrain.PRESETS["debug"](), out=str(tmp_path_factory.mktemp("pretrain") / "run"), progress=False,
        steps=100, eval_every=50, save_every=50, optim=OptimConfig(learning_rate=5e-3, warmup_steps=5),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "train", functools.partial(train, devices=jax.devices()[:1]))
        yield config, pretrain.main(config, "debug")


@pytest.mark.slow
def test_the_report_on_disk_is_the_report_returned(finished):
    config, report = finished
    written = json.loads(open(f"{config.out}/report.json").read())
    assert written == json.loads(json.dumps(dataclasses.asdict(report)))
    m = written["metrics"]
    for name in ("heldout_bits_per_byte", "unigram_bits_per_byte", "bigram_bits_per_byte",
                 "tokens_per_second", "seconds_to_first_step"):  # fmt: skip
        assert math.isfinite(m[name]) and m[name] > 0, name


@pytest.mark.slow
def test_it_learns(finished):
    """100 steps of a 2-layer model on bytes already beat byte frequencies."""
    _, report = finished
    assert report.metrics["heldout_bits_per_byte"] < report.metrics["unigram_bits_per_byte"]


@pytest.mark.slow
def test_claims_are_computed_from_the_metrics(finished):
    _, report = finished
    m = report.metrics
    saving = 1 - m["heldout_bits_per_byte"] / m["unigram_bits_per_byte"]
    below_unigram, below_bigram = report.claims
    assert below_unigram.measured == pytest.approx(saving)
    assert below_unigram.holds == (saving >= 0.35)
    assert below_bigram.holds == (m["heldout_bits_per_byte"] < m["bigram_bits_per_byte"])


@pytest.mark.slow
def test_bits_per_byte_is_the_loss_in_the_units_of_the_text(finished):
    config, report = finished
    valid = data.prepare(config.data, config.tokenizer, seq_len=config.seq_len).valid
    tokens_per_byte = len(valid) / valid.num_bytes
    expected = report.metrics["heldout_loss"] / math.log(2) * tokens_per_byte
    assert report.metrics["heldout_bits_per_byte"] == pytest.approx(expected)


@pytest.mark.slow
def test_every_logged_number_is_finite_and_the_rate_follows_its_schedule(finished):
    config, _ = finished
    rows = [row for row in read_metrics(config.out) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(10, 101, 10))
    schedule = config.optim.make_schedule(config.steps)
    for row in rows:
        assert all(np.isfinite(value) for value in row.values())
        assert row["learning_rate"] == pytest.approx(float(schedule(row["step"] - 1)))


@pytest.mark.slow
def test_running_a_finished_run_again_changes_nothing(finished, capsys):
    config, report = finished
    again = pretrain.main(config, "debug")
    assert again == report
    assert "already finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_run_asked_for_other_figures_is_scored_anew(finished):
    """The report's figures follow the config that asks; speeds stay those of the session that trained."""
    config, report = finished
    fewer = pretrain.main(dataclasses.replace(config, final_eval_batches=1, sample_tokens=3), "debug")
    for name in ("heldout_tokens", "heldout_loss"):
        assert fewer.metrics[name] != report.metrics[name]
    assert fewer.sections["Samples"] != report.sections["Samples"]
    assert fewer.metrics["tokens_per_second"] == report.metrics["tokens_per_second"]
