"""Edits along a probe's gradient and their controls: norms and displacements, slopes, and an oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.interpret import LinearProbe, MLPProbe, fit_ridge, matched_edits, probe_errors

B, D = 64, 24
DRAW = np.random.default_rng(0)
X = (DRAW.normal(size=(B, D)) * DRAW.uniform(0.5, 4, D)).astype(np.float32)
W, OTHER = (DRAW.normal(size=(D, 3)).astype(np.float32) for _ in range(2))
PROBE, SHUFFLED = LinearProbe(W, np.ones(3, np.float32)), LinearProbe(OTHER, np.zeros(3, np.float32))
TARGET = DRAW.normal(size=(B, 3)).astype(np.float32)
KEY = jax.random.key(3)


def moved(displacement, **options):
    return {k: np.asarray(v, np.float64) for k, v in matched_edits(
        PROBE, SHUFFLED, X, TARGET, displacement, key=KEY, **options)._asdict().items()}  # fmt: skip


@pytest.mark.parametrize("away", [False, True])
def test_every_edit_keeps_norms_and_goes_exactly_as_far(away):
    """To 1e-5 of a state's length, from small steps to the opposite side, one distance a sample too."""
    size = np.linalg.norm(X, axis=1)
    for far in (0.02, 0.5, 1.9, np.linspace(0.01, 2, B).astype(np.float32)):
        found = moved(far, away=away)
        went = np.linalg.norm(found["gradient"] - X, axis=1) / size
        assert (went < far + 2e-5).all() and (went > far / 8 - 2e-5).all()
        if away:
            np.testing.assert_allclose(went, far, atol=2e-5)
        for name, y in found.items():
            np.testing.assert_allclose(np.linalg.norm(y, axis=1) / size, 1, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(np.linalg.norm(y - X, axis=1) / size, went, atol=2e-5, err_msg=name)


def test_a_walk_towards_a_target_ends_where_the_probe_is_nearest():
    """By hand: the walk is run with 1, 2, ... steps, and ends after the one with the least error."""
    found = moved(1.0)["gradient"]
    size = np.linalg.norm(X, axis=1, keepdims=True)
    y, errors, chords = X.astype(np.float64), [], []
    for share in np.arange(1, 9) / 8:
        slope = -(y @ W + 1 - TARGET) @ W.T
        ahead = y + size / 8 * slope / np.linalg.norm(slope, axis=1, keepdims=True)
        unit = X / size
        across = ahead - np.sum(ahead * unit, 1, keepdims=True) * unit
        angle = 2 * np.arcsin(share / 2)
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        y = size * (np.cos(angle) * unit + np.sin(angle) * across)
        errors.append(np.mean((y @ W + 1 - TARGET) ** 2, axis=1))
        chords.append(np.linalg.norm(y - X, axis=1) / size[:, 0])
    best = np.argmin(errors, axis=0)
    assert len(set(best)) > 3
    went = np.linalg.norm(found - X, axis=1) / size[:, 0]
    agree = np.abs(went - np.array(chords)[best, np.arange(B)]) < 1e-4
    assert agree.mean() > 0.95  # of two steps that are nearly as good float32 may take the other


def test_the_slope_is_the_closed_form_and_controls_are_what_they_say():
    """One small step in float64 by hand: 2 (x w + b - y) w' / O, tangent to the sphere."""
    tiny = {name: y - X for name, y in moved(1e-2, steps=1).items()}
    error = X.astype(np.float64) @ W + 1 - TARGET
    slope = -2 * error @ W.T / 3
    shuffled = -2 * (X.astype(np.float64) @ OTHER - TARGET) @ OTHER.T / 3
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)

    def cosine(one, other):
        one, other = (z - np.sum(z * unit, 1, keepdims=True) * unit for z in (one, other))
        return np.sum(one * other, 1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)

    np.testing.assert_allclose(cosine(tiny["gradient"], slope), 1, atol=1e-4)
    np.testing.assert_allclose(cosine(tiny["shuffled"], shuffled), 1, atol=1e-4)
    each = np.stack([cosine(tiny["another"], np.roll(slope, i, axis=0)) for i in range(B)])
    assert (each.argmax(0) > 0).all() and (each.max(0) > 0.9999).all()  # some sample's, never one's own
    # Only what keeping the norm takes, the second order of the step, is seen by the probe.
    assert np.abs(tiny["orthogonal"] @ W).max() < 2e-4 * np.abs(X @ W).max()
    up = {name: y - X for name, y in moved(1e-2, steps=1, away=True).items()}
    np.testing.assert_allclose(cosine(up["gradient"], -slope), 1, atol=1e-4)


