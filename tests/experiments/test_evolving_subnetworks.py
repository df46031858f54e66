"""EST and its controls: equal FLOPs, claims that follow the figures, a grid that goes on."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from experiments import evolving_subnetworks as experiment
from experiments.benchmarks import subnetworks as benchmark
from jaxllm import targets
from jaxllm.errors import UserError
from jaxllm.models import get_preset
from jaxllm.subnetwork import Savings
from jaxllm.targets.train_step import with_vocabulary
from jaxllm.text import prepare

EST = "est-gpt2-like"


def debug(**changes):
    return dataclasses.replace(experiment.PRESETS["debug"](), progress=False, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The debug preset, of which one run of EST is trained and timed and the others are made up."""
    config = debug(out=str(tmp_path_factory.mktemp("subnetworks")))
    model = dataclasses.replace(config.model, attention_implementation="reference")  # compiles quickly
    config = dataclasses.replace(config, model=model)
    job = functools.cache(functools.partial(prepare, devices=jax.devices()[:1]))
    train_once, time_steps = experiment.train_once, experiment.time_steps

    def trained(run, zero_shot):
        if run.subnetwork == EST and run.seed == 0:
            return train_once(run, zero_shot)
        made_up = dict.fromkeys(("loss", "bits_per_byte", "zero_shot_bits_per_byte"), 3.0 + run.seed)
        return made_up | dict(curve=[[5, 4.0], [10, 3.5], [run.steps, 3.0]], train=[3.0] * run.steps)

    def timed(arms, rounds):
        others = {arm: [0.1] * len(experiment.stages_of(run)) for arm, run in arms.items()}
        run = dataclasses.replace(arms[EST], out=str(Path(config.out, EST, "seed-0")))
        return others | time_steps({EST: run}, rounds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "prepare", lambda run: job(run))
        patch.setattr("jaxllm.text.training.prepare", lambda run, **_: job(run))
        patch.setattr(experiment, "train_once", trained)
        patch.setattr(experiment, "time_steps", timed)
        yield config, experiment.main(config, "debug")


def arms_of(config):
    return experiment.make_arms(with_vocabulary(config))


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_every_control_is_given_the_flops_of_est(preset):
    """Counted step by step; to one step of the arm."""
    arms = arms_of(experiment.PRESETS[preset]())
    spent = {arm: experiment.so_far(run, experiment.flops(run)) for arm, run in arms.items()}
    for arm, run in arms.items():
        assert len(spent[arm]) == run.steps + 1 and spent[arm][0] == 0 and np.all(np.diff(spent[arm]) > 0)
        if arm != "plain":
            a_step = run.model.flops_per_token(run.seq_len) * run.tokens_per_step
            assert abs(spent[arm][-1] - spent[EST][-1]) <= a_step
    assert arms["plain"].steps == arms[EST].steps > arms["shorter"].steps
    assert arms["smaller"].model.num_layers < arms["plain"].model.num_layers
    # Their schedules of the learning rate end where they end.
    rates = arms["shorter"].optim.make_schedule(arms["shorter"].steps)
    final = arms["plain"].optim
    assert float(rates(arms["shorter"].steps)) == pytest.approx(final.learning_rate * final.final_fraction)


def test_costs_change_where_the_stages_do():
    run = dataclasses.replace(arms_of(debug())[EST], steps=15)
    total = experiment.so_far(run, [1.0, 10.0, 100.0])
    np.testing.assert_allclose(total, np.cumsum([0, 1, 1, *[10] * 5, *[100] * 8]))


@pytest.mark.slow
def test_the_report_on_disk_is_the_report_returned(finished):
    config, report = finished
    folder = Path(config.out)
    written = json.loads((folder / "report.json").read_text())
    assert written == json.loads(json.dumps(dataclasses.asdict(report)))
    assert "![loss](loss.png)" in (folder / "report.md").read_text()
    assert all(math.isfinite(value) for value in report.metrics.values())
    m = report.metrics
    assert m[f"petaflops/{EST}"] < m["petaflops/plain"]
    assert m[f"saved/blocks/{EST}"] == pytest.approx(0.2667, abs=1e-4)
    steps = [m[f"step_ms/{EST}/stage-{i}"] / 1e3 for i in (1, 2, 3)]
    assert m[f"seconds/{EST}"] == pytest.approx(np.dot(steps, [2, 5, 8]))
    assert m[f"saved/seconds/{EST}"] == pytest.approx(1 - m[f"seconds/{EST}"] / 1.5)


@pytest.mark.slow
def test_one_outcome_is_of_the_whole_model_and_is_not_measured_again(finished, monkeypatch):
    config, report = finished
    outcome = json.loads(Path(config.out, EST, "seed-0", "outcome.json").read_text())["result"]
    assert outcome["loss"] < math.log(257) - 0.1  # what an untrained model scores
    assert [step for step, _ in outcome["curve"]] == [5, 10, 15] and len(outcome["train"]) == 15
    assert outcome["bits_per_byte"] == pytest.approx(
        outcome["loss"] / math.log(2), rel=0.02
    )  # bytes, and ends
    assert outcome["zero_shot_bits_per_byte"] > outcome["bits_per_byte"]
    monkeypatch.setattr(experiment, "train", lambda run: pytest.fail(f"trained {run.out} again"))
    again = experiment.main(config, "debug")
    for name in report.metrics:
        if "seconds" not in name and "step_ms" not in name:
            assert again.metrics[name] == report.metrics[name], name


