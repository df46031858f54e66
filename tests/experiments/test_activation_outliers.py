"""The grid of variants in its debug size, and the claims on figures made up for them."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from experiments import activation_outliers as outliers
from experiments.benchmarks import pretrained_outliers
from jaxllm import data, models, targets
from jaxllm.errors import UserError
from jaxllm.interpret import kurtosis_limits, uniform_first_token_mass
from jaxllm.parallel import MeshConfig
from jaxllm.pretrained import save_pretrained
from jaxllm.report import Claim

PRESETS, BOTH = outliers.PRESETS, outliers.BOTH


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Return (config, report) of a grid of one variant, with all of the fixes."""
    out = str(tmp_path_factory.mktemp("grid"))
    config = dataclasses.replace(PRESETS["debug"](), out=out, progress=False, variants=(BOTH,))
    return config, outliers.main(config, "debug")


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(grid, monkeypatch):
    config, report = grid
    monkeypatch.setattr(outliers, "train", None)
    assert outliers.main(config, "debug").metrics == report.metrics
    with pytest.raises(TypeError):  # another seed would have to be trained
        outliers.main(dataclasses.replace(config, seeds=(0, 1)), "debug")


@pytest.mark.slow
def test_the_report_holds_every_figure(grid):
    config, report = grid
    written = json.loads(open(f"{config.out}/report.json").read())
    assert written["config"] == json.loads(json.dumps(report.config))
    m = {name: written["metrics"][f"{name}/{BOTH}"] for name in outliers.COLUMNS}
    assert len(m) == len(written["metrics"])
    assert all(math.isfinite(value) for value in m.values())
    assert 1 <= m["kurtosis_other"] <= kurtosis_limits(config.model.embed_dim)[1]
    assert f"| {BOTH} | {m['perplexity']:.4g} | {m['sink_argmax']:.1%} | " in report.sections["Variants"]


@pytest.mark.slow
def test_a_model_that_has_hardly_learned_attends_evenly(grid):
    """After four steps a softmax-1 model's sink is still near that of uniform attention."""
    config, report = grid
    floor = uniform_first_token_mass(config.seq_len, softmax_1=True)
    assert report.metrics[f"sink_mass/{BOTH}"] == pytest.approx(floor, rel=0.1)


def test_variants_differ_in_what_they_name_and_in_nothing_else():
    config, variants = PRESETS["small"](), outliers.CORNERS + outliers.OTHER_NORMS
    runs = {name: outliers.run_config(config, name, seed=1) for name in variants}
    assert {(r.model.sink_logit, r.optim.name, r.model.norm) for r in runs.values()} == {
        (outliers.ATTENTIONS[a], outliers.OPTIMIZERS[o], n)
        for a, o, n in map(outliers.choices, variants)
    }
    same = [
        dataclasses.replace(
            run, out="", variants=(BOTH,), optim=dataclasses.replace(run.optim, name="adamw"),
            model=dataclasses.replace(run.model, sink_logit=0.0, norm="rmsnorm", norm_bias=None),
        )
        for run in runs.values()
    ]  # fmt: skip
    assert all(run == same[0] for run in same) and same[0].seed == 1
    assert runs["softmax+adam+layernorm"].model.norm_bias and not runs[BOTH].model.norm_bias


def made_up(**changes):
    """Return (runs, means) of all variants with three seeds, as the paper would have them, then changed."""
    low = dict(perplexity=20.0, sink_argmax=0.01, sink_mass=0.01, kurtosis_first=3.0, kurtosis_other=3.0,
               max_first=5.0, max_other=5.0, absmax8_coarse=0.1, absmax8_moderate=0.1, absmax8_fine=0.0,
               zeropoint4=0.3, zeropoint4_tensor=1.0)  # fmt: skip
    bad = low | dict(kurtosis_first=250.0, zeropoint4=50.0, absmax8_coarse=30.0)
    values = {
        outliers.NEITHER: bad | {"sink_argmax": 0.65}, outliers.SOFTMAX1: bad,
        outliers.ORTHOADAM: low | {"sink_argmax": 0.6}, outliers.BOTH: low,
        "softmax1+orthoadam+layernorm": bad,
    }  # fmt: skip
    for variant, change in changes.items():
        values[getattr(outliers, variant)] = values[getattr(outliers, variant)] | change
    runs = {
        variant: [{"metrics": {name: v * (1 + 0.01 * s) for name, v in one.items()}} for s in (-1, 0, 1)]
        for variant, one in values.items()
    }
    return runs, values


def judged(runs, means) -> list[Claim]:
    return outliers.claims(runs, means, gaussian=2.98, floor=0.02)


