"""Corpora of reading times are read as they are, and claims follow from figures made up for them."""

import dataclasses

import numpy as np
import pytest

from experiments import reading_times
from experiments.phase_transition import reading_corpora
from experiments.reading_times import PRESETS
from jaxllm.errors import UserError
from jaxllm.interpret import PredictivePower
from tests.absent import skip_if_absent


@pytest.fixture
def corpora():
    try:
        return reading_corpora.natural_stories(), reading_corpora.provo()
    except UserError as error:
        skip_if_absent(error)


def test_published_times_are_those_of_the_word_after(corpora):
    stories, _ = corpora
    assert len(stories.words) == 10256 and [len(text) for text in stories.by_text()][:2] == [1073, 990]
    aligned, published = stories.times["aligned"], stories.times["published"]
    inside = np.flatnonzero(stories.texts[1:] == stories.texts[:-1]) + 1
    np.testing.assert_array_equal(aligned[inside], published[inside - 1])
    firsts = np.flatnonzero(np.diff(stories.texts, prepend=0))
    assert len(firsts) == 10 and np.isnan(aligned[firsts]).all()


def test_a_text_of_provo_begins_where_a_first_word_is_missing(corpora):
    _, provo = corpora
    assert len(provo.words) == 2659 and provo.words[:3] == ["are", "now", "rumblings"]
    assert 50 <= len(provo.by_text()) <= 58  # the corpus has 55
    assert min(np.nanmin(times) for times in provo.times.values()) == 1


def test_frequencies_ignore_marks_and_case(corpora):
    counts = reading_corpora.word_counts()
    corpus = reading_corpora.ReadingCorpus("", ["The", "(the,", "zzzxq"], np.zeros(3), {}, 0)
    controls = corpus.controls(counts)
    assert controls[0, 0] == controls[1, 0] == np.log1p(130768) and controls[2].tolist() == [0, 5]


def test_a_treebank_sentence_keeps_its_text_and_governors():
    lines = ["# text = Don't go.", "1-2 Don't _ _ _ _ _ _ _ _", "1 Do _ _ _ _ 3 aux _ SpaceAfter=No",
             "2 n't _ _ _ _ 3 advmod:neg _ _", "3 go _ _ _ _ 0 root _ SpaceAfter=No",
             "4 . _ _ _ _ 3 punct _ _"]  # fmt: skip
    parse = reading_corpora.parse_conllu("\n".join(line.replace(" ", "\t") for line in lines))
    assert parse.text == "Don't go." and [parse.text[:end] for end in parse.ends] == [
        "Do",
        "Don't",
        "Don't go",
        "Don't go.",
    ]
    assert parse.governors.tolist() == [2, 2, -1, -1] and parse.relations == [
        "aux",
        "advmod",
        "root",
        "punct",
    ]
    with pytest.raises(UserError, match="has 2 columns and must have 10: '1.tgo'"):
        reading_corpora.parse_conllu("1\tgo")


def test_other_words_have_as_many_letters():
    corpus = reading_corpora.ReadingCorpus("", ["a", "b", "cc", "dd", "ee"], np.zeros(5), {}, 0)
    shuffled = reading_times.shuffle_within_length(np.array([1.0, 2, 10, np.nan, 30]), corpus, seed=1)
    assert sorted(shuffled[:2]) == [1, 2] and sorted(shuffled[[2, 4]]) == [10, 30] and np.isnan(shuffled[3])


def made_up(gains):
    """Return powers with these gains: 400 words, noise around each."""
    noise = np.random.default_rng(0).normal(0, 0.01, 400)
    return {
        key: PredictivePower(gain, 0.0, np.ones(5), np.arange(400), gain + noise)
        for key, gain in gains.items()
    }


def test_claims_follow_the_figures():
    keys = {
        ("m", "sum", "Natural Stories", "aligned", "texts"): 0.02,
        ("m", "sum", "Natural Stories", "aligned", "words"): 0.0205,
        ("m", "sum", "Natural Stories", "published", "texts"): 0.01,
        ("m, other words'", "sum", "Natural Stories", "aligned", "texts"): 0.0,
        ("m", "sum", "Provo", "first fixation", "texts"): -0.01,
        ("m", "sum", "Provo", "go-past", "texts"): 0.0001,
        ("untrained m", "sum", "Natural Stories", "aligned", "texts"): 0.03,
    }
    config = dataclasses.replace(PRESETS["small"](), models=("m", "untrained m"))
    found = reading_times.claims(config, made_up(keys))
    assert [claim.holds for claim in found] == [True, True, True, True, False, None, False]
    assert found[-1].source == "control" and found[2].measured == pytest.approx(0.01)


@pytest.mark.slow
def test_the_debug_preset_runs_and_an_untrained_model_scores_chance(corpora, tmp_path):
    config = dataclasses.replace(PRESETS["debug"](), out=str(tmp_path))
    report = reading_times.main(config, "debug")
    assert abs(report.metrics["gpt2-nano/copying"] - report.metrics["gpt2-nano/null"]) < 0.002
    shuffled = report.metrics["gpt2-nano, other words'/sum/Natural Stories/aligned/texts"]
    assert -0.003 < shuffled < 0.003 and (tmp_path / "gain.png").stat().st_size > 10_000
