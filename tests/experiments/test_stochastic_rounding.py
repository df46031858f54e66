"""Rounding methods compared: figures against NumPy, the same start for all, a grid that goes on."""

import dataclasses
import functools
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from experiments import stochastic_rounding as experiment
from experiments.stochastic_rounding import methods, writes
from jaxllm import models, targets
from jaxllm.errors import UserError
from jaxllm.optim import decay_mask, make_optimizer, stochastic_round
from jaxllm.text import PRECISIONS, next_token_loss, prepare, train
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.log import NonFiniteLoss

LOW, MIDDLE, HIGH = 1e-4, 1e-3, 1e-2


def available(name):
    reason = "needs the compiler of a target that is not here"
    skip = pytest.mark.skipif(not targets.is_available(name), reason=reason)
    return pytest.param(name, marks=[pytest.mark.targets, skip])


def debug(**changes):
    return dataclasses.replace(experiment.PRESETS["debug"](), progress=False, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The debug preset, on one device: steps for eight take twice as long to compile."""
    config = debug(out=str(tmp_path_factory.mktemp("rounding")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "train", functools.partial(train, devices=jax.devices()[:1]))
        return config, experiment.main(config, "debug")


# Figures


@pytest.mark.smoke
def test_captured_is_the_projection_on_what_was_wanted():
    """Float32 sums of 3,000 products against float64 NumPy: 1e-5."""
    rng = np.random.default_rng(0)
    old = {"w": rng.normal(size=(40, 50)).astype(jnp.bfloat16), "gain": np.ones(1000, np.float32)}
    wanted = {k: rng.normal(scale=1e-3, size=v.shape).astype(np.float32) for k, v in old.items()}
    new = {k: (v.astype(np.float32) + wanted[k]).astype(v.dtype) for k, v in old.items()}
    made = np.concatenate([(new[k].astype(np.float64) - old[k].astype(np.float64)).ravel() for k in old])
    asked = np.concatenate([wanted[k].astype(np.float64).ravel() for k in old])
    changed, progress = writes.captured(old, wanted, jax.tree.map(jnp.asarray, new))
    assert float(changed) == pytest.approx(np.mean(made != 0), abs=1e-6)
    assert float(progress) == pytest.approx(made @ asked / (asked @ asked), abs=1e-5)
    assert 0.1 < float(changed) < 0.9 and abs(float(progress) - 1) > 0.01  # nothing is trivial here


LINKS = (optax.identity(), stochastic_round())
# rate: (changed, progress) to nearest, then stochastically; measured for the specification by other code.
MEASURED = {
    6e-4: (0.72, 0.997, 0.74, 1.000),
    3e-4: (0.53, 0.926, 0.57, 1.000),
    1e-4: (0.23, 0.518, 0.31, 1.001),
    3e-5: (0.07, 0.171, 0.14, 1.000),
    1e-5: (0.02, 0.058, 0.06, 0.981),
}


@pytest.mark.parametrize("rate", MEASURED)
def test_untrained_weights_lose_what_was_measured_elsewhere(rate):
    figures = [float(figure) for link in LINKS for figure in writes.write_untrained(link, rate)]
    # Both are random: the last digit, and five errors of the stochastic progress, 1e-2 at the lowest rate.
    tolerances = (0.006, 0.006, 0.006, max(0.01, 5e-7 / rate))
    for figure, measured, tolerance in zip(figures, MEASURED[rate], tolerances, strict=True):
        assert figure == pytest.approx(measured, abs=tolerance)


def is_adam(node):
    return hasattr(node, "mu")


def float64(tree):
    return [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]


def adamw(run, params, grads, opt_state, axes):
    """Return AdamW's update of each parameter in float64 NumPy, from the moments in a state of the run."""
    adam = next(part for part in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(part))
    b1, b2, t = run.optim.beta1, run.optim.beta2, int(adam.count) + 1
    rate = float(run.optim.make_schedule(run.steps)(t - 1))
    grads = float64(optax.clip_by_global_norm(run.optim.clip_norm).update(grads, optax.EmptyState())[0])
    trees = (float64(params), grads, float64(adam.mu), float64(adam.nu), jax.tree.leaves(decay_mask(axes)))
    updates = []
    for w, g, m, v, decays in zip(*trees, strict=True):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        direction = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + run.optim.eps)
        updates.append(-rate * (direction + run.optim.weight_decay * decays * w))
    return updates


