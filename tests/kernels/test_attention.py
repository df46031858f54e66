"""Attention against a float64 loop, and the fast version against the reference."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxllm_kernels.attention import attention, visible

# Largest absolute difference, values and gradients of order 1.
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


def inputs(B=2, T=7, S=None, H=4, G=2, K=8, dtype="float32", seed=0):
    """Return query, key, value and a cotangent, all different."""
    keys = jax.random.split(jax.random.key(seed), 4)
    S = S or T
    shapes = (B, T, H, K), (B, S, G, K), (B, S, G, K), (B, T, H, K)
    return [
        jax.random.normal(k, shape).astype(dtype) for k, shape in zip(keys, shapes, strict=True)
    ]


def by_hand(
    query, key, value, scale=None, causal=True, window=None, segments=None, mask=None, sink=None
):
    """Compute attention in float64, one query of one head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    B, T, H, K = query.shape
    S, G = key.shape[1:3]
    sink = None if sink is None else np.broadcast_to(np.asarray(sink, np.float64), (H,))
    out = np.zeros(query.shape)
    for b, t, h in itertools.product(range(B), range(T), range(H)):
        weights, values = [], []
        for s in range(S):
            seen = not (causal and s > t) and not (window and t - s >= window)
            seen = seen and (segments is None or segments[b, t] == segments[b, s])
            seen = seen and (mask is None or np.broadcast_to(mask, (B, T, S))[b, t, s])
            if seen:
                score = query[b, t, h] @ key[b, s, h // (H // G)] * (scale or K**-0.5)
                weights.append(np.exp(score))
                values.append(value[b, s, h // (H // G)])
        total = sum(weights) + (0.0 if sink is None else np.exp(sink[h]))
        if weights:
            out[b, t, h] = sum(w * v for w, v in zip(weights, values, strict=True)) / total
    return out


SEGMENTS = np.array([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]])
MASK = np.random.default_rng(0).random((2, 7, 7)) < 0.6
MASK[1, 4] = False  # a row that may see nothing
SINK = np.array([-1.0, 0.0, 0.5, 2.0], np.float32)
CASES = {
    "causal": {},
    "square": dict(causal=False),
    "window": dict(window=3),
    "window 1": dict(window=1),
    "window without causality": dict(causal=False, window=2),
    "scale": dict(scale=1.0),
    "softmax-1": dict(sink=0.0),
    "learned sink": dict(sink=SINK),
    "no sink": dict(sink=-np.inf),
    "segments": dict(segments=SEGMENTS, sink=SINK),
    "mask": dict(mask=MASK, causal=False),
    "mask of keys": dict(mask=MASK[:, :1], causal=False, sink=0.0),
    "mask for all rows": dict(mask=MASK[:1]),
    "everything": dict(mask=MASK, segments=SEGMENTS, window=4, sink=SINK, scale=0.7),
}


def options(case):
    given = dict(CASES[case])
    given["segment_ids_BT"] = given.pop("segments", None)
    given["mask_BTS"] = given.pop("mask", None)
    if isinstance(given.get("sink"), np.ndarray):
        given["sink"] = jnp.asarray(given["sink"])
    return given


@pytest.mark.smoke
@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("case", CASES)
def test_values_match_a_float64_loop(case, implementation):
    query, key, value, _ = inputs()
    run = functools.partial(attention, implementation=implementation, **options(case))
    ours = jax.jit(run)(query, key, value)
    by_loop = by_hand(query, key, value, **CASES[case])
    assert np.abs(ours - by_loop).max() <= TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("T", "S", "H", "G", "K"), [(1, 1, 1, 1, 1), (1, 5, 3, 3, 2), (5, 3, 6, 2, 3)]
)
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_odd_shapes(T, S, H, G, K, implementation):
    query, key, value, _ = inputs(B=3, T=T, S=S, H=H, G=G, K=K)
    for causal in (True, False):
        run = functools.partial(attention, causal=causal, implementation=implementation)
        ours = jax.jit(run)(query, key, value)
        assert (
            np.abs(ours - by_hand(query, key, value, causal=causal)).max() <= TOLERANCE["float32"]
        )


def value_and_gradients(implementation, arrays, sink=None, **options):
    query, key, value, cotangent = arrays
    arguments = (query, key, value) if sink is None else (query, key, value, sink)

    def run(query, key, value, sink=sink):
        return attention(query, key, value, sink=sink, implementation=implementation, **options)

    def both(arguments, cotangent):
        out, pull = jax.vjp(run, *arguments)
        return out, *pull(cotangent)

    return jax.jit(both)(arguments, cotangent)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, "float32") for case in CASES] + [("causal", "bfloat16"), ("everything", "bfloat16")],
)
def test_gradients_match_the_reference(case, dtype):
    arrays = inputs(dtype=dtype)
    fast = value_and_gradients("xla", arrays, **options(case))
    exact = value_and_gradients(
        "reference", [x.astype(jnp.float32) for x in arrays], **options(case)
    )
    for name, a, b in zip(("out", "query", "key", "value", "sink"), fast, exact, strict=False):
        difference = np.abs(np.asarray(a, np.float32) - b).max()
        assert difference <= TOLERANCE[dtype] * max(1, np.abs(b).max()), f"{name}: {difference}"


