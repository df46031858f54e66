"""Test-time training: domains, baselines by hand, claims on made figures, a debug run."""

import dataclasses
import json
import lzma

import jax
import numpy as np
import pytest

from experiments import test_time_training as experiment
from experiments.test_time_training import baselines
from experiments.test_time_training import report as told
from experiments.test_time_training.domains import made_domains, real_domains
from experiments.test_time_training.stories260k import load_stories260k, tiny_stories
from jaxllm import data, models, targets
from jaxllm.adapt import PerDocumentConfig
from jaxllm.adapt import per_document as inside
from jaxllm.errors import UserError
from jaxllm.pretrained.load import Pretrained
from jaxllm.score import score_sequences, score_texts
from tests.absent import skip_if_absent
from tests.models.random_params import random_params


@pytest.fixture(scope="module")
def model():
    config = models.get_preset("gpt2-nano", vocab_size=257, num_layers=1, embed_dim=16, num_heads=2)
    return Pretrained(config, random_params(config), data.load_tokenizer("bytes"))


def test_domains_are_read_from_a_file_and_share_no_text(tmp_path):
    rows = [
        dict(domain=d, split=s, text=f"{d} {s} {n}")
        for d in "ab"
        for s in ("index", "test")
        for n in range(3)
    ]
    path = tmp_path / "texts.jsonl.xz"
    path.write_bytes(lzma.compress("\n".join(map(json.dumps, rows)).encode()))
    domains = real_domains(str(path)).some(2, 1)
    assert {name: len(texts) for name, texts in domains.index.items()} == {"a": 2, "b": 2}
    assert not {t for some in domains.index.values() for t in some} & {
        t for some in domains.test.values() for t in some
    }
    path.write_bytes(b"{")
    with pytest.raises(UserError, match="expected jsonl with the columns domain"):
        real_domains(str(path))
    made = made_domains()
    assert made.unseen == ("made_2", "made_3") and made == made_domains()


def test_stories260k_is_the_published_model():
    try:
        model, stories = load_stories260k(), tiny_stories()
    except UserError as error:
        skip_if_absent(error)
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 260_032
    assert model.tokenizer.encode("Once upon a time").tolist() == [403, 407, 261, 378]  # as llama2.c says
    score = score_texts(*model, stories[3][:400])
    assert 0.5 < score.bits_per_byte < 1.3  # SOURCE.md: 1.005 over all of them


def test_interpolation_is_that_of_probabilities_and_its_share_comes_from_others(model):
    documents, neighbours = [[0, 5, 6, 7, 5], [0, 9, 9]], [[[5, 5, 6], [1]], [[9], [9]]]
    distances = [[0.0, np.log(3)], [1.0, 1.0]]
    totals = baselines.interpolated(model, documents, neighbours, distances, window=2)
    [first, second] = score_sequences(model.config, model.params, [[0, 5, 6], [6, 7, 5]])
    ours = np.exp(np.concatenate([first, second]).astype(float))
    theirs = np.array([0.75 * 2 / 3, 0.75 / 3, 0, 0.75 * 2 / 3])  # the nearer weighs 3/4
    for share, total in zip(baselines.SHARES, totals[0], strict=True):
        assert total == pytest.approx(np.log((1 - share) * ours + share * theirs).sum(), rel=1e-5)
    made = np.array([[0.0, 1.0, 5.0], [3.0, 2.0, 1.0], [0.0, 9.0, 5.0]])
    assert baselines.chosen_on_others(made).tolist() == [0.0, 2.0, 0.0]


def test_context_keeps_the_nearest_next_to_the_document(model):
    assert baselines.in_context([[1, 2, 3], [4, 5], [6]], 4) == [5, 1, 2, 3]
    assert baselines.in_context([[1, 2, 3]], 2) == [2, 3]
    ids, context = [0, 5, 6, 7, 8, 9], [3, 4]
    [total] = baselines.half_window_log_probs(model, [ids], [context], window=8)
    whole = [([0, 3, 4], [5, 6, 7, 8]), ([0, 3, 4, 8], [9])]  # room for one token of the document
    expected = sum(
        score_sequences(model.config, model.params, [[*read, *piece]])[0][-len(piece) :].sum()
        for read, piece in whole
    )
    assert total == pytest.approx(expected, rel=1e-5)


def made_results(draw, gain):
    """Made results: half of the documents are unseen, and 20 neighbours leave `gain` of their bits."""
    before = draw.uniform(900, 1100, 40)
    falls = np.linspace(0, 1, 4)[None] * np.where(np.arange(40)[:, None] % 2, *gain)
    near = -np.log(2) * before[:, None] * (1 - falls)
    found = {
        "bytes": np.full(40, 500),
        "unseen": np.arange(40) % 2 == 1,
        "domains": np.array([f"{'ab'[n % 2]}{n // 4}" for n in range(40)]),
    }
    for name, factor in (("near", 1.0), ("random", 1.05), ("far", 1.0)):
        found[name] = {"log_probs": (near * factor).tolist(), "steps": [20] * 40, "seconds": 2.0}
    return found