def test_errors_fall_towards_and_rise_away_and_a_network_is_a_probe_too():
    network = MLPProbe(*(DRAW.normal(size=s).astype(np.float32) for s in ((D, 8), (1, 8), (8, 3), (1, 3))))
    for probe in (PROBE, network):
        before = probe_errors(probe, X, TARGET)
        for away in (False, True):
            edits = matched_edits(probe, probe, X, TARGET, 0.02, key=KEY, away=away)
            after = probe_errors(probe, edits.gradient, TARGET)
            assert np.mean(after > before if away else after < before) > 0.95
            np.testing.assert_allclose(edits.shuffled, edits.gradient, atol=1e-5)


def test_an_oracle_that_reads_places_is_told_from_one_that_reads_something_else():
    """Of two read-outs of the same states one uses what the probe finds. Their verdicts must differ.

    Both break under large displacements; at matched ones only the first breaks more along the gradient.
    """
    draw = np.random.default_rng(5)
    place, other = (draw.normal(size=(400, 3)) for _ in range(2))
    place, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (place, other))
    mix = np.linalg.qr(draw.normal(size=(D, D)))[0]
    x = np.hstack([place, other, 0.3 * draw.normal(size=(400, D - 6))]) @ mix
    probe = fit_ridge(x, place, penalties=(1e-3,)).probe
    shuffled = fit_ridge(x, draw.permutation(place), penalties=(1e-3,)).probe
    centres = draw.normal(size=(12, 3))
    lost = {}
    for name, columns in (("place", mix[:3].T), ("other", mix[3:6].T)):
        country = np.argmax(x @ columns @ centres.T, axis=1)
        edits = matched_edits(probe, shuffled, x, place, 0.4, key=KEY, away=True)
        for arm, y in edits._asdict().items():  # away: no walk ends early
            lost[name, arm] = np.mean(np.argmax(np.asarray(y) @ columns @ centres.T, 1) != country)
    controls = ("random", "orthogonal", "shuffled")
    assert lost["place", "gradient"] > max(lost["place", arm] for arm in controls) + 0.3
    assert lost["other", "gradient"] < max(lost["other", arm] for arm in controls) + 0.05


def test_states_on_target_take_one_step_and_nothing_is_divided_by_zero():
    """Of eight; the walk ends where the next one would lead away."""
    exact = np.asarray(PROBE(X))
    edits = matched_edits(PROBE, SHUFFLED, X, exact, 0.3, key=KEY)
    assert all(np.isfinite(y).all() for y in edits)
    moved = np.linalg.norm(edits.gradient - X, axis=1)
    assert (moved <= 1.01 * 0.3 / 8 * np.linalg.norm(X, axis=1)).all()


def test_bad_input_is_told_in_one_sentence():
    def edit(x=X, target=TARGET, displacement=0.1, probe=PROBE, **options):
        return matched_edits(probe, SHUFFLED, x, target, displacement, key=KEY, **options)

    for far in (0, -1, 2.1, float("nan"), np.ones(3)):
        with pytest.raises(UserError, match="displacement is .*; it must be above 0 and at most 2"):
            edit(displacement=far)
    with pytest.raises(UserError, match="of two samples at least: one of the controls is another sample's"):
        edit(x=X[:1], target=TARGET[:1])
    with pytest.raises(UserError, match=r"states have shape \(64, 24\) and targets \(63, 3\)"):
        edit(target=TARGET[1:])
    with pytest.raises(UserError, match=r"the probe predicts \(64, 3\) and targets have shape \(64, 2\)"):
        edit(target=TARGET[:, :2])
    with pytest.raises(UserError, match="steps is 0; it must be a whole number from 1 on"):
        edit(steps=0)
    traced = jax.jit(lambda far: edit(displacement=far).random)(jnp.float32(0.1))
    np.testing.assert_allclose(traced, edit().random, rtol=1e-5, atol=1e-6)
