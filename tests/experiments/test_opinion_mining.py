"""Opinions are written, read and judged as the study says; its debug run holds together."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from scipy import stats

from experiments import opinion_mining
from experiments.opinion_mining import claims, texts
from experiments.opinion_mining.communitylm import load_communitylm, party_accuracy
from experiments.opinion_mining.measures import (
    against_truth,
    counted_rho,
    decoded,
    exact_interval,
    insights,
    jensen_shannon,
    parts,
    resample,
)
from experiments.opinion_mining.study import judge_pairs
from experiments.opinion_mining.world import (
    NEUTRAL,
    OPINIONS,
    TEMPLATES,
    World,
    next_log_probs,
    opinion_shares,
    tune_populations,
)
from experiments.shared.tuned_text import Rows, encode_rows, tuning
from jaxllm import models, targets
from jaxllm.data import load_tokenizer
from jaxllm.errors import UserError
from jaxllm.score import read_opinions
from jaxllm.train import prepare

needs_data = pytest.mark.skipif(
    not os.environ.get("JAXLLM_DATA"), reason="JAXLLM_DATA names no folder of real data"
)
WORLD = World(classes=3, members=4, seen=2)


def test_a_population_says_what_its_rates_say_of_seen_members_alone():
    rows, notes = WORLD.opinions((0.9, 0.5, 0.1), 4000, np.random.default_rng(0))
    assert rows.shape[0] == 4000 and notes[:, 1].max() == WORLD.seen - 1
    np.testing.assert_allclose(np.mean(notes[:, 2] == 1), NEUTRAL, atol=0.03)
    np.testing.assert_allclose(counted_rho(notes, 3, 4)[:, :2].mean(1), (0.9, 0.5, 0.1), atol=0.04)
    assert (counted_rho(notes, 3, 4)[:, 2:] == 0.5).all()
    said = {WORLD.ids[word] for some in OPINIONS.values() for word in some}
    neutral = WORLD.encode(WORLD.neutral_sentences(500, np.random.default_rng(1)))
    assert not said & set(neutral.ravel().tolist())


@pytest.mark.slow
def test_the_stacked_read_out_is_the_library_s(tmp_path):
    model = WORLD.model(16, 1)
    rows = WORLD.opinions((0.9, 0.5, 0.1), 64, np.random.default_rng(0))[0]
    base = jax.vmap(lambda key: models.init(model, key))(jax.random.split(jax.random.key(0)))
    [tuned] = tune_populations(model, base, np.stack([rows, rows]), (2,), (3, 4), rank=2)
    shares = opinion_shares(WORLD, next_log_probs(WORLD, model, tuned))
    one = jax.tree.map(lambda x: x[1], tuned)
    templates = [f"<|endoftext|> {template}" for template in TEMPLATES]  # as sentences of this world begin
    tokenizer = WORLD.tokenizer(tmp_path)
    found = read_opinions(model, one, tokenizer, templates, WORLD.members_CM.ravel(), OPINIONS)
    np.testing.assert_allclose(shares[1].reshape(found.shape), found, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), tuned, base)
    # An adapter and the words' table beside a base.
    assert min(moved["layers"]["attn"]["query"], moved["embed"]["tokens"]) > 0 == moved["final_norm"]["scale"]


def test_errors_slopes_and_distances_against_what_was_written():
    rates = np.array([0.9, 0.5, 0.1])
    truth = np.stack([(1 - rates) * 0.8, np.full(3, 0.2), rates * 0.8], axis=1)
    shares = np.tile(truth[None, None, :, None], (2, 3, 1, 4, 1)) * 0.5  # half of the mass says no opinion
    found = against_truth(WORLD, shares, rates)
    for name in parts(WORLD):
        np.testing.assert_allclose(found[f"{name}/mae"], 0, atol=1e-12)
        np.testing.assert_allclose(found[f"{name}/slope"], 1)
        np.testing.assert_allclose(found[f"{name}/no_opinion"], 0.5)
    np.testing.assert_allclose(jensen_shannon([0.5, 0.5], [1.0, 0.0]), 0.5579, atol=1e-4)


def test_truncated_sampling_is_what_the_library_draws_from():
    from jaxllm.generate import SamplingConfig

    logits = np.random.default_rng(0).normal(size=(5, 12))
    log_probs = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    for temperature, top_p in ((0.5, 0.8), (1.0, 0.9), (0.7, 1.0)):
        sampling, out = SamplingConfig(temperature=temperature, top_p=top_p), np.float32(logits)
        for processor in sampling.processors():
            out = processor(out, None, None)
        np.testing.assert_allclose(decoded(log_probs, temperature, top_p), jax.nn.softmax(out), atol=1e-5)
    assert (decoded(log_probs, 0, 1).argmax(-1) == logits.argmax(-1)).all()


def test_samples_report_a_difference_between_models_that_no_population_has():
    draw, wrong = np.random.default_rng(0), {"samples": 0, "bootstrapped refits": 0}
    for _ in range(12):
        shares = []
        for _ in range(2):  # an estimate of each corpus, and refits around it
            rho = np.clip(
                0.5 + 0.06 * draw.normal(size=3)[None] + 0.06 * draw.normal(size=(5, 3)), 0.05, 0.95
            )
            q = np.stack([(1 - rho) * 0.8, np.full_like(rho, 0.2), rho * 0.8], axis=-1)
            shares.append(np.tile(q[:, None, :, None], (1, 3, 1, 4, 1)))
        found = insights(*shares, slice(0, 2), 200, draw)
        for way in wrong:
            wrong[way] += (found[way] < 0.1).any()
    assert wrong["samples"] >= 10 and wrong["bootstrapped refits"] <= 4
    pairs = [{"seen/samples": [0.01, 0.5, 0.05]}, {"seen/samples": [0.2, 0.5, 0.9]}]
    judged = judge_pairs(pairs, differing=1, level=0.1)
    assert judged == {
        "seen/samples/any_false": 1,
        "seen/samples/false_share": 0.25,
        "seen/samples/recall": 0.5,
    }


def test_intervals_of_counts_are_exact():
    for successes, total in [(0, 4), (2, 4), (4, 4), (4, 14), (17, 18)]:
        wanted = stats.binomtest(successes, total).proportion_ci(0.95, "exact")
        assert exact_interval(successes, total) == pytest.approx((wanted.low, wanted.high))


def test_four_classes_of_four_are_too_few_for_more_than_half():
    row = {"h": 0.3, "counts": [(5, 20), (9, 20)]}
    found = {"populations": {"rows": [row] * 4, "counted": {"rows": [row] * 4}}}
    [claim] = claims._real("reviews", found)
    assert claim.measured == 1 and claim.holds is None
    assert claim.interval == pytest.approx((0.3976, 1), abs=1e-4)


def test_bad_input_is_refused_in_a_sentence():
    for change, said in [
        (dict(parts=("world",)), "unknown part 'world'"), (dict(differing=6), "differing is 6 of 6 classes"),
        (dict(refits=1), "refits is 1"), (dict(seeds=(1,)), "give two or more"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=said):
            dataclasses.replace(opinion_mining.OpinionConfig(), **change)
    with pytest.raises(UserError, match="the population 'rotten' is empty"):
        texts.choose([], 5, np.random.default_rng(0), "rotten")
    with pytest.raises(UserError, match="no text to tune on"):
        encode_rows(load_tokenizer("bytes"), [], 8)


def test_rows_of_short_texts_predict_their_end_and_no_padding():
    tokenizer = load_tokenizer("bytes")
    rows = encode_rows(tokenizer, ["ab", "abcdef"], longest=5, begin=[7])
    assert rows.tokens_NT.tolist() == [[7, 97, 98, 0, 0], [7, 97, 98, 99, 100]]
    assert rows.targets_NT.tolist() == [[97, 98, tokenizer.eos_id, 0, 0], [97, 98, 99, 100, 101]]
    assert rows.mask_NT.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert len(resample(rows.tokens_NT, np.random.default_rng(0))) == 2


@needs_data
def test_the_authors_stances_name_the_warmer_party_as_they_report():
    community = load_communitylm(lines=1)
    assert len(community.targets) == 30
    by_prompt = party_accuracy(community, community.authors_PRQK).mean(axis=0)
    np.testing.assert_allclose(by_prompt, [0.8467, 0.96, 0.9133, 0.9733], atol=1e-4)
    assert all(len(cell) == 1 for cell in community.lines_PRQK[0][0][0])


@pytest.mark.targets
@pytest.mark.skipif(not targets.is_available("a100-40gb"), reason="needs the compiler of an A100")
def test_the_paper_s_adapter_trains_within_an_a100():
    how = opinion_mining.PRESETS["paper"]().real.tune
    model = models.get_preset("smollm2-135m")
    one = np.zeros((how.batch_size, how.longest), np.int32)
    rows = Rows(one, one, np.ones(one.shape, np.float32))
    made = tuning(model, models.shapes(model), rows, how, seed=0, out="none")  # scanned
    job = prepare(
        made.task,
        made.run,
        optimizer=made.optimizer,
        views=(made.view,),
        devices=targets.devices("a100-40gb"),
    )
    forecast = targets.compile(job.steps[0][1], (job.shapes, job.batch_shapes), "a100-40gb")
    assert forecast.fits and forecast.peak_bytes > 4 * model.num_params


@pytest.mark.slow
def test_the_debug_run_writes_its_report(tmp_path):
    config = dataclasses.replace(opinion_mining.PRESETS["debug"](), out=str(tmp_path))
    report = opinion_mining.main(config, "debug")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["metrics"] == report.metrics and len(report.claims) >= 12
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"learning.png", "decoding.png", "counting.png", "discoveries.png"}


@needs_data
@pytest.mark.slow
def test_real_populations_give_insights_with_evidence(tmp_path):
    found = texts.mine("reviews", "small", texts.RealConfig.tiny(), 0.1, tmp_path)
    assert {"populations", "halves", "insights"} <= found.keys() and found["refits"] == 2
    rows = found["insights"]
    assert [row["class"] for row in rows] and all(row["retrieved"] for row in rows)
    again = texts.mine("reviews", "small", texts.RealConfig.tiny(), 0.1, tmp_path)
    assert again["populations"] == found["populations"]