@pytest.mark.parametrize("method", experiment.METHODS)
def test_every_method_wants_adamw_s_update_and_all_but_nearest_make_it(method):
    """40 steps of a matrix of bfloat16's size. Float32 against float64: 1e-3 of the largest update.

    The progress is 1 on average where what a step loses is kept or drawn, and below where it is dropped.
    """
    run = experiment.run_config(debug(steps=40), method, LOW, seed=0)
    precision, axes = PRECISIONS[run.precision], {"w": ("embed", "mlp")}
    inner = make_optimizer(run.optim, run.steps, axes)
    optimizer = precision.wrap(inner)
    params = {"w": (0.02 * jax.random.normal(jax.random.key(0), (128, 64))).astype(precision.param_dtype)}

    @jax.jit
    def step(params, state, t):
        g = jax.random.normal(jax.random.key(9), (128, 64)) + jax.random.normal(jax.random.key(t), (128, 64))
        grads = {"w": g.astype(precision.param_dtype)}
        wanted = writes.wanted_update(inner, grads, state, params)
        updates, state = optimizer.update(grads, state, params)
        new = optax.apply_updates(params, updates)
        return new, state, grads, wanted, writes.captured(params, wanted, new)

    state, progress = optimizer.init(params), []
    for t in range(40):
        new, after, grads, wanted, figures = step(params, state, t)
        if t == 20:
            dtype = jnp.float32 if precision.master_weights else precision.param_dtype
            [expected] = adamw(run, params, {"w": grads["w"].astype(dtype)}, state, axes)
            np.testing.assert_allclose(wanted["w"], expected, atol=1e-3 * np.abs(expected).max())
        params, state = new, after
        progress.append(float(figures[1]))
    if method == "bf16_nearest":
        assert np.mean(progress) < 0.9
    else:
        assert np.mean(progress) == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_the_step_observed_is_the_one_that_training_takes(finished):
    """The changes exactly; progress to 2e-3, since another program computes the gradient."""
    config, report = finished
    runs = [experiment.run_config(config, "bf16_nearest", LOW, seed) for seed in (0, 1)]
    job = prepare(runs[1], devices=jax.devices()[:1])
    with Checkpoints(Path(runs[1].out, "checkpoints")) as kept:
        state, position = kept.restore(15, job.shapes)
    batches = job.batches()
    batches.restore(position)
    batch = job.put(next(batches))
    loss = next_token_loss(job.config)
    grads = jax.jit(jax.grad(lambda params: loss(params, batch, None)[0]))(state.params)
    wanted = adamw(runs[1], state.params, grads, state.opt_state, models.axes(job.model))
    old = float64(state.params)
    new = float64(job.train_step(state, batch)[0].params)
    old, wanted, new = (np.concatenate([leaf.ravel() for leaf in part]) for part in (old, wanted, new))

    half_way, end = experiment.train_once(runs[1])["writes"]
    assert (half_way["step"], end["step"]) == (15, 30)
    assert half_way["changed"] == pytest.approx(np.mean(new != old), abs=1e-6)
    assert half_way["progress"] == pytest.approx((new - old) @ wanted / (wanted @ wanted), abs=2e-3)
    assert half_way["learning_rate"] == pytest.approx(float(runs[1].optim.make_schedule(30)(15)))
    assert end["learning_rate"] == pytest.approx(0.1 * LOW)
    both = [experiment.train_once(run)["writes"][0]["progress"] for run in runs]
    assert report.metrics["progress/bf16_nearest/0.0001"] == pytest.approx(np.mean(both))


# Methods


@pytest.mark.parametrize(
    "method, expected",
    [*dict(float32=16, mixed_o1=16, mixed_o2=16, bf16_nearest=8, bf16_sr=8, bf16_kahan=10).items()],
)
def test_bytes_per_parameter(method, expected):
    run = experiment.run_config(debug(), method, LOW, seed=0)
    assert methods.bytes_per_parameter(run) == pytest.approx(expected, abs=1e-3)  # counts and seeds


def test_all_methods_start_from_the_same_weights_and_read_the_same_batches(tmp_path):
    first = None
    for method in experiment.METHODS:
        job = prepare(experiment.run_config(debug(out=str(tmp_path)), method, LOW, seed=1))
        params = models.init(job.model, jax.random.key(job.config.seed))
        start = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), next(job.batches())
        first = start if first is None else first
        jax.tree.map(np.testing.assert_array_equal, first, start)


