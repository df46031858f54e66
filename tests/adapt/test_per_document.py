"""Test-time training against a loop that takes AdamW's steps in NumPy."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import data, models, parallel
from jaxllm.adapt import (
    LastLayers,
    Lora,
    LoraConfig,
    PerDocumentConfig,
    adapt_and_score,
    score_adapted_texts,
    split_document,
)
from jaxllm.adapt.per_document import _one_document, _Plan, _program, _Runner
from jaxllm.errors import UserError
from jaxllm.score import rolling_log_probs, score_texts
from tests.models.random_params import random_params

V, WINDOW = 37, 8
CONFIG = models.get_preset("gpt2-nano", vocab_size=V, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32,
                           context_length=16, attention_implementation="xla")  # fmt: skip
HOW = PerDocumentConfig(learning_rate=3e-3, window=WINDOW, lora=LoraConfig(rank=2, targets="all"))
AFTER = (0, 1, 3)


@pytest.fixture(scope="module")
def case():
    draw = np.random.default_rng(0)
    some = lambda n: draw.integers(1, V, n).tolist()
    documents = [[0, *some(n)] for n in (5, 19, 12)]
    # Of two chunks, of a chunk and one token left over, of one token alone, empty, and fewer than the others.
    neighbours = [[some(13), some(9), some(4)], [some(1), some(6), []], [some(8), some(3)]]
    params = jax.jit(models.init, static_argnums=0)(CONFIG, jax.random.key(0))
    return documents, neighbours, jax.tree.map(lambda w: 3 * w, params)


_gradient = jax.jit(
    jax.grad(
        lambda trained, view, frozen, tokens, mask: models.loss(
            CONFIG, view(trained, frozen, None), tokens[None, :-1], tokens[None, 1:], mask=mask[None]
        )[0]
    ),
    static_argnums=1,
)


@dataclasses.dataclass(frozen=True)
class Whole:
    def __call__(self, trained, frozen, key):
        return trained


def begin(how, params):
    if how.trained == "all":
        return Whole(), params, {}
    view = LastLayers(CONFIG, 1) if how.trained == "last" else Lora(CONFIG, how.lora)
    return view, *(view.begin(params) if how.trained == "last" else view.begin(params, jax.random.key(0)))


def by_hand(case, how, carried=False):
    """Log-probabilities [N, E] after steps written out, chunk by chunk."""
    documents, neighbours, params = case
    view, start, frozen = begin(how, params)
    moments, count, totals = None, 0, []
    for ids, some in zip(documents, neighbours, strict=True):
        leaves, tree = jax.tree.flatten(start)
        w = [np.asarray(x, np.float64) for x in leaves]
        if moments is None or not carried:
            moments, count = [(np.zeros_like(x), np.zeros_like(x)) for x in w], 0

        def score():
            trained = jax.tree.unflatten(tree, [jnp.asarray(x, jnp.float32) for x in w])  # noqa: B023
            whole = view(trained, frozen, None)
            whole = Lora(CONFIG, how.lora).merge(trained, frozen) if how.trained == "lora" else whole
            return rolling_log_probs(CONFIG, whole, [ids], WINDOW)[0]  # noqa: B023

        found = [score()]
        for neighbour in some:
            for at in range(0, len(neighbour), WINDOW):
                chunk = neighbour[at : at + WINDOW]
                if len(chunk) < 2:
                    continue
                tokens = np.zeros(WINDOW, np.int32)
                tokens[: len(chunk)] = chunk
                trained = jax.tree.unflatten(tree, [jnp.asarray(x, jnp.float32) for x in w])
                mask = np.arange(1, WINDOW) < len(chunk)
                g = [
                    np.asarray(x, np.float64)
                    for x in jax.tree.leaves(_gradient(trained, view, frozen, tokens, mask))
                ]
                norm = np.sqrt(sum((x**2).sum() for x in g))
                g = [x / max(1.0, norm) for x in g]
                count += 1
                moments = [
                    (0.9 * m + 0.1 * x, 0.999 * v + 0.001 * x**2)
                    for (m, v), x in zip(moments, g, strict=True)
                ]
                for i, (m, v) in enumerate(moments):
                    update = (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
                    w[i] = w[i] * (1 - how.learning_rate * 0.01) - how.learning_rate * update
            found.append(score())
        found += [found[-1]] * (4 - len(found))
        totals.append([found[k] for k in AFTER])
    return np.array(totals)


@pytest.mark.parametrize(
    "trained", ["all", *(pytest.param(each, marks=pytest.mark.slow) for each in ("lora", "last"))]
)
def test_steps_and_scores_are_those_of_a_loop(case, trained):
    how = dataclasses.replace(HOW, trained=trained)
    found = adapt_and_score(CONFIG, case[2], *case[:2], how, after=AFTER)
    np.testing.assert_allclose(found.log_probs, by_hand(case, how), rtol=2e-4)
    assert found.steps.tolist() == [4, 1, 2] and not found.cut.any() and found.after == AFTER
    moved = np.abs(found.log_probs[:, 2] - found.log_probs[:, 0])
    assert (moved > 1e-3).all()


def test_nothing_is_kept_between_documents_but_what_the_release_carries(case):
    documents, neighbours, params = case
    before = jax.tree.map(lambda w: np.array(w), params)
    forth = adapt_and_score(CONFIG, params, documents, neighbours, HOW, after=AFTER)
    back = adapt_and_score(CONFIG, params, documents[::-1], neighbours[::-1], HOW, after=AFTER)
    np.testing.assert_array_equal(forth.log_probs, back.log_probs[::-1])
    jax.tree.map(np.testing.assert_array_equal, params, before)
    carried = dataclasses.replace(HOW, optimizer="carried")
    forth_carried = adapt_and_score(CONFIG, params, documents, neighbours, carried, after=AFTER)
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    trained = jax.device_put(params, parallel.shardings(models.axes(CONFIG), params, mesh))
    back = adapt_and_score(CONFIG, trained, documents[::-1], neighbours[::-1], carried, after=AFTER)
    np.testing.assert_array_equal(forth_carried.log_probs[0], forth.log_probs[0])
    assert np.abs(forth_carried.log_probs[2] - back.log_probs[0]).max() > 1e-3
    np.testing.assert_allclose(forth_carried.log_probs, by_hand(case, HOW, carried=True), rtol=2e-4)


@pytest.mark.slow
def test_bfloat16_parameters_learn_what_float32_ones_do(case):
    """From the same numbers, at a rate whose steps are far below those of bfloat16."""
    documents, neighbours, params = case
    neighbours = [[ids[1:9]] * len(some) for ids, some in zip(documents, neighbours, strict=True)]
    how = dataclasses.replace(HOW, learning_rate=2e-5, optimizer="carried")
    params, gains = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params), {}
    for kind in ("float32", "bfloat16"):
        config = dataclasses.replace(CONFIG, param_dtype=kind, dtype="float32")
        start = jax.tree.map(lambda w: w.astype(kind), params)  # noqa: B023
        log_probs = adapt_and_score(config, start, documents, neighbours, how, after=AFTER).log_probs
        gains[kind] = log_probs[:, 2] - log_probs[:, 0]
    np.testing.assert_allclose(gains["bfloat16"], gains["float32"], rtol=0.02)
    assert (gains["float32"] > 0.01).all()


@pytest.mark.slow
def test_documents_together_and_over_a_mesh_give_what_each_alone_does(case):
    alone = adapt_and_score(CONFIG, case[2], *case[:2], HOW, after=AFTER)
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2), jax.devices()[:2])
    for options in (dict(together=2), dict(mesh=mesh)):
        several = adapt_and_score(CONFIG, case[2], *case[:2], HOW, after=AFTER, **options)
        np.testing.assert_allclose(several.log_probs, alone.log_probs, rtol=1e-5)


def test_other_texts_rates_and_seeds_compile_nothing(case):
    documents, neighbours, params = case
    adapt_and_score(CONFIG, params, documents, neighbours, HOW, after=AFTER)
    programs = _program._cache_size()
    other = dataclasses.replace(HOW, learning_rate=1e-3, seed=5)
    again = adapt_and_score(CONFIG, params, documents[1:], [neighbours[2], neighbours[0]], other, after=AFTER)
    assert _program._cache_size() == programs and np.isfinite(again.log_probs).all()
    carried = dataclasses.replace(HOW, optimizer="carried", b1=0.8)  # of no other test
    adapt_and_score(CONFIG, params, documents, neighbours, carried, after=AFTER)
    assert _program._cache_size() == programs + 1


def test_the_view_and_the_model_draw_apart(monkeypatch):
    keys = {}
    loss = lambda *_, key, **__: [jnp.zeros(()), keys.setdefault("model", key)]
    monkeypatch.setattr(models, "loss", loss)
    view = lambda trained, frozen, key: keys.setdefault("view", key)
    zeros = np.zeros((1, 4), np.int32)
    arrays = jax.random.key(0), zeros, np.array([4]), np.array([1]), zeros, zeros
    with jax.disable_jit():
        _one_document(CONFIG, view, HOW, _Plan(1, 1, 4, (1,)), {"w": jnp.ones(2)}, {}, None, 1.0, *arrays)
    numbered = jax.vmap(jax.random.fold_in, (None, 0))  # what split gives too
    drawn = [jax.random.key_data(numbered(key, jnp.arange(64))).tolist() for key in keys.values()]
    assert len(drawn) == 2 and not {*map(tuple, drawn[0])} & {*map(tuple, drawn[1])}


@pytest.mark.slow
def test_dropout_follows_its_seed(case):
    config = dataclasses.replace(CONFIG, dropout=0.5)
    score = lambda seed: (
        adapt_and_score(
            config, case[2], *case[:2], dataclasses.replace(HOW, seed=seed), after=AFTER
        ).log_probs
    )
    first = score(1)
    np.testing.assert_array_equal(first, score(1))
    assert np.abs(first - score(2))[:, 1:].max() > 1e-3
    np.testing.assert_array_equal(first[:, 0], score(2)[:, 0])  # none while scoring


def test_a_bound_on_time_leaves_steps_out_and_counts_them(case, monkeypatch):
    bound = dataclasses.replace(HOW, most_seconds=1e-9)
    found = adapt_and_score(CONFIG, case[2], *case[:2], bound, after=AFTER)
    assert found.steps.tolist() == [0, 0, 0] and found.cut.all()
    np.testing.assert_array_equal(found.log_probs[:, 0], found.log_probs[:, 2])
    ample = adapt_and_score(
        CONFIG, case[2], *case[:2], dataclasses.replace(HOW, most_seconds=1e4), after=AFTER
    )
    assert ample.steps.tolist() == [4, 1, 2] and not ample.cut.any()
    monkeypatch.setattr(_Runner, "steps_within", lambda *_: 2)  # as many as the last needs
    two = adapt_and_score(CONFIG, case[2], *case[:2], bound, after=AFTER)
    assert two.steps.tolist() == [2, 1, 2] and two.cut.tolist() == [True, False, False]


def test_texts_are_scored_by_their_bytes_as_without_neighbours():
    config = dataclasses.replace(CONFIG, vocab_size=257)
    params, words = random_params(config), data.load_tokenizer("bytes")
    texts = ["naïve café 日本", "plain"]
    found = score_adapted_texts(config, params, words, texts, [["naïve"], []], HOW, after=(0, 1))
    for text, scores in zip(texts, found, strict=True):
        whole = score_texts(config, params, words, text, window=WINDOW)
        assert scores[0].bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-5)
        assert scores[0].bytes == len(text.encode()) and scores[0].words == len(text.split())
    assert found[1][0] == found[1][1] and found[0][1].log_prob > found[0][0].log_prob


def test_a_split_never_trains_on_what_is_scored():
    for count in (2, 7, 8, 30):
        query, scored = split_document(range(count), 4)
        assert [*query, *scored] == list(range(count)) and len(query) == (4 if count >= 8 else count // 2)


def test_bad_input_is_told_in_a_sentence(case):
    documents, neighbours, params = case
    run = lambda documents=documents, neighbours=neighbours, how=HOW, **options: adapt_and_score(
        CONFIG, params, documents, neighbours, how, **options
    )
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2), jax.devices()[:2])
    carried = dataclasses.replace(HOW, optimizer="carried")
    cases = {
        "document 1 has 1 token, its first is not scored": lambda: run([[0, 1], [0]], [[], []]),
        "3 documents and 1 lists of neighbours": lambda: run(neighbours=[[]]),
        "window is 17; it must be from 2 to": lambda: run(how=dataclasses.replace(HOW, window=17)),
        "after is": lambda: run(after=(0,)),
        "takes documents one after the other": lambda: run(how=carried, mesh=mesh),
        "last_layers is 3": lambda: run(how=dataclasses.replace(HOW, trained="last", last_layers=3)),
        "lora.rank is not set": lambda: run(how=dataclasses.replace(HOW, trained="lora", lora=LoraConfig())),
        "a document's or neighbour's ids": lambda: run(neighbours=[[[V]], [], []]),
        "cannot be split": lambda: split_document([1], 4),
        "learning_rate is 0": lambda: PerDocumentConfig(learning_rate=0),
    }
    for told, call in cases.items():
        with pytest.raises(UserError, match=told) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.torch
def test_bits_are_those_of_the_authors_loop_in_torch(case, tmp_path):
    """transformers' GPT-2, torch's AdamW and clipping, as the release runs them (dropout 0)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from jaxllm.pretrained import save_pretrained

    documents, neighbours, params = case
    save_pretrained(tmp_path / "model", CONFIG, params)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    start = {name: value.clone() for name, value in base.state_dict().items()}
    optimizer = torch.optim.AdamW(base.parameters(), lr=HOW.learning_rate)
    expected = []

    def score(ids):
        with torch.no_grad():
            logits = base(torch.tensor([ids[:-1]])).logits.log_softmax(-1)
        return logits[0].gather(1, torch.tensor(ids[1:])[:, None]).sum().item()

    short = [ids[: WINDOW + 1] for ids in documents]
    for ids, some in zip(short, neighbours, strict=True):
        base.load_state_dict(start)
        found = [score(ids)]
        for neighbour in some:
            for at in range(0, len(neighbour), WINDOW):
                chunk = torch.tensor([neighbour[at : at + WINDOW]])
                if chunk.shape[1] > 1:
                    optimizer.zero_grad()
                    base(chunk, labels=chunk).loss.backward()
                    torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
                    optimizer.step()
            found.append(score(ids))
        found += [found[-1]] * (4 - len(found))
        expected.append([found[k] for k in AFTER])
    carried = dataclasses.replace(HOW, optimizer="carried")
    ours = adapt_and_score(CONFIG, params, short, neighbours, carried, after=AFTER)
    np.testing.assert_allclose(ours.log_probs, expected, rtol=1e-3)
