"""Choose the fastest way to train a model on a machine that is not here, among those that fit it.

An estimate in closed form ranks every candidate; the compiler of the machine judges the best few. What
the compiler says corrects the estimates of those still waiting. Steps in tiles, where tiles compute the run,
are judged by the simulator of their tasks.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from jaxllm.atomic import write_file
from jaxllm.errors import UserError
from jaxllm.models import ModelConfig
from jaxllm.targets.analytic import Estimate, estimate
from jaxllm.targets.candidates import Search, candidates
from jaxllm.targets.catalog import Target, get_target
from jaxllm.targets.forecast_cache import cached_forecast
from jaxllm.targets.shortfall import nothing_fits
from jaxllm.targets.tiled import Simulation, simulate_step, tiled_plans
from jaxllm.targets.train_step import with_vocabulary
from jaxllm.text import TrainConfig
from jaxllm.text.config import ENGINES
from jaxllm.train import to_dict

_GIB = 2**30
_TITLES = ("", "precision", "optimizer", "remat", "offload", "parts", "data x fsdp x tensor", "peak", "step",
           "MFU", "by", "why")  # fmt: skip
_DOUBT = 1.2  # how much faster a simulated plan has to be than a compiled one: no compiler has seen it
_HOPE = 1.15  # how far an estimate may be over the memory before the compiler has corrected any


@dataclass(frozen=True)
class Row:
    """One candidate and what became of it."""

    config: TrainConfig
    estimate: Estimate
    forecast: object | None  # the compiler's or, of tiles, the simulator's; None: not asked
    reason: str

    @property
    def seconds(self) -> float:
        """Seconds a step: the compiler's where there are any."""
        return (self.forecast or self.estimate).seconds

    @property
    def peak_bytes(self) -> int:
        """Bytes a device needs: the compiler's where there are any."""
        return (self.forecast or self.estimate).peak_bytes


@dataclass(frozen=True)
class Plan:
    """The chosen config, and every candidate with the reason it lost; the best first."""

    config: TrainConfig
    target: Target
    rows: list[Row]

    @property
    def best(self) -> Row:
        """The row of the chosen config."""
        return self.rows[0]

    def correction(self) -> Callable[[TrainConfig], float]:
        """Return config -> what to multiply its estimated peak with, of this run or of another size's."""
        ranked = [(row.config, row.estimate) for row in self.rows]
        forecasts = {i: row.forecast for i, row in enumerate(self.rows) if row.forecast}
        return _correction(ranked, forecasts, _HOPE)

    def table(self, limit: int = 12) -> str:
        """Return the ranking as text, one line a candidate."""
        lines = [_TITLES]
        for number, row in enumerate(self.rows[:limit], 1):
            c, source = row.config, row.forecast or row.estimate
            lines.append(
                (str(number), c.precision, c.optim.name, c.model.remat,
                 c.offload if c.engine == "jit" else "tiles", str(c.accumulate),
                 f"{c.mesh.data} x {c.mesh.fsdp} x {c.mesh.tensor}",
                 _gib(row.peak_bytes) if row.peak_bytes else "",
                 _duration(row.seconds), "" if math.isinf(row.seconds) else f"{100 * source.mfu:.0f} %",
                 _judge_of(row), row.reason)
            )  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        hidden = len(self.rows) - limit
        return "\n".join(text + [f"... and {hidden} more, all not compiled or too big"] * (hidden > 0))

    def write(self, path) -> None:
        """Write the chosen config as JSON, for `jaxllm train --config FILE`."""
        write_file(path, (json.dumps(to_dict(self.config), indent=2) + "\n").encode())


