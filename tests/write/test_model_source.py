"""A model's suggestions while text is typed, cut and typed again, against its plain forward pass."""

import time

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.data import load_tokenizer, start_id
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from jaxllm.write.model_source import ModelSource, at_tokens, recent
from tests.models.random_params import random_params

CONFIG = models.get_preset("llama-nano", vocab_size=300, context_length=64)
TEXT = "send the invoice to the client before noon and the receipt "


@pytest.fixture(scope="module")
def source():
    tokenizer = load_tokenizer("bpe:300", documents=[TEXT * 20 + "call again tomorrow morning"])
    params = random_params(CONFIG, 0.02)
    # Logits that a random model spreads too evenly to tell words apart.
    params = jax.tree.map(lambda x: x * 3.0 if x.ndim > 1 else x, params)
    return ModelSource(Decoder(CONFIG, params), tokenizer, slots=32, beams=3, most_tokens=5), params


@jax.jit
def _all_log_probs(params, tokens_BT):
    hidden_BTD = models.trunk(CONFIG, params, tokens_BT)
    return jax.nn.log_softmax(models.logits(CONFIG, params, hidden_BTD))


def plain_log_probs(source, params, ids):
    padded = np.zeros((1, CONFIG.context_length), np.int32)  # one program; later tokens are not seen
    padded[0, : len(ids)] = ids
    return np.asarray(_all_log_probs(params, padded))[0, len(ids) - 1]


def test_edits_leave_the_cache_as_a_fresh_reading_would(source):
    source, params = source
    session = source.session()
    texts = ["send the ", "send the invoice ", "send the inv", "send ", "call the client ", TEXT]
    for text in texts:
        session.propose(text)
        context, _ = at_tokens(text)
        ids = [start_id(source.tokenizer), *source.tokenizer.encode(context).tolist()]
        ids = session._window(ids)
        np.testing.assert_allclose(
            session._log_chances_V, plain_log_probs(source, params, ids), atol=2e-4, err_msg=text
        )


def test_after_half_a_character_there_is_no_suggestion(source):
    session = source[0].session()
    assert session.propose("send \ud83d") == [] and session.propose("send ") != []
    with pytest.raises(UserError, match="cannot encode a text"):
        session.propose("send \ud83d ")


def test_suggestions_begin_with_what_was_typed_and_their_chances_are_the_models(source):
    source, params = source
    session = source.session()
    seen = 0
    for end in range(len(TEXT)):
        text = TEXT[:end]
        prefix = text[text.rfind(" ") + 1 :]
        for proposal in session.propose(text):
            assert proposal.words[0].startswith(prefix) and 0 < proposal.chance <= 1
            seen += 1
    assert seen > 10
    # Scored by the plain forward pass: a word's tokens, then its end.
    for text in ("send ", "send the invoice to the client before noon and "):
        session = source.session()
        proposals = session.propose(text)
        assert proposals
        for proposal in proposals:
            beam = next(b for b in session._found if b.written.split()[0].decode() == proposal.words[0])
            first = beam.written[1:].split()[0]
            ids = list(session._ids)
            allowed = source.trie.allowed(b" ")
            total, written = -np.logaddexp.reduce(session._log_chances_V[allowed]), b""
            for token in beam.tokens:
                if len(written.strip()) >= len(first):
                    break
                total += plain_log_probs(source, params, ids)[token]
                written += source.trie.written[token]
                ids.append(token)
            total += np.logaddexp.reduce(plain_log_probs(source, params, ids)[source.trie.ends_word_V])
            assert np.log(proposal.chance) == pytest.approx(min(total, 0), abs=1e-3)


def test_a_letter_that_was_foreseen_costs_no_call(source):
    source, _ = source
    session = source.session()
    texts = (TEXT[:end] for end in range(5, len(TEXT)) if TEXT[end - 1] == " ")
    begun = next(text for text in texts if session.propose(text))
    word = session.propose(begun)[0].words[0]
    calls = session.calls
    for end in range(1, len(word)):
        found = session.propose(begun + word[:end])
        assert word in [proposal.words[0] for proposal in found]
    assert session.calls == calls


def test_a_deadline_that_has_passed_begins_no_call(source):
    source, _ = source
    session = source.session()
    assert session.propose("send the ", deadline=time.perf_counter() - 1) == [] and session.calls == 0
    session.propose("send the ")
    calls = session.calls
    assert session.propose("call me ", deadline=time.perf_counter()) == [] and session.calls == calls


def test_what_a_deadline_stopped_goes_on_at_the_next_key(source, monkeypatch):
    """A call a key, and as many keys as it takes: the same words as without a deadline."""
    source, _ = source
    texts, most = [TEXT[:end] for end in range(1, len(TEXT))], 0
    for text in texts:
        expected, steps = source.session().propose(text), 0
        session, calls = source.session(), 0
        for _ in range(source.most_tokens + 2):
            allowed = iter([True])
            monkeypatch.setattr(session, "_in_time", lambda deadline, allowed=allowed: next(allowed, False))
            found = session.propose(text)
            assert session.calls - calls <= 1
            steps, calls = steps + (session.calls > calls), session.calls
        assert {one.words[0] for one in found} <= {one.words[0] for one in expected}
        if expected:  # the likeliest is there, as soon as it is whole
            best = max(found, key=lambda one: one.chance)
            assert best.words[0] == expected[0].words[0]
            assert best.chance == pytest.approx(expected[0].chance, rel=1e-4)
        most = max(most, steps)
    assert most > 3  # some took several keys


def test_long_texts_move_by_half_a_window():
    words = "word " * 1000
    starts = {len(words[:end]) - len(recent(words[:end])) for end in range(2500, 4500, 100)}
    assert len(starts) <= 3 and all(len(recent(words[:end])) <= 2000 for end in (2500, 4999))


def test_bad_input_is_told(source):
    source, _ = source
    with pytest.raises(UserError, match="slots is 999"):
        ModelSource(source.decoder, source.tokenizer, slots=999)
    session = source.session()
    session.propose("send ")
    with pytest.raises(UserError, match="length is 99"):
        source.decoder.rewind(session._cache, 99)
