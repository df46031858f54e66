"""Arms of the Manticore study are what they say, its claims are computed, its debug run holds together."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import manticore
from experiments.benchmarks import hybrids
from experiments.manticore import study
from experiments.manticore.models import joined, small_part, wide_part, windows
from experiments.manticore.report import judge
from experiments.manticore.training import tune
from experiments.shared.epochs import alternate_halves
from jaxllm import models, targets
from jaxllm.errors import UserError

PARTS = hybrids.parts_of("tiny")
ROWS = windows(np.random.default_rng(0).integers(0, 64, 200), 8, 16)


def made_up(better):
    hybrids = ("uniform", "random", "uniform, new tables", "rounded")
    alone = [f"part {part} alone{more}" for part in (0, 1) for more in ("", ", equal FLOPs")]
    wide = [f"better part, equal parameters{more}" for more in ("", " and tokens")]
    arms = [*alone, *wide, "ensemble", *(f"N=1, {arm}" for arm in hybrids)]

    def cell(seed):
        losses = {arm: 2 + 0.01 * seed for arm in arms} | {"N=1, simultaneous": 2 - better}
        found = {"N=1, simultaneous": [[0.5, 0.5]]}
        projectors = [(0.0, 3.0, 2.0), (1.0, 2.5, 1.9 + 0.01 * seed)]
        return {"losses": losses, "sweep": [2.0, 1.9, 2.0], "found": found, "projectors": projectors}

    return [cell(seed) for seed in range(3)]


def test_the_wide_part_is_as_large_as_the_hybrid():
    """To a twentieth; it is of the part's architecture and depth."""
    parts = tuple(small_part(part, "small", 512, 64) for part in (0, 1))
    hybrid = models.HybridConfig(parts=parts, tables="parts")
    for number, part in enumerate(parts):
        wide = wide_part(number, "small", hybrid, 64)
        assert type(wide) is type(part) and wide.num_layers == part.num_layers
        assert abs(wide.num_params / hybrid.num_params - 1) < 0.05


def test_a_held_out_half_has_rows_of_both_texts():
    """Weights must not learn from one text and the mixture from the other."""
    texts = [{"tokens": np.full((40, 1), which)} for which in (0, 1)]
    batches = alternate_halves(joined(*texts), 20, seed=0)
    assert all(0.2 < next(batches)["tokens"].mean() < 0.8 for _ in range(4))


def test_claims_follow_from_the_cells():
    config = manticore.ManticoreConfig(blocks=(1,), searches=("simultaneous",), sweep=(0, 0.5, 1), parts=())
    metrics, claims = judge(config, made_up(0.2), {}, {})
    assert len(claims) >= 7
    assert all(claim.holds for claim in claims[:7])
    assert metrics["regret/simultaneous"] == pytest.approx(-0.1)
    tokens = config.batch * config.seq_len * config.projector_steps
    assert metrics[f"projectors/{tokens}_tokens/tuned"] == pytest.approx(1.91)
    _, claims = judge(config, made_up(-0.2), {}, {})
    assert len(claims) >= 7
    assert not any(claim.holds for claim in claims[:7])


def test_every_share_of_the_projectors_stage_has_as_many_steps(monkeypatch):
    """Of that stage and of tuning together; so has the hybrid that all arms begin with."""
    taken, config = [], manticore.ManticoreConfig()

    def tune(model, params, batches, steps, *rates, **options):
        taken.append(steps)
        return params, []

    monkeypatch.setattr(study, "tune", tune)
    monkeypatch.setattr(study, "loss_of", lambda *read: 0.0)
    monkeypatch.setattr(models, "pretrained_hybrid", lambda model, params, key: {})
    pair = object.__new__(study.Pair)
    pair.__dict__ |= dict(config=config, seed=0, parts=PARTS, params=[],
                          texts=SimpleNamespace(train=ROWS, test=ROWS))  # fmt: skip
    for share in (*config.projector_shares, 1.0):
        study._projectors(pair, 1, share)
    pair.joint(*pair.hybrid(1))
    assert taken == [0, 140, 10, 130, 40, 100, 40, 100]


@pytest.mark.slow
def test_frozen_parts_stay_and_a_searched_mixture_moves():
    config = models.HybridConfig(parts=PARTS, tables="parts")
    params = models.init(config, jax.random.key(0))
    rows = {name: x[:4] for name, x in ROWS.items()}
    batches = iter([rows] * 4)
    tuned, curve = tune(config, params, batches, 2, 0.01, parts=0.0)
    jax.tree.map(np.testing.assert_array_equal, tuned["parts"], params["parts"])
    assert (
        tuned["projectors"]["0"]["0"]["in"]["linear"] != params["projectors"]["0"]["0"]["in"]["linear"]
    ).any()
    assert np.array_equal(models.mixture(tuned), [[0.5, 0.5]]) and len(curve) == 2
    searched, _ = tune(config, params, batches, 2, 0.01, search="alternating")
    assert models.mixture(searched)[0, 0] != 0.5


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="a pretrained one first"):
        manticore.ManticoreConfig(parts=("mamba", "pypi:smollm2"))
    with pytest.raises(UserError, match="a text of 200 tokens has 24 rows of 8; 30 were asked for"):
        windows(np.zeros(200, int), 8, 30)


@pytest.mark.slow
def test_the_debug_run_ends_in_a_report(tmp_path):
    manticore.main(manticore.ManticoreConfig(**vars(manticore.PRESETS["debug"]()) | {"out": str(tmp_path)}))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["metrics"]["pretrained/N=2/one_hot_gap"] <= 1e-5
    assert {path.name for path in tmp_path.glob("*.png")} == {"sweep.png", "mixtures.png", "projectors.png"}


@pytest.mark.slow
def test_the_benchmark_accounts_for_steps(tmp_path):
    config = hybrids.HybridsConfig(**vars(hybrids.PRESETS["debug"]()) | {"rounds": 0, "out": str(tmp_path)})
    report = hybrids.main(config)
    assert report.metrics["peak_bytes/N=1/hybrid"] > report.metrics["peak_bytes/N=1/part_0"]


@pytest.mark.targets
@pytest.mark.parametrize("machine", ["v5e-1", "h100"])
def test_the_papers_pair_compiles_for_its_machine_and_fits(machine):
    if not targets.is_available(machine):
        pytest.skip(f"the compiler for {machine} is not installed")
    hybrid = hybrids.cases_of(hybrids.parts_of("paper", "bfloat16"), 1)["hybrid"]
    forecast = targets.compile(
        hybrids.train_step(hybrid), hybrids.shapes_of(hybrid, 2, 1024), machine, donate=(0, 1)
    )
    assert forecast.fits
