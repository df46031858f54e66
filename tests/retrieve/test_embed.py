"""Vectors against a mean written out for each text alone, and stores against what was put in."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models as backends
from tokenizers import pre_tokenizers, processors

from jaxllm import data, models
from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.errors import UserError
from jaxllm.pretrained import fetch_minilm, from_pretrained
from jaxllm.retrieve import Encoder, build_store, load_index, open_store, recall, search
from jaxllm.retrieve import store as store_module

TRUNK = jax.jit(models.trunk, static_argnums=0)
INIT = jax.jit(models.init, static_argnums=0)
WORDS = [f"w{n}" for n in range(20)]
SMALL = dict(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, context_length=16)


def word_tokenizer():
    vocab = {word: n for n, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    backend = tokenizers.Tokenizer(backends.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return HuggingFaceTokenizer(backend, eos_id=2)


@pytest.fixture(scope="module")
def encoder():
    config = models.ModelConfig(vocab_size=24, causal=False, norm_place="post", num_token_types=2, **SMALL)
    params = INIT(config, jax.random.key(0))
    return Encoder(config, jax.tree.map(lambda w: 3 * w, params), word_tokenizer(), longest=10)


def texts_of(count, longest=8):
    draw = np.random.default_rng(1)
    return [" ".join(draw.choice(WORDS, draw.integers(1, longest + 1))) for _ in range(count)]


def test_a_batch_of_lengths_gives_what_each_text_alone_does(encoder):
    texts = [WORDS[3], " ".join(WORDS[:8]), " ".join(WORDS[4:12]), ""]
    vectors = encoder.embed(texts, tokens_per_batch=24)
    for text, vector in zip(texts, vectors, strict=True):
        ids, _ = encoder.tokenizer.encode_pair(text or " ")
        hidden = np.asarray(TRUNK(encoder.config, encoder.params, ids[None]), np.float64)[0]
        mean = hidden.mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=2e-6)


@pytest.mark.parametrize("architecture", ["gpt2", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_a_decoder_embeds_without_special_tokens_and_without_padding(architecture):
    config = models.get_preset("gpt2-nano", vocab_size=257, **SMALL)
    if architecture == "hybrid":
        mamba = models.get_preset("mamba-nano", vocab_size=257, num_layers=1, embed_dim=16)
        config = models.HybridConfig(parts=(config, mamba))
    params = INIT(config, jax.random.key(0))
    decoder = Encoder(config, params, data.load_tokenizer("bytes"), normalize=False)
    vectors = decoder.embed(["abc", "abcd", ""])
    for text, vector in zip(["abc", "abcd"], vectors, strict=False):
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        hidden = np.asarray(TRUNK(config, params, ids[None]), np.float64)[0]
        np.testing.assert_allclose(vector, hidden.mean(0), atol=2e-6)
    assert np.isfinite(vectors).all()


def test_long_texts_are_their_beginning_or_pieces(encoder):
    long = " ".join(WORDS[:19])
    [beginning] = encoder.embed([long])
    np.testing.assert_allclose(beginning, encoder.embed([" ".join(WORDS[:8])])[0], atol=1e-6)
    pieces = dataclasses.replace(encoder, pieces="all")
    vectors, documents = pieces.embed_pieces([long, "w1"])
    assert documents.tolist() == [0, 0, 0, 1]
    alone = encoder.embed([" ".join(WORDS[a:b]) for a, b in ((0, 8), (8, 16), (16, 19))])
    np.testing.assert_allclose(vectors[:3], alone, atol=1e-6)
    with pytest.raises(UserError, match="text 0 has more than longest=10"):
        pieces.embed([long, "w1"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_store_holds_the_vectors_and_is_found_again(encoder, tmp_path, dtype, monkeypatch):
    texts = texts_of(9)
    store = build_store(tmp_path, encoder, texts, dtype=dtype, block=4)
    vectors = encoder.embed(texts)
    held = np.asarray(store.vectors_ND, np.float32)
    held = held if store.scales_N is None else held * store.scales_N[:, None]
    np.testing.assert_allclose(held, vectors, atol=dict(float32=1e-6, float16=1e-3, int8=4e-3)[dtype])
    assert store.dtype == dtype and isinstance(store.vectors_ND, np.memmap) and len(store) == 9
    assert recall(search(load_index(store), vectors, 1).ids, np.arange(9)[:, None]) >= 8 / 9
    monkeypatch.setattr(Encoder, "embed_pieces", lambda *a, **b: pytest.fail("embedded again"))
    assert build_store(tmp_path, encoder, texts, dtype=dtype).folder == store.folder
    assert [path.name for path in tmp_path.iterdir()] == [store.folder.name]  # nothing partial is left


def test_a_killed_build_is_resumed_and_nothing_partial_is_taken_for_whole(encoder, tmp_path, monkeypatch):
    texts, embed, calls = texts_of(10), Encoder.embed_pieces, []

    def killed(self, some, **options):
        calls.append(len(some))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, some, **options)

    monkeypatch.setattr(Encoder, "embed_pieces", killed)
    with pytest.raises(KeyboardInterrupt):
        build_store(tmp_path, encoder, texts, block=4)
    [partial] = tmp_path.iterdir()
    with pytest.raises(UserError, match="no whole store"):
        open_store(partial)
    store = build_store(tmp_path, encoder, texts, block=4)
    assert calls == [4, 4, 2, 2]  # the third block again, the first two kept
    np.testing.assert_allclose(store.vectors_ND, embed(encoder, texts)[0], atol=1e-6)


@pytest.mark.parametrize("when", ["embed", "join"])
def test_the_later_of_two_builds_at_once_takes_the_store_of_the_first(encoder, tmp_path, monkeypatch, when):
    """The first to end removes the blocks that both share, while the other embeds or joins."""
    texts, embed, join, calls = texts_of(10), Encoder.embed_pieces, store_module._join, []

    def overtaken():
        with monkeypatch.context() as undone:
            undone.setattr(Encoder, "embed_pieces", embed)
            undone.setattr(store_module, "_join", join)
            build_store(tmp_path, encoder, texts, block=4)

    def embed_pieces(self, some, **options):
        calls.append(len(some))
        if when == "embed" and len(calls) == 2:
            overtaken()
        return embed(self, some, **options)

    def late_join(*args):
        if when == "join":
            overtaken()
        join(*args)

    monkeypatch.setattr(Encoder, "embed_pieces", embed_pieces)
    monkeypatch.setattr(store_module, "_join", late_join)
    store = build_store(tmp_path, encoder, texts, block=4)
    assert calls == ([4, 4] if when == "embed" else [4, 4, 2])
    np.testing.assert_allclose(store.vectors_ND, embed(encoder, texts)[0], atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [store.folder.name]


def test_bad_stores_and_encoders_are_told_in_a_sentence(encoder, tmp_path):
    store = build_store(tmp_path, encoder, texts_of(3))
    store.check_encoder(encoder)
    other = dataclasses.replace(encoder, params=jax.tree.map(lambda w: 2 * w, encoder.params))
    wide = Encoder(models.get_preset("gpt2-nano", vocab_size=257), {}, data.load_tokenizer("bytes"))
    cases = {
        "was built by encoder": lambda: store.check_encoder(other),
        "holds vectors of width 16 and the encoder gives 64": lambda: store.check_encoder(wide),
        "no texts to build": lambda: build_store(tmp_path, encoder, []),
        "no texts to embed": lambda: encoder.embed([]),
        "dtype is 'int4'": lambda: build_store(tmp_path, encoder, ["a"], dtype="int4"),
        "longest is 17": lambda: dataclasses.replace(encoder, longest=17),
        "pieces is 'some'": lambda: dataclasses.replace(encoder, pieces="some"),
        "has no tokenizer": lambda: dataclasses.replace(encoder, tokenizer=None),
        "k is 4": lambda: search(load_index(store), encoder.embed(["w1"]), 4),
    }
    for told, call in cases.items():
        with pytest.raises(UserError, match=told):
            call()
    about = json.loads((store.folder / "about.json").read_text())
    (store.folder / "about.json").write_text(json.dumps(about | {"rows": 7}))
    with pytest.raises(UserError, match="says 7 rows"):
        open_store(store.folder)


@pytest.mark.torch
def test_minilm_gives_the_vectors_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    try:
        folder = fetch_minilm()
    except UserError as error:
        pytest.skip(f"MiniLM cannot be had: {error}")
    texts = ["A cat sat on the mat.", "", "Two words. " * 90, "Ünïcödé 12,345"]
    vectors = Encoder(*from_pretrained(folder), longest=128).embed(texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    fed = tokenizer(
        [text or " " for text in texts], return_tensors="pt", padding=True, truncation=True, max_length=128
    )
    with torch.no_grad():
        hidden, mask = model(**fed).last_hidden_state, fed["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    np.testing.assert_allclose(vectors, mean.numpy(), atol=1e-5)
