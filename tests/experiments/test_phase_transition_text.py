"""Falls of PPP are judged on texts that did not choose the peak; surprisals survive their packing; claims."""

import dataclasses
import functools
import os
from types import SimpleNamespace

import numpy as np
import optax
import pytest

from experiments import phase_transition_text as experiment
from experiments.phase_transition import text_report as report
from experiments.phase_transition.curves import fall
from experiments.phase_transition.reading_corpora import ReadingCorpus
from experiments.phase_transition_text import ARMS, PRESETS
from jaxllm import data, interpret, models, score, targets
from jaxllm.errors import UserError
from jaxllm.train import RunConfig, prepare
from tests.interpret.test_ablation import without_head
from tests.models.random_params import random_params

needs_data = pytest.mark.skipif(
    not os.environ.get("JAXLLM_DATA"), reason="JAXLLM_DATA names no folder of real data"
)


def test_noise_has_no_fall_and_a_real_one_is_found():
    """The largest of noisy values is above the last one; chosen on other texts, it is not."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(400, 20, 2))
    naive = [one.mean(axis=1).max() - one[-1].mean() for one in noise]
    assert np.mean(naive) > 1 and abs(np.mean([fall(one) for one in noise])) < 0.2
    curve = np.array([*np.linspace(0, 5, 10), *np.linspace(5, 2, 10)])[:, None]
    assert np.mean([fall(one + curve) for one in noise]) == pytest.approx(3, abs=0.7)


def test_surprisals_are_kept_to_a_hundredth_of_a_bit():
    values = [np.random.default_rng(0).exponential(8, 500), np.array([0.0, 400.0])]
    run = {"bits": [experiment._packed(values)], "ablated": [{"most": experiment._packed(values[::-1])}]}
    [found], ablated = experiment.unpacked(run)
    for one, other in zip([*found, *ablated["most"]], [*values, *values[::-1]], strict=True):
        assert np.abs(one - other).max() <= 1 / 128


def test_a_head_of_the_last_layer_is_missed_alike_in_both_ways():
    """No later head reacts; a head of the first layer is missed otherwise where all react."""
    config = models.get_preset("gpt2-nano", vocab_size=257, embed_dim=32, context_length=32, init_std=0.2)
    params, tokenizer = random_params(config), data.load_tokenizer("bytes")
    texts = [["some", "words", "to", "read"]]

    def surprisals(layer, keep):
        cut = functools.partial(interpret.hidden_without_head, layer=layer, head=1, keep_patterns=keep)
        return score.word_surprisals(config, params, tokenizer, texts, trunk=cut)[0]

    def without(layer):
        cut = without_head(params, layer, 1)
        return score.word_surprisals(config, cut, tokenizer, texts, trunk=models.trunk)[0]

    np.testing.assert_allclose(surprisals(0, False), without(0), rtol=1e-4)
    np.testing.assert_allclose(surprisals(1, True), without(1), rtol=1e-4)
    assert np.abs(surprisals(0, True) - without(0)).max() > 1e-2


def test_words_are_counted_in_tokens_and_corpora_shortened():
    tokenizer = data.load_tokenizer("bytes")
    assert experiment.word_pieces(tokenizer, ["a", "bcd", "ef"]).tolist() == [1, 4, 3]
    corpus = ReadingCorpus("made up", list("abcdef"), np.array([0, 0, 0, 0, 1, 1]), {"t": np.arange(6.0)}, 1)
    short = experiment.shortened(corpus, 4)
    assert short.words == list("abef") and short.times["t"].tolist() == [0, 1, 4, 5]


def test_checkpoints_lie_on_one_grid_and_end_with_the_run():
    config = PRESETS["gpu"]()
    for arm in ARMS:
        steps = config.checkpoint_steps(arm)
        assert steps[-1] == config.steps(arm) and all(step % steps[0] == 0 for step in steps[:-1])
        assert 12 <= len(steps) <= config.checkpoints and steps[-1] / steps[0] > 60
    assert config.steps("1 layer, small batch") == pytest.approx(4 * config.steps("1 layer"), abs=4)


@pytest.mark.parametrize("arm, share", [("2 layers", 0.75), ("1 layer", 0.75), ("2 layers, no repeats", 0.0)])
def test_three_windows_in_four_are_one_span_again_and_again_but_where_nothing_repeats(arm, share):
    """Every token of the text is another one, so a window that holds one twice repeats itself."""
    config = dataclasses.replace(PRESETS["small"](), batch=400)
    ids = np.arange(10_000)
    corpus = SimpleNamespace(train=SimpleNamespace(ids=ids), tokenizer=SimpleNamespace(vocab_size=512))
    tokens = next(iter(experiment.make_task(config, arm, 0, corpus).batches()))["tokens"]
    kinds = np.array([len(set(row)) for row in tokens.tolist()])
    repeated = kinds < tokens.shape[1]
    assert tokens.shape[1] == config.context_length + 1
    assert repeated.mean() == pytest.approx(share, abs=0.07 if share else 0)
    assert set(kinds[repeated]) <= set(range(8, 33))
    np.testing.assert_array_equal(np.diff(tokens[~repeated], axis=1), 1)


def made_up(peak_first: bool, copies: bool, arms=tuple(ARMS)):
    """Return (runs, powers) of three seeds: PPP peaks at the transition, or only rises."""
    runs, powers = {}, {}
    for arm in arms:
        rises = copies and arm in ("2 layers", "2 layers, small batch")
        copying = [0.02, 0.03, 0.5, 0.6] if rises else [0.02] * 4
        curve = [0.01, 0.03, 0.03, 0.01] if peak_first and rises else [0.01, 0.02, 0.03, 0.031]
        runs[arm], powers[arm] = [], []
        for seed in range(3):
            jitter = 1e-5 * seed
            shift = 2.0 if "small" in arm else 4.0
            ppp = dict.fromkeys(report.MEASURES, [x + jitter for x in curve])
            kinds = [f"{h} copying, {k}" for h in ("most", "least") for k in ("all reacts", "patterns kept")]
            runs[arm].append({
                "tokens": [shift * x for x in (1e5, 2e5, 4e5, 8e5)], "copying": [x + jitter for x in copying],
                "null": [0.014] * 4, "previous": [0.1] * 4, "repeat_loss": [5.0] * 4, "loss": [4.0] * 4,
                "in_context": [0.1 + jitter] * 4, "uas": [0.2 + jitter] * 4, "tokens_per_second": 1e5,
            })  # fmt: skip
            powers[arm].append({
                "ppp": ppp, "halves": {name: [[x, x] for x in curve] for name, curve in ppp.items()},
                "ablated": dict.fromkeys(kinds, dict.fromkeys(report.MEASURES, jitter)),
            })  # fmt: skip
    return runs, powers


def test_claims_follow_the_curves(tmp_path):
    told = {claim.claim: claim.holds for claim in report.claims(*made_up(True, True))}
    assert set(told.values()) <= {True, None} and sum(x is True for x in told.values()) > 12
    turned = {claim.claim: claim.holds for claim in report.claims(*made_up(False, True))}
    assert [holds for text, holds in turned.items() if "tipping point:" in text] == [False] * 5
    flat = {claim.claim: claim.holds for claim in report.claims(*made_up(False, False))}
    assert [holds for text, holds in flat.items() if text.startswith("2 layers: copying")] == [False]
    assert not any("a larger batch" in text for text in flat)  # nothing rose: nothing is said of when
    runs, powers = made_up(True, True)
    report.plot(runs, powers, str(tmp_path))
    assert (tmp_path / "transition.png").stat().st_size > 10_000
    assert report.metrics(runs, powers)["2 layers/copying"] > 0.5
    assert "sub-words known" in report.sections(runs, powers)["Predictive power, nats a word"]
    assert 4e5 < report.metrics(runs, powers)["2 layers, small batch/transition, tokens"] < 8e5
    assert "1 layer/transition, tokens" not in report.metrics(runs, powers)
    assert report.sections(runs, powers)["The runs"].count("copying not learned") == len(ARMS) - 2


@pytest.mark.parametrize("changes, message", [
    (dict(arms=("3 layers",)), "unknown arm '3 layers'"),
    (dict(seeds=(0,)), "give two or more"),
    (dict(batch=6), "batch is 6; a quarter of it is a batch too"),
    (dict(span=50), "context_length is 64; a span of 50 tokens must come twice, so give 100"),
])  # fmt: skip
def test_what_cannot_be_run_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(PRESETS["small"](), **changes)


def test_runs_and_powers_are_measured_anew_when_modules_that_decide_them_change(tmp_path, monkeypatch):
    config, measured = dataclasses.replace(PRESETS["debug"](), out=str(tmp_path)), []
    run = {"bits": [], "ablated": [], "pieces": []}
    for module, name in ((experiment, "_measure"), (report, "_powers")):
        monkeypatch.setattr(module, name, lambda *given: measured.append(given) or {})
    for code in ("one", "one", "other"):
        for module in (experiment, report):
            monkeypatch.setattr(module, "code_digest", lambda *names, code=code: code, raising=False)
        experiment.run_arm(config, [], "1 layer", 0)
        report.powers(config, "1 layer", 0, run, (), [], {})
    assert len(measured) == 4


@needs_data
@pytest.mark.slow
def test_the_debug_preset_runs_and_keeps_its_runs(tmp_path):
    config = dataclasses.replace(PRESETS["debug"](), out=str(tmp_path))
    one = dataclasses.replace(config, arms=("1 layer",), seeds=(1,), train_only=True)
    assert experiment.main(one) is None
    kept = next(tmp_path.glob("runs/1-layer-1.json")).stat().st_mtime
    found = experiment.main(config, "debug")
    assert next(tmp_path.glob("runs/1-layer-1.json")).stat().st_mtime == kept
    assert experiment.main(config, "debug").metrics == found.metrics
    assert (tmp_path / "transition.png").stat().st_size > 10_000 and found.metrics["2 layers/uas"] > 0


@pytest.mark.targets
@pytest.mark.skipif(not targets.is_available("h100"), reason="needs the compiler of an H100")
def test_the_paper_s_penalised_model_trains_within_an_h100():
    config = PRESETS["paper"]()
    ids, tokenizer = np.arange(5000, dtype=np.uint16), SimpleNamespace(vocab_size=50257)
    corpus = SimpleNamespace(train=SimpleNamespace(ids=ids), tokenizer=tokenizer)
    task = experiment.make_task(config, "2 layers, copying penalised", 1, corpus)
    job = prepare(task, RunConfig(), optimizer=optax.adamw(1e-3), devices=targets.devices("h100"))
    forecast = targets.compile(job.steps[0][1], (job.shapes, job.batch_shapes), "h100")
    assert forecast.fits and forecast.peak_bytes > 16 * 1024**2 * 4  # the penalty's attention weights