def test_bfloat16_methods_differ_in_the_write_alone():
    """A step from one state: the same moments, and weights a neighbour apart at most."""
    params = {"w": (0.02 * jax.random.normal(jax.random.key(0), (64, 64))).astype(jnp.bfloat16)}
    grads = {"w": jax.random.normal(jax.random.key(1), (64, 64)).astype(jnp.bfloat16)}
    moments, new = {}, {}
    for method in ("bf16_nearest", "bf16_sr", "bf16_kahan"):
        run = experiment.run_config(debug(), method, MIDDLE, seed=0)
        optimizer = make_optimizer(run.optim, run.steps, {"w": ("embed", "mlp")})
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        adam = next(part for part in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(part))
        moments[method], new[method] = (adam.mu, adam.nu), optax.apply_updates(params, updates)["w"]
    for method in ("bf16_sr", "bf16_kahan"):
        jax.tree.map(np.testing.assert_array_equal, moments["bf16_nearest"], moments[method])
    np.testing.assert_array_equal(new["bf16_kahan"], new["bf16_nearest"])  # no error is carried yet
    assert 0.05 < np.mean(np.asarray(new["bf16_sr"] != new["bf16_nearest"])) < 0.6
    a, b = (np.asarray(new[m]).astype(np.float64) for m in ("bf16_sr", "bf16_nearest"))
    np.testing.assert_allclose(a, b, rtol=2.0**-7, atol=1e-6)


# The grid


@pytest.mark.slow
def test_the_report_on_disk_is_the_report_returned_and_shows_stagnation(finished):
    config, report = finished
    folder = Path(config.out)
    written = json.loads((folder / "report.json").read_text())
    assert written == json.loads(json.dumps(dataclasses.asdict(report)))
    assert "![stagnation](stagnation.png)" in (folder / "report.md").read_text()
    assert all(math.isfinite(value) for value in report.metrics.values())
    m = report.metrics
    assert m["changed/bf16_nearest/0.0001"] < m["changed/bf16_sr/0.0001"] < m["changed/mixed_o1/0.0001"]
    assert m["heldout_loss/bf16_nearest/0.0001"] > m["heldout_loss/bf16_sr/0.0001"]


@pytest.mark.slow
def test_a_finished_run_is_not_repeated_and_another_one_is_not_taken_for_it(finished, monkeypatch):
    config, report = finished
    monkeypatch.setattr(experiment, "train", lambda run: pytest.fail(f"trained {run.out} again"))
    again = experiment.main(config, "debug")
    assert (again.metrics, again.claims) == (report.metrics, report.claims)
    asked = []

    def diverge(run):
        asked.append((run.seed, run.steps))
        raise NonFiniteLoss(1, {}, {"loss": math.nan, "grad_norm": math.nan})

    monkeypatch.setattr(experiment, "train", diverge)
    more = dataclasses.replace(config, seeds=(0, 1, 5), methods=("mixed_o1",))
    losses = [outcome["loss"] for outcome in experiment.train_grid(more)["mixed_o1", LOW]]
    assert asked == [(5, 30)] and losses[2] == math.inf and max(losses[:2]) < math.inf
    run = experiment.run_config(config, "mixed_o1", LOW, seed=0)
    longer = dataclasses.replace(run, steps=31)
    monkeypatch.setattr(sys.modules["jaxllm.kept_result"], "write_file", lambda path, content: None)
    experiment.train_once(longer)
    assert asked[1:] == [(0, 31)]


LOSSES = {
    ("mixed_o1", LOW): (5.0, 5.1, 5.2),
    ("bf16_nearest", LOW): (6.0, 6.2, 6.1),
    ("bf16_sr", LOW): (5.02, 5.11, 5.35),
    ("mixed_o1", MIDDLE): (3.0, 3.1, 3.3),
    ("bf16_nearest", MIDDLE): (3.2, 3.1, 3.3),
    ("bf16_sr", MIDDLE): (3.2, 3.3, 3.4),
    ("mixed_o1", HIGH): (2.8, 3.2, math.inf),
    ("bf16_nearest", HIGH): (math.inf, math.inf, math.inf),
    ("bf16_sr", HIGH): (2.9, 3.05, 3.28),
}


def judge(losses):
    config = debug(seeds=(0, 1, 2), learning_rates=(LOW, MIDDLE, HIGH))
    return experiment.judge_losses(config, {key: [{"loss": x} for x in row] for key, row in losses.items()})


def test_losses_are_compared_seed_by_seed_at_each_method_s_best_rate():
    part = judge(LOSSES)
    best = {name: value for name, value in part.metrics.items() if name.startswith("best_rate")}
    assert best == {"best_rate/mixed_o1": MIDDLE, "best_rate/bf16_nearest": MIDDLE, "best_rate/bf16_sr": HIGH}
    stagnates, wins_back, perplexity, times = part.claims
    for claim, a, b, scale in (
        (stagnates, LOSSES["bf16_nearest", LOW], LOSSES["mixed_o1", LOW], lambda x: x),
        (perplexity, LOSSES["bf16_sr", HIGH], LOSSES["mixed_o1", MIDDLE], np.exp),
    ):
        between = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert claim.measured == pytest.approx(scale(np.mean(np.subtract(a, b))))
        assert claim.interval == pytest.approx((scale(between.low), scale(between.high)))
    assert wins_back.measured == pytest.approx(np.mean([0.98 / 1, 1.09 / 1.1, 0.75 / 0.9]))
    assert times.measured == pytest.approx(HIGH / MIDDLE)
    assert [claim.holds for claim in part.claims] == [True, None, None, False]  # None: crosses
    assert part.sections["Held-out loss at each rate"].count("diverged") == 2


