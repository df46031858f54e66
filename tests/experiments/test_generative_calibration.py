"""Tasks are read as their files say, the closed-form language is what it claims, and a run holds together."""

import dataclasses
import itertools
import json
import os

import numpy as np
import pytest

from experiments import generative_calibration as calibration
from experiments.generative_calibration import closed_form_world as world
from experiments.generative_calibration.cells import calibrated, draw_exemplars, draw_queries
from experiments.shared.few_shot_tasks import Dataset, load_dataset
from jaxllm import score
from jaxllm.errors import UserError

needs_data = pytest.mark.skipif(
    not os.environ.get("JAXLLM_DATA"), reason="JAXLLM_DATA names no folder of real data"
)


def test_the_closed_form_posterior_is_that_of_listed_texts():
    random = np.random.default_rng(0)
    small = dataclasses.replace(
        world.World.draw(random, labels=2, words=3), prior_Y=np.array([0.7, 0.3]), length=3
    )
    texts = np.array(list(itertools.product(range(3), repeat=3)))
    joint = np.array(
        [
            [small.prior_Y[y] * small.start_YW[y, a] * small.next_YWW[y, a, b] * small.next_YWW[y, b, c]
             for y in range(2)]
            for a, b, c in texts
        ]
    )  # fmt: skip
    assert joint.sum() == pytest.approx(1)
    posterior = joint / joint.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(small.log_posterior(texts)), posterior, rtol=1e-12)
    words, labels = small.sample(20000, random)
    number = (words * [9, 3, 1]).sum(axis=1)
    seen = np.zeros((27, 2))
    np.add.at(seen, (number, labels), 1 / 20000)
    assert np.abs(seen - joint).max() < 4.5 * np.sqrt(joint.max() / 20000)


def test_calibration_repairs_a_prior_and_not_a_conditional():
    found = [world.repair(seed, samples=400, tests=1000) for seed in range(4)]
    mean = {name: np.mean([one[name] for one in found]) for name in found[0]}
    assert mean["generative/prior"] - mean["icl/prior"] > 0.15
    assert mean["bayes"] - mean["generative/prior"] < 0.03
    assert abs(mean["generative/conditional"] - mean["icl/conditional"]) < 0.02
    assert max(one["auroc_change/prior"] for one in found) < 1e-12


def made_up(seed=0, shift=3.0, n=24):
    """Return what a prompt would say that tells labels apart and expects the first one."""
    random = np.random.default_rng(seed)
    gold = np.arange(n) % 2

    def log_probs(labels):
        logits = np.where(labels[:, None] == [0, 1], 1.0, -1.0) + random.normal(size=(len(labels), 2)) * 0.5
        logits = logits + [shift, 0]
        return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) - 1.0).tolist()

    return {
        "gold": gold.tolist(), "queries": log_probs(gold), "content_free": log_probs(np.zeros(3, int)),
        "random_words": log_probs(random.integers(0, 2, 10)), "samples": log_probs(np.arange(16) % 2),
        "channel": (np.array(log_probs(gold)) * 20).tolist(), "neutral": [[-1.0, -1.0]], "lengths": [10] * 16,
        "rejected": 2, "texts": [["a"]],
    }  # fmt: skip


def test_a_prompt_that_expects_one_label_is_repaired_by_its_own_inputs():
    found = made_up()
    after = calibrated(found)
    assert set(after) == {*calibration.METHODS, "generative_normalised"}
    scores = calibration.score_cell(found)
    assert scores["icl"] < 0.8 < 0.9 < scores["generative"] and scores["auroc_change"] < 1e-12
    expected = np.array(found["queries"]) - np.log(np.exp(found["samples"]).mean(axis=0))
    np.testing.assert_array_equal(after["generative"].argmax(axis=1), expected.argmax(axis=1))
    assert "channel" not in calibrated({k: v for k, v in found.items() if k != "channel"})
    np.testing.assert_allclose(after["pmi"], score.keep_as_given(np.array(found["queries"])), atol=1e-12)


