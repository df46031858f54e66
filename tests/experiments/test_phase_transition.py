"""The repeating source and its reader are what they say; claims follow from figures made up for them."""

import dataclasses

import numpy as np
import pytest

from experiments import phase_transition as experiment
from experiments.phase_transition import ARMS, ONE_LAYER, PENALISED, PLAIN, PRESETS, SMALL_BATCH
from experiments.phase_transition import repeating_source as source
from jaxllm.errors import UserError


def test_the_chain_and_its_repeats_are_as_drawn():
    chain, draw = source.make_source(0, 16), np.random.default_rng(0)
    tokens = source.draw_sequences(chain, draw, 4000, 40, tiled=0.0)
    pairs = np.zeros((16, 16))
    np.add.at(pairs, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    np.testing.assert_allclose(pairs / pairs.sum(1, keepdims=True), chain.bigram_VV, atol=0.02)
    tiled = source.draw_sequences(chain, draw, 400, 64)
    periods = [next((p for p in range(8, 33) if (row[p:] == row[:-p]).all()), None) for row in tiled]
    assert np.mean([p is not None for p in periods]) == pytest.approx(0.75, abs=0.07)
    assert len(set(periods)) > 20  # no fixed lag that a single layer could learn


def test_the_reader_knows_bigrams_and_no_repeats():
    """Its own surprisal predicts its times, better than that of one who also copies."""
    config = dataclasses.replace(PRESETS["small"](), held_out=400)
    reader = experiment.Reader(config, seed=0)
    own = reader.power(reader.own_surprisal)
    assert own.slopes[0] == pytest.approx(6, abs=0.6) and abs(own.slopes[1:]).max() < 0.6

    def repeats(row, t):
        return any(row[t] == row[t - p] and row[t - 1] == row[t - 1 - p] for p in range(8, min(33, t)))

    seen = np.array([[repeats(row, t) for t in range(1, 64)] for row in reader.tokens])
    copying = reader.power(np.where(seen, 0.1, reader.own_surprisal))
    assert own.delta_log_likelihood > 1.3 * copying.delta_log_likelihood > 0


@pytest.mark.slow
def test_the_penalty_is_in_the_training_loss_alone():
    import jax

    config = dataclasses.replace(PRESETS["debug"](), penalty=0.5)
    plain, penalised = (experiment.make_task(config, arm, 0) for arm in (PLAIN, PENALISED))
    params, batch = plain.init(jax.random.key(0)), next(plain.batches())
    np.testing.assert_array_equal(batch["tokens"], next(penalised.batches())["tokens"])
    of = [
        [float(task.loss(params, batch, key)[0]) for key in (None, jax.random.key(1))]
        for task in (plain, penalised)
    ]
    assert of[0][0] == of[0][1] == of[1][0] < of[1][1] - 1


def runs(copying, ppp, penalised_ppp, one_layer=0.02):
    def run(copy, power, change, seed):
        jitter = 1e-5 * seed
        names = [
            f"{head} copying, {kind}"
            for head in ("most", "least")
            for kind in ("all reacts", "patterns kept")
        ]
        return {
            "tokens": [1e5, 1e6, 1e7], "copying": copy, "ppp": [x + jitter for x in power], "null": 0.02,
            "loss": [3.0] * 3, "repeat_loss": [4.0] * 3, "ablated": dict.fromkeys(names, change + jitter),
        }  # fmt: skip

    arms = {
        PLAIN: (copying, ppp, 0.0), SMALL_BATCH: (copying, ppp, 0.0),
        PENALISED: ([0.02] * 3, penalised_ppp, 0.0), ONE_LAYER: ([one_layer] * 3, [0.003] * 3, 0.0),
    }  # fmt: skip
    return {arm: [run(*values, seed) for seed in range(3)] for arm, values in arms.items()}


def test_claims_follow_the_curves():
    found = experiment.claims(runs([0.02, 0.03, 0.6], [0.003, 0.002, 0.0], [0.001, 0.002, 0.002]))
    assert [claim.holds for claim in found] == [True, True, True, True, False, True, True, True, True]
    turned = experiment.claims(
        runs([0.02, 0.5, 0.6], [0.0, 0.001, 0.003], [0.001, 0.002, 0.002], one_layer=0.3)
    )
    assert [claim.holds for claim in turned[:6]] == [False, False, True, False, False, False]


def test_a_context_too_short_for_a_repeat_is_refused():
    with pytest.raises(
        UserError, match="context_length is 32; a span of 32 tokens must come twice, so give 64"
    ):
        dataclasses.replace(PRESETS["small"](), context_length=32)
    with pytest.raises(UserError, match="unknown arm '3 layers'"):
        dataclasses.replace(PRESETS["small"](), arms=("3 layers",))


@pytest.mark.slow
def test_the_debug_preset_runs_and_keeps_its_runs(tmp_path):
    config = dataclasses.replace(PRESETS["debug"](), out=str(tmp_path))
    report = experiment.main(config, "debug")
    again = experiment.main(config, "debug")
    assert again.metrics == report.metrics and again.seconds < report.seconds / 2
    assert report.metrics["2 layers/copying"] < 0.1 and (tmp_path / "transition.png").stat().st_size > 10_000
    assert set(ARMS) > {"2 layers"}
