"""Attention and its gradients in float64 NumPy, and the inputs that the tests of attention share."""

from typing import NamedTuple

import numpy as np


class Call(NamedTuple):
    """One call of attention, with cotangents for the output and the logsumexp."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    d_out: np.ndarray
    d_lse: np.ndarray
    sink: np.ndarray | None
    segments: np.ndarray | None
    causal: bool
    window: int | None

    @property
    def options(self):
        return dict(scale=self.query.shape[3] ** -0.5, causal=self.causal, window=self.window)


class Answer(NamedTuple):
    out: np.ndarray  # [B, T, H, K]
    lse: np.ndarray  # [B, H, T], -inf where nothing is visible
    d_query: np.ndarray
    d_key: np.ndarray
    d_value: np.ndarray
    d_sink: np.ndarray | None
    probs: np.ndarray  # [B, H, T, S]


def make_call(
    B=1, T=7, S=None, H=2, G=None, K=8, causal=True, window=None, segmented=False, sink=None, seed=0
) -> Call:
    """Draw a call; sink is None, "learned" or a number."""
    rng = np.random.default_rng(seed)
    S, G = S or T, G or H
    if sink is not None:
        sink = rng.normal(size=H) if sink == "learned" else np.full(H, float(sink))
    segments = np.sort(rng.integers(0, 3, (B, T)), axis=1) if segmented else None
    query, d_out = rng.normal(size=(2, B, T, H, K))
    key, value = rng.normal(size=(2, B, S, G, K))
    d_lse = rng.normal(size=(B, H, T))
    arrays = [x.astype(np.float32) for x in (query, key, value, d_out, d_lse)]
    return Call(*arrays, sink, segments, causal, window)


def answer(call: Call) -> Answer:
    """Compute attention and the gradients of sum(out d_out) + sum(lse d_lse), whole matrices at once."""
    q, k, v, d_out, d_lse = (np.asarray(x, np.float64) for x in call[:5])
    H, (S, G) = q.shape[2], k.shape[1:3]
    scale = call.options["scale"]
    k_all, v_all = (np.repeat(x, H // G, axis=2) for x in (k, v))
    scores = np.einsum("bthk,bshk->bhts", q, k_all) * scale
    t, s = np.arange(q.shape[1])[:, None], np.arange(S)[None]
    seen = np.ones((1, 1, len(t), S), bool)
    if call.causal:
        seen = seen & (s <= t)
    if call.window:
        seen = seen & (t - s < call.window)
    if call.segments is not None:
        seen = seen & (call.segments[:, :, None] == call.segments[:, None])[:, None]
    scores = np.where(seen, scores, -np.inf)
    sink = np.full(H, -np.inf) if call.sink is None else np.asarray(call.sink, np.float64)
    top = np.maximum(scores.max(axis=-1), sink[:, None])
    top = np.where(np.isfinite(top), top, 0.0)
    weight, sink_weight = np.exp(scores - top[..., None]), np.exp(sink[:, None] - top)
    total = weight.sum(axis=-1) + sink_weight
    with np.errstate(divide="ignore"):
        lse = top + np.log(total)
    total = np.where(total == 0, 1.0, total)
    probs, sink_probs = weight / total[..., None], sink_weight / total
    out = np.einsum("bhts,bshk->bthk", probs, v_all)
    d_probs = np.einsum("bthk,bshk->bhts", d_out, v_all)
    mean = (probs * d_probs).sum(axis=-1) - d_lse
    d_scores = probs * (d_probs - mean[..., None]) * scale
    shape = (*k.shape[:3], H // G, k.shape[3])
    return Answer(
        out=out,
        lse=lse,
        d_query=np.einsum("bhts,bshk->bthk", d_scores, k_all),
        d_key=np.einsum("bhts,bthk->bshk", d_scores, q).reshape(shape).sum(axis=3),
        d_value=np.einsum("bhts,bthk->bshk", probs, d_out).reshape(shape).sum(axis=3),
        d_sink=None if call.sink is None else -(sink_probs * mean).sum(axis=(0, 2)),
        probs=probs,
    )


def assert_close(ours, call: Call, tolerance: float):
    """Compare (out, lse, d_query, d_key, d_value, d_sink) with the oracle, naming what is off.

    The difference allowed is the tolerance times the oracle's largest number, or 1.
    """
    right = answer(call)
    for name, mine in zip(("out", "lse", "d_query", "d_key", "d_value", "d_sink"), ours, strict=True):
        exact = getattr(right, name)
        if exact is None:
            assert mine is None, name
            continue
        mine = np.asarray(mine, np.float64)
        finite = np.isfinite(exact)
        if name == "lse":
            mine = np.where(mine < -1e29, -np.inf, mine)
            assert np.array_equal(np.isfinite(mine), finite), "lse: -inf at other places"
        difference = np.abs(mine[finite] - exact[finite]).max(initial=0.0)
        assert difference <= tolerance * max(1.0, np.abs(exact[finite]).max(initial=0.0)), (
            f"{name}: differs by {difference}"
        )