CONFIG = dataclasses.replace(
    calibration.CalibrationConfig(), data=("mr", "cr"), more_shots=(), more_data=(), seeds=(0, 1, 2),
    samples=16,
)  # fmt: skip


def test_claims_follow_the_scores():
    keys = [(s, 4, seed) for s in CONFIG.data for seed in CONFIG.seeds]
    keys += [("mr", c, seed) for seed in CONFIG.seeds for c in ((2, 2), (3, 1), (4, 0), (0, 4), (1, 3))]
    for shift, holds in ((3.0, True), (0.0, False)):
        cells = {key: made_up(seed, shift) for seed, key in enumerate(keys)}
        scores = {key: calibration.score_cell(found) for key, found in cells.items()}
        metrics, claims = calibration.judge(CONFIG, cells, scores)
        gain = np.mean([scores[k]["generative"] - scores[k]["icl"] for k in keys[:6]])
        assert claims[0].measured == pytest.approx(gain) and (claims[0].holds is True) == holds
        assert metrics["rejection_rate"] == pytest.approx(12 / (12 + 6 * 16))


FIGURES = {
    "icl": 0.3, "channel": 0.4, "prototypical": 0.1, "contextual": 0.5, "domain": 0.6, "pmi": 0.1,
    "batch": 0.7, "generative": 0.8, "generative_normalised": 0.1, "generative/8": 0.79,
    "generative/16": 0.8, "auroc": 0.9, "auroc/channel": 0.6, "auroc_change": 0.0,
}  # fmt: skip
ABOVE = {name: f"generative calibration's macro-F1 is above {whose}, by" for name, whose in {
    "icl": "plain in-context learning's", "contextual": "contextual calibration's",
    "domain": "domain-context calibration's (transductive)", "channel": "a noisy channel's",
    "batch": "batch calibration's (transductive, not in the paper)",
}.items()}  # fmt: skip
CALMER = "macro-F1 varies less over prompts than plain in-context learning's (standard deviation), by"
UNMOVED = "macro-AUROC is the same under every prior (largest change)"
UNEVEN = "mr: calibration gains more after 4 and 0 exemplars than after 2 and 2, by"
ENOUGH = "8 inputs do as well as 16: macro-F1 lost is below 0.02"


def judged(figures=(), icl_varies=0.02, uneven=0.2):
    """Return the claims by their texts, on made-up figures, changed; at 4 and 0 plain learning is worse."""
    f = FIGURES | dict(figures)
    shots = [(s, 4, seed, 0) for s in CONFIG.data for seed in CONFIG.seeds]
    shots += [("mr", counts, seed, uneven if 4 in counts else 0)
              for seed in CONFIG.seeds for counts in ((2, 2), (4, 0), (0, 4))]  # fmt: skip
    scores = {
        (s, c, seed): f | {"icl": f["icl"] - worse + icl_varies * (seed - 1),
                           "generative": f["generative"] + 0.01 * (seed - 1)}
        for s, c, seed, worse in shots
    }  # fmt: skip
    cells = {key: {"rejected": 2, "lengths": [10]} for key in scores}
    return {claim.claim: claim for claim in calibration.judge(CONFIG, cells, scores)[1]}


def test_every_claim_is_on_its_own_figures():
    expected = {ABOVE["icl"]: 0.5, ABOVE["contextual"]: 0.3, ABOVE["domain"]: 0.2, ABOVE["channel"]: 0.4,
                ABOVE["batch"]: 0.1, CALMER: 0.01, UNMOVED: 0, UNEVEN: 0.2, ENOUGH: 0.01}  # fmt: skip
    found = judged()
    assert {text: claim.measured for text, claim in found.items()} == pytest.approx(expected)
    assert all(claim.holds for claim in found.values())


@pytest.mark.parametrize(
    "changes, broken",
    [
        *((dict(figures={name: 0.9}), text) for name, text in ABOVE.items()),
        (dict(icl_varies=0.001), CALMER),
        (dict(figures={"auroc_change": 1e-3}), UNMOVED),
        (dict(uneven=-0.1), UNEVEN),
        (dict(figures={"generative/8": 0.7}), ENOUGH),
    ],
)
def test_a_contradiction_turns_its_own_claim_around(changes, broken):
    turned = {text: claim.holds for text, claim in judged(**changes).items() if claim.holds is not True}
    assert turned == {broken: False}


