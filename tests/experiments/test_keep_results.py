"""Kept results are what the reports said, and the README's table is what is kept."""

import json

import pytest

from experiments import keep_results
from jaxllm.errors import UserError
from jaxllm.report import Claim, Report, decide


@pytest.mark.parametrize("path, results", [(keep_results.README, keep_results.table),
                                           (keep_results.GUIDE, keep_results.entries)])  # fmt: skip
def test_the_readmes_show_what_is_kept(path, results):
    text = path.read_text(encoding="utf-8")
    assert f"{keep_results._BEGIN}\n{results()}\n{keep_results._END}" in text, (
        "run python -m experiments.keep_results"
    )


def test_an_experiment_that_is_not_kept_speaks_for_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(keep_results, "RESULTS", tmp_path)
    assert {"mad", "pretrain", "tart", "tart_train"} <= set(keep_results.names())
    entries = dict(entry.split("\n", 1) for entry in keep_results.entries().split("### ")[1:])
    assert "No run has been kept yet." in entries["tiled_training"]
    assert "RESULT (29 November 2026, small, 34 minutes" in entries["phase_transition"]


def test_a_report_is_kept_with_its_claims_and_shown_by_its_first(monkeypatch, tmp_path):
    monkeypatch.setattr(keep_results, "RESULTS", tmp_path / "results")
    claims = [
        Claim("sinks vanish", "abstract", 0.07, False, 0.0, (0.05, 0.09)),
        Claim("it trains", "table 1", 3.0, True),
        Claim("it is faster", "table 1", 1.1, decide((0.9, 1.3), above=1), None, (0.9, 1.3)),
    ]
    Report("activation_outliers", "small", {}, [0, 1], {}, claims, 12.3, environment={}).write(
        tmp_path / "run"
    )
    kept = json.loads(keep_results.keep(tmp_path / "run").read_text())
    assert (
        kept["claims"][0]["interval"] == [0.05, 0.09] and kept["seeds"] == [0, 1] and len(kept["commit"]) >= 7
    )
    row = keep_results.table().splitlines()[2]
    assert "[2410.17174](https://arxiv.org/abs/2410.17174)" in row
    assert "sinks vanish: 0.07 (0.05 to 0.09), published 0; **does not hold** | 1 of 3, 1 undecided |" in row


def test_what_is_not_a_report_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no report.json; give the --out"):
        keep_results.keep(tmp_path)
    Report("pretrain", "small", {}, [0], {}, [], 1.0, environment={}).write(tmp_path)
    with pytest.raises(UserError, match="makes no claim"):
        keep_results.keep(tmp_path)
