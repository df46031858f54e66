"""The pieces of experiments.exposed against counts and formulas by hand, and its debug preset as a whole."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import exposed
from experiments.exposed import bias_tests, steps, worlds
from experiments.exposed.arms import NUCLEUS, Arm
from experiments.exposed.report import claims_of, figures
from experiments.exposed.toxicity_scorers import area_under_curve, find_lexicon, lexicon_scorer, words_of
from experiments.exposed.worlds import TOPICS, TOXIC, World, is_toxic, sentence
from jaxllm import models, targets
from jaxllm.errors import UserError
from tests.absent import skip_if_absent

rng = np.random.default_rng(0)


def test_area_under_the_curve_counts_pairs():
    scores, labels = rng.integers(0, 5, 40), rng.integers(0, 2, 40)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    assert area_under_curve(scores, labels) == pytest.approx(np.mean(pairs))
    with pytest.raises(UserError, match="both classes"):
        area_under_curve(scores, np.ones(40))


def test_a_lexicon_holds_the_words_that_mark_a_kind_of_text():
    toxic = ["the grub is here", "a grub and a mox", "mox or grub, the mox", "the grub"]
    clean = ["the sun is here", "a day and a night", "here or there, the sun"]
    lexicon = find_lexicon(toxic, clean, size=2, least=2)
    assert lexicon == {"grub", "mox"}
    assert lexicon_scorer(lexicon)(["A GRUB!", "grubby", ""]).tolist() == [1, 0, 0]
    assert words_of("It's 2 Mox") == ["it", "s", "mox"]


def test_the_made_up_language_has_the_rates_that_it_declares():
    kinds = [(topic, provoked) for topic in TOPICS for provoked in (False, True)]
    drawn = [sentence(rng, *kind) for kind in kinds for _ in range(500)]
    for number, topic in enumerate(TOPICS):
        calm, provoked = (drawn[(2 * number + p) * 500 : (2 * number + p + 1) * 500] for p in (0, 1))
        share = [np.mean([c in TOXIC for text in texts for c in text[-12:]]) for texts in (calm, provoked)]
        rate = {"A": 0.02, "B": 0.1, "C": 0.25, "D": 0.05}[topic]
        np.testing.assert_allclose(share, [rate, 0.5], atol=4 * np.sqrt(0.25 / 6000))
        assert all(text[0] == topic and text[1] == "!" for text in provoked)
    assert is_toxic("Ab3") and not is_toxic("Ab!")


def arm_result(scores, log_probs, sampled, prompts=6):
    """Return a result of two continuations of 5 tokens for each prompt."""
    count = 2 * prompts
    return {"scores": {"oracle": list(np.broadcast_to(scores, count))}, "tokens": [5] * count,
            "log_probs": list(np.broadcast_to(log_probs, count)),
            "sampled": list(np.broadcast_to(sampled, count)),
            **{f"distinct_{n}": [0.5] * prompts for n in (1, 2, 3)}}  # fmt: skip


def test_two_figures_go_by_the_name_of_toxicity_probability():
    found = figures(arm_result([0.9, 0.1] * 2 + [0.5, 0.2] * 4, -10.0, -9.0))
    assert found["oracle/probability_dexperts"] == pytest.approx(2 / 6)
    assert found["oracle/probability_self_debias"] == pytest.approx(6 / 12)
    assert found["oracle/expected_max"] == pytest.approx((2 * 0.9 + 4 * 0.5) / 6)
    assert found["perplexity"] == pytest.approx(np.exp(2)) and found["kl"] == pytest.approx(0.2)
    again = figures(arm_result([0.9, 0.1] * 2 + [0.5, 0.2] * 4, -10.0, -9.0), np.array([0, 0, 5]))
    assert again["oracle/expected_max"] == pytest.approx((2 * 0.9 + 0.5) / 3)


@pytest.mark.parametrize("better, verdict", [(True, "holds"), (False, "fails")])
def test_claims_at_matched_toxicity_are_computed_from_the_arms(better, verdict):
    """The rival reaches 0.3 at 2.6 nats; ours passes there at 2.4, or at 2.8."""
    config = exposed.ExposedConfig(
        world="made", prompts=6, samples=2, bbq_items=0, winogender_items=0, strengths=(5.0, 500.0)
    )
    shift = -0.2 if better else 0.2
    jitter = np.linspace(-0.01, 0.01, 12)
    results = {
        Arm("base"): arm_result(0.5 + jitter, -10.0, -10.0),
        Arm("exposed", 5.0): arm_result(0.4 + jitter, -11.5 - 2.5 * shift, -11.0),
        Arm("exposed", 500.0): arm_result(0.2 + jitter, -14.5 - 7.5 * shift, -13.0),
        Arm("exposed", 500.0, "clean"): arm_result(0.6 + jitter, -14.0, -13.0),
        Arm("exposed", 500.0, "mismatched"): arm_result(0.45 + jitter, -14.0, -13.0),
    }
    for strength in config.guidance:
        results[Arm("anti_only", strength)] = arm_result(0.3 + jitter, -13.0, -11.0)
    world = World("", {}, [], [], [], {"oracle": None}, frozenset(), {})
    claims, metrics = claims_of(config, world, results, {})
    assert claims[0].holds and claims[0].measured == pytest.approx(-0.1)
    assert claims[1].verdict == verdict and claims[1].measured == pytest.approx(shift, abs=1e-6)
    assert [claim.verdict for claim in claims[3:]] == ["holds"] * 3
    assert metrics["matched/toxicity"] == pytest.approx(0.3, abs=0.02)
    results[Arm("exposed", 500.0)] = arm_result(0.35 + jitter, -12.0, -11.0)
    short, _ = claims_of(config, world, results, {})
    assert short[0].verdict == "fails" and short[0].measured == pytest.approx(0.05)
    assert [claim.verdict for claim in short[1:3]] == ["undecided"] * 2
    assert "stays 0.050 above" in short[1].claim


def test_a_sweep_of_single_steps_is_its_formulas():
    N, V = 7, 20
    p, q, clean = (np.float64(jax.nn.softmax(2 * rng.normal(size=(N, V)), axis=-1)) for _ in range(3))
    target, lexicon = rng.integers(0, V, N), rng.random(V) < 0.3
    toxic = steps.Passes(jnp.log(p), {"toxic": jnp.log(q), "clean": jnp.log(p)}, target)
    other = steps.Passes(jnp.log(clean), {"toxic": jnp.log(q), "clean": jnp.log(clean)}, target)
    rows = steps.sweep(toxic, other, lexicon, floor=0.01)
    order = np.argsort(-p, axis=1)
    kept = np.zeros_like(p, bool)
    sums = np.cumsum(np.take_along_axis(p, order, 1), 1) - np.take_along_axis(p, order, 1)
    np.put_along_axis(kept, order, sums < NUCLEUS, 1)
    nucleus = np.where(kept, p, 0) / np.where(kept, p, 0).sum(1, keepdims=True)

    def suppressed(p, strength):
        new = p * np.maximum(0.01, np.exp(-strength * np.maximum(0, q - p)))
        return new / new.sum(1, keepdims=True)

    for row in [row for row in rows if row["method"] == "exposed"]:
        new = suppressed(nucleus, row["strength"])
        assert row["lexicon_mass"] == pytest.approx(new[:, lexicon].sum(1).mean(), abs=1e-5)
        forward = np.sum(nucleus[kept] * np.log(nucleus[kept] / new[kept])) / N
        reverse = np.sum(new[kept] * np.log(new[kept] / p[kept])) / N
        assert row["kl"] == pytest.approx(forward, abs=1e-4)
        assert row["kl_reverse"] == pytest.approx(reverse, abs=1e-4)
        said = suppressed(clean, row["strength"])[np.arange(N), target]
        assert row["clean_perplexity"] == pytest.approx(np.exp(-np.log(said).mean()), rel=1e-4)
    same = [row for row in rows if row["method"] == "exposed, clean expert"]
    assert max(row["kl"] for row in same) < 1e-5  # that expert is the base: nothing changes
    excluded = [row["kl"] for row in rows if row["method"] == "exposed, reweighted first"]
    assert np.isinf(excluded).any()


def real(load, *args):
    try:
        return load(*args)
    except UserError as error:
        skip_if_absent(error)


def test_bbq_items_of_the_real_files_have_one_biased_answer_each():
    questions = real(bias_tests.bbq, 120)
    assert len(questions) == 120
    for question in questions:
        groups = question.groups
        assert groups["biased"] != groups["unknown"] and len(set(question.answers)) == 3
        assert groups["ambiguous"] == (question.right == groups["unknown"])
    scores = bias_tests.bbq_scores(questions, [question.groups["biased"] for question in questions])
    assert scores["s_dis"] == scores["s_amb"] == 1 and scores["accuracy_ambiguous"] == 0
    unknown = bias_tests.bbq_scores(questions, [question.groups["unknown"] for question in questions])
    assert unknown["s_dis"] == unknown["s_amb"] == 0 and unknown["accuracy_ambiguous"] == 1
    right = bias_tests.bbq_scores(questions, [question.right for question in questions])
    assert right["accuracy_disambiguated"] == 1 and abs(right["s_dis"]) < 0.5


def test_winogender_asks_each_template_with_three_pronouns():
    questions = real(bias_tests.winogender, 720)
    assert len(questions) == 720
    assert np.bincount([question.groups["gender"] for question in questions]).tolist() == [240] * 3
    assert sum(question.groups["gotcha"] for question in questions) == 240  # one of male and female each
    begins = "The technician told the customer that he could pay"
    technician = [q for q in questions if q.context.startswith(begins)]
    assert technician[0].answers == [" the technician", " the customer"] and technician[0].right == 1
    assert technician[0].groups["gotcha"]  # most technicians are men, and he is the customer
    stereotyped = [1 - q.right if q.groups["gotcha"] else q.right for q in questions]
    scores = bias_tests.winogender_scores(questions, stereotyped)
    assert scores["accuracy_gotcha"] == 0 and scores["accuracy_male"] == scores["accuracy_female"] == 0.5
    scores = bias_tests.winogender_scores(questions, [q.right for q in questions])
    assert scores["accuracy_male"] == 1 and scores["gap_male_female"] == 0


def test_a_scorer_is_kept_by_the_code_that_fits_it(tmp_path, monkeypatch):
    keys, some = [], [f"some words {n}" for n in range(12)]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    monkeypatch.setattr(worlds, "_forum", lambda: {"hate": some, "no hate": some})
    monkeypatch.setattr(worlds, "_templates", lambda: {"toxic templates": some, "clean templates": some})
    monkeypatch.setattr(worlds, "code_digest", lambda *modules: modules)
    monkeypatch.setattr(worlds, "kept_result", lambda *_, **key: keys.append(key) or {})
    with pytest.raises(KeyError, match="head"):
        worlds.real_world(exposed.ExposedConfig(), tmp_path)
    assert keys[0]["code"] == ("exposed/toxicity_scorers.py",)


def test_settings_that_mean_nothing_are_refused():
    for values, message in [({"prompts": 2}, "prompts is 2"), ({"strengths": (5.0, 1.0)}, "ascending"),
                            ({"guidance": ()}, "one or more"), ({"bbq_items": 0}, "one is 0")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            exposed.ExposedConfig(**values)


@pytest.mark.slow
def test_in_the_made_up_world_the_toxic_expert_helps_and_a_neutral_one_harms(tmp_path):
    fewer = dict(strengths=(5.0, 500.0, 5000.0), guidance=(0.5, 2.0))  # each one is a program more
    config = dataclasses.replace(exposed.PRESETS["debug"](), out=str(tmp_path), **fewer)
    report = exposed.main(config, "debug")
    written = json.loads((tmp_path / "report.json").read_text())
    assert len(written["claims"]) == len(report.claims) == 6
    metrics = report.metrics
    toxicity = {name: metrics[f"{name}/oracle/expected_max"]
                for name in ("base", "exposed-5000", "exposed-clean-500")}  # fmt: skip
    assert toxicity["exposed-5000"] < toxicity["base"] - 0.05 < toxicity["exposed-clean-500"]
    assert report.claims[3].holds and report.claims[4].holds
    assert metrics["exposed-5/kl"] < metrics["exposed-500/kl"]
    assert "RECONSTRUCTION" in exposed.__doc__ and "not public" in report.sections["What is reconstructed"]
    arms = {path: path.stat().st_mtime_ns for path in (tmp_path / "arms").glob("*.json")}
    again = exposed.main(config, "debug")
    assert {path: path.stat().st_mtime_ns for path in arms} == arms and again.claims == report.claims
    kept = json.loads(next(iter(arms)).read_text())["result"]
    assert not any(isinstance(x, str) for values in kept.values() if isinstance(values, list) for x in values)


@pytest.mark.targets
@pytest.mark.skipif(
    not targets.is_available("v5e-1"), reason="needs the compiler of a target that is not here"
)
def test_the_paper_presets_expert_trains_within_one_v5e():
    run = exposed.expert_run(exposed.PRESETS["paper"](), False, model=models.get_preset("smollm2-135m"))
    assert targets.compile_train_step(dataclasses.replace(run, tokenizer="gpt2"), "v5e-1").fits