def plan(
    config: TrainConfig,
    target: Target | str,
    search: Search = Search(),
    *,
    compile: Callable | None = None,
    progress: bool = False,
) -> Plan:
    """Find the fastest plan that fits the target.

    Args:
      config: the run; what the search may not change stays as it is.
      target: a machine or its name.
      search: what may change.
      compile: (config, target) -> Forecast; None: `targets.compile_train_step`, remembered on disk.
      progress: show a progress bar.

    Raises:
      UserError: nothing fits; says the smallest change that would.
    """
    if not isinstance(config.model, ModelConfig):
        raise UserError(
            f"the model's architecture is {config.model.architecture}, and plans are made of transformers "
            "alone; choose a preset of one, such as gpt2"
        )
    target = get_target(target)
    asked, config = config, with_vocabulary(config)
    engines, ranked, forecasts = search.engines or ENGINES, [], {}
    tiled = _tiled(config, target, search) if "tiles" in engines else []
    if "jit" in engines:
        ranked = rank(candidates(config, target, search), target)
        with tqdm(total=search.compiles, desc="compiling", unit="plan", disable=not progress) as bar:
            forecasts = _judge(ranked, target, search.compiles, compile or cached_forecast, bar)
    compiled = ranked, forecasts
    for tiles in tqdm(tiled, desc="simulating", unit="plan", disable=not progress or not tiled):
        made = simulate_step(tiles, target)
        ranked, forecasts = [*ranked, (tiles, made)], forecasts | {len(ranked): made}
    fitting = {i: f for i, f in forecasts.items() if f.fits}
    if not fitting:
        if "jit" not in engines:
            raise UserError(f"no plan in tiles fits {target.name}: {ranked[-1][1].failure}")
        raise UserError(nothing_fits(config, target, search, compiled[0], _correction(*compiled, 1.0)))
    best = min(fitting, key=lambda i: fitting[i].seconds * (_DOUBT if ranked[i][0].engine == "tiles" else 1))
    rows = _rows(ranked, forecasts, best, target)
    # A vocabulary that only a trained tokenizer will know stays open for it.
    chosen = rows[0].config
    tokens = dict(vocab_size=asked.model.vocab_size, vocab_groups=asked.model.vocab_groups)
    model = dataclasses.replace(chosen.model, **tokens)
    return Plan(dataclasses.replace(chosen, model=model), target, rows)


def _tiled(config, target, search) -> list[TrainConfig]:
    try:
        return tiled_plans(config, target, search)
    except UserError:  # tiles do not compute this run
        if search.engines == ("tiles",):
            raise
        return []


def rank(configs: Sequence[TrainConfig], target: Target | str) -> list[tuple[TrainConfig, Estimate]]:
    """Return the configs with their estimates: those that fit first, the fastest first among them.

    Two that are bound by the same time are told apart by the other two, which never hide entirely.
    """

    def key(pair):
        e = pair[1]
        rest = e.compute_seconds + e.memory_seconds + e.network_seconds
        too_big = e.peak_bytes > _HOPE * e.hbm_bytes or e.host_bytes > e.host_limit
        return (too_big, e.seconds, rest, e.peak_bytes)

    return sorted(((c, estimate(c, target)) for c in configs), key=key)


def _judge(ranked, target, compiles: int, compile, bar) -> dict[int, object]:
    """Ask the compiler about the most promising candidates, by index; go on until one fits."""
    forecasts: dict[int, object] = {}
    while True:
        if len(forecasts) >= compiles and any(f.fits for f in forecasts.values()):
            return forecasts
        index = _next(ranked, forecasts)
        if index is None or len(forecasts) >= 3 * compiles:
            return forecasts
        bar.total = max(bar.total, len(forecasts) + 1)
        bar.set_postfix_str(_label(ranked[index][0]), refresh=True)
        forecasts[index] = compile(ranked[index][0], target)
        bar.update()


def _next(ranked, forecasts) -> int | None:
    """Return the fastest candidate that may fit and could still win; None: there is none."""
    correct = _correction(ranked, forecasts, _HOPE)
    fitting = [i for i, f in forecasts.items() if f.fits]
    for index, (config, guess) in enumerate(ranked):
        if index in forecasts or correct(config) * guess.peak_bytes > guess.hbm_bytes:
            continue
        if guess.host_bytes > guess.host_limit:
            continue
        if not any(_more_parts(config, ranked[i][0]) for i in fitting):
            return index
    if not forecasts:  # by the estimates nothing fits: let the compiler speak of the smallest
        return min(range(len(ranked)), key=lambda i: ranked[i][1].peak_bytes)
    return None


