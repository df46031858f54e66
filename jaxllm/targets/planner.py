"""Choose the fastest way to train a model on a machine that is not here, among those that fit it.

An estimate in closed form ranks every candidate; the compiler of the machine judges the best few. What
the compiler says corrects the estimates of those still waiting. Steps in tiles, where tiles compute the run
and no compiled plan holds everything on the device, are judged by the simulator of their tasks.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from jaxllm.atomic import write_file
from jaxllm.errors import UserError
from jaxllm.targets.analytic import Estimate, estimate
from jaxllm.targets.candidates import OFFLOADS, Search, candidates
from jaxllm.targets.catalog import Target, get_target
from jaxllm.targets.forecast_cache import cached_forecast
from jaxllm.targets.plan_table import plan_summary, plan_table
from jaxllm.targets.shortfall import nothing_fits
from jaxllm.targets.tiled import simulate_step, tiled_plans
from jaxllm.targets.train_step import with_vocabulary
from jaxllm.text import TrainConfig
from jaxllm.text.config import ENGINES
from jaxllm.train import to_dict

_GIB = 2**30
_AT_ONCE = 2  # compilers at work, a core each; each takes one to three GB of memory
_DOUBT = 1.2  # how much faster a simulated plan has to be than a compiled one: no compiler has seen it
_REACH = 1.25  # times the best estimate: how slow another kind's may be and still be worth a compilation
_HOPE = 1.15  # how far an estimate may be over the memory before the compiler has corrected any


@dataclass(frozen=True)
class Row:
    """One candidate and what became of it."""

    config: TrainConfig
    estimate: Estimate
    forecast: object | None  # the compiler's or, of tiles, the simulator's; None: not asked
    reason: str
    time_factor: float = 1.0  # by which compiled plans say that the estimate is off
    memory_factor: float = 1.0

    @property
    def seconds(self) -> float:
        """Seconds a step: the compiler's, or the estimate as compiled plans correct it."""
        return self.forecast.seconds if self.forecast else self.time_factor * self.estimate.seconds

    @property
    def peak_bytes(self) -> int:
        """Bytes a device needs: the compiler's, or the estimate as compiled plans correct it."""
        if self.forecast:
            return self.forecast.peak_bytes
        return int(self.memory_factor * self.estimate.peak_bytes)

    @property
    def mfu(self) -> float:
        """The model's FLOPs over those the device could do in these seconds."""
        return self.forecast.mfu if self.forecast else self.estimate.mfu / self.time_factor

    @property
    def fits(self) -> bool:
        """Whether the device holds it, as far as it is known."""
        e = self.estimate
        if self.forecast:
            return self.forecast.fits
        return self.peak_bytes <= e.hbm_bytes and e.host_bytes <= e.host_limit


@dataclass(frozen=True)
class Plan:
    """The chosen config, and every candidate with the reason it lost.

    The chosen one is first, then those that fit, the fastest first, then those that do not.
    """

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
        """Return the ranking as text, one line a candidate, the best of each kind."""
        return plan_table(self.rows, limit)

    def summary(self) -> str:
        """Return the chosen plan's tokens a second, the time of the run and where a device's bytes go."""
        return plan_summary(self.best, self.config.steps)

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
    target = get_target(target)
    asked, config = config, with_vocabulary(config)
    engines, ranked, forecasts = search.engines or ENGINES, [], {}
    tiled = _tiled(config, target, search) if "tiles" in engines else []
    if "jit" in engines:
        ranked = rank(candidates(config, target, search), target)
        with tqdm(total=search.compiles, desc="compiling", unit="plan", disable=not progress) as bar:
            forecasts = _judge(ranked, target, search.compiles, compile or cached_forecast, bar)
    compiled = ranked, forecasts
    if any(f.fits and ranked[i][0].offload == "none" for i, f in forecasts.items()):
        tiled = []  # whose tasks gain only where a device cannot hold everything
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
    """Ask the compiler about the most promising candidates, by index; go on until one fits.

    Plans of different kinds are compiled at once: what is said of one corrects the estimates of its kind.
    """
    forecasts: dict[int, object] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while True:
            fits = any(f.fits for f in forecasts.values())
            if len(forecasts) >= compiles and fits:
                return forecasts
            room = min(_AT_ONCE, max(compiles - len(forecasts), 1), 3 * compiles - len(forecasts))
            asked: list[int] = []
            while len(asked) < room and (index := _next(ranked, forecasts, asked)) is not None:
                asked.append(index)
            if not asked:
                return forecasts
            bar.total = max(bar.total, len(forecasts) + len(asked))
            bar.set_postfix_str("; ".join(_label(ranked[index][0]) for index in asked), refresh=True)
            answers = [pool.submit(compile, ranked[index][0], target) for index in asked]
            for index, answer in zip(asked, answers, strict=True):
                forecasts[index] = answer.result()
                bar.update()


