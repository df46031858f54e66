"""The TPU and GPU kernels of attention, interpreted and simulated, against float64 NumPy."""

import functools
import importlib
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jaxllm_kernels.attention import head_by_head, pallas_gpu, pallas_tpu, pallas_tpu_tiles, xla, xla_loop

from tests.kernels.attention_oracle import answer, assert_close, make_call

# Largest difference, relative to the largest number of the float64 answer.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
KERNELS = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}


def run(module, call, dtype="float32", **how):
    """Return (out, lse, d_query, d_key, d_value, d_sink) by a module's forward and backward."""

    def both(query, key, value, d_out, d_lse, sink, segments):
        given = query, key, value, sink, segments, None
        out, lse = module.forward(*given, **call.options, **how)
        gradients = module.backward(*given, out, lse, d_out, d_lse, **call.options, **how)
        return out, lse, *gradients

    arrays = [jnp.asarray(x, dtype) for x in (call.query, call.key, call.value, call.d_out)]
    more = [None if x is None else jnp.asarray(x) for x in (call.sink, call.segments)]
    sink = None if more[0] is None else more[0].astype(jnp.float32)
    return jax.jit(both)(*arrays, jnp.asarray(call.d_lse), sink, more[1])


CASES = {
    "one token": dict(T=1, H=1),
    "short": dict(B=2, T=7, sink=0),
    "whole blocks": dict(T=256, K=64, H=1),
    "tail, group of 2, 80 channels": dict(T=150, H=2, G=1, K=80, sink="learned"),
    "window, 96 channels": dict(T=300, H=1, K=96, window=70, sink="learned"),
    "segments and window": dict(B=2, T=140, H=2, G=1, K=16, segmented=True, window=90, sink="learned"),
    "not causal": dict(T=130, S=270, H=2, G=1, K=64, window=100, causal=False),
    "rows that see nothing": dict(T=270, S=130, H=1, K=16, window=60),
    "rows that see nothing, sink": dict(T=270, S=130, H=1, K=16, window=60, sink="learned"),
}


# Between them a window, documents, groups, a learned sink, a tail, and rows that see nothing.
FAST = {("segments and window", "pallas_tpu"), ("rows that see nothing, sink", "pallas_gpu")}


@pytest.mark.parametrize("case, kernel", [
    pytest.param(*both, marks=() if both in FAST else pytest.mark.slow)
    for both in itertools.product(CASES, KERNELS)
])  # fmt: skip
def test_interpreted_kernels_match_float64(case, kernel):
    call = make_call(**CASES[case])
    ours = run(KERNELS[kernel], call, interpret=True)
    assert_close(ours, call, TOLERANCE["float32"])
    blind = answer(call).probs.max(axis=-1).swapaxes(1, 2) == 0
    assert blind.any() == case.startswith("rows")
    assert np.all(np.asarray(ours[0])[blind] == 0) and np.all(np.asarray(ours[2])[blind] == 0)


@pytest.mark.parametrize("kernel", ["pallas_gpu", pytest.param("pallas_tpu", marks=pytest.mark.slow)])
def test_bfloat16_inputs_accumulate_in_float32(kernel):
    call = make_call(T=300, H=1, K=64, sink="learned")
    out, lse, *gradients = run(KERNELS[kernel], call, "bfloat16", interpret=True)
    assert out.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
    assert_close((out, lse, *gradients), call, TOLERANCE["bfloat16"])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@hypothesis.settings(max_examples=2, deadline=None, derandomize=True)
@hypothesis.given(
    T=st.integers(1, 200),
    S=st.integers(1, 200),
    R=st.integers(1, 2),
    K=st.sampled_from([1, 8, 20]),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 200),
    sink=st.sampled_from([None, 0, "learned"]),
)
def test_any_shape(kernel, T, S, R, K, causal, window, sink):
    call = make_call(T=T, S=S, H=R, G=1, K=K, causal=causal, window=window, sink=sink)
    assert_close(run(KERNELS[kernel], call, interpret=True), call, TOLERANCE["float32"])


