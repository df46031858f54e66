"""A lexicon reads sentences as VADER does, where its rules are kept."""

import os
import zipfile

import numpy as np
import pytest

from experiments.shared.real_data import data_folder
from jaxllm.errors import UserError
from jaxllm.measures import Lexicon, load_vader, parse_lexicon

VADER = (
    ("The plot is dull, and the jokes are not funny at all.", -0.4777),
    ("An extremely warm and funny film!", 0.6857),
    ("It was GREAT, a little slow but never boring.", 0.6553),
    ("Nobody could hate a lovely story.", 0.0258),
    ("The food was barely edible; service was awful!!", -0.555),
    ("He says it is fine, but I would not recommend it.", -0.3105),
    ("What a wonderful surprise, isn't it?", 0.7003),
    ("Taxes on workers hurt families, and peace is our hope.", 0.4588),
)
WORDS = Lexicon({"good": 1.9, "great": 3.1, "bad": -2.5, "terrible": -2.1, "no": -1.2})


def test_negation_degree_and_but_move_a_valence():
    said = WORDS.valence
    assert said("It is good.") == pytest.approx(1.9 / np.sqrt(1.9**2 + 15))
    assert said("It is not good.") == pytest.approx(-0.74 * 1.9 / np.sqrt((0.74 * 1.9) ** 2 + 15))
    assert said("It isn't good") < 0 < said("it isn't very terrible")
    assert said("slightly good") < said("good") < said("very good") < said("very good!!!")
    assert said("a good cast but a terrible plot") < 0 < said("a terrible plot but a good cast")
    assert said("it is GOOD") > said("it is good") == said("IT IS GOOD")
    assert said("") == said("A chair?") == 0
    assert WORDS.classify(["Great.", "A chair", "bad"]).tolist() == [2, 1, 0]


def test_files_that_are_no_lexicon_are_refused_in_a_sentence(tmp_path):
    assert parse_lexicon("good\t1.9\t0.8\n\nbad\t-2\n").valences == {"good": 1.9, "bad": -2.0}
    with pytest.raises(
        UserError, match="line 2 of the lexicon is 'bad'; expected a word, a tab and a number"
    ):
        parse_lexicon("good\t1\nbad\n")
    with pytest.raises(UserError, match="holds no word"):
        parse_lexicon("\n")
    marked = tmp_path / "marked.txt"
    marked.write_text("good\t1.9\n", encoding="utf-8-sig")
    assert load_vader(marked).valences == {"good": 1.9}
    with pytest.raises(UserError, match="cannot read the lexicon"):
        load_vader(tmp_path / "none.txt")


RULES = (  # as vaderSentiment 3.3.2 says
    ("no good", -0.3412), ("It was no fun.", -0.4023), ("no problem", 0.3089), ("No, it was fun.", 0.5106),
    ("no bad or good", 0.1139), ("It is not never good", 0.2594), ("It is VERY good", 0.6028),
    ("VERY not good", -0.5237), ("I SAID GOOD", 0.4404), ("good??", 0.504), ("good????", 0.594),
    ("an incredible problem", -0.4576), ("kind of good", 0.4404), ("It is good :D", 0.7865),
)  # fmt: skip


@pytest.mark.parametrize("text, compound", RULES)
def test_each_rule_moves_a_valence_as_vader_does(text, compound):
    words = Lexicon(WORDS.valences | {"fun": 2.3, "problem": -1.7, "kind": 2.4, ":d": 2.3})
    assert words.valence(text) == pytest.approx(compound, abs=1e-4)


def test_made_up_sentences_score_as_in_vadersentiment():
    vader = pytest.importorskip("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer()
    ours, draw, different = load_vader(), np.random.default_rng(0), set()
    plain = "good great bad terrible fun problem love no no not never without isn't don't very really barely "
    plain += "extremely utter kinda hardly but or nor it is the a plot I :) :D :( no, ok."
    choice = plain.split()
    choice += [word.upper() for word in choice]
    for _ in range(400):
        words = draw.choice(choice, draw.integers(1, 9))
        words = [word if draw.random() < 0.4 else word.lower() for word in words]
        text = " ".join(words) + "!" * draw.integers(6) * draw.integers(2) + "?" * draw.integers(6)
        wanted = vader.polarity_scores(text)["compound"]
        assert ours.valence(text) == pytest.approx(wanted, abs=1e-4), text
        different.add(wanted)
    assert len(different) > 200


@pytest.mark.skipif(not os.environ.get("JAXLLM_DATA"), reason="JAXLLM_DATA names no folder of real data")
def test_real_sentences_score_as_in_vadersentiment():
    """vaderSentiment 3.3.2, SentimentIntensityAnalyzer().polarity_scores(text)["compound"]."""
    with zipfile.ZipFile(data_folder("text_classification", "nltk", "vader_lexicon.zip")) as content:
        words = parse_lexicon(content.read("vader_lexicon/vader_lexicon.txt").decode())
    for text, compound in VADER:
        assert words.valence(text) == pytest.approx(compound, abs=5e-4), text
