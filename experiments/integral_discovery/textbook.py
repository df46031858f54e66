"""Textbook integrals with verified areas: a population that no generator made; who solves how much."""

import hashlib
import json
import lzma
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.integral_discovery.translation import translate, verified
from experiments.shared.real_data import data_folder
from jaxllm.errors import UserError
from jaxllm.integrals import Formula, areas, is_area
from jaxllm.integrals.search import search_sum
from jaxllm.integrals.written import as_formula, evaluate, read

FILE = "integral_discovery", "rubi_test_suite", "one_variable.jsonl.xz"
_SECONDS = 3.0  # that sympy may take for one comparison
_INSIDE = np.linspace(0.11, 0.93, 23)  # where a found area is compared with the book's


def load_problems(most: int | None = None) -> tuple[list[dict[str, Any]], str]:
    """Return the problems that have an area from 0 to 1, evenly thinned to `most`, and a digest of them."""
    rows = lzma.decompress(data_folder(*FILE).read_bytes()).decode().splitlines()
    problems = [row for row in map(json.loads, rows) if row["area_0_1"] is not None]
    if most is not None and most < len(problems):
        problems = [problems[i] for i in np.linspace(0, len(problems) - 1, most).astype(int)]
    return problems, hashlib.sha256(json.dumps(problems).encode()).hexdigest()


def graded_grid(intervals: int) -> np.ndarray:
    """Return points of [0, 1] that are dense near its ends, where roots and logarithms are steep."""
    u = np.arange(intervals + 1) / intervals
    return np.clip(u**4 * (35 - 84 * u + 70 * u**2 - 20 * u**3), 0, 1)


def problem_areas(problem: dict[str, Any], x_M: np.ndarray) -> np.ndarray:
    """Return the areas of a problem's function from 0 to each point."""
    tree = read(problem["f_sympy"])
    return areas(lambda x: evaluate(tree, np.asarray(x)), x_M)


def solve_all(problems: Sequence[dict[str, Any]], intervals: int, sympy_checks: int) -> dict[str, Any]:
    """Search for the area of each problem; say what was found, and whether the book agrees.

    `agrees` compares values of the found sum with the book's answer, at points that were not fitted; sympy
    compares the derivative of the first `sympy_checks` that were found with the function, in a time limit.
    """
    x_M, found, right = graded_grid(intervals), {}, {}
    area_off, unmeasured = 0, 0
    for number, problem in enumerate(tqdm(problems, desc="textbook", unit="problem")):
        try:
            area_M = problem_areas(problem, x_M)
        except UserError:
            unmeasured += 1
            continue
        area_off += abs(area_M[-1] - problem["area_0_1"]) > 1e-7 * (1 + abs(area_M[-1]))
        if (one := search_sum(problem["f_sympy"], area_M, x_M)) is not None:
            found[number] = str(one)
            right[number] = agrees(one, problem)
    checks = [sympy_agrees(found[n], problems[n]["f_sympy"]) for n in list(found)[:sympy_checks]]
    return {
        "found": found, "right": right, "unmeasured": unmeasured, "area_off": int(area_off),
        "sympy_yes": checks.count(True), "sympy_no": checks.count(False),
        "sympy_time_outs": checks.count(None),
    }  # fmt: skip


def agrees(found, problem: dict[str, Any]) -> bool:
    """Say whether a found area differs between points as the book's answer does."""
    book = evaluate(read(problem["F_sympy"]), _INSIDE)
    ours = found.values(_INSIDE)
    difference = (ours - ours[0]) - (book - book[0])
    return bool(np.isfinite(book).all() and np.abs(difference).max() < 1e-8 * (1 + np.abs(ours).max()))


def check_sympy() -> None:
    """Check that sympy is there, which scores and does nothing else.

    Raises:
      UserError: it is not installed.
    """
    try:
        import sympy  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"sums are scored by sympy ({error}); pip install 'jaxllm[studies]', or give --sympy-checks 0"
        ) from error


def sympy_agrees(found: str, f: str) -> bool | None:
    """Say by sympy whether a sum's derivative is f; None: in the time it has, it cannot say."""
    check_sympy()
    import sympy

    def stop(*_):
        raise TimeoutError

    inside = found.removeprefix("[").removesuffix("] from 0")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        x = sympy.symbols("x")
        gap = sympy.diff(sympy.sympify(inside, rational=True), x) - sympy.sympify(f, rational=True)
        if sympy.simplify(gap) == 0:
            return True
        return None if abs(complex(gap.subs(x, sympy.Rational(2, 5)).evalf(30))) < 1e-12 else False
    except TimeoutError:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def translate_all(model, problems: Sequence[dict[str, Any]], beams: int, most: int) -> dict[str, list[int]]:
    """Return which problems a model's answers solve, and which it can be asked at all, by their numbers."""
    asked: dict[int, Formula] = {}
    for number, problem in enumerate(problems):
        if (f := as_formula(read(problem["f_sympy"]))) is not None and f.terms:
            asked[number] = f
    if not asked:
        return {"asked": [], "solved": []}
    hypotheses = translate(model, list(asked.values()), beams=beams, most=most)
    x_M, solved = graded_grid(64), []
    for (number, _), texts in zip(asked.items(), hypotheses, strict=True):
        area_M = problem_areas(problems[number], x_M)
        answer = verified(texts, x_M, area_M)
        if answer is not None and is_area(answer, x_M, area_M, 1e-9):
            solved.append(number)
    return {"asked": list(asked), "solved": solved}