def test_claims_are_decided_by_the_figures(tmp_path):
    found = made_results(np.random.default_rng(0), (0.4, 0.1))
    after = (0, 1, 20, 50)
    claims = {claim.claim: claim for claim in told.judge({"m": found}, {"m": after}, 20)}
    assert claims[
        "m: bits after 20 neighbours over bits before, domains held out here, below 1"
    ].measured == pytest.approx(1 - 0.4 * 2 / 3)
    assert claims["m: relative gain on domains held out here above that on the others, by"].holds
    assert claims["m: random documents above neighbours, bits per byte after 20, by"].holds
    assert not claims["m: far-first above near-first, bits per byte after 20, by"].holds
    share = claims["m: 20 neighbours bring this share of the gain of 50, at least half"]
    assert share.measured == pytest.approx(2 / 3) and share.holds
    narrow = told.narrowing(found, made_results(np.random.default_rng(0), (0.4, 0.1)), 2)
    assert np.isnan(narrow.measured) and not narrow.holds  # equal models: no distance to cover
    table = told.curve_table({"m": found}, {"m": after})
    assert "m, domains held out here" in table and "published: GPT-2 large" in table
    assert "| b0 | held out here |" in told.domain_table(found, after)
    told.plot(tmp_path, {"m": found}, {"m": after})
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_domains_are_resampled_and_few_of_them_decide_nothing():
    values = np.repeat(np.arange(8.0), 50)
    mean = lambda some: values[some].mean()
    found = told.estimate(mean, np.repeat(list("abcdefgh"), 50))
    draws = np.random.default_rng(1).integers(0, 8, (20_000, 8)).mean(axis=1)
    assert found.interval == pytest.approx(np.quantile(draws, (0.025, 0.975)), abs=0.2)
    assert found.units == 8 and found.holds(above=0) is True and found.holds(below=0) is False
    few = told.estimate(mean, np.repeat(["a", "b", "c", "d", "e", "f", "f", "f"], 50)[:250])
    assert few.units == 5 and few.holds(above=0) is None
    one = told.estimate(lambda a, b: values[a].mean() + values[b].mean(), ["a"] * 400, ["b"] * 400)
    assert one.units == 400 and one.holds(above=0) is True  # of one domain, documents


def test_gains_by_way_of_an_order_and_of_one_pass_have_a_direction():
    found = made_results(np.random.default_rng(0), (0.4, 0.1))
    for name, factor in (("carried", 0.97), ("informative", 1.02), ("one_pass", 0.9)):
        found[name] = {"log_probs": (np.array(found["near"]["log_probs"]) * factor).tolist()}
    found["one_pass"]["log_probs"] = [row[2:3] for row in found["one_pass"]["log_probs"]]
    claims = told.judge({"m": found}, {"m": (0, 1, 20, 50)}, 20)
    holds = {word: claim.holds for claim in claims for word in ("carried", "repeat each other", "one pass")
             if word in claim.claim}  # fmt: skip
    assert holds == {"carried": False, "repeat each other": True, "one pass": False}


def test_what_a_pretrained_model_has_read_is_not_said():
    found = made_results(np.random.default_rng(0), (0.4, 0.1))
    said = lambda name: " ".join(c.claim for c in told.judge({name: found}, {name: (0, 1, 20, 50)}, 20))
    assert "domains held out here" in said("smollm2") and "seen" not in said("smollm2")
    assert "unseen domains" in said("small") and "held out" not in said("small")


@pytest.mark.slow
def test_a_debug_run_writes_its_report_and_is_resumed(tmp_path):
    config = dataclasses.replace(experiment.PRESETS["debug"](), out=str(tmp_path))
    report = experiment.main(config, "debug")
    written = json.loads((tmp_path / "report.json").read_text())
    assert {claim["claim"] for claim in written["claims"]} >= {
        "the small model after its neighbours covers this part of the distance to one 8 times its size"
    }
    assert report.metrics["leaks/planted_found"] == 1 and report.metrics["leaks/rate_without_plants"] == 0
    assert report.metrics["leaks/ratio_of_planted"] < report.metrics["leaks/ratio_of_the_same_without"]
    assert (tmp_path / "curves.png").is_file() and list((tmp_path / "kept").iterdir())
    again = experiment.main(config, "debug")
    same = lambda report: {name: value for name, value in report.metrics.items() if "break_even" not in name}
    assert same(again) == same(report)


def test_wrong_settings_are_told_in_a_sentence():
    with pytest.raises(UserError, match="subjects is empty"):
        experiment.TestTimeConfig(subjects=())


@pytest.mark.targets
@pytest.mark.parametrize("preset, target", [("gpt2", "v5e-1"), ("gpt2-large", "v5p-8")])
def test_the_papers_models_adapt_within_a_devices_memory(preset, target):
    """All weights, 50 neighbours of a window each, documents of two: base, copy and moments on one device."""
    config = models.get_preset(preset)
    how = PerDocumentConfig(window=1024)
    plan = inside._Plan(50, 2, 1024, (0, 1, 2, 5, 10, 20, 50))
    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    of = jax.ShapeDtypeStruct
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    arrays = (
        of((1, 50, 1024), "int32"),
        of((1, 50), "int32"),
        of((1, 7), "int32"),
        of((1, 2, 1025), "int32"),
        of((1, 2, 1024), "float32"),
    )

    def adapt(*args):
        return inside._program(config, inside._Whole(), how, plan, 1, None, *args)

    forecast = targets.compile(jax.jit(adapt), (params, {}, None, of((), "float32"), keys, *arrays), target)
    print(forecast)
    assert forecast.fits