def test_claims_follow_the_figures():
    better = {("bf16_sr", HIGH): (2.5, 2.61, 2.79), ("bf16_sr", LOW): (5.0, 5.11, 5.2)}
    assert [claim.holds for claim in judge(LOSSES | better).claims] == [True, True, True, False]
    alike = {("bf16_nearest", LOW): (5.1, 5.0, 5.3)}
    assert not judge(LOSSES | alike).claims[0].holds
    slower = {("bf16_sr", HIGH): (4.0,) * 3, ("mixed_o1", LOW): (2.0,) * 3}
    times = judge(LOSSES | slower).claims[3]
    assert times.measured == pytest.approx(MIDDLE / LOW) and not times.holds


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(methods=("bf16-sr",)), "unknown method 'bf16-sr'; did you mean 'bf16_sr'?"),
        (dict(learning_rates=()), "learning_rates is empty"),
        (dict(seeds=(3,)), r"seeds is \(3,\); give two or more"),
        (dict(compiled=(("gpt-neo-6.7", "v5e-8", 8),)), "unknown model .*did you mean 'gpt-neo-6.7b'?"),
        (dict(compiled=(("gpt2", "v5e-7", 8),)), "'v5e-7' is not a slice"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(changes, message):
    with pytest.raises(UserError, match=message):
        debug(**changes)


# Compiled steps


def compiled_state(method, machine):
    """Return the bytes of weights and optimizer state in the compiled step of the smallest model."""
    breakdown = methods.compile_step(method, "gpt2-nano", machine, 8).breakdown
    return breakdown["parameters"] + breakdown["optimizer"]


@pytest.mark.parametrize("machine", [available("h100")])
def test_compiled_steps_are_compared_with_mixed_precision(machine, tmp_path):
    config = debug(seeds=(), compiled=(("gpt2-nano", machine, 8),), out=str(tmp_path))
    report = experiment.main(config)
    m, case = report.metrics, f"gpt2-nano/{machine}"
    for rival in ("mixed_o1", "mixed_o2"):
        assert m[f"ratio/memory/{case}/{rival}"] == pytest.approx(
            m[f"peak_gib/{case}/{rival}"] / m[f"peak_gib/{case}/bf16_sr"]
        )
        assert compiled_state("bf16_sr", machine) < 0.55 * compiled_state(rival, machine)
        # On a TPU a peak at this size is its program, and room that the compiler took and did not use.
        assert m[f"peak_gib/{case}/{rival}"] > m[f"peak_gib/{case}/bf16_sr"]
    memory, speed = report.claims
    assert memory.measured == pytest.approx(1 - 1 / m[f"ratio/memory/{case}/mixed_o1"])
    assert memory.holds == (memory.measured >= 0.3) and speed.holds == (speed.measured >= 1.54)


def test_a_machine_without_its_compiler_is_left_out_with_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("jaxllm.targets.topology.is_available", lambda target: False)
    part = experiment.judge_compiled(debug(compiled=(("gpt2-nano", "v5e-1", 8), ("gpt2-nano", "h100", 8))))
    assert part.claims == [] and part.metrics == {}
    text = part.sections["Compiled steps"]
    assert text.count("gpt2-nano is left out: target") == 2
    assert "pip install 'jaxllm[tpu-targets]'" in text and "pip install 'jaxllm[cuda-targets]'" in text


@pytest.mark.parametrize("machine", [available("h100x8")])
def test_the_paper_preset_s_step_compiles_for_its_machine(machine):
    """Two of its 24 layers: they are scanned, so the program is the same."""
    paper = experiment.PRESETS["paper"]()
    paper = dataclasses.replace(paper, model=dataclasses.replace(paper.model, num_layers=2))
    run = experiment.run_config(paper, "bf16_sr", 7e-4, seed=0)
    assert targets.compile_train_step(run, machine).fits


def test_every_preset_is_valid():
    """`compiled` names machines, which its config checks."""
    compiled = {name: len(make().compiled) for name, make in experiment.PRESETS.items()}
    assert compiled == {"debug": 0, "small": 0, "compiled": 6, "paper": 0}
