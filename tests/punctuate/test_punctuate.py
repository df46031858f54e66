"""Marks of any set, any length, once and again; streaming; and a tagger that learns."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxllm import models
from jaxllm.cli import punctuate as command
from jaxllm.cli import train_punctuator as train_command
from jaxllm.data import bpe, load_tokenizer
from jaxllm.data.labelled import encode_texts
from jaxllm.data.word_windows import encode_windows, word_windows
from jaxllm.errors import UserError
from jaxllm.optim import OptimConfig
from jaxllm.punctuate import Marks, Punctuator, cut_documents, plain, train_punctuator
from jaxllm.text import LabelConfig, Labeller
from tests.models.random_params import random_params

LABELS = Marks().labels


class Said:
    """A labeller that says a period after every third word, a question mark after "what", and keeps count."""

    of_words, config = True, SimpleNamespace(labels=LABELS)

    def __init__(self):
        self.heard = []

    def log_probs(self, texts):
        [words] = texts
        self.heard.append(words)
        chance = np.full((len(words), 4), 0.1)
        for place, word in enumerate(words):
            chance[place, 3 if word == "what" else 2 if place % 3 == 2 else 0] = 0.7
        return [np.log(chance)]


def test_text_is_read_into_words_and_marks():
    marks = Marks()
    text = 'He said: "It cost $3.5, or 1,000," - (really?) 42.. e.g. end'
    words, labels = marks.read(text)
    assert words == ["He", "said", '"It', "cost", "$3.5", "or", "1,000", "(really", "42", "e.g", "end"]
    assert labels == ["O", "COMMA", "O", "O", "COMMA", "O", "COMMA", "QUESTION", "PERIOD", "PERIOD", "O"]
    assert [plain(word) for word in words][2:5] == ["it", "cost", "$3.5"]
    assert " ".join(word.written for word in marks.split(text)) == text
    assert Marks("!,").read("No! Yes. So;") == (["No", "Yes.", "So;"], ["EXCLAMATION", "O", "O"])
    assert Marks.of_labels(Marks("¿!").labels) == Marks("¿!")


@pytest.mark.parametrize("existing", ["keep", "replace"])
def test_once_more_changes_nothing_and_letters_and_spaces_stay(existing):
    text = "so  he paid 3.5.\nor 1,000 .. what\tnow e.g. 42.. and “what” he; said - yes 5 what?"
    punctuator = Punctuator(Said())
    once = punctuator.punctuate(text, existing=existing)
    assert punctuator.punctuate(once, existing=existing) == once
    strip = lambda text: [c for c in text if c.isalnum() or c.isspace()]
    assert strip(once) == strip(text) and "1,000" in once and "“what?”" in once
    assert ("3.5." in once) == (existing == "keep")
    bare = punctuator.punctuate("one two three four what", existing=existing)
    assert bare == "one two three. four what?"
    assert punctuator.label(["a", "b", "c"])[2].confidence == pytest.approx(0.7)
    assert punctuator.punctuate("  ") == "  " and punctuator.label([]) == []
    assert ".." not in punctuator.punctuate("a b 42. c", existing=existing)


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    (tmp_path / "said.txt").write_text("is d", encoding="utf-8-sig")
    assert command._read(str(tmp_path / "said.txt")) == (["is d"], False)


def test_a_stream_waits_for_as_many_words_as_it_says_and_says_each_once():
    labeller = Said()
    words = [f"w{i}" for i in range(12)]
    came, said = [], []
    for one in Punctuator(labeller).stream((came.append(w) or w for w in words), ahead=3, behind=4):
        said.append((one.word, len(came)))
    assert [word for word, _ in said] == words
    assert [heard - at for at, (_, heard) in enumerate(said)] == [4] * 9 + [3, 2, 1]
    assert max(len(words) for words in labeller.heard) == 4 + 1 + 3


def test_a_stream_gives_no_second_mark_to_a_word_that_carries_one():
    punctuator = Punctuator(Said())
    for text in ("one two three. four what five six what, b", "it 42.. cost what! he said: b", "a “what?” b"):
        said = punctuator.stream(text.split(), ahead=99)
        assert " ".join(one.word + one.mark for one in said) == punctuator.punctuate(text)
    assert [one.mark for one in punctuator.stream("a b - c".split(), ahead=99)] == [""] * 4
    [bare, marked] = punctuator.label(["what", "what,"])
    assert (bare.mark, marked.mark) == ("?", "")
    assert (bare.confidence, marked.confidence) == pytest.approx((0.7, 0.1))  # of what stands after it


def test_every_word_is_one_windows_own_with_context_around():
    sizes = np.random.default_rng(0).integers(1, 4, 200)
    for overlap in (0, 1, 5, 100):
        windows = word_windows(sizes, 24, overlap)
        own = [word for window in windows for word in range(window.first, window.last)]
        assert own == list(range(200))
        for window in windows:
            assert sizes[window.begin : window.end].sum() <= 24
            assert window.begin <= window.first < window.last <= window.end
            if overlap == 5:  # at most 3 tokens a word
                assert window.first - window.begin >= 3 or window.begin == 0
                assert window.end - window.last >= 3 or window.end == 200
    with pytest.raises(UserError, match="word 1 has 9 tokens and a window has room for 8"):
        word_windows([1, 9], 8)


def test_long_lists_are_read_in_windows_and_short_ones_as_before():
    model = models.get_preset("bert-nano", vocab_size=257, context_length=32, num_layers=1, embed_dim=16,
                              head="token_labels", labels=LABELS)  # fmt: skip
    tokenizer = load_tokenizer("bytes")
    labeller = Labeller(model, random_params(model), tokenizer, marked="last", overlap=2)
    words = [f"w{i}" * (1 + i % 3) for i in range(40)]
    [found] = labeller.log_probs([words])
    assert found.shape == (40, 4)
    windows = [window for window, _ in encode_windows(tokenizer, words, longest=32, overlap=2, marked="last")]
    assert len(windows) > 5
    alone = labeller.log_probs([words[window.begin : window.end] for window in windows])
    for window, one in zip(windows, alone, strict=True):
        own = slice(window.first - window.begin, window.last - window.begin)
        np.testing.assert_allclose(found[window.first : window.last], one[own], atol=1e-5)
    with pytest.raises(UserError, match=r"has room for 32; cut it up \('xxx.*in text 1"):
        labeller.log_probs([["a"], ["x" * 99]])


def test_windows_to_train_on_fit_where_a_word_takes_more_tokens_at_the_beginning_of_a_text():
    """After a space " nation" is one token of this tokenizer; a window that begins with it spells it out."""
    said = "the nation is one nation, and a nation of one people. " * 30
    tokenizer = bpe.train([said], 274)
    read = [plain(word) for word in Marks().read(said)[0]]
    assert any(
        len(tokenizer.encode(" ".join(read[window.begin : window.end]))) > 11
        for window, _ in encode_windows(tokenizer, read, longest=11)
    )
    found = cut_documents([Marks().read(said)], tokenizer, 11)
    assert [word for text in found.texts for word in text] == read
    encoded = encode_texts(tokenizer, found.texts, longest=11, of_words=True)  # none is refused
    assert max(len(one.ids_N) for one in encoded) > 8


def test_bad_values_are_named():
    for marks, message in ((",a", "has the letter 'a'"), (",1", "the digit '1'"), (", ", "the space ' '"),
                           ("..", "a mark twice"), ("", "marks is empty")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            Marks(marks)
    with pytest.raises(UserError, match="the text has no marks after any of its words"):
        cut_documents([Marks().read("so it goes")], load_tokenizer("bytes"), 32)
    with pytest.raises(UserError, match="the model's labels are a, b; expected O and marks"):
        Marks.of_labels(("a", "b"))
    with pytest.raises(UserError, match="ahead is of words as a pipe gives them"):
        command.PunctuateCommand("said.txt", ahead=2)
    for flags in (dict(existing="replace"), dict(confidence=True), dict(out="marked.txt")):
        said = f"^{list(flags)[0]} is .*, and is of text that is read whole; leave it out"
        with pytest.raises(UserError, match=said):
            command.PunctuateCommand("-", ahead=4, **flags)


def test_a_seed_of_no_split_is_refused():
    seeded = dict(data="talks.txt", split_seed=3)
    assert train_command.TrainPunctuatorConfig(**seeded).split_seed == 3
    with pytest.raises(UserError, match="split_seed is 3, and is of .*; leave it out"):
        train_command.TrainPunctuatorConfig(**seeded, held_out="others.txt")


@pytest.mark.slow
def test_a_tagger_learns_is_loaded_again_and_the_command_uses_it(tmp_path, capsys):
    draw = np.random.default_rng(0)

    def talk():
        parts = [f"{draw.choice(['is', 'a'])} {draw.choice(['b c,', 'd.', 'e?'])}" for _ in range(30)]
        return " ".join(parts)

    texts = [talk() for _ in range(40)]
    model = models.get_preset("bert-nano", vocab_size=257, context_length=64, num_layers=1, embed_dim=32)
    config = LabelConfig(
        steps=150, longest=64, out=str(tmp_path / "run"), progress=False, eval_every=150,
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=10),
    )  # fmt: skip
    talks = [Marks().read(text) for text in texts]
    start = (model, None, load_tokenizer("bytes"))
    punctuator, trained = train_punctuator(config, talks[4:], talks[:4], start=start)
    assert trained.evaluation["accuracy"] > 0.98
    assert punctuator.punctuate("is d a b c is e") == "is d. a b c, is e?"
    (tmp_path / "said.txt").write_text("is d a b c\nis e")
    (tmp_path / "said.jsonl").write_text(json.dumps({"text": "is d"}) + "\n")
    capsys.readouterr()
    model_flags = ["--model", str(tmp_path / "run")]
    command.main([str(tmp_path / "said.txt"), *model_flags])
    assert capsys.readouterr().out == "is d. a b c,\nis e?"
    command.main([str(tmp_path / "said.txt"), *model_flags, "--confidence"])
    assert capsys.readouterr().out.splitlines()[1].startswith(".\t0.9")
    command.main([str(tmp_path / "said.jsonl"), *model_flags, "--out", str(tmp_path / "out.jsonl")])
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"text": "is d."}
    (tmp_path / "talks.txt").write_text("\n".join(texts))
    train_command.main([
        "--start", str(tmp_path / "run"), "--data", str(tmp_path / "talks.txt"), "--steps", "2", "--longest",
        "64", "--out", str(tmp_path / "more"), "--no-progress",
    ])  # fmt: skip
    assert "punctuate with: jaxllm punctuate FILE --model" in capsys.readouterr().out
