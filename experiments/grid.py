"""Variants times seeds: what the experiments that compare training runs share."""

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from jaxllm.errors import UserError
from jaxllm.report import Claim, Report, decide, t_interval

Variant = TypeVar("Variant", bound=Hashable)


def check_seeds(seeds: Sequence[int]) -> None:
    """Check that seeds give an interval.

    Raises:
      UserError: fewer than two.
    """
    if len(seeds) < 2:
        raise UserError(f"seeds is {seeds}; give two or more, which an interval needs")


def run_grid(
    variants: Iterable[Variant], seeds: Sequence[int], measure: Callable[[Variant, int], dict[str, Any]]
) -> dict[Variant, list[dict[str, Any]]]:
    """Return what `measure(variant, seed)` says of every pair, a list in the order of the seeds a variant.

    Seed by seed, so that an interrupted grid has all variants to compare. A `measure` that keeps its result
    (`jaxllm.text.cached_result`) lets the same command go on, with more seeds or variants.

    Examples:
      >>> run_grid(["a", "b"], [0, 1], lambda variant, seed: {"loss": seed})
      {'a': [{'loss': 0}, {'loss': 1}], 'b': [{'loss': 0}, {'loss': 1}]}
    """
    outcomes: dict[Variant, list[dict[str, Any]]] = {variant: [] for variant in variants}
    with tqdm(total=len(outcomes) * len(seeds), desc="runs", unit="run") as bar:
        for seed in seeds:
            for variant, found in outcomes.items():
                bar.set_postfix_str(f"{_name(variant)}, seed {seed}")
                found.append(measure(variant, seed))
                bar.update()
    return outcomes


def column(outcomes: dict[Variant, list[dict[str, Any]]], name: str) -> dict[Variant, np.ndarray]:
    """Return one figure of every variant: an array over the seeds.

    Examples:
      >>> column({"a": [{"loss": 2.0}, {"loss": 4.0}]}, "loss")
      {'a': array([2., 4.])}
    """
    return {variant: np.array([one[name] for one in found]) for variant, found in outcomes.items()}


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the mean over two or more seeds, and its 95 % interval (`t_interval`)."""
    return float(np.mean(values)), t_interval(values)


def spread(values: Sequence[float]) -> str:
    """Return the mean and half of its interval, to be read; "diverged" where they are not finite.

    Examples:
      >>> spread([1.0, 2.0, 3.0])
      '2.0000 ± 2.4841'
    """
    mean, (_, high) = mean_interval(values)
    return f"{mean:.4f} ± {high - mean:.4f}" if math.isfinite(mean) else "diverged"


def seeds_claim(
    text: str, source: str, values: Sequence[float], *, less: Sequence[float] | float = 0.0,
    paper: float | None = None, **bounds: float,
) -> Claim:  # fmt: skip
    """Return a claim on the mean of a figure over two or more seeds, decided by its 95 % interval.

    Args:
      less: what is taken off, seed by seed, before the interval is held against the bounds: half of the
        control's figure, say. What the claim shows is the figure itself.
      paper: what was published.
      bounds: see `decide`.

    Examples:
      >>> claim = seeds_claim("less than the control", "ours", [1.0, 1.2], less=[2.0, 2.1], below=0)
      >>> claim.measured, claim.holds
      (1.1, True)
    """
    holds = decide(t_interval(np.asarray(values) - less), **bounds)
    return Claim(text, source, float(np.mean(values)), holds, paper, t_interval(values))


@functools.cache
def code_digest(*patterns: str) -> str:
    """Return a digest of experiments' modules, for the key of a kept result that their code decides.

    Args:
      patterns: of their paths in this folder, such as "opinion_mining/*.py".
    """
    found = {pattern: set(Path(__file__).parent.glob(pattern)) for pattern in patterns}
    if empty := [pattern for pattern, paths in found.items() if not paths]:
        raise ValueError(f"no module of experiments matches {', '.join(empty)}; name files that are there")
    paths = sorted(set().union(*found.values()))
    return sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def publish(report: Report, out: str | Path) -> Report:
    """Write a report into a folder and print it, in one process of several; return it."""
    if jax.process_index() == 0:
        report.write(out)
        print(report.to_markdown(out).partition("\n## Config")[0])
    return report


def _name(variant: Hashable) -> str:
    return ", ".join(map(str, variant)) if isinstance(variant, tuple) else str(variant)
