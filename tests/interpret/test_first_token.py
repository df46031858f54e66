"""Attention on the first token against weights written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.interpret import first_token, first_token_attention, uniform_first_token_mass

B, T, H, G, K = 2, 21, 4, 2, 8
SEGMENTS = np.repeat([[0, 1, 2]], B, 0).repeat([9, 1, 11], axis=1)
SEGMENTS[1] = 0


def draw(seed):
    random = np.random.default_rng(seed)
    query, key = random.normal(size=(B, T, H, K)), random.normal(size=(B, T, G, K))
    return query.astype(np.float32), key.astype(np.float32)


def written_out(query, key, scale, window, sink_H, segments):
    """Return argmax, mass [B, T, H] and counts [B, T] in float64, one query and head at a time."""
    argmax, mass, counts = np.zeros((B, T, H)), np.zeros((B, T, H)), np.zeros((B, T), bool)
    for b, t, h in np.ndindex(B, T, H):
        first = next(s for s in range(T) if segments[b, s] == segments[b, t])
        keys = [s for s in range(first, t + 1) if not window or t - s < window]
        counts[b, t] = first in keys and t != first
        if not counts[b, t]:
            continue
        scores = scale * key[b, keys, h // (H // G)].astype(np.float64) @ query[b, t, h].astype(np.float64)
        argmax[b, t, h] = scores.argmax() == 0
        mass[b, t, h] = np.exp(scores[0]) / (np.exp(scores).sum() + np.exp(sink_H[h]))
    return argmax, mass, counts


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize("window", [0, 6])
@pytest.mark.parametrize("sink", [-np.inf, 0.0, "learned"])
def test_equals_the_weights_written_out(sink, window, segments, monkeypatch):
    monkeypatch.setattr(first_token, "QUERIES", 4)  # blocks that do not divide T
    query, key = draw(0)
    sink = np.linspace(-1, 2, H) if sink == "learned" else sink
    found = jax.jit(
        lambda query, key, window: first_token_attention(
            query, key, scale=0.3, window=window, sink=sink, segment_ids_BT=segments
        )
    )(query, key, window)
    rows = np.zeros((B, T), int) if segments is None else segments
    argmax, mass, counts = written_out(query, key, 0.3, window, np.broadcast_to(sink, H), rows)
    np.testing.assert_array_equal(found.counts_BT, counts)
    np.testing.assert_array_equal(found.argmax_BTH, argmax)
    np.testing.assert_allclose(found.mass_BTH, mass, atol=1e-6)


def test_a_tie_is_split_among_the_keys_that_share_it():
    query, key = draw(1)
    key[:, 4] = key[:, 2] = key[:, 0]
    found = first_token_attention(query, key)
    for b, t, h in np.ndindex(B, T, H):
        scores = key[b, : t + 1, h // (H // G)].astype(np.float64) @ query[b, t, h]
        tied = 1 + (t >= 2) + (t >= 4)
        expected = (scores.argmax() == 0) / tied if t else 0.0
        assert found.argmax_BTH[b, t, h] == pytest.approx(expected)


@pytest.mark.parametrize("softmax_1", [False, True])
def test_uniform_attention_has_the_floor_s_mass(softmax_1):
    _, key = draw(2)
    found = first_token_attention(np.zeros((B, T, H, K)), key, sink=0.0 if softmax_1 else None)
    floor = uniform_first_token_mass(T, softmax_1=softmax_1)
    assert float(found.mass_BTH[:, 1:].mean()) == pytest.approx(floor, rel=1e-6)
    assert float(found.argmax_BTH[:, 1:].mean()) == pytest.approx(uniform_first_token_mass(T), rel=1e-6)
    harmonic = sum(1 / n for n in range(1, T + 1))
    # Query 0's own term, 1 or 1/2, is left out.
    expected = harmonic + 1 / (T + 1) - 1.5 if softmax_1 else harmonic - 1
    assert floor == pytest.approx(expected / (T - 1))


def test_the_first_query_does_not_count():
    query, key = draw(3)
    found = first_token_attention(query, key)
    assert not found.counts_BT[:, 0].any() and found.counts_BT[:, 1:].all()
    assert not found.argmax_BTH[:, 0].any() and not found.mass_BTH[:, 0].any()


def test_memory_grows_with_the_length_and_not_with_its_square():
    def temporaries(length):
        shapes = [jax.ShapeDtypeStruct((2, length, heads, 16), jnp.float32) for heads in (8, 8)]
        compiled = jax.jit(first_token_attention).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporaries(1024), temporaries(4096)
    assert long < 5 * short, (short, long)
    assert long < 2 * 8 * 4096**2 * 4 / 4  # the weights of one layer, over 4