def _correction(ranked, forecasts, hope: float) -> Callable[[TrainConfig], float]:
    """Return config -> what to multiply its estimated peak with, from those that were compiled.

    Estimates err alike for configs that keep the same activations in the same types. Of other kinds the
    compiled ones say less: their estimate may be too high by the factor `hope`.
    """
    ratios: dict[tuple, list[float]] = {}
    for index, forecast in forecasts.items():
        config, guess = ranked[index]
        if config.engine == "tiles":  # nobody guessed
            continue
        ratio = forecast.peak_bytes / guess.peak_bytes
        for key in (_kind(config), ()):
            ratios.setdefault(key, []).append(ratio)

    def correct(config: TrainConfig) -> float:
        seen = ratios.get(_kind(config))
        if seen:
            return statistics.median(seen)
        return max(statistics.median(ratios[()]), 1.0) / hope if ratios else 1 / hope

    return correct


def _kind(config: TrainConfig) -> tuple[str, ...]:
    return (config.precision, config.model.remat, config.offload)


def _rows(ranked, forecasts, best: int, target: Target) -> list[Row]:
    """Say of every candidate why it won or lost; compiled ones first."""
    correct = _correction(ranked, forecasts, 1.0)

    def order(index):
        forecast = forecasts.get(index)
        compiled = 0 if index == best else 1 if forecast else 2
        return (compiled, not forecast.fits if forecast else 0, forecast.seconds if forecast else index)

    rows = []
    for index in sorted(range(len(ranked)), key=order):
        config, guess = ranked[index]
        forecast = forecasts.get(index)
        if index == best:
            reason = "chosen: the fastest that fits"
        elif guess.host_bytes > guess.host_limit:
            reason = f"too big for the host by about {_gib(guess.host_bytes - guess.host_limit)}"
        elif config.engine == "tiles" and not forecast.fits:
            reason = forecast.failure
        elif config.engine == "tiles" and forecast.seconds < forecasts[best].seconds:
            reason = f"simulated alone, and not {_DOUBT} times as fast as what was compiled"
        elif forecast is not None and not forecast.fits:
            reason = f"too big by {_gib(forecast.peak_bytes - target.hbm_bytes)}"
        elif forecast is not None:
            reason = f"{_slower(forecast.seconds / forecasts[best].seconds)}, {forecast.bound} bound"
        elif correct(config) * guess.peak_bytes > target.hbm_bytes:
            over = correct(config) * guess.peak_bytes - target.hbm_bytes
            reason = f"not compiled: too big by about {_gib(over)}"
        elif any(f.fits and _more_parts(config, ranked[i][0]) for i, f in forecasts.items()):
            reason = "not compiled: a compiled plan in more parts than it needs"
        else:
            slower = _slower(guess.seconds / ranked[best][1].seconds)
            reason = f"not compiled: {slower} by the estimate, {guess.bound} bound"
        rows.append(Row(config, guess, forecast, reason))
    return rows


def _more_parts(config: TrainConfig, other: TrainConfig) -> bool:
    """Whether config is the other plan in more parts: never faster, and needless where the other fits."""
    one, another = (dataclasses.replace(c, accumulate=1) for c in (config, other))
    return one == another and config.accumulate > other.accumulate


def _judge_of(row: Row) -> str:
    if row.forecast is None:
        return "estimate"
    return "simulator" if isinstance(row.forecast, Simulation) else "compiler"


def _label(config: TrainConfig) -> str:
    mesh = config.mesh
    return (f"{config.precision}, remat {config.model.remat}, offload {config.offload}, "
            f"{config.accumulate} parts, mesh {mesh.data}x{mesh.fsdp}x{mesh.tensor}")  # fmt: skip


def _slower(ratio: float) -> str:
    return f"{100 * (ratio - 1):.1f} % slower" if ratio >= 1.0005 else "as fast"


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"


def _duration(seconds: float) -> str:
    if math.isinf(seconds):
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
