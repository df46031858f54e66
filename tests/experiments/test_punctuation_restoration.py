"""What the study of punctuation is made of: counts, bootstrap, the channel of errors, talks kept apart."""

import dataclasses
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import punctuation_restoration as study
from experiments.benchmarks import punctuation as benchmark
from experiments.punctuation_restoration.generator import (
    Discriminator,
    Generator,
    grams_of,
    is_good,
    policy_job,
)
from experiments.punctuation_restoration.report import bootstrap_gain, count_blocks, micro_f1
from experiments.punctuation_restoration.texts import (
    _labelled,
    _reference,
    add_errors,
    aligned_words,
    augmented,
    read_corpus,
    spelled_alike,
)
from jaxllm import models, targets
from jaxllm.errors import UserError

needs_data = pytest.mark.skipif(
    not os.environ.get("JAXLLM_DATA"), reason="JAXLLM_DATA names no folder of real data"
)
TALK = ([f"w{i}" for i in range(2000)], ["PERIOD" if i % 10 == 9 else "O" for i in range(2000)])


def test_f1_leaves_o_out_and_the_bootstrap_is_paired():
    draw = np.random.default_rng(0)
    gold, said = draw.integers(0, 4, (2, 1000))
    counts = np.array(count_blocks(gold, said, 200))
    assert counts.shape == (5, 3, 3)
    right = np.sum((gold == said) & (gold > 0))
    precision, recall = right / np.sum(said > 0), right / np.sum(gold > 0)
    assert micro_f1(counts.sum(axis=0)) == pytest.approx(2 * precision * recall / (precision + recall))
    better = np.where(draw.random(1000) < 0.1, gold, said)
    one, two = (np.array([count_blocks(gold, x, 50)] * 3) for x in (better, said))
    gain, (low, high) = bootstrap_gain(one, two, draws=200)
    assert 0 < low < gain < high
    assert bootstrap_gain(two, two, draws=50) == (0, (0, 0))


def test_errors_come_at_their_rate_and_marks_stay_with_the_word_before():
    near = spelled_alike(["cart", "card", "care", "dog"])
    assert near["cart"][0] in ("card", "care") and near["dog"] == []
    draw = np.random.default_rng(0)
    words, labels = add_errors(TALK, 0.2, draw, spelled_alike(TALK[0]))
    assert len(words) == len(labels)
    marks = labels.count("PERIOD")
    assert 0.97 * TALK[1].count("PERIOD") <= marks <= TALK[1].count("PERIOD")
    # A third of 20 % is left out, and a third replaced: what still stands in its order is about 0.87.
    assert 0.82 < aligned_words(words, TALK[0]).mean() < 0.96
    assert add_errors(TALK, 0.0, draw, {}) == TALK
    changed = augmented(TALK, draw)
    assert 0.05 < changed[0].count("unk") / 2000 < 0.13 and len(changed[0]) == len(changed[1])
    assert aligned_words("a b c d".split(), "a x c d".split()).tolist() == [True, False, True, True]


def test_samples_are_filtered_and_told_from_speech():
    good = ("so it went up and then down".split(), ["O"] * 6 + ["PERIOD"])
    assert is_good(good, set()) and not is_good((good[0], ["O"] * 7), set())
    assert not is_good((good[0] * 2, good[1] * 2), set())  # a loop
    assert not is_good((good[0][:3], good[1][-3:]), set())
    long = [f"w{i}" for i in range(14)]
    assert not is_good((long, ["PERIOD"] * 14), grams_of(long, 12))
    spoken, made = ["um so we went".split()] * 20, ["therefore we hold that".split()] * 5
    odds = Discriminator(spoken, made)([(spoken[0], []), (made[0], []), ([], [])])
    assert odds[0] > 1 and odds[1] < -1 and np.isfinite(odds).all()


def test_broken_lines_are_counted_and_named(tmp_path):
    path = tmp_path / "test2011"
    path.write_text("so\tO\nwhat\tQUESTON\nnow\nyes\tPERIOD\n")
    with pytest.raises(UserError, match=r"2 lines of '.*test2011' \(line 2, 3\) are no word, tab and one of"):
        _labelled(path)
    path.write_text("so\tO\nYes\tPERIOD\n")
    assert _labelled(path) == {"all": (["so", "yes"], ["O", "PERIOD"])}


@needs_data
@pytest.mark.slow
def test_no_talk_is_on_two_sides():
    config = study.PunctuationConfig(written_words=100)
    corpus = read_corpus(config)
    assert len(corpus.tests["reference"]) == len(corpus.tests["asr"]) == config.test_talks
    seen = [
        " ".join(words[200:260]) for words, _ in (*corpus.domain, *corpus.dev, *corpus.tests["reference"])
    ]
    heard = [" ".join(words[200:260]) for words in (*corpus.unlabelled, *(w for w, _ in corpus.tests["asr"]))]
    assert len(set(seen)) == len(seen) and len(set(heard)) == len(heard)
    calls = _reference("earnings21")
    assert sum(len(words) for words, _ in calls.values()) > 350_000
    assert 0.7 < np.mean([mask.mean() for mask in corpus.aligned]) < 1


@pytest.mark.slow
def test_the_debug_run_holds_together(tmp_path):
    report = study.main(dataclasses.replace(study.PRESETS["debug"](), out=str(tmp_path)), "debug")
    wanted = (
        "micro_f1/asr/rl", "micro_f1/asr_aligned/upper", "f1/reference/topic/question",
        "micro_f1/noise_0.2/rl", "count/asr/comma", "ablation/soundness_without_kl/dev",
        "right_context/2/micro_f1",
    )  # fmt: skip
    assert set(wanted) <= set(report.metrics)
    assert len(report.claims) == 7
    assert json.loads((tmp_path / "report.json").read_text())["experiment"] == "punctuation_restoration"
    assert all((tmp_path / f"{name}.png").exists() for name in ("rows", "health", "context"))


@pytest.mark.torch
def test_the_benchmarks_taggers_agree(tmp_path):
    config = benchmark.PRESETS["debug"]()
    ours, theirs = benchmark.our_tagger(config)(), benchmark.transformers_tagger(config)()
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.targets
@pytest.mark.skipif(not targets.is_available("v5e-1"), reason="needs the compiler of a TPU")
def test_the_papers_policy_update_fits_a_v5e(tmp_path):
    config = study.PRESETS["paper"]()
    model = models.get_preset("smollm2-135m")
    generator = Generator(model, models.shapes(model), SimpleNamespace(eos_id=0))
    job, _ = policy_job(
        config, generator, [[0] * 8], None, updates=1, seed=0, out=tmp_path, devices=targets.devices("v5e-1")
    )
    forecast = targets.compile(job.steps[0][1], (job.shapes, job.batch_shapes), "v5e-1")
    assert forecast.fits and forecast.peak_bytes > 4 * model.num_params