@pytest.mark.parametrize(
    "options",
    [
        dict(T=300, H=2, G=1, K=16, sink="learned"),
        pytest.param(dict(T=300, S=200, H=1, K=16, window=70), marks=pytest.mark.slow),
        pytest.param(dict(B=2, T=200, H=1, K=16, segmented=True), marks=pytest.mark.slow),
    ],
)
def test_the_tpu_simulator_finds_no_race_nor_read_of_unwritten_memory(options, monkeypatch):
    # Panels of one block: several panels a row, some of them hidden.
    monkeypatch.setattr(pallas_tpu_tiles, "_PANEL_BYTES", 1)
    monkeypatch.setattr(pallas_tpu_tiles, "_BLOCK", 128)
    simulator = pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
    )
    call = make_call(**options)
    assert_close(run(pallas_tpu, call, interpret=simulator), call, TOLERANCE["float32"])
    assert not _races_found()


def _races_found() -> bool:
    try:
        simulator = importlib.import_module("jax._src.pallas.mosaic.interpret.interpret_pallas_call")
    except ImportError:  # before jax 0.8
        simulator = importlib.import_module("jax._src.pallas.mosaic.interpret")
    return bool(simulator.races.races_found)


@pytest.mark.parametrize("size", [1e4, pytest.param(-1e4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_huge_scores_stay_finite(kernel, size):
    call = make_call(T=3, H=1, K=1, sink=0)._replace(
        query=np.full((1, 3, 1, 1), size, np.float32),
        key=np.ones((1, 3, 1, 1), np.float32),
        value=np.ones((1, 3, 1, 1), np.float32),
    )
    ours = run(KERNELS[kernel], call, interpret=True)
    assert all(np.isfinite(np.asarray(x)).all() for x in ours)
    assert_close(ours, call, 1e-3)  # of scores of 1e4, in float32


@pytest.mark.parametrize("case", ["segments and window", "rows that see nothing, sink"])
def test_loops_over_long_texts_match_float64(case, monkeypatch):
    monkeypatch.setattr(xla, "UNROLLED", 0)
    monkeypatch.setattr(xla_loop, "QUERIES", 32)
    monkeypatch.setattr(xla_loop, "KEYS", 64)
    call = make_call(**CASES[case])
    assert_close(run(xla, call), call, TOLERANCE["float32"])


@pytest.mark.parametrize("in_loops", [False, True])
@pytest.mark.parametrize(
    "case", ["segments and window", "rows that see nothing", "rows that see nothing, sink"]
)
def test_heads_in_turn_match_float64(case, in_loops, monkeypatch):
    monkeypatch.setattr(head_by_head, "SHORTEST_TEXT", 0)
    if in_loops:
        monkeypatch.setattr(xla, "UNROLLED", 0)
        monkeypatch.setattr(xla_loop, "QUERIES_OF_ONE_HEAD", 16)
        monkeypatch.setattr(xla_loop, "KEYS", 16)
    lengths = dict(T=40) if "segments" in case else dict(T=60, S=20)
    call = make_call(**(CASES[case] | dict(B=2, H=4, G=2, window=20) | lengths))
    blind = answer(call).probs.sum(-1) == 0
    assert blind.any() == ("nothing" in case)
    assert_close(run(xla, call), call, TOLERANCE["float32"])


def test_a_token_that_is_decoded_is_not_padded_to_a_block_of_queries():
    query, keys = jnp.ones((1, 1, 2, 8)), jnp.ones((1, 2048, 2, 8))
    program = str(jax.make_jaxpr(functools.partial(xla.forward, scale=1.0, causal=False, window=None))(
        query, keys, keys, None, None, jnp.ones((1, 1, 2048), bool)
    ))  # fmt: skip
    assert "[1,2,1,512]" in program and "[1,2,256,512]" not in program


def test_hidden_blocks_of_keys_are_not_read(monkeypatch):
    """A NaN in a block that nobody sees would reach the output through 0 x NaN."""
    monkeypatch.setattr(pallas_tpu_tiles, "_BLOCK", 128)
    call = make_call(T=256, S=512, H=1, K=8)
    poisoned = call._replace(key=call.key.copy(), value=call.value.copy())
    for x in (poisoned.key, poisoned.value):
        x[:, 384:] = np.nan
    for module in KERNELS.values():
        forward = functools.partial(module.forward, interpret=True, **call.options)
        out, _ = forward(*map(jnp.asarray, poisoned[:3]), None, None, None)
        assert np.abs(out - answer(call).out).max() <= TOLERANCE["float32"]
