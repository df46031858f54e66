"""The fine-tuning benchmark in its debug size."""

import dataclasses

import pytest

from experiments.benchmarks import finetune


@pytest.mark.slow
def test_the_loss_falls_and_few_parameters_are_trained(tmp_path):
    config = dataclasses.replace(finetune.PRESETS["debug"](), out=str(tmp_path))
    report = finetune.main(config, "debug")
    metrics = report.metrics
    assert metrics["heldout_loss/after"] < metrics["heldout_loss/before"]
    assert metrics["parameters/trained"] < 0.1 * metrics["parameters/all"]
    assert metrics["step_mb/lora"] < metrics["step_mb/full"]
    assert [claim.holds for claim in report.claims][0]
