"""A pretrained model continued with softmax-1: its windows, its sink, what is measured, how it is judged."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import pretrained_sinks as sinks
from experiments.shared.tuned_text import Rows
from jaxllm import models
from jaxllm.errors import UserError

MODEL = models.get_preset("gpt2-nano")
TOKENS = jax.random.randint(jax.random.key(1), (3, 17), 0, MODEL.vocab_size)


def given():
    """Weights large enough that heads choose."""
    params = models.init(MODEL, jax.random.key(0))
    return jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, params)


def test_scored_openings_and_windows_that_are_read_share_no_address(monkeypatch):
    texts = [chr(97 + at) * (9 + 4 * at) for at in range(5)]  # 9, 13, 17, 21 and 25 tokens
    monkeypatch.setattr(sinks, "sotu_addresses", lambda: [{"text": text} for text in texts])
    tokenizer = SimpleNamespace(encode=lambda text: np.frombuffer(text.encode(), np.uint8))
    scored, read = sinks.windows(tokenizer, 2, seq_len=8)
    assert scored.tokens_NT.shape == (2, 8)
    assert not set(scored.tokens_NT.flat) & set(read.tokens_NT.flat)
    # Every window that fits: the last token of one is the first of the next.
    fit = {97 + at: (len(text) - 1) // 8 for at, text in enumerate(texts)}
    counted = dict(zip(*np.unique(read.tokens_NT[:, 0], return_counts=True), strict=True))
    assert counted == {letter: fit[letter] for letter in counted}
    assert len(counted) == 3 and read.mask_NT.all()
    with pytest.raises(UserError, match="5 addresses have more than seq_len=8"):
        sinks.windows(tokenizer, 5, seq_len=8)


def test_each_attention_begins_as_it_says():
    params = given()
    softmax, as_given = sinks.begun(MODEL, params, "softmax", TOKENS)
    assert softmax == MODEL and as_given is params
    assert sinks.begun(MODEL, params, "softmax-1", TOKENS)[0].sink_logit == 0
    learned, more = sinks.begun(MODEL, params, "learned", TOKENS)
    assert learned.sink_logit == "learned" and bool((more["layers"]["attn"]["sink"] != 0).all())


def test_perplexity_is_that_of_float64_and_the_sink_is_told_by_layer():
    params, rows = given(), Rows.of(np.asarray(TOKENS))
    found = sinks.measure(MODEL, params, rows)
    logits = np.asarray(models.apply(MODEL, params, rows.tokens_NT), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probs, rows.targets_NT[..., None], -1)
    assert found["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    assert len(found["sink_by_layer"]) == MODEL.num_layers
    assert np.mean(found["sink_by_layer"]) == pytest.approx(found["sink_argmax"])
    assert set(sinks.COLUMNS) <= set(found)


def test_claims_are_judged_seed_by_seed_against_softmax_continued():
    figures = {  # share, kurtosis, perplexity of two seeds
        "softmax": [(0.60, 200, 20.0), (0.62, 210, 20.2)],
        "softmax-1": [(0.20, 190, 20.1), (0.22, 200, 20.3)],
        "learned": [(0.55, 80, 22.0), (0.56, 84, 22.2)],
    }
    found = {
        name: [dict.fromkeys(sinks.COLUMNS, 0.0) | {"sink_argmax": a, "kurtosis_first": b, "perplexity": c}
               for a, b, c in seeds]
        for name, seeds in figures.items()
    }  # fmt: skip
    metrics, claims, table = sinks.judge(sinks.PretrainedSinksConfig(), found)
    assert [claim.holds for claim in claims] == [True, False, True, False, True, False, True]
    assert claims[0].measured == pytest.approx(0.21) and claims[2].measured == pytest.approx(1.005, abs=1e-3)
    assert metrics["perplexity/learned"] == pytest.approx(22.1)
    assert table.count("\n") == len(found) + 1
