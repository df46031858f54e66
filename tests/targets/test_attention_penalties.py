"""Penalties on attention patterns, compiled for machines that are not here."""

import pytest

from experiments.benchmarks import attention_penalties
from jaxllm import targets
from jaxllm.errors import UserError


@pytest.mark.targets
@pytest.mark.skipif(not targets.is_available("v5e-1"), reason="the TPU compiler is not installed")
def test_a_penalised_step_compiles_and_its_cost_is_stated(tmp_path):
    config = attention_penalties.PRESETS["debug"]()
    report = attention_penalties.main(type(config)(models=("nano",), machines=("v5e-1",), seq_len=128,
                                                   out=str(tmp_path)))  # fmt: skip
    assert len(report.claims) == 2 and all(claim.holds for claim in report.claims)
    for kind in attention_penalties.PENALTIES:  # the model is run a second time, and weights are written
        assert 1.2 < report.metrics[f"ratio/nano/v5e-1/{kind}/seconds"] < 4
        assert 1 < report.metrics[f"ratio/nano/v5e-1/{kind}/peak"] < 4


def test_a_model_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="unknown model 'gpt9'"):
        attention_penalties.AttentionPenaltiesConfig(models=("gpt9",))