LOSSES = {
    "plain": (3.0, 3.1, 3.2),
    EST: (2.95, 3.06, 3.15),
    "shorter": (3.1, 3.2, 3.31),
    "smaller": (2.9, 3.2, 3.4),
}


def judge(losses, zero_shot=None):
    config = debug(seeds=(0, 1, 2))
    arms = arms_of(config)
    outcomes = {
        arm: [
            dict(loss=loss, bits_per_byte=loss / 2, zero_shot_bits_per_byte=(zero_shot or losses)[arm][i],
                 curve=[[5, 5.0], [10, 4.0], [15, loss]], train=[6.0] * 2 + [5.0] * 5 + [4.5] * 8)
            for i, loss in enumerate(losses[arm])
        ]
        for arm in arms
    }  # fmt: skip
    seconds = {arm: [1.0] * len(experiment.stages_of(run)) for arm, run in arms.items()}
    saved = {EST: Savings(0.2667, 0.24)}
    return experiment.judge(config, arms, outcomes, seconds, saved)


def test_claims_follow_the_figures_seed_by_seed():
    metrics, claims, _ = judge(LOSSES)
    saved, no_increase, zero_shot, shorter, smaller = claims
    assert [claim.holds for claim in claims] == [True, True, True, True, None]  # -0.49 to 0.26
    for claim, rival in ((no_increase, "plain"), (shorter, "shorter"), (smaller, "smaller")):
        between = stats.ttest_rel(LOSSES[EST], LOSSES[rival]).confidence_interval(0.95)
        assert claim.measured == pytest.approx(np.mean(np.subtract(LOSSES[EST], LOSSES[rival])))
        assert claim.interval == pytest.approx((between.low, between.high))
    worse = {EST: (3.1, 3.2, 3.3)}
    assert [claim.holds for claim in judge(LOSSES | worse)[1]] == [True, False, False, None, None]
    assert not judge(LOSSES, zero_shot=LOSSES | worse)[1][2].holds
    # Steps 3 to 7 against the two before, 8 to 12 against 3 to 7; evaluations at 5, 10, 15.
    assert metrics[f"switch/{EST}/1/train"] == pytest.approx(-1.0)
    assert metrics[f"switch/{EST}/2/train"] == pytest.approx(-0.5)
    assert metrics[f"switch/{EST}/2/heldout"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(schedules=()), "at least one schedule"),
        (dict(subnetwork=EST), "in schedules alone"),
        (dict(schedules=("est-gpt2",)), "did you mean 'est-gpt2-like'"),
        (dict(seeds=(3,)), r"seeds is \(3,\); give two or more"),
        (dict(timing_rounds=0), "timing_rounds is 0"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(changes, message):
    with pytest.raises(UserError, match=message):
        debug(**changes)


def test_python_s_reference_is_english_text(tmp_path):
    rows = experiment.write_reference(tmp_path / "reference.jsonl").read_text().splitlines()
    words = " ".join(json.loads(row)["text"] for row in rows).split()
    assert len(words) > 50_000 and words.count("the") > 0.03 * len(words)


# Compiled steps


def available(name):
    reason = "needs the compiler of a target that is not here"
    skip = pytest.mark.skipif(not targets.is_available(name), reason=reason)
    return pytest.param(name, marks=[pytest.mark.targets, skip])


@pytest.fixture(scope="module")
def compiled_claims():
    """Stages of 4 layers of GPT-2 on an H100; on v5e, and of all 12: benchmarks/subnetworks.py."""
    run = benchmark.run_there(dataclasses.replace(benchmark.SubnetworksConfig(), target_batch_size=32))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, num_layers=4))
    metrics, claims = {}, []
    benchmark._compile(run, "h100", benchmark._flops_saved(run, "h100", metrics), metrics, claims)
    return claims


WIDE = pytest.mark.xfail(strict=True, reason="0.76: the whole step got faster once its layers ran unstacked")


@pytest.mark.parametrize("machine", [available("h100")])
@pytest.mark.parametrize("stage", ["small", pytest.param("wide", marks=WIDE)])
def test_a_compiled_stage_takes_its_part_of_memory_and_time_off(stage, machine, compiled_claims):
    claims = [claim for claim in compiled_claims if f"compiled for {machine}, {stage}" in claim.claim]
    assert len(claims) == {"small": 2, "wide": 1}[stage]
    assert all(claim.holds for claim in claims), claims


@pytest.mark.parametrize("machine", [available("h100x8")])
def test_the_paper_preset_s_stages_compile_for_its_machine(machine):
    """Two of its 12 layers, so that they compile soon."""
    run = arms_of(experiment.PRESETS["paper"]())[EST]
    run = dataclasses.replace(run, model=get_preset("gpt2", num_layers=2))
    job = benchmark.prepare_shapes(run, devices=targets.devices(targets.get_target(machine)))
    for _, step in job.steps:
        assert targets.compile(step, (job.shapes, job.batch_shapes), machine).fits
