"""Splits, answers and claims of integral discovery are what they say; its debug run holds together."""

import dataclasses
import json
import os

import numpy as np
import pytest

from experiments import integral_discovery as study
from experiments.integral_discovery.corpus import closed_form, draw_functions, held_out
from experiments.integral_discovery.textbook import agrees, sympy_agrees
from experiments.integral_discovery.translation import make_model, score, verified
from jaxllm import targets
from jaxllm.errors import UserError
from jaxllm.integrals import Formula, areas, even_grid

needs_data = pytest.mark.skipif(
    not os.environ.get("JAXLLM_DATA"), reason="JAXLLM_DATA names no folder of real data"
)
X = even_grid(-3, 3, 64)


def test_splits_share_no_function_and_training_has_no_held_coefficient_or_degree():
    train, tests = draw_functions(300, 10, seed=0)
    every = [*train, *(f for split in tests.values() for _, f in split)]
    assert len(every) == len(set(every)) == 340
    assert not any(map(held_out, train)) and all(held_out(f) for _, f in tests["coefficients"])
    degree = lambda f: max((term.number for term, _ in f.terms if term.kind == "power"), default=0)
    assert max(map(degree, train)) == 4
    for name in ("5", "6"):
        assert {degree(f) for _, f in tests[f"degree {name}"]} == {int(name)}
    more, same = draw_functions(400, 10, seed=0)
    assert same == tests and more[:300] == train


def test_closed_forms_are_the_measured_areas():
    for text in ("3x^4-2x+1", "5exp(-3x)", "-2sin(4x)+x", "7cos(2x)"):
        f = Formula.parse(text)
        measured = areas(lambda t, f=f: f.values(np.asarray(t)), X)
        np.testing.assert_allclose(closed_form(f).values(X), measured, atol=1e-11)


def test_both_models_have_as_many_parameters():
    """But for a few norms, and tables of distances."""
    sizes = [
        dataclasses.replace(make_model(name, 64, 4), vocab_size=24).num_params for name in study.ARCHITECTURES
    ]
    assert abs(sizes[0] / sizes[1] - 1) < 0.01


def test_the_verifier_takes_the_first_hypothesis_that_has_the_area():
    area = X**3 / 3
    texts = ["x^", "1/2x^3", "1/3x^3", "1/3x^3+0"]
    assert str(verified(texts, X, area)) == "1/3x^3"
    assert str(verified(texts[:2], X, area)) == "1/2x^3"
    assert verified(["(", ""], X, area) is None


def test_answers_are_scored_exactly_and_nearly():
    truth = Formula.parse("1/3x^3")
    answers = [truth, Formula.parse("1/3x^3+1/200"), Formula.parse("x"), None]
    marks = score(answers, [truth] * 4, X)
    assert marks["exact"].tolist() == marks["within 1e-06"].tolist() == [True, False, False, False]
    assert marks["within 0.01"].tolist() == [True, True, False, False]


def made_up(config, exact):
    marks = {
        f"{split}/{way}/{name}": exact[split]
        for split in ("random", "coefficients", "degree 5", "degree 6")
        for way in ("greedy", "verified")
        for name in ("exact", "within 0.01", "within 1e-06")
    }
    one = marks | {"textbook": {"asked": [0], "solved": []}, "curve": [[1, 2.0]], "parameters": 7}
    return {(name, 10): [one, one] for name in config.architectures}


@pytest.mark.parametrize("exact, holds", [(0.0, True), (1.0, False)])
def test_the_headline_compares_rules_with_translation(exact, holds):
    config = dataclasses.replace(study.PRESETS["debug"](), pairs=(10,))
    figures = {"labels/same": 1.0, "areas/error/gauss/x^4": 1e-14, "rules/degrees 7/exact": 1.0}
    figures |= {f"regression/{family}/noise 0/{name}": float(name == "found")
                for family in study.FAMILIES for name in ("found", "wrong")}  # fmt: skip
    figures |= {f"rules/{split}/exact": 1.0 for split in ("coefficients", "degree 5", "degree 6")}
    shares = {"random": 0.9, "coefficients": 0.5, "degree 5": exact, "degree 6": exact}
    outcome = study.judge(config, figures, made_up(config, shares), {}, 0)
    found = [claim for claim in outcome.claims if claim.claim.startswith("degree")]
    assert len(found) == 4 and {claim.holds for claim in found} == {holds}


def test_found_sums_are_compared_with_the_book_and_by_sympy():
    class Found:
        def values(self, x):
            return x**2 / 2

    assert agrees(Found(), {"F_sympy": "x**2/2 + 5"}) and not agrees(Found(), {"F_sympy": "x**2/3"})
    pytest.importorskip("sympy")
    assert sympy_agrees("[1/2*(x**2) + -1*(sin(x)**2)] from 0", "x - sin(2*x)") is True
    assert sympy_agrees("[1/2*(x**2)] from 0", "x + 1") is False


def test_what_does_not_fit_together_is_told():
    for change, says in (({"layers": 3}, "even number"), ({"architectures": ("gpt",)}, "unknown"),
                         ({"pairs": ()}, "empty"), ({"seeds": (0,)}, "two or more")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            dataclasses.replace(study.PRESETS["debug"](), **change)


@pytest.mark.slow
@needs_data
def test_the_debug_run_writes_its_report(tmp_path):
    config = dataclasses.replace(study.PRESETS["debug"](), out=str(tmp_path))
    report = study.main(config, "debug")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["metrics"] == report.metrics and len(report.claims) >= 12
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"noise.png", "learning.png", "degrees.png", "page.png"}
    assert report.metrics["rules/degree 6/exact"] == 1


@pytest.mark.targets
@pytest.mark.skipif(not targets.is_available("v5e-1"), reason="needs the compiler of a v5e")
def test_the_papers_encoder_decoder_trains_within_a_v5e():
    run = study.paper_run("encoder-decoder")  # the larger of the two
    forecast = targets.compile_train_step(run, "v5e-1")
    assert forecast.fits and forecast.peak_bytes > 12 * run.model.num_params
