"""Labels of texts and of words: what is learned, said again after loading, exported; and bad input."""

import json

import jax
import numpy as np
import optax
import pytest

from jaxllm import models
from jaxllm.adapt import LoraConfig
from jaxllm.data import Labelled, load_tokenizer, read_labelled
from jaxllm.data.labelled import LabelledBatches, encode_texts
from jaxllm.errors import UserError
from jaxllm.optim import OptimConfig
from jaxllm.parallel import MeshConfig
from jaxllm.pretrained import save_pretrained
from jaxllm.text import LabelConfig, Labeller, train_labels
from jaxllm.train import to_dict
from jaxllm.train.checkpoint import Checkpoints
from tests.models.random_params import random_params

WORDS = [
    "the",
    "film",
    "is",
    "a",
    "good",
    "bad",
    "fine",
    "poor",
    "story",
    "of",
    "man",
    "un",
    "##like",
    "##ly",
]


def word_pieces(folder):
    """Write BERT's kind of tokenizer.json and return the tokenizer."""
    vocabulary = {name: number for number, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    special = [dict(id=number, content=name, single_word=False, lstrip=False, rstrip=False, normalized=False,
                    special=True) for name, number in vocabulary.items() if name[0] == "["]  # fmt: skip
    template = dict(
        type="TemplateProcessing",
        single=[{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        pair=[{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
        special_tokens={name: dict(id=name, ids=[vocabulary[name]], tokens=[name])
                        for name in ("[CLS]", "[SEP]")},
    )  # fmt: skip
    content = dict(
        version="1.0", truncation=None, padding=None, added_tokens=special,
        normalizer=None, pre_tokenizer={"type": "Whitespace"}, post_processor=template, decoder=None,
        model=dict(type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##",
                   max_input_chars_per_word=100, vocab=vocabulary),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A small BERT that nobody trained, in a folder."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = word_pieces(folder / "tokenizer")
    model = models.get_preset("bert-nano", vocab_size=18, context_length=24, num_layers=1, embed_dim=32)
    save_pretrained(folder / "model", model, models.init(model, jax.random.key(0)), tokenizer)
    return str(folder / "model")


def texts(count, seed=0):
    """Return texts whose label is told by one word; the other words are random."""
    draw, found = np.random.default_rng(seed), []
    for number in range(count):
        rest = draw.choice(["the", "film", "is", "a", "story", "of", "man"], draw.integers(2, 9)).tolist()
        rest.insert(
            int(draw.integers(len(rest) + 1)),
            str(draw.choice([["good", "fine"], ["bad", "poor"]][number % 2])),
        )
        found.append((" ".join(rest), ["pos", "neg"][number % 2]))
    return Labelled(*map(list, zip(*found, strict=True)))


def config(start, tmp_path, **changes):
    optim = OptimConfig(learning_rate=3e-3, warmup_steps=5, beta2=0.99)
    return LabelConfig(**(dict(start=start, out=str(tmp_path / "run"), steps=60, batch_size=16, optim=optim,
                               eval_every=100, save_every=30, progress=False) | changes))  # fmt: skip


ADAPTER = LoraConfig(rank=4, targets="all")
ONE = jax.devices()[:1]


@pytest.mark.parametrize(
    "lora", [LoraConfig(), pytest.param(ADAPTER, marks=pytest.mark.slow)], ids=["whole", "lora"]
)
def test_texts_are_labelled_and_the_run_says_the_same_again(start, tmp_path, lora):
    made, held_out = config(start, tmp_path, lora=lora), texts(40, seed=1)
    trained = train_labels(made, texts(96), held_out=held_out, devices=ONE)
    assert trained.evaluation["accuracy"] >= 0.9 and trained.evaluation["macro_f1"] >= 0.9
    again = Labeller.load(tmp_path / "run")
    assert again.config.labels == ("neg", "pos") and again.longest == 24
    some = ["the film is fine", "a bad story of a man", "the story is poor", "good"]
    assert again.predict(some) == ["pos", "neg", "neg", "pos"]
    for ours, theirs in zip(trained.labeller.log_probs(some), again.log_probs(some), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(np.exp(ours).sum(), 1, atol=1e-5)
    # Alone, and in other company, a text has the same numbers.
    np.testing.assert_allclose(again.log_probs(some[1:2])[0], again.log_probs(some)[1], atol=1e-5)
    model, params, tokenizer = again
    save_pretrained(tmp_path / "exported", model, params, tokenizer)
    np.testing.assert_allclose(
        Labeller.load(tmp_path / "exported").log_probs(some), again.log_probs(some), atol=1e-5
    )


@pytest.mark.slow
def test_words_are_labelled_by_the_token_that_is_marked(start, tmp_path):
    draw, found = np.random.default_rng(0), []
    for _ in range(96):
        words = draw.choice(["the", "good", "unlikely", "man", "bad"], draw.integers(1, 6)).tolist()
        found.append((words, [{"unlikely": "LONG", "man": "NOUN"}.get(word, "O") for word in words]))
    data = Labelled(*map(list, zip(*found, strict=True)))
    trained = train_labels(config(start, tmp_path, marked="last", steps=80), data, devices=ONE)
    assert trained.evaluation["accuracy"] >= 0.95
    again = Labeller.load(tmp_path / "run")
    assert again.predict([["the", "unlikely", "man"], ["good"]]) == [["O", "LONG", "NOUN"], ["O"]]
    assert [one.shape for one in again.log_probs([["the", "unlikely", "man"], ["good"]])] == [(3, 3), (1, 3)]


@pytest.mark.slow
def test_an_encoder_that_nobody_trained_learns_from_words_alone(tmp_path):
    """Any transformer that reads both ways, any tokenizer; the last byte of a word carries its label."""
    model = models.ModelConfig(
        vocab_size=257, num_layers=2, embed_dim=32, num_heads=2, causal=False, position="rotary",
        context_length=64, tie_embeddings=True,
    )  # fmt: skip
    draw, words = np.random.default_rng(1), ["so", "it", "goes", "on"]
    rows = [draw.choice(words, draw.integers(1, 5)).tolist() for _ in range(96)]
    data = Labelled(rows, [["O"] * (len(row) - 1) + ["PERIOD"] for row in rows])
    made = config(None, tmp_path, marked="last", steps=150)
    trained = train_labels(made, data, start=(model, None, load_tokenizer("bytes")), devices=ONE)
    assert trained.evaluation["accuracy"] >= 0.95
    assert Labeller.load(tmp_path / "run").predict([["it", "goes"]]) == [["O", "PERIOD"]]


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_and_other_examples_are_refused(start, tmp_path):
    whole = train_labels(config(start, tmp_path / "a"), texts(20), devices=ONE)
    train_labels(config(start, tmp_path / "b", stop_after=41), texts(20), devices=ONE)
    parts = train_labels(config(start, tmp_path / "b"), texts(20), devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    with pytest.raises(UserError, match="not those that the run began with"):
        train_labels(config(start, tmp_path / "b"), texts(20, seed=3))


@pytest.mark.slow
def test_several_devices_give_the_same_losses(start, tmp_path):
    def loss(name, **changes):
        made = config(start, tmp_path / name, steps=6, lora=ADAPTER, **changes)
        devices = jax.devices()[: 8 if "mesh" in changes else 1]
        return train_labels(made, texts(32), devices=devices).evaluation["loss"]

    many = loss("many", mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(loss("one"), many, atol=1e-4)


class _Prepared(Exception):
    """Carries a run that was to be trained."""


def prepared(monkeypatch, *args, **options):
    """Return the run that `train_labels` prepares, and take no step of it."""

    def caught(run):
        raise _Prepared(run)

    with monkeypatch.context() as patch, pytest.raises(_Prepared) as found:
        patch.setattr("jaxllm.text.labels.train_run", caught)
        train_labels(*args, **options)
    return found.value.args[0]


def test_a_class_whose_examples_are_all_held_out_is_a_class(start, tmp_path, monkeypatch):
    some = texts(20)
    numbers = Labelled([str(number) for number in range(20)], some.labels).split(10)[1].texts  # held out
    labels = ["rare" if str(number) in numbers else own for number, own in enumerate(some.labels)]
    run = prepared(monkeypatch, config(start, tmp_path), Labelled(some.texts, labels), devices=ONE)
    assert run.config.model.labels == ("neg", "pos", "rare")


def test_a_run_of_another_length_goes_on_only_where_its_rates_are_the_same(start, tmp_path, monkeypatch):
    run = prepared(monkeypatch, config(start, tmp_path), texts(20), devices=ONE)
    with Checkpoints(tmp_path / "run" / "checkpoints") as kept:
        state = run.init(jax.random.key(0))
        kept.save(state, step=30, data=run.batches().state(), config=to_dict(run.config))
    with pytest.raises(UserError, match=r"a run of 60 steps, .* schedule 'cosine' .* keep steps=60"):
        train_labels(config(start, tmp_path, steps=90), texts(20), devices=ONE)
    with pytest.raises(UserError, match="has taken 30 of 60 steps already, more than steps=20"):
        chain = optax.sgd(0.1)
        train_labels(config(start, tmp_path, steps=20), texts(20), devices=ONE, optimizer=chain)


def test_of_a_models_fields_the_runs_own_are_taken_from_the_config(start, tmp_path, monkeypatch):
    model = models.get_preset("bert-nano", remat="full", attention_implementation="xla", dropout=0.1)
    run = prepared(monkeypatch, config(start, tmp_path, model=model), texts(20), devices=ONE)
    found = run.config.model
    assert (found.remat, found.attention_implementation, found.dropout) == ("full", "xla", 0.1)
    assert (found.num_layers, found.embed_dim) == (1, 32)  # the start's


def test_marked_tokens_carry_words_labels(tmp_path):
    tokenizer = word_pieces(tmp_path)
    words = ["unlikely", "man"]  # [CLS] un ##like ##ly man [SEP]
    [first], [last] = (encode_texts(tokenizer, [words], longest=9, of_words=True, marked=marked)
                       for marked in ("first", "last"))  # fmt: skip
    assert first.words_N.tolist() == [-1, 0, -1, -1, 1, -1] and last.words_N.tolist() == [
        -1,
        -1,
        -1,
        0,
        1,
        -1,
    ]
    [one] = encode_texts(load_tokenizer("bytes"), [["né", "x"]], longest=9, of_words=True)
    assert one.words_N.tolist() == [0, -1, -1, -1, 1]  # n, two bytes of é, the space, x
    [gpt2] = encode_texts(
        load_tokenizer("gpt2"), [["Hello", "xylographically", "so"]], longest=9, of_words=True
    )
    assert gpt2.words_N[gpt2.words_N >= 0].tolist() == [0, 1, 2] and len(gpt2.ids_N) > 3
    [cut] = encode_texts(tokenizer, ["the film is a good story"], longest=5, cut=True)
    assert cut.is_cut and cut.ids_N.tolist()[-1] == tokenizer.backend.token_to_id("[SEP]")
    [pair] = encode_texts(tokenizer, [("the film", "man")], longest=9)
    assert pair.types_N.tolist() == [0, 0, 0, 0, 1, 1]


def test_every_pass_reads_every_text_and_processes_share_a_batch(tmp_path):
    tokenizer, data = word_pieces(tmp_path), texts(21)
    encoded, ids = encode_texts(tokenizer, data.texts, longest=24), data.ids(("neg", "pos"))
    make = lambda process=(0, 1): LabelledBatches(
        tokenizer, encoded, ids, batch_size=4, longest=24, seed=3, process=process
    )
    whole, halves = make(), [make((0, 2)), make((1, 2))]
    for _ in range(2):
        seen = []
        for _ in range(whole.steps_per_pass):
            batch, parts = next(whole), [next(half) for half in halves]
            together = np.concatenate([part["targets"] for part in parts])
            np.testing.assert_array_equal(batch["targets"], together)
            seen += [bytes(row[row != 0]) for row in batch["tokens"]]
        assert set(seen) == {bytes(one.ids_N) for one in encoded} and len(seen) == 24


def test_rows_of_files_are_read(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"good, fine",1\nbad,0\n')
    (tmp_path / "a.jsonl").write_text('{"words": ["so", "what"], "labels": ["O", "QUESTION"]}\n')
    (tmp_path / "b.tsv").write_text("review\tstars\ngood\t5\n")
    assert read_labelled(tmp_path / "a.csv" and str(tmp_path / "a.csv")) == Labelled(
        ["good, fine", "bad"], ["1", "0"]
    )
    assert read_labelled(str(tmp_path / "a.jsonl")) == Labelled([["so", "what"]], [["O", "QUESTION"]])
    assert read_labelled(str(tmp_path / "b.tsv"), text="review", label="stars").labels == ["5"]
    (tmp_path / "c.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n')
    (tmp_path / "d.txt").write_text("no rows\n")
    for name, said in {
        "c.jsonl": "line 2 .* empty label",
        "b.tsv": "no column 'text'",
        "d.txt": "without labels",
    }.items():
        with pytest.raises(UserError, match=said):
            read_labelled(str(tmp_path / name))


def test_bad_input_is_told_in_a_sentence_before_anything_is_compiled(start, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxllm.text.labels.train_run", lambda run: pytest.fail("a step was taken"))
    good, words = texts(20), Labelled([["a", "man"]] * 4, [["x", "y"]] * 4)

    def refused(said, examples=good, held_out=None, **changes):
        with pytest.raises(UserError, match=said):
            train_labels(config(**(dict(start=start, tmp_path=tmp_path) | changes)), examples, held_out)

    refused("unknown label 'neg'", labels=("pos", "bad"))
    refused("unknown label 'other'", held_out=Labelled(["a"], ["other"]))
    refused("of another kind", held_out=words)
    refused("all examples have the label 'x'", examples=Labelled(["a"] * 20, ["x"] * 20))
    long = Labelled(["the film is a good story of"] * 2 + ["a"] * 9, list("xyxxxxxxxxx"))
    refused("9 tokens, and a text may have 5", longest=5, long_texts="refuse", examples=long)
    refused("unknown lora.targets name", lora=LoraConfig(rank=2, targets="querry"))
    refused("need an encoder", start=None)
    decoder = tmp_path / "decoder"
    model = models.get_preset("gpt2-nano", vocab_size=300, num_layers=1)
    save_pretrained(decoder, model, random_params(model), load_tokenizer("bytes"))
    refused("reads texts in one direction", start=str(decoder))
    for labels, said in (
        (["x"], "2 texts have 1 labels"),
        (["x", 1.5], "the label 1.5"),
        ([["x"], ["y"]], "list of words"),
    ):
        with pytest.raises(UserError, match=said):
            Labelled(["a", "b"], labels)
    with pytest.raises(UserError, match="word 1 of text 0, '', has no token"):
        encode_texts(load_tokenizer("bytes"), [["a", ""]], longest=9, of_words=True)
    with pytest.raises(UserError, match="hold a name twice"):
        LabelConfig(labels=("a", "a"))
    with pytest.raises(UserError, match="says no labels"):
        Labeller.load(start)
    with pytest.raises(UserError, match="trains 'layers/attn/query' whole"):
        train_labels(config(start, tmp_path, lora=LoraConfig(rank=2, also="attn")), good)
