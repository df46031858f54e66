"""A report says of each claim that it holds, fails or is undecided, in figures that a person reads."""

import math
import statistics

import numpy as np
import pytest

from jaxllm.report import Claim, Report, decide, format_figure, read_report, t_interval


@pytest.mark.parametrize(
    ("interval", "bounds", "holds"),
    [
        ((0.1, 0.3), dict(above=0), True),
        ((-0.3, -0.1), dict(above=0), False),
        ((-0.1, 0.3), dict(above=0), None),
        ((0.0, 0.0), dict(above=0), False),  # two runs that are the same are no gain
        ((0.0, 0.3), dict(above=0), None),
        ((1.0, 1.0), dict(at_least=1), True),
        ((0.9, 1.0), dict(at_least=1), None),
        ((1.0, 1.02), dict(at_most=1.02), True),
        ((1.0, 1.02), dict(below=1.02), None),
        ((1.03, 1.04), dict(at_most=1.02), False),
        ((0.96, 1.01), dict(at_least=0.95, at_most=1.05), True),
        ((0.90, 1.10), dict(at_least=0.95, at_most=1.05), None),
        ((1.10, 1.20), dict(at_least=0.95, at_most=1.05), False),
        ((math.nan, math.nan), dict(below=1), False),  # a run diverged
        (t_interval([0.5]), dict(below=1), None),  # one seed
    ],
)
def test_an_interval_that_crosses_its_bound_decides_nothing(interval, bounds, holds):
    assert decide(interval, **bounds) is holds


@pytest.mark.parametrize("bounds", [{}, dict(above=-math.inf), dict(below=math.inf)])
def test_a_claim_without_a_bound_is_refused_not_true(bounds):
    with pytest.raises(ValueError, match="no bound; give above, below, at_least or at_most"):
        decide((0.1, 0.3), **bounds)


def test_the_verdict_is_written_and_read_back(tmp_path):
    claims = [
        Claim("better", "table 1", 0.2, decide((0.1, 0.3), above=0), interval=(0.1, 0.3)),
        Claim("faster", "table 1", 0.9, decide((0.8, 1.1), above=1), paper=2.0, interval=(0.8, 1.1)),
        Claim("smaller", "table 1", 858880.0, False),
    ]
    report = Report("x", "small", {}, [0, 1], {"parameters": 858880, "loss": 2.345678}, claims, 1.0, {}, {})
    report.write(tmp_path)
    assert [claim.verdict for claim in claims] == ["holds", "undecided", "fails"]
    assert [claim.holds for claim in read_report(tmp_path).claims] == [True, None, False]
    table = (tmp_path / "report.md").read_text()
    assert "| better | table 1 |  | 0.2 | 0.1 to 0.3 | yes |" in table
    assert "| faster | table 1 | 2 | 0.9 | 0.8 to 1.1 | undecided |" in table
    assert "| smaller | table 1 |  | 858,880 |  | **no** |" in table
    assert "| parameters | 858,880 |" in table and "| loss | 2.3457 |" in table
    text = report.to_text()
    assert "undecided: faster: 0.9 (0.8 to 1.1)" in text and "FAILS: smaller: 858,880" in text


def test_figures_are_written_out():
    values = 858_880, 8.5888e5, 134_515_008, 9999.5, 0.123456, 1.5e-7, -250_000.4, 3e18, math.inf, 0
    assert [format_figure(value) for value in values] == [
        "858,880", "858,880", "134,515,008", "9,999.5", "0.12346", "1.5e-07", "-250,000", "3e+18", "inf", "0",
    ]  # fmt: skip


def test_an_interval_is_computed_in_float64_whatever_its_values_are():
    values = np.array([40_000, 50_000, 60_000], np.float16)
    exact = values.tolist()
    half = 4.302652729911275 * statistics.stdev(exact) / math.sqrt(3)  # Student's t of 2 degrees of freedom
    mean = statistics.mean(exact)
    assert t_interval(values) == pytest.approx((mean - half, mean + half), rel=1e-9)