def toy_dataset():
    rows = [([f"text {i}"], i % 3) for i in range(60)]
    return Dataset("toy", score.FewShotTask(("A", "B"), ("x", "y", "z")), rows, rows)


def test_exemplars_and_queries_are_drawn_as_asked():
    data = toy_dataset()
    assert [label for _, label in draw_queries(data, 10, 0)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert draw_queries(data, 10, 0) == draw_queries(data, 10, 0) != draw_queries(data, 10, 1)
    counted = draw_exemplars(data, 4, 0, (3, 0, 1))
    assert sorted(label for _, label in counted) == [0, 0, 0, 2]
    many = {tuple(label for _, label in draw_exemplars(data, 4, seed)) for seed in range(20)}
    assert len(many) > 10  # all labels alike, no balance


@needs_data
@pytest.mark.parametrize(
    "name, rows, labels",
    [("mr", 10662, 2), ("subj", 10000, 2), ("cr", 3771, 2), ("snli", 2266, 3), ("words", 6789, 2),
     ("proscons", 45867, 2), ("bank", 699, 4)],
)  # fmt: skip
def test_real_tasks_have_their_rows_and_all_labels(name, rows, labels):
    data = load_dataset(name, 20)
    both = data.pool + data.queries
    assert abs(len(both) - rows) < 0.01 * rows + 2 and {label for _, label in data.queries} == set(
        range(labels)
    )
    assert all(len(text.split()) <= 20 and "\n" not in text for values, _ in both for text in values)
    assert len(data.task.labels) == labels


def test_files_of_one_s_own_are_read_in_their_formats(tmp_path):
    def kept(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        data = load_dataset(f"{name.split('.')[0]}={path}", 50)
        return sorted(data.pool + data.queries)

    assert kept("trec.txt", "0 What is an é?\n3 Who won ?\n", "latin-1") == [
        (["What is an é?"], 0),
        (["Who won ?"], 3),
    ]
    assert kept("agnews.csv", 'Class,Title,Description\n3,"Oil, up","It rose"\n1,War,"x"\n') == [
        (["Oil, up. It rose"], 2), (["War. x"], 0)]  # fmt: skip
    rows = [{"premise": "p", "hypothesis": "h", "label": label} for label in ("entailment", "not_entailment")]
    assert kept("rte.jsonl", "\n".join(map(json.dumps, rows))) == [(["p", "h"], 0), (["p", "h"], 1)]


def test_bad_sources_and_sizes_are_named(tmp_path):
    broken = tmp_path / "x"
    broken.write_text("no label here\n")
    for source, sentence in (
        ("mrr", "unknown data set 'mrr'; did you mean"),
        (f"trec={broken}", "cannot read trec=.*ValueError"),
        (f"rte={tmp_path / 'absent'}", "cannot read rte=.*FileNotFoundError"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_dataset(source, 10)
    with pytest.raises(UserError, match="samples is 2; give four or more"):
        calibration.CalibrationConfig(samples=2)
    with pytest.raises(UserError, match=r"seeds is \(1,\); give two or more"):
        calibration.CalibrationConfig(seeds=(1,))


@needs_data
@pytest.mark.slow
def test_debug_writes_a_report_with_its_plots_and_goes_on_from_kept_prompts(tmp_path, monkeypatch):
    config = dataclasses.replace(calibration.PRESETS["debug"](), out=str(tmp_path))
    report = calibration.main(config, "debug")
    for name in ("report.json", "report.md", "tasks.png", "chart.png", "inputs.png", "imbalance.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert report.metrics["auroc_change"] < 1e-12 and len(report.claims) >= 12
    monkeypatch.setattr(calibration, "_load", lambda *_: pytest.fail("loaded a model although all is kept"))
    again = calibration.main(config, "debug")
    assert again.metrics == report.metrics
