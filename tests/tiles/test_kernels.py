"""Tile kernels against NumPy in float64 and jax's own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.tiles import kernels
from jaxllm.tiles.access import Mode
from jaxllm.tiles.graph import Kernel


@pytest.fixture(params=[pytest.param("float32", marks=pytest.mark.slow), "float64"])
def tolerance(request):
    """How far results may be from NumPy's, relative to the largest; computes in that type."""
    with jax.enable_x64(request.param == "float64"):
        yield {"float32": 1e-5, "float64": 1e-12}[request.param]


@pytest.fixture
def draw(tolerance):
    drawn = np.random.default_rng(0)  # so that no two arrays are equal
    return lambda *shape: drawn.normal(size=shape).astype("float64" if tolerance < 1e-6 else "float32")


def close(got, want, tolerance):
    want = np.asarray(want, np.float64)
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=tolerance * max(1, np.abs(want).max()))


def softmax(x):
    """Return softmax over the last axis, zeros for rows that are all masked."""
    x = x.astype(np.float64)
    e = np.exp(x - np.where(np.isinf(x.max(-1, keepdims=True)), 0, x.max(-1, keepdims=True)))
    return e / np.where(e.sum(-1, keepdims=True) == 0, 1, e.sum(-1, keepdims=True))


def test_softmax_in_parts_merged_in_any_order(draw, tolerance):
    x = 30 * draw(4, 23)
    x[0, 5:] = -np.inf
    x[1] = -np.inf
    x[2, :8] = -np.inf  # all of the first part
    parts = [kernels._maxsumexp(jnp.asarray(part))[0] for part in np.split(x, [8, 9, 20], axis=1)]
    kept = [0, 2, 3]
    logsumexp = np.logaddexp.reduce(x.astype(np.float64), axis=1)
    for seed in range(4):
        state = jnp.zeros((4, 2), x.dtype)
        for i in np.random.default_rng(seed).permutation(4):
            state = kernels.merge_maxsumexp(state, parts[i])
        close(kernels._softmax(state, x)[0], softmax(x), tolerance)
        m, s = np.asarray(state).T
        close(m[kept] + np.log(s[kept]), logsumexp[kept], tolerance)


def test_moments_in_parts_merged_in_any_order(draw, tolerance):
    x = draw(5, 3, 29) + 100
    parts = [kernels._moments(jnp.asarray(part))[0] for part in np.split(x, [4, 5, 20], axis=2)]
    x = x.astype(np.float64)
    want = np.stack([np.full((5, 3), 29.0), x.mean(-1), ((x - x.mean(-1, keepdims=True)) ** 2).sum(-1)], -1)
    for seed in range(4):
        state = jnp.zeros((5, 3, 3), parts[0].dtype)
        for i in np.random.default_rng(seed).permutation(4):
            state = kernels.merge_moments(state, parts[i])
        close(state, want, tolerance)


def test_layer_norm_and_its_gradient(draw, tolerance):
    x, scale, bias, dy = jnp.asarray(draw(2, 3, 11)), draw(11), draw(11), draw(2, 3, 11)
    (state,) = kernels._moments(x)

    def norm(x, scale, bias):
        t = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scale * t + bias

    want, back = jax.vjp(norm, x, scale, bias)
    close(kernels._normalize(x, state, scale, bias, eps=1e-5)[0], want, tolerance)
    sums, dscale, dbias = kernels._norm_sums(x, state, scale, dy, eps=1e-5)
    (dx,) = kernels._norm_backward(x, state, scale, dy, sums, eps=1e-5)
    for got, want in zip((dx, dscale, dbias), back(jnp.asarray(dy)), strict=True):
        close(got, want, 3 * tolerance)


def test_gelu_is_the_published_formula(draw, tolerance):
    z = draw(50)
    want = z / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * z.astype(np.float64) * (1 + 0.044715 * z**2)))
    close(kernels._gelu(z)[0], want, tolerance)
    dy = draw(50)
    (got,) = kernels._gelu_backward(jnp.asarray(z), jnp.asarray(dy))
    near = dy * (kernels._gelu(z + 1e-3)[0] - kernels._gelu(z - 1e-3)[0]) / 2e-3
    np.testing.assert_allclose(got, near, atol=1e-3)


