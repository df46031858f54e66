"""Generative calibration and its rival in transformers do the same job."""

import dataclasses
import os

import pytest

from experiments.benchmarks import calibration


@pytest.mark.skipif(not os.environ.get("JAXLLM_DATA"), reason="JAXLLM_DATA names no folder of real data")
@pytest.mark.torch
@pytest.mark.slow
def test_both_sides_say_the_same_of_the_queries(tmp_path):
    config = dataclasses.replace(calibration.PRESETS["debug"](), out=str(tmp_path))
    report = calibration.main(config, "debug")
    [same] = [claim for claim in report.claims if claim.claim.startswith("both say the same")]
    assert same.holds and same.measured < 1e-4
    assert report.metrics["draws_per_second/jaxllm"] > 0 < report.metrics["draws_per_second/transformers"]
    assert (tmp_path / "report.md").exists()
