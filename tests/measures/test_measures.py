"""Measures of sets of texts agree with packages that have them too, and with brute force."""

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.measures import (
    crossed_interval,
    distinct_n,
    find_copies,
    flesch_reading_ease,
    krippendorff_alpha,
    loop_share,
    mark_share,
    mtld,
    normalize_typography,
    opening_share,
    suffix_array,
    syllables,
    words_of,
)

TEXT = (
    "When you look at the night sky, you see light that left its star before anyone you know was born. "
    "Nobody has ever been in an empty room. The word 'bed' looks like a bed. Your future self is watching "
    "you "
    "right now through memories, and most of what he sees is you looking at a small screen. If two people "
    "share "
    "a birthday, neither of them remembers the original event. A library is a place where it is normal to be "
    "quiet in front of thousands of voices. Every odd number has an e in it. The shortest distance between "
    "two "
    "points is usually under construction."
)


def test_mtld_and_flesch_are_those_of_lexicalrichness_and_textstat():
    """lexicalrichness 0.5.1, LexicalRichness(TEXT).mtld(0.72); textstat 0.7.3, flesch_reading_ease(TEXT)."""
    words = words_of(TEXT)
    assert (len(words), len(set(words))) == (107, 81)
    assert mtld(TEXT) == pytest.approx(123.29692307692308, abs=1e-9)
    assert flesch_reading_ease(TEXT) == pytest.approx(
        83.25, abs=4.0
    )  # whose syllables are hyphenation points
    counted = [syllables(word) for word in words]
    assert abs(sum(counted) - 139) <= 5


def test_distinct_n_counts_within_texts_up_to_the_budget():
    texts = ["a b a b", "b a b"]
    assert distinct_n(texts, 2) == 2 / 5  # ab ba ab | ba ab; never b|b over the end of a text
    assert distinct_n(texts, 1, budget=3) == 2 / 3
    with pytest.raises(UserError, match="have 7 words and the budget is 8"):
        distinct_n(texts, 1, budget=8)
    with pytest.raises(UserError, match="no text has 9 words"):
        distinct_n(texts, 9)


def test_shares_of_openings_loops_and_marks():
    texts = ["If you can, do.", "If you go?", "we know what we know what", "x"]
    assert opening_share(texts, commonest=1) == 0.5
    assert loop_share(texts) == 0.25 and mark_share(texts) == 0.25
    for measure in (opening_share, loop_share, mark_share):
        with pytest.raises(UserError, match="the set of texts is empty"):
            measure([])


def test_the_longest_shared_run_is_what_brute_force_finds():
    draw = np.random.default_rng(0)
    made = lambda: " ".join(draw.choice(list("abc"), draw.integers(1, 12)))
    training, texts = [made() for _ in range(30)], [made() for _ in range(40)] + ["d", "a d a"]
    texts.append(training[3].upper() + "!")
    found = find_copies(texts, training)
    for text, longest in zip(texts, found.longest, strict=True):
        row = words_of(text)
        runs = {f" {' '.join(row[i:j])} " for i in range(len(row)) for j in range(i + 1, len(row) + 1)}
        wanted = max((len(run.split()) for run in runs if any(run in f" {t} " for t in training)), default=0)
        assert longest == wanted, text
    assert found.exact[-1] and not found.exact[-2] and found.copy_rate(1) == 1 - 1 / len(texts)
    with pytest.raises(UserError, match="training is empty"):
        find_copies(texts, [])


def test_a_curly_apostrophe_hides_no_copy():
    found = find_copies(["DON’T wait, it’s late!"], ["don't wait: it's late"])
    assert found.exact.tolist() == [True] and found.longest.tolist() == [4]


def test_words_after_the_last_mark_are_a_sentence():
    """Syllables being equal, reading ease tells sentences: a text with all its marks is the reference."""
    whole = flesch_reading_ease("We go. You stay. They sing.")
    assert flesch_reading_ease("We go. You stay. They sing") == whole
    assert flesch_reading_ease(["We go... you stay", "they sing"]) == whole
    assert flesch_reading_ease("We go. You stay. They sing. ...  !") == whole


def test_the_suffix_array_sorts_suffixes():
    draw = np.random.default_rng(1)
    for size in (1, 2, 7, 50):
        ids = draw.integers(0, 3, size=size)
        assert suffix_array(ids).tolist() == sorted(range(size), key=lambda at: ids[at:].tolist())


def test_typography_that_gives_a_source_away_is_gone():
    for text in ("12. “It’s fine.” ", '"It’s fine"', "IT'S  FINE."):
        assert normalize_typography(text) == "it's fine"
    assert (
        normalize_typography("Wait...") == "wait..." and normalize_typography("3.5 is more") == "3.5 is more"
    )


def test_raters_and_texts_both_widen_the_interval():
    draw = np.random.default_rng(2)
    raters, texts = np.repeat(np.arange(12), 20), np.tile(np.arange(20), 12)
    by_rater = 3 + draw.normal(size=12)[raters]
    mean = lambda weights: np.average(by_rater, weights=weights)
    low, high = crossed_interval(by_rater, raters, texts, mean, draws=300)
    half = 2 * by_rater[::20].std() / np.sqrt(12)
    assert high - low == pytest.approx(2 * half, rel=0.3) and low < by_rater.mean() < high
    with pytest.raises(UserError, match="give one of each a rating"):
        crossed_interval(by_rater, raters[1:], texts, mean)


def test_alpha_of_ordinal_ratings_is_krippendorffs():
    """The example of "Computing Krippendorff's Alpha-Reliability" (2011): ordinal alpha 0.815."""
    gap = np.nan
    table = np.array([
        [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
        [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
    ])  # fmt: skip
    assert krippendorff_alpha(table) == pytest.approx(0.815, abs=6e-4)
    draw = np.random.default_rng(3)
    assert abs(krippendorff_alpha(draw.integers(1, 7, (10, 200)).astype(float))) < 0.03
    for bad in (np.ones((2, 3)), [[1, 1, gap], [1, 1, 2]], [[1, gap], [gap, 2]], [[gap, gap], [gap, gap]]):
        with pytest.raises(UserError, match="more than one value"):
            krippendorff_alpha(np.array(bad))
