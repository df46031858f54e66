"""Suggestions of one user: blended, held back, learned, kept apart."""

import dataclasses
import json

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.write import Lexicon, Proposal, User, UserStore, Writer, WriterConfig, accepted_words, replay
from jaxllm.write.isotonic import Isotonic, fit_isotonic, threshold

LINES = ("please send the invoice today", "please send the receipt today", "please send the invoice again")


@pytest.fixture
def shared():
    lexicon = Lexicon()
    for line in LINES:
        lexicon.learn(line)
    return lexicon


def writer(shared, **values):
    return Writer(shared, User.new(), WriterConfig(**values))


@pytest.mark.parametrize("scores", [np.arange(9) / 9, [0, 0, 0, 1, 1, 2, 2, 2, 3], [5] * 9])
def test_isotonic_line_is_the_best_of_all_rising_ones(scores):
    """Against the least squares of every partition into blocks that part no equal scores."""
    draw = np.random.default_rng(0)
    hits, scores = draw.random(9) < 0.5, np.array(scores, float)

    def best(start):  # (error, values) of the best rising fit by exhaustive partitions
        if start == len(hits):
            return [(0.0, ())]
        return [
            (error + float(((hits[start:end] - hits[start:end].mean()) ** 2).sum()),
             (hits[start:end].mean(),) * (end - start) + values)
            for end in range(start + 1, len(hits) + 1)
            if end == len(hits) or scores[end] > scores[end - 1]
            for error, values in best(end)
            if not values or values[0] >= hits[start:end].mean()
        ]  # fmt: skip

    _, values = min(best(0))
    mixed = draw.permutation(9)
    for order in (np.arange(9), np.arange(9)[::-1], mixed):
        line = fit_isotonic(scores[order], hits[order])
        assert line.chances == pytest.approx(sorted({round(float(value), 12) for value in values}))
        assert np.all(np.diff(line.scores) > 0)
    with pytest.raises(UserError, match="no scores"):
        fit_isotonic([], [])


def test_isotonic_blocks_are_sklearns():
    sklearn = pytest.importorskip("sklearn.isotonic", reason="scikit-learn is the reference")
    draw = np.random.default_rng(2)
    scores = draw.integers(0, 40, 500) / 40  # many are equal
    hits = draw.random(500) < scores
    line, theirs = fit_isotonic(scores, hits), sklearn.IsotonicRegression().fit_transform(scores, hits)
    blocks = [theirs == value for value in np.unique(theirs)]
    assert line.chances == pytest.approx([theirs[block][0] for block in blocks])
    assert line.scores == pytest.approx([scores[block].mean() for block in blocks])


def test_threshold_gives_the_precision_that_was_asked_for():
    draw = np.random.default_rng(1)
    chances = draw.random(4000)
    hits = draw.random(4000) < chances
    least = threshold(chances, hits, 0.7)
    assert hits[chances >= least].mean() == pytest.approx(0.7, abs=0.01)


def test_threshold_is_the_lowest_that_keeps_its_precision_where_chances_are_equal():
    draw = np.random.default_rng(3)
    for _ in range(50):
        chances, hits = draw.integers(0, 4, 8) / 3, draw.random(8) < 0.6
        for precision in (0.5, 0.8, 1.0):
            good = [one for one in chances if hits[chances >= one].mean() >= precision]
            least = threshold(chances, hits, precision)
            assert least == min(good) if good else not (chances >= least).any()


def test_what_no_threshold_makes_precise_enough_is_not_shown(shared):
    least = threshold([1.0, 0.5], [False, False], 0.5)
    one = Writer(shared, User.new(), WriterConfig(), {"blend": Isotonic((0.0, 1.0), (1.0, 1.0))})
    assert one.suggest("please send the ")[0].chance == 1.0
    assert dataclasses.replace(one, config=WriterConfig(threshold=least)).suggest("please send the ") == []


def test_a_user_begins_as_everybody_and_comes_into_their_own(shared):
    one = writer(shared, kappa=5.0)
    assert one.suggest("please send the r")[0].text == "eceipt today "
    before = one.suggest("please send the ", 3)
    assert before[0].word == "invoice"
    for _ in range(6):
        one.learn("please send the report now")
    assert one.suggest("please send the ")[0].text == "report now "
    assert writer(shared, kappa=5.0).suggest("please send the ", 3) == before  # nobody else is told


def test_what_is_unlikely_is_not_shown(shared):
    text = "please send the "
    chances = [one.chance for one in writer(shared).suggest(text, 3)]
    shown = writer(shared, threshold=(chances[0] + chances[1]) / 2).suggest(text, 3)
    assert [one.chance for one in shown] == chances[:1]


def test_figures_and_names_seen_once_are_never_suggested(shared):
    shared.learn("call Zoe about 4417 then")
    shared.learn("see Yan about taxes . see Yan")
    one = writer(shared)
    for text in ("call ", "call Z", "call zoe about ", "call zoe about 4", "about 44"):
        assert not {"zoe", "4417"} & {s.word for s in one.suggest(text, 5)}, text
    assert one.suggest("see ")[0].text.startswith("Yan ")  # seen twice, and written as it is


