"""Examples and claims of TART's study are drawn and computed as they say; its debug run holds together."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from experiments import tart, tart_train
from experiments.tart.module import near_oracle
from experiments.tart.report import judge
from experiments.tart.rivals import probe
from experiments.tart.texts import abstaining_accuracy, draw_examples, draw_pool, draw_test, icl_log_probs
from jaxllm import targets
from jaxllm.errors import UserError
from jaxllm.in_context import Reasoner, ReasonerConfig, reasoner_optimizer, reasoner_task
from jaxllm.in_context.reasoner import init
from jaxllm.train import prepare
from tests.experiments.test_generative_calibration import toy_dataset

needs_data = pytest.mark.skipif(
    not os.environ.get("JAXLLM_DATA"), reason="JAXLLM_DATA names no folder of real data"
)


def test_examples_are_balanced_shuffled_and_nested():
    data = toy_dataset()
    pool, test = draw_pool(data, 30), draw_test(data, 12)
    labels = np.array([label for _, label in pool])
    assert np.bincount(labels).tolist() == [10, 10, 10]
    assert np.bincount([label for _, label in test]).tolist() == [4, 4, 4]
    few, many = draw_examples(labels, 7, seed=1), draw_examples(labels, 30, seed=1)
    np.testing.assert_array_equal(few, many[:7])
    assert sorted(many) == list(range(30)) and np.ptp(np.bincount(labels[few])) <= 1
    assert (labels[many] != np.sort(labels[many])).any()
    assert (draw_examples(labels, 30, seed=2) != many).any()


def test_a_probe_finds_what_a_line_separates():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(90, 12)), np.arange(90) % 3
    x[np.arange(90), y] += 4
    for components in (None, 6):
        assert (probe(x[:60], y[:60], x[60:], components).argmax(axis=1) == y[60:]).mean() > 0.9


def test_what_is_no_label_is_an_error_and_calibration_divides():
    found = {
        "test": np.log([[0.4, 0.1], [0.05, 0.04]]), "likeliest": np.array([7, 9]),
        "first_tokens": np.array([7, 8]), "content_free": np.log([[0.6, 0.2]] * 3),
        "random_words": np.log([[0.6, 0.2]] * 2),
    }  # fmt: skip
    assert abstaining_accuracy(found, np.array([0, 0])) == 0.5
    ways = icl_log_probs(found)
    assert ways["icl"].argmax(axis=1).tolist() == [0, 0]
    assert ways["contextual"].argmax(axis=1).tolist() == [0, 1] == ways["domain"].argmax(axis=1).tolist()


def made_up(config, better):
    return {
        (source, seed, shots): {
            "decoder/tart": 0.6 + better + 0.01 * seed, "decoder/icl_abstaining": 0.6, "decoder/icl": 0.6,
            "decoder/contextual": 0.5, "decoder/domain": 0.55, "decoder/batch": 0.6 - better,
            "decoder/probe": 0.7, "decoder/lora": 0.75, "encoder/tart": 0.6, "encoder/same_probe": 0.7,
        }
        for source in config.data
        for seed in config.seeds
        for shots in config.shots
    }  # fmt: skip


def test_claims_and_the_split_of_the_gap_follow_the_scores():
    config = dataclasses.replace(tart.TartConfig(), many=(), tuned=(), data=("mr", "cr"), leave_one_out=())
    cell = dict(module=0.88, oracle=0.89, bayes=0.97, gap=-0.01, half=0.005, ridge=0.1, module_loss=0.3,
                oracle_loss=0.3, bayes_loss=0.1)  # fmt: skip
    for better, holds in ((0.1, True), (-0.1, False)):
        metrics, claims = judge(config, {(8, 32, 10.0): cell}, made_up(config, better), {})
        by_name = {claim.claim: claim for claim in claims}
        for said in ("no label an error", "likeliest label", "best of three calibrated"):
            claim = by_name[next(name for name in by_name if said in name)]
            assert claim.holds is holds, said
        probes = [claim for name, claim in by_name.items() if "same components, encoder" in name]
        assert len(probes) == 2 and all(claim.holds is False for claim in probes)
        assert metrics["gap/representation"] == pytest.approx(0.05)
        assert metrics["gap/reasoning"] == pytest.approx(0.10)


def test_a_tuned_rival_is_kept_by_the_code_that_tunes_it(monkeypatch):
    keys, data = [], toy_dataset()
    study = object.__new__(tart.Study)
    study.config = tart.PRESETS["debug"]()
    study.tasks = {"toy": tart.Texts(data, draw_pool(data, 30), draw_test(data, 12))}
    monkeypatch.setattr(tart, "kept_result", lambda *_, **key: keys.append(key) or {"accuracy": 0.5})
    monkeypatch.setattr(tart, "code_digest", lambda *modules: modules)
    assert study._tuned("encoder", "toy", 0, 8) == 0.5 and keys[0]["code"] == ("tart/rivals.py",)


def test_a_config_that_cannot_work_is_refused_in_a_sentence():
    for change, said in [
        (dict(shots=(16,)), "shots are 16; probe_components=16 need one more"),
        (dict(pool=100), "pool is 100 texts, and 128 examples are drawn from it"),
        (dict(tuned=("sst2",)), "'sst2' is not among data and many"),
        (dict(data=(), tuned=(), leave_one_out=(), tuned_decoder=()), "data is empty"),
        (dict(seeds=(1,)), "give two or more"),
    ]:
        with pytest.raises(UserError, match=said):
            dataclasses.replace(tart.TartConfig(), **change)
    sizes = ReasonerConfig(features=20, max_pairs=100)
    for shots, said in (
        ((32, 128), "up to 128 and the module reads 100 pairs"),
        ((18,), "module's 20 features"),
    ):
        with pytest.raises(UserError, match=said):
            tart.check_module(dataclasses.replace(tart.TartConfig(), shots=shots), sizes)


def test_a_module_is_judged_at_eight_features_or_at_what_it_reads():
    """One without training is far from the ridge, and the claim says so."""
    config = ReasonerConfig(features=4, max_pairs=8, num_layers=1, embed_dim=16, num_heads=2)
    claim, cell = near_oracle(Reasoner(config, init(config, jax.random.key(0))), problems=128, seed=0)
    assert "d = 4, k = 8, alpha = 10: within 0.02" in claim.claim and claim.holds is False
    assert cell["module"] < cell["oracle"] < cell["bayes"]


@needs_data
@pytest.mark.slow
def test_the_debug_run_writes_its_report_and_keeps_what_it_measured(tmp_path):
    config = dataclasses.replace(tart.PRESETS["debug"](), out=str(tmp_path))
    report = tart.main(config, "debug")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["metrics"] == report.metrics and len(report.claims) >= 5
    assert report.metrics["bits_changed_by_hidden_labels"] == 0
    assert report.metrics["beyond_training_is_refused"] == 1
    for name in ("encoder/lora", "decoder/lora", "decoder/tart_leave_one_out", "decoder/icl_abstaining"):
        assert any(key.startswith("accuracy/") and key.endswith(name) for key in report.metrics), name
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "oracle.png", "tasks.png", "shots.png", "choices.png",
    }  # fmt: skip


@pytest.mark.targets
@pytest.mark.skipif(not targets.is_available("a100-40gb"), reason="needs the compiler of an A100")
def test_the_paper_s_module_trains_within_an_a100():
    run = tart_train.PRESETS["paper"]()
    job = prepare(
        reasoner_task(run), run, optimizer=reasoner_optimizer(run), devices=targets.devices("a100-40gb")
    )
    forecast = targets.compile(job.steps[0][1], (job.shapes, job.batch_shapes), "a100-40gb")
    assert forecast.fits and forecast.peak_bytes > 3 * 4 * run.module.num_params