def test_claims_hold_on_the_paper_s_own_pattern():
    claims = judged(*made_up())
    assert len(claims) == 10 and all(claim.holds for claim in claims)
    first = claims[0]
    assert first.measured == pytest.approx(0.65) and first.paper == 0.65
    # Student's t of 2 degrees of freedom: 4.303 * 0.0065 / sqrt(3).
    np.testing.assert_allclose(first.interval, [0.65 - 0.01615, 0.65 + 0.01615], rtol=1e-3)
    [compared] = [claim for claim in claims if claim.claim.startswith("both fixes: 4-bit")]
    assert compared.measured == pytest.approx(0.3 - 50)  # the difference that is judged, and its interval
    np.testing.assert_allclose(compared.interval, [-49.7 - 1.2347, -49.7 + 1.2347], rtol=1e-3)


@pytest.mark.parametrize(
    "changes, broken",
    [
        (dict(NEITHER={"sink_argmax": 0.03}), "neither fix: heads attend most"),
        (dict(SOFTMAX1={"sink_argmax": 0.4}), "softmax-1 alone at least halves"),
        (dict(BOTH={"sink_argmax": 0.4}), "both fixes: first-token share"),
        (dict(NEITHER={"kurtosis_first": 4.0}), "neither fix: outliers"),
        (dict(SOFTMAX1={"kurtosis_first": 4.0}), "softmax-1 alone leaves outliers"),
        (dict(BOTH={"kurtosis_other": 9.0}), "both fixes: kurtosis within"),
        (dict(BOTH={"kurtosis_other": 200.0}), "both fixes with LayerNorm"),
        (dict(BOTH={"zeropoint4": 60.0}), "both fixes: 4-bit"),
        (dict(BOTH={"absmax8_coarse": 60.0}), "both fixes: coarse 8-bit"),
        (dict(BOTH={"perplexity": 22.0}), "the four combinations"),
    ],
)
def test_a_claim_that_the_figures_contradict_does_not_hold(changes, broken):
    assert any(c.claim.startswith(broken) for c in judged(*made_up(**changes)) if c.verdict == "fails")


def test_a_baseline_without_a_sink_leaves_nothing_to_halve():
    """Uniform attention gives 0.02, so 0.03 is no sink; of a sink of 0.045 what is above that is halved."""
    claims = judged(*made_up(NEITHER={"sink_argmax": 0.03}, SOFTMAX1={"sink_argmax": 0.03}))
    assert [claim.holds for claim in claims[:3]] == [False, None, None]
    claims = judged(*made_up(NEITHER={"sink_argmax": 0.045}, SOFTMAX1={"sink_argmax": 0.027}))
    assert [claim.holds for claim in claims[:3]] == [True, True, True]


def test_a_claim_whose_interval_crosses_its_bound_is_undecided():
    """Twice a Gaussian's kurtosis is 5.96; 6.0 over three seeds is 6 +- 0.15 by Student's t."""
    claims = judged(*made_up(SOFTMAX1={"kurtosis_first": 6.0}))
    assert [c.claim for c in claims if c.verdict != "holds"] == ["softmax-1 alone leaves outliers"]
    assert [c.verdict for c in claims].count("undecided") == 1


def test_claims_are_made_only_of_variants_that_were_run():
    runs, means = made_up()
    claims = judged({BOTH: runs[BOTH]}, {BOTH: means[BOTH]})
    assert [claim.claim for claim in claims] == ["both fixes: kurtosis within 1.5 times a Gaussian's"]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(variants=("softmax+adam",)), "is not attention\\+optimizer\\+norm"),
        (dict(variants=("softmax2+adam+rmsnorm",)), "did you mean 'softmax'"),
        (dict(seeds=()), "give at least one"),
        (dict(measured_batches=0), "at least 1"),
    ],
)
def test_bad_input_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(PRESETS["debug"](), **changes)


@pytest.mark.targets
@pytest.mark.skipif(
    not targets.is_available("v5e-8"), reason="needs the compiler of a target that is not here"
)
def test_the_paper_s_runs_fit_their_target():
    config = dataclasses.replace(PRESETS["paper"](), mesh=MeshConfig(fsdp=8))
    forecast = targets.compile_train_step(outliers.run_config(config, BOTH, seed=0), "v5e-8")
    assert forecast.fits


@pytest.mark.slow
def test_a_pretrained_model_is_measured_from_its_folder(tmp_path):
    model = models.get_preset("llama-nano", vocab_size=257)
    folder = tmp_path / "model"
    save_pretrained(folder, model, models.init(model, jax.random.key(0)), data.load_tokenizer("bytes"))
    report = pretrained_outliers.main(
        pretrained_outliers.PretrainedOutliersConfig(
            model=str(folder), texts=2, calibration_texts=2, seq_len=16, batch_size=2, out=str(tmp_path)
        )
    )
    floor = uniform_first_token_mass(16)
    assert report.metrics["sink_mass"] == pytest.approx(floor, rel=0.1)
    assert report.metrics["perplexity"] == pytest.approx(257, rel=0.1)