@pytest.mark.smoke
@pytest.mark.parametrize("T", [128, 203, 260])
@pytest.mark.parametrize("window", [None, 50])
def test_query_blocks_change_nothing(T, window):
    arrays = inputs(B=1, T=T, H=2, G=1, K=4)
    sink = jnp.array([0.0, 1.0])
    segments = (jnp.arange(T)[None] > 70).astype(int)
    settings = dict(sink=sink, window=window, segment_ids_BT=segments)
    fast = value_and_gradients("xla", arrays, **settings)
    exact = value_and_gradients("reference", arrays, **settings)
    for name, a, b in zip(("out", "query", "key", "value", "sink"), fast, exact, strict=True):
        assert np.abs(a - b).max() <= 5e-5, f"{name}: {np.abs(a - b).max()}"


def test_the_learned_sink_gradient_matches_finite_differences():
    query, key, value, cotangent = inputs()
    gradients = value_and_gradients("xla", (query, key, value, cotangent), sink=jnp.asarray(SINK))
    for head in range(4):
        step = np.zeros(4)
        step[head] = 1e-5
        up, down = (by_hand(query, key, value, sink=SINK + sign * step) for sign in (1, -1))
        slope = np.sum((up - down) * np.asarray(cotangent, np.float64)) / 2e-5
        assert gradients[4][head] == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("sink", [None, 0.0])
def test_rows_that_see_nothing_give_zero_and_finite_gradients(implementation, sink):
    arrays = inputs()
    settings = {} if sink is None else dict(sink=jnp.full(4, sink))
    out, *gradients = value_and_gradients(
        implementation, arrays, mask_BTS=jnp.zeros((1, 1, 7), bool), causal=False, **settings
    )
    assert np.all(np.asarray(out) == 0)
    assert all(np.all(np.asarray(gradient) == 0) for gradient in gradients)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_huge_scores_stay_finite(implementation, size):
    # With the maximum taken over the scores alone, softmax-1's gradient is NaN here.
    query = jnp.full((1, 3, 1, 1), size)
    ones = jnp.ones((1, 3, 1, 1))
    out, *gradients = value_and_gradients(
        implementation, (query, ones, ones, ones), sink=jnp.zeros(1)
    )
    assert all(np.isfinite(x).all() for x in (out, *gradients))
    assert np.allclose(out, 0.0 if size < 0 else 1.0)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_softmax_one_is_a_zero_key_and_value_more(implementation):
    query, key, value, _ = inputs()
    wider = [jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0))) for x in (key, value)]
    mask = np.tril(np.ones((7, 8), bool), k=1)[None]
    prepended = attention(query, *wider, causal=False, mask_BTS=jnp.asarray(mask))
    sink = attention(query, key, value, sink=0.0, implementation=implementation)
    assert np.abs(prepended - sink).max() <= TOLERANCE["float32"]


@pytest.mark.torch
def test_matches_torch():
    torch = pytest.importorskip("torch")
    arrays = inputs(B=2, T=130, H=3, G=3, K=16)
    query, key, value, cotangent = (
        torch.from_numpy(np.array(x)).transpose(1, 2).requires_grad_() for x in arrays
    )
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    theirs = (out, *torch.autograd.grad(out, (query, key, value), cotangent))
    ours = value_and_gradients("xla", arrays)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - b.detach().transpose(1, 2).numpy()).max() <= 5e-5


def test_causal_blocks_skip_what_nobody_sees():
    arrays = [jax.ShapeDtypeStruct((1, 512, 1, 32), jnp.float32)] * 3

    def flops(**options):
        run = functools.partial(attention, **options)
        analysis = jax.jit(run).lower(*arrays).compile().cost_analysis()
        return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]

    assert flops() < 0.7 * flops(causal=False)
    assert flops(window=64) < 0.5 * flops(causal=False)


def test_shapes_that_do_not_fit_are_refused():
    query, key, value, _ = inputs()
    with pytest.raises(ValueError, match="G dividing H"):
        attention(query[:, :, :3], key, value)
    with pytest.raises(ValueError, match="not one of"):
        attention(query, key, value, implementation="cuda")
    with pytest.raises(ValueError, match="mask"):
        attention(query, key, value, mask_BTS=jnp.ones((7, 7), bool))
    with pytest.raises(ValueError, match="segment_ids"):
        attention(query, key, value, segment_ids_BT=jnp.ones((2, 6), int))
    with pytest.raises(ValueError, match="query is float32 .* must be floats of four axes"):
        attention(query[0], key, value)
    with pytest.raises(ValueError, match="key is int32 .* must be floats"):
        attention(query, key.astype("int32"), value)
    with pytest.raises(ValueError, match=r"sink has shape \(3,\)"):
        attention(query, key, value, sink=jnp.zeros(3))


@pytest.mark.parametrize("window", [-1, True, 2.0])
def test_a_window_that_is_no_count_is_refused(window):
    with pytest.raises(ValueError, match=f"window is {window}; it must be a positive int"):
        attention(*inputs()[:3], window=window)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_mask_that_is_not_bool_is_refused(dtype):
    with pytest.raises(ValueError, match=f"mask is {dtype}; .* True where a key is visible"):
        attention(*inputs()[:3], mask_BTS=jnp.zeros((1, 7, 7), dtype))


@pytest.mark.parametrize("window", [7, 2**31 - 1, 2**40])
def test_a_window_beyond_the_text_is_none_whatever_its_size(window):
    def program(window):
        def loss(*arrays):
            return attention(*arrays, window=window, implementation="pallas_tpu").sum()

        return str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*inputs()[:3]))

    assert program(window) == program(None) != program(6)


def test_visible_without_limits_is_no_mask():
    assert visible(3, 3, causal=False) is None