def test_what_was_refused_three_times_is_held_back_until_it_is_taken(shared):
    one = writer(shared)
    text = "please send the "
    first = one.suggest(text)[0]
    for _ in range(3):
        one.rejected(text, first)
    assert one.suggest(text)[0].word != first.word
    assert one.suggest("send the ")[0].word != first.word  # the last two words are the place
    one.accepted(text, first)
    assert one.suggest(text)[0].word == first.word


def test_accepted_words_weigh_less_than_typed_ones(shared):
    one = writer(shared)
    one.learn("alpha beta", [False, True])
    assert one.user.lexicon.trie.weight("alpha") == 1.0 and one.user.lexicon.trie.weight("beta") == 0.5
    assert accepted_words("to the moon", [(4, 7)]) == [False, True, False]


def test_answers_calibrate_the_blend(shared):
    one = writer(shared)
    suggestion = one.suggest("please send the ")[0]
    for number in range(200):
        (one.accepted if number % 4 == 0 else one.rejected)("nowhere near", suggestion)
    assert one.suggest("please send the ")[0].chance == pytest.approx(0.25)


def test_a_language_model_is_blended_by_its_weight(shared):
    proposals = [Proposal(("remittance", "slip"), 0.9)]
    one = writer(shared, weights=(("trie", 0.0), ("ngram", 0.5), ("model", 0.5)))
    found = {s.word: s for s in one.suggest("please send the ", 3, proposals)}
    assert found["remittance"].chance == pytest.approx(0.45) and found["remittance"].source == "model"
    assert found["remittance"].text == "remittance slip "
    alone = writer(shared, sources=("ngram",)).suggest("please send the ", 1)[0].chance
    assert found["invoice"].chance == pytest.approx(alone / 2)


def test_unknown_words_are_spelled(shared):
    lexicon = Lexicon()
    for word in ("nation", "station", "ration", "motion", "notion"):
        lexicon.learn(word)
    assert writer(lexicon).suggest("a fictit")[0].text == "ion "


def test_replay_counts_keys_as_it_says(shared):
    """By hand: p, Tab or arrow for the rest of what is known, and letters for what is not."""
    one = writer(shared, personal=False)
    found = replay(one, ["please send the invoice zz"], learn=False)
    # "please send the invoice today " is wrong from its end: word by word, four keys. Then z, z.
    assert (found.characters, found.keys, found.accepted) == (26, 6, 4)
    assert found.figures()["saving_rate"] == pytest.approx(1 - 6 / 26)
    assert found.figures()["net_value/0.5"] == pytest.approx((20 - 0.5 * found.wrong) / 26)
    double = found + found
    assert double.figures()["saving_rate"] == found.figures()["saving_rate"] and double.keys == 12


def test_users_are_saved_apart_exported_and_erased(tmp_path, shared):
    store = UserStore(tmp_path / "users")
    one = Writer(shared, store.load("../../a b"))
    for _ in range(3):
        one.learn("the secret codeword is Xyzzyplugh")
    one.rejected("the ", one.suggest("the ")[0])
    store.save("../../a b", one.user)
    again = store.load("../../a b")
    assert store.export(again) == store.export(one.user)
    suggested = [Writer(shared, user).suggest("the secret codeword ")[0].text for user in (again, one.user)]
    assert suggested[0] == suggested[1]
    other = Writer(shared, store.load("b"))
    assert "xyzzy" not in json.dumps(store.export(other.user)).lower()
    assert not any("xyzzy" in s.text.lower() for s in other.suggest("the secret codeword is X", 3))
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "users"]
    store.erase("../../a b")
    assert not list(tmp_path.rglob("*.json")) and store.load("../../a b").lexicon.tokens == 0


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2}', '{"format": 1, "lexicon": {"order": "x"}}',
    '{"format": 1, "day": 1, "rejections": [], "lexicon": {"order": 2, "tokens": 1, '
    '"grams": [[3, 4, 1]], "forms": []}}'])  # fmt: skip
def test_a_damaged_file_is_told_in_a_sentence(tmp_path, content):
    store = UserStore(tmp_path)
    store.path("a").write_text(content)
    with pytest.raises(UserError, match="json"):
        store.load("a")


def test_what_is_not_used_fades(shared):
    user = User.new(day=10)
    user.lexicon.learn("old habits")
    user.fade(0.5, day=12)
    assert user.lexicon.trie.weight("old") == 0.25 and user.lexicon.tokens == 0.5
    user.fade(0.5, day=12)
    assert user.lexicon.trie.weight("old") == 0.25
    user.fade(0.5, day=30)
    assert user.lexicon.grams.size == 0


def test_wrong_sources_are_named():
    with pytest.raises(UserError, match="did you mean 'ngram'"):
        WriterConfig(sources=("ngrams",))
