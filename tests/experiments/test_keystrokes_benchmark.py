"""The benchmark of the demo's answers runs, and counts what it says."""

import dataclasses

import pytest

pytest.importorskip("uvicorn", reason="the demo's server needs the extra demo")
pytest.importorskip("websockets", reason="the demo's server needs the extra demo")


@pytest.mark.slow
def test_debug_types_to_a_server_and_reports_what_keys_waited(tmp_path):
    from experiments.benchmarks import keystrokes

    config = dataclasses.replace(keystrokes.PRESETS["debug"](), out=str(tmp_path))
    metrics = keystrokes.main(config, "debug").metrics
    assert 0 < metrics["own/counts_p50_ms"] <= metrics["own/p50_ms"] <= metrics["own/p95_ms"]
    assert 0 <= metrics["own/within_budget"] <= 1