def _next(ranked, forecasts, asked: Sequence[int] = ()) -> int | None:
    """Return the fastest candidate that may fit and could still win; None: there is none.

    A kind that nobody compiled yet comes first, if its estimate is within reach: estimates of one kind err
    alike, and its fastest was asked about first. Of a kind that is being asked about, no other is.
    """
    correct = _correction(ranked, forecasts, _HOPE)
    fitting = [i for i, f in forecasts.items() if f.fits]
    known, pending = ({_kind(ranked[i][0]) for i in indices} for indices in (fitting, asked))
    within = _REACH * min((ranked[i][1].seconds for i in (*fitting, *asked)), default=float("inf"))
    same_kind = None
    for index, (config, guess) in enumerate(ranked):
        kind = _kind(config)
        if index in forecasts or kind in pending or guess.host_bytes > guess.host_limit:
            continue
        if correct(config) * guess.peak_bytes > guess.hbm_bytes:
            continue
        if any(_needless(config, ranked[i][0]) for i in (*fitting, *asked)):
            continue
        if kind not in known and guess.seconds <= within:
            return index
        if kind in known and same_kind is None:
            same_kind = index
    if not forecasts and not asked:  # by the estimates nothing fits: let the compiler speak of the smallest
        return min(range(len(ranked)), key=lambda i: ranked[i][1].peak_bytes)
    return same_kind


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
    return (config.precision, config.optim.name, config.model.remat, config.offload)


def _rows(ranked, forecasts, best: int, target: Target) -> list[Row]:
    """Say of every candidate why it won or lost; see `Plan` for their order."""
    correct, time_factor = _correction(ranked, forecasts, 1.0), _time_factors(ranked, forecasts)
    fitting = [ranked[i][0] for i, f in forecasts.items() if f.fits]
    rows = []
    for index, (config, guess) in enumerate(ranked):
        forecast = forecasts.get(index)
        factors = (1.0, 1.0) if forecast else (time_factor(config), correct(config))
        row = Row(config, guess, forecast, "", *factors)
        reason = "chosen: the fastest that fits" if index == best else _reason(row, forecasts[best], target)
        needless = [why for compiled in fitting if (why := _needless(config, compiled))]
        if not forecast and row.fits and needless:
            reason = f"not compiled: {needless[0]}"
        rows.append(dataclasses.replace(row, reason=reason))
    chosen = rows.pop(best)
    return [chosen, *sorted(rows, key=lambda row: (not row.fits, row.seconds))]


def _reason(row: Row, best, target: Target) -> str:
    """Say why a plan lost against the best one's forecast."""
    guess, forecast, slower = row.estimate, row.forecast, _slower(row.seconds / best.seconds)
    if guess.host_bytes > guess.host_limit:
        return f"too big for the host by about {_gib(guess.host_bytes - guess.host_limit)}"
    if row.config.engine == "tiles":
        if not forecast.fits:
            return forecast.failure
        if forecast.seconds < best.seconds:
            return f"simulated alone, and not {_DOUBT} times as fast as what was compiled"
    if not row.fits:
        over = row.peak_bytes - target.hbm_bytes
        return f"too big by {_gib(over)}" if forecast else f"not compiled: too big by about {_gib(over)}"
    if forecast:
        return f"{slower}, {forecast.bound} bound"
    if row.seconds < 1.005 * best.seconds:
        return f"not compiled: as fast by the estimate, {guess.bound} bound; more --compiles would tell"
    return f"not compiled: {slower} by the estimate, {guess.bound} bound"


def _time_factors(ranked, forecasts) -> Callable[[TrainConfig], float]:
    """Return config -> what to multiply its estimated time with, from those that were compiled."""
    ratios: dict[tuple, list[float]] = {}
    for index, forecast in forecasts.items():
        config, guess = ranked[index]
        if config.engine == "jit" and forecast.fits:
            for key in (_kind(config), ()):
                ratios.setdefault(key, []).append(forecast.seconds / guess.seconds)

    def factor(config: TrainConfig) -> float:
        return statistics.median(ratios.get(_kind(config)) or ratios.get(()) or [1.0])

    return factor


def _needless(config: TrainConfig, other: TrainConfig) -> str:
    """Say why a plan saves memory that the other, which fits, shows that nobody needs; "" if it does not."""
    if config.engine != other.engine or _kind(config)[:-1] != _kind(other)[:-1]:  # all but the offload
        return ""
    if OFFLOADS.index(config.offload) > OFFLOADS.index(other.offload):
        return "a compiled plan with more in the host's memory than it needs"
    if config.offload == other.offload and config.mesh == other.mesh and config.accumulate > other.accumulate:
        return "a compiled plan in more parts than it needs"
    return ""


def _label(config: TrainConfig) -> str:
    mesh = config.mesh
    return (f"{config.precision}, remat {config.model.remat}, offload {config.offload}, "
            f"{config.accumulate} parts, mesh {mesh.data}x{mesh.fsdp}x{mesh.tensor}")  # fmt: skip


def _slower(ratio: float) -> str:
    return f"{100 * (ratio - 1):.1f} % slower" if ratio >= 1.0005 else "as fast"


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"