@pytest.mark.parametrize("turned_a, turned_b", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_tiles_as_matrices(draw, tolerance, turned_a, turned_b):
    a, b = draw(6, 2, 3, 4), draw(12, 5)
    a = a.reshape(12, 3, 4) if not turned_a else a.reshape(12, 12)
    b = b if not turned_b else b.T
    bias, rest = draw(5), draw(12, 5)
    (got,) = kernels._gemm(a, b, bias, rest, a_rows=1, b_rows=1, transpose_a=turned_a, transpose_b=turned_b)
    left = a.reshape(12, 12).T if turned_a else a.reshape(12, 12)
    close(got, left.astype(np.float64) @ (b.T if turned_b else b) + bias + rest, tolerance)


def test_embedding_of_a_table_in_parts(draw, tolerance):
    table, ids, dx = draw(10, 4), np.array([[0, 3, 9, 3], [7, 4, 3, 0]]), draw(2, 4, 4)
    parts = [(0, table[:4]), (4, table[4:8]), (8, table[8:])]
    close(sum(kernels._embedding(ids, part, start)[0] for start, part in parts), table[ids], tolerance)
    want = np.zeros((10, 4))
    np.add.at(want, ids, dx)
    got = [kernels._embedding_backward(ids, dx, start, rows=len(part))[0] for start, part in parts]
    close(np.concatenate(got), want, tolerance)


def test_cross_entropy_of_logits_in_parts(draw, tolerance):
    logits, weights = 5 * draw(2, 3, 13), np.array([[1, 0.5, 0], [0, 1, 2]])
    targets = np.array([[12, 0, 3], [-100, 5, 7]])
    pieces = [(0, logits[..., :5]), (5, logits[..., 5:])]
    state = kernels.merge_maxsumexp(*(kernels._maxsumexp(jnp.asarray(p))[0] for _, p in pieces))
    results = [kernels._cross_entropy(state, targets, weights, 4.5, start, part) for start, part in pieces]
    probs = softmax(logits)
    rows, columns = np.ogrid[:2, :3]
    log_probs = np.log(probs[rows, columns, np.maximum(targets, 0)])
    close(sum(loss for _, loss in results), -np.sum(weights * log_probs), tolerance)
    hit = np.arange(13) == targets[..., None]
    want = (probs - hit) * weights[..., None] / 4.5
    close(np.concatenate([gradient for gradient, _ in results], -1), want, tolerance)


def test_masked_scores_and_what_attention_makes_of_them(draw, tolerance):
    q, k, v = draw(2, 3, 2, 4), draw(2, 5, 2, 4), draw(2, 5, 2, 5)
    segments_q, segments_k = np.array([[0, 0, 1], [1, 1, 1]]), np.array([[0, 0, 0, 0, 1], [2, 1, 1, 1, 1]])
    raw = 0.5 * np.einsum("bthk,bshk->bhts", q.astype(np.float64), k)
    seen = (np.arange(3)[:, None] + 1 >= np.arange(5)) & (segments_q[:, :, None] == segments_k[:, None])
    want = softmax(np.where(seen[:, None], raw, -np.inf))
    scores, state = kernels._scores(q, k, segments_q, segments_k, scale=0.5, diagonal=1)
    probs, y = kernels._mix(v, state, scores)
    close(probs, want, tolerance)
    close(y, np.einsum("bhts,bshk->bthk", want, v), tolerance)
    flash = kernels._flash_state(q, k, segments_q, segments_k, scale=0.5, diagonal=1)[0]
    close(kernels._flash_mix(q, k, segments_q, segments_k, v, flash, scale=0.5, diagonal=1)[0], y, tolerance)


@pytest.mark.parametrize("clip", [None, 0.0, 0.7])
def test_adamw_is_optax_s_with_the_second_moment_as_its_root(draw, tolerance, clip):
    p = jnp.asarray(draw(6, 5))
    optimizer = optax.adamw(1e-2, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3)
    if clip:
        optimizer = optax.chain(optax.clip_by_global_norm(clip), optimizer)
    state, want, got, moments = optimizer.init(p), p, p, ()
    options = dict(b1=0.8, b2=0.95, eps=1e-6, decay=0.3, clip=clip)
    for t in range(1, 4):
        gradient = jnp.asarray(t * draw(6, 5) ** t)
        updates, state = optimizer.update(gradient, state, want)
        want = optax.apply_updates(want, updates)
        rates = np.array([1e-2, 1 - 0.8**t, 1 - 0.95**t], p.dtype)
        norm = () if clip is None else (jnp.sum(gradient**2), False)
        got, *moments = kernels._adamw(gradient, rates, *norm, got, *moments, first=t == 1, **options)
    close(got, want, tolerance)
    nu = optax.tree_utils.tree_get(state, "nu")
    close(moments[1] ** 2, nu, tolerance)


def test_a_failed_step_changes_nothing(draw):
    p, m, r = draw(4), draw(4), draw(4)
    rates, options = np.ones(3), dict(b1=0.9, b2=0.99, eps=1e-8, decay=0.1, clip=1.0, first=False)
    failed, updates = kernels._judge(1.0, jnp.inf, 0.0, False, 7)
    assert failed and updates == 7 and kernels._judge(1.0, 2.0, 0.0, False, 7)[1] == 8
    assert kernels._judge(1.0, 2.0, 1.0, False, 7)[0]
    got = kernels._adamw(draw(4) * np.nan, rates, jnp.inf, failed, p, m, r, **options)
    for new, old in zip(got, (p, m, r), strict=True):
        np.testing.assert_array_equal(new, old)


def test_parameters_that_an_update_would_spoil_are_counted_before_it(draw):
    p, m, r = draw(5), draw(5), abs(draw(5))
    gradient = draw(5)
    m[:2] = r[:2] = gradient[:2] = 0  # 0 / (0 + eps)
    m[2] = np.nan
    options = dict(b1=0.9, b2=0.99, decay=0.1, clip=1.0, first=False)

    def unsound(rates, eps):
        return int(kernels._adamw_unsound(gradient, rates, jnp.float32(4), p, m, r, eps=eps, **options)[0])

    assert unsound(np.ones(3), 1e-8) == 1 and unsound(np.ones(3), 0.0) == 3
    assert unsound(np.array([np.inf, 1, 1]), 1e-8) == 5


def test_parts_are_merged_into_accumulators_and_the_first_is_one():
    shapes = (((3, 2), "float32"),) * 2
    x, total = jnp.arange(6.0).reshape(3, 2), jnp.ones((3, 2))
    scale = kernels.Op("scale", lambda x: (2 * x,))
    first = kernels.compiled(Kernel(scale, (), (Mode.R, Mode.W), shapes))
    more = kernels.compiled(Kernel(scale, (), (Mode.R, Mode.COMMUTE), shapes))
    np.testing.assert_array_equal(first(x)[0], 2 * x)
    np.testing.assert_array_equal(more(x, total)[0], 1 + 2 * np.arange(6).reshape(3, 2))
    assert total.is_deleted() and not x.is_deleted()
