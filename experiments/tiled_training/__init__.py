"""NNTile: train GPT-2 as tile tasks that a scheduler places, and simulate machines that are not here.

VERDICT: Yes: tiles compute the same step (relative error 6.8e-07) at 0.97 of the jitted speed (best
tile size, one run); machines of
several GPUs are simulated, not run.

RESULT (30 November 2026, small, 6 minutes on 2 idle cores): all 18 claims hold. The tiled step differs from
the jitted one by 7e-7 and runs at 0.97 of its speed at the best tile size (goal 0.8); the scheduler adds 10
microseconds to a task (50). A policy that knows where data lie moves 0.70 of the bytes of one that does not;
hints save 0.40 of the peak on the device. Measured makespans are within 8 % of simulated ones on one and two
devices. Of NNTile's largest models, 25 and 50 billion parameters, the simulator fits 1.00, 0.94 and 0.91; on
its machines it is up to twice as fast as published with the largest, and slower with the smallest.

    python -m experiments.tiled_training                     # small: GPT-2 small's width, 7 minutes
    python -m experiments.tiled_training --preset debug      # a minute
    python -m experiments.tiled_training --simulate a100x4   # the published figures of one machine alone

On your own model: `jaxllm train --preset gpt2 --precision float32 --engine tiles --tiles.sizes.batch 1
--tiles.device-bytes 2000000000`; `jaxllm.tiles.TiledTrainer`.

Seven figures: how exact the tiled step is; what scheduling policies do on a simulated machine with memory
to spare and without; what hints save; what a task costs and at which tile size that is a tenth; the largest
model for a device's and a host's memory; the makespan that the simulator predicts beside the measured one;
and the published speeds beside those of the same models, simulated (`experiments.tiled_training.machines`).

A schedule is drawn in gantt.png; trace.json opens in https://ui.perfetto.dev.

Mikhalev et al., NNTile (arXiv 2504.13236).
"""

import dataclasses
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.grid import publish
from experiments.tiled_training import machines as published
from jaxllm import models
from jaxllm.config import Config, Count, UserPath
from jaxllm.errors import UserError, unknown
from jaxllm.models import ModelConfig, get_preset
from jaxllm.optim import OptimConfig
from jaxllm.report import Claim, Report, markdown_table
from jaxllm.text import TrainConfig, prepare_shapes
from jaxllm.tiles.config import TilesConfig, TileSizes
from jaxllm.tiles.cost_model import CALIBRATED, DataSheet, calibrate, measure_links
from jaxllm.tiles.execute import Executor
from jaxllm.tiles.feed import put_batch, put_rates, put_tree, take, take_tree
from jaxllm.tiles.gpt2 import StepOptions, flat, gpt2_step
from jaxllm.tiles.machines import gpu_machine, local_machine
from jaxllm.tiles.policies import POLICIES
from jaxllm.tiles.simulate import bounds, set_priorities, simulate
from jaxllm.tiles.trace import write_gantt, write_trace
from jaxllm.tiles.trainer import TiledTrainer
from jaxllm.train import to_dict

_OURS, _GOAL = "this experiment", "the goal set for this engine"
_GPU = dict(kind="gpu", host_bytes=1 << 50, pcie=4e9, nvlink=2e10)
_SHEET = DataSheet({"gpu": 1e12}, {"gpu": 1e11}, launch=5e-6)  # of a made-up GPU, for policies


@dataclass(frozen=True)
class TiledTrainingConfig(Config):
    """What is run here and what is simulated."""

    model: ModelConfig = get_preset("gpt2", num_layers=4, context_length=128)
    seq_len: Count = 128
    batch_size: Count = 4
    cuts: tuple[Count, ...] = (1, 2, 4)  # parts of width, heads, MLP and vocabulary, for timing
    rounds: Count = 5  # turns of each timing
    scheduled: ModelConfig = get_preset("gpt2-mini", context_length=64)  # for policies, on 4 made-up GPUs
    devices: tuple[Count, ...] = (1, 2)  # numbers of devices that makespans are predicted and measured on
    simulate: tuple[str, ...] = ("a100x8", "a100x4")  # machines whose published figures are redrawn
    every: Count = 3  # of the published sizes, take each so many, the last three always
    sequences: Count = 64  # a step of the published models: theirs is not known
    device_megabytes: tuple[Count, ...] = (8, 16, 32)  # the largest model is sought for each
    host_megabytes: tuple[Count, ...] = (32, 64, 128)
    out: UserPath = "runs/tiled-training"

    def __post_init__(self):
        super().__post_init__()
        for name in self.simulate:
            if name not in {machine for machine, _ in published.PUBLISHED}:
                raise unknown("machine", name, sorted({machine for machine, _ in published.PUBLISHED}))
        for name in ("cuts", "devices", "device_megabytes", "host_megabytes"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty; give at least one number")
        if self.sequences % published.PART:
            raise UserError(f"sequences is {self.sequences}; choose a multiple of {published.PART}")


def _debug() -> TiledTrainingConfig:
    nano = get_preset("gpt2-nano", num_layers=1, context_length=16)
    return TiledTrainingConfig(
        model=nano, seq_len=16, batch_size=2, cuts=(1,), rounds=3, devices=(1,), scheduled=nano, every=100,
        simulate=("a100x4",), sequences=published.PART, device_megabytes=(8,), host_megabytes=(16, 32),
        out="runs/tiled-training-debug",
    )  # fmt: skip


PRESETS = {"debug": _debug, "small": TiledTrainingConfig}


def main(config: TiledTrainingConfig, preset: str = "custom") -> Report:
    """Measure and simulate; write the report into `config.out`."""
    started, out = time.time(), Path(config.out)
    metrics, claims, sections = {}, [], {}
    parts = {
        part.__name__: partial(part, config, out) for part in (exactness, policies, hints, speed, predictions)
    }
    parts["largest model"] = partial(published.largest, config.device_megabytes, config.host_megabytes)
    parts["published figures"] = partial(
        published.redraw, config.simulate, config.every, config.sequences, out
    )
    with tqdm(parts.items(), unit="part") as bar:
        for name, part in bar:
            bar.set_description(name)
            more = part()
            metrics |= more[0]
            claims += more[1]
            sections |= more[2]
    report = Report(
        experiment="tiled_training", preset=preset, config=to_dict(config), seeds=[0], metrics=metrics,
        claims=claims, seconds=time.time() - started, sections=sections,
    )  # fmt: skip
    return publish(report, out)


def make_batch(model: ModelConfig, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return a random batch, each row a document."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, model.known_vocab_size, (shape[0], shape[1] + 1), dtype=np.int32)
    return {
        "tokens": ids[:, :-1], "targets": ids[:, 1:], "segment_ids": np.zeros(shape, np.int32),
        "mask": np.ones(shape, np.float32),
    }  # fmt: skip


def cut_sizes(model: ModelConfig, parts: int) -> TileSizes:
    """Return tiles of a part of the width, the heads, the MLP and the vocabulary."""

    def part(size):
        return -(-size // parts)

    return TileSizes(
        embed=part(model.embed_dim), mlp=part(model.mlp_dim), heads=part(model.num_heads),
        vocab=part(model.known_vocab_size),
    )  # fmt: skip


def exactness(config: TiledTrainingConfig, out: Path):
    """Compare a tiled step's loss and gradients with the ordinary model's."""
    model = get_preset("gpt2-nano", num_layers=1, embed_dim=24, num_heads=3)
    batch = make_batch(model, (3, 13))
    params = models.init(model, jax.random.key(0))

    def loss(params):
        return models.loss(model, params, batch["tokens"], batch["targets"])[0]

    want_loss, want = jax.value_and_grad(loss)(params)
    step = gpt2_step(model, TileSizes(seq=8, vocab=100), 3, 13, StepOptions(update=False))
    device = jax.devices()[:1]
    machine = local_machine(device, device_bytes=1 << 40, host_bytes=1 << 40)
    nominal = DataSheet({device[0].device_kind: 1e11}, {device[0].device_kind: 1e10})
    values = put_tree(model, step.params, params) | put_batch(step, batch, model.known_vocab_size)
    values |= put_rates(step, 0.0, 1, 0.9, 0.999)
    left = Executor(simulate(step.graph, machine, nominal), device).run(values)
    got = flat(model, take_tree(model, step.grads, left))
    errors = [
        float(np.abs(got[path] - value).max() / np.abs(value).max())
        for path, value in flat(model, want).items()
        if path[-1] != "key_bias"  # softmax does not see it: rounding alone
    ]
    loss_error = float(abs(take(step.loss, left) / 39 - want_loss) / want_loss)
    metrics = {"error/gradient": max(errors), "error/loss": loss_error}
    worst = max(metrics.values())
    claim = Claim("relative error of the tiled loss and gradients, at most 1e-5", _GOAL, worst, worst <= 1e-5)
    return metrics, [claim], {}


def policies(config: TiledTrainingConfig, out: Path):
    """Schedule one step by every policy on four made-up GPUs, with all the memory it wants and with less."""
    model, batch, seq = config.scheduled, 16, config.scheduled.context_length
    sizes = dataclasses.replace(cut_sizes(model, 2), batch=2)
    graph = gpt2_step(model, sizes, batch, seq, StepOptions()).graph
    set_priorities(graph, _SHEET.seconds(graph, "gpu"))

    def machine(gpu_bytes):
        return gpu_machine("4 GPUs", 4, gpu_bytes=gpu_bytes, **_GPU)

    metrics, rows, drawn = {}, [], []
    least = bounds(graph, machine(1 << 50), _SHEET)
    metrics |= {f"policy/bound_ms/{name}": 1e3 * seconds for name, seconds in least.items()}
    need = max(simulate(graph, machine(1 << 50), _SHEET, "dmdas").peak[1:])
    moved = {}
    for room, share in (("roomy", 1e6), ("tight", 0.4)):
        for policy in POLICIES:
            begun = time.process_time()
            made = simulate(graph, machine(int(need * share)), _SHEET, policy)
            took = (time.process_time() - begun) / len(graph.tasks)
            moved[room, policy] = made.moved
            values = dict(
                ms=1e3 * made.seconds, megabytes=made.moved / 1e6, evictions=made.evictions, idle=made.idle,
                peak_megabytes=max(made.peak[1:]) / 1e6, us_per_task=1e6 * took,
            )  # fmt: skip
            metrics |= {f"policy/{room}/{policy}/{name}": float(value) for name, value in values.items()}
            rows.append([room, policy, *(f"{value:.4g}" for value in values.values())])
            if room == "roomy" and policy in ("eager", "dmdas"):
                drawn.append(made)
    write_gantt(out / "gantt.png", drawn)
    write_trace(out / "trace.json", drawn[-1])
    slowest = max(v for name, v in metrics.items() if name.endswith("us_per_task"))
    fastest = min(metrics[f"policy/roomy/{policy}/ms"] for policy in POLICIES)
    metrics["policy/slower_than_bound"] = fastest / (1e3 * max(least.values()))
    metrics["policy/tasks"] = len(graph.tasks)
    claims = []
    for room, policy, other in (
        ("roomy", "dmda", "dm"),
        ("roomy", "dmda", "eager"),
        ("tight", "dmdas", "dm"),
    ):
        share = moved[room, policy] / moved[room, other]
        claim = f"memory {room}: bytes that {policy} moves, as a share of {other}'s, under 1"
        claims.append(Claim(claim, _OURS, share, share < 1))
    claims.append(
        Claim("CPU seconds to simulate 100,000 tasks, under 30", _GOAL, 0.1 * slowest, 0.1 * slowest < 30)
    )
    head = ["memory", "policy", "ms", "MB moved", "evictions", "idle", "peak MB", "CPU us a task"]
    return metrics, claims, {"Policies": markdown_table(head, rows)}


def hints(config: TiledTrainingConfig, out: Path):
    """Peak bytes with and without each hint, on one made-up GPU."""
    model, seq = config.scheduled, config.scheduled.context_length
    machine = gpu_machine("GPU", 1, gpu_bytes=1 << 50, **_GPU)
    peaks, metrics = {}, {}
    for drops in (False, True):
        for rests in (False, True):
            options = StepOptions(drops=drops, rests=rests)
            graph = gpt2_step(model, TileSizes(batch=4), 16, seq, options).graph
            made = simulate(graph, machine, _SHEET)
            name = "+".join([*["invalidate"] * drops, *["wont_use"] * rests]) or "none"
            peaks[drops, rests] = made.peak[1]
            metrics[f"hints/device_megabytes/{name}"] = made.peak[1] / 1e6
            metrics[f"hints/host_megabytes/{name}"] = made.peak[0] / 1e6
    share, what = peaks[True, True] / peaks[False, False], "peak bytes on the device with hints over without"
    holds = peaks[True, False] <= peaks[False, False] and peaks[True, True] <= peaks[False, True]
    return metrics, [Claim(what, _OURS, share, holds)], {}


def speed(config: TiledTrainingConfig, out: Path):
    """Time the tiled step beside the monolithic jitted one, for several tile sizes, in turn."""
    model, shape = config.model, (config.batch_size, config.seq_len)
    batch, device = make_batch(model, shape), jax.devices()[:1]
    run = TrainConfig(model=model, seq_len=shape[1], batch_size=shape[0], steps=1000, optim=OptimConfig())
    job = prepare_shapes(run, devices=device)
    state, placed = job.init(jax.random.key(0)), job.put(batch)
    optim, trainers = run.optim, {}
    options = StepOptions(b1=optim.beta1, b2=optim.beta2, weight_decay=optim.weight_decay, clip_norm=1.0)
    seconds = {"jit": [], **{cut: [] for cut in config.cuts}}
    for cut in config.cuts:  # one after the other: a model for each would not fit
        trainers[cut] = TiledTrainer(model, TilesConfig(cut_sizes(model, cut)), *shape, options, device)
        trainers[cut].load(state.params)
        for turn in range(config.rounds + 2):  # the first two compile
            begun = time.perf_counter()
            state, measured = job.train_step(state, placed)
            measured["loss"].block_until_ready()
            middle = time.perf_counter()
            trainers[cut].step(batch, 1e-4)
            jax.block_until_ready(trainers[cut].values)
            if turn > 1:
                seconds["jit"].append(middle - begun)
                seconds[cut].append(time.perf_counter() - middle)
        trainers[cut].values = {}
    per_task = dispatch_seconds()
    metrics = {"overhead/us_per_task": 1e6 * per_task}
    rows = []
    for cut in config.cuts:
        count, middle = len(trainers[cut].schedule.order()), statistics.median(seconds[cut])
        place = config.cuts.index(cut) * config.rounds
        turns = seconds["jit"][place : place + config.rounds]
        ratio = statistics.median(turns) / middle
        share = count * per_task / middle
        metrics |= {
            f"speed/seconds/{cut}": middle, f"ratio/step/cut-{cut}/jit": ratio,
            f"overhead/tasks/{cut}": count, f"overhead/share/{cut}": share,
        }  # fmt: skip
        row = [cut, model.embed_dim // cut, count, f"{1e3 * middle:.4g}", f"{ratio:.3f}", f"{share:.1%}"]
        rows.append(row)
    metrics["speed/seconds/jit"] = statistics.median(seconds["jit"])
    best = max(metrics[f"ratio/step/cut-{cut}/jit"] for cut in config.cuts)
    claims = [
        Claim("speed of the tiled step at the best tile size, jitted step's = 1, at least 0.8", _GOAL, best,
              best >= 0.8),
        Claim("microseconds that the scheduler adds to a task, at most 50", _GOAL, 1e6 * per_task,
              1e6 * per_task <= 50),
    ]  # fmt: skip
    fine = [model.embed_dim // cut for cut in config.cuts if metrics[f"overhead/share/{cut}"] < 0.1]
    if fine:
        metrics["overhead/smallest_width_under_a_tenth"] = min(fine)
    head = ["parts", "width of a tile", "tasks", "ms a step", "speed, jit = 1", "overhead"]
    return metrics, claims, {"Tile sizes": markdown_table(head, rows)}


def dispatch_seconds(tasks: int = 2000) -> float:
    """Return the CPU seconds in which this thread hands over a task: the median of some replays.

    Of the thread alone, so that neither the tasks' own work nor a busy machine counts.
    """
    from jaxllm.tiles.access import Mode
    from jaxllm.tiles.graph import Op, Program

    program = Program()
    x = program.tensor("x", (64,), (4,), given=True)
    add = Op("add", lambda a, b: (a + b,))
    for i in range(tasks):
        program.submit(add, (Mode.R, x[i % 16]), (Mode.RW, x[(i + 5) % 16]))
    graph, device = program.graph(), jax.devices()[:1]
    kind = device[0].device_kind
    machine = local_machine(device, device_bytes=1 << 40, host_bytes=1 << 40)
    executor = Executor(simulate(graph, machine, DataSheet({kind: 1e9}, {kind: 1e9})), device)
    times = []
    for _ in range(7):
        values = {handle: jax.numpy.ones(4) for handle in graph.given}
        begun = time.thread_time()
        executor.run(values)
        times.append((time.thread_time() - begun) / tasks)
        executor.wait()
    return statistics.median(times)


def predictions(config: TiledTrainingConfig, out: Path):
    """Predict the makespan of a step from timings of its kernels, and measure it.

    Half of the timings are taken before it runs and half after: a shared machine's speed drifts.
    """
    model, shape = config.model, (config.batch_size, config.seq_len)
    step = gpt2_step(model, cut_sizes(model, config.cuts[-1]), *shape, StepOptions(update=False))
    batch, params = make_batch(model, shape), models.init(model, jax.random.key(0))
    given = put_tree(model, step.params, params) | put_batch(step, batch, model.known_vocab_size)
    given |= put_rates(step, 0.0, 1, 0.9, 0.999)
    metrics, errors = {}, []
    for count in config.devices:
        devices = jax.devices()[:count]
        if len(devices) < count:
            raise UserError(f"devices asks for {count} and there are {len(devices)}; ask for fewer")
        costs = calibrate(step.graph, devices, samples=CALIBRATED // 2)
        links = measure_links(devices)
        machine = local_machine(devices, device_bytes=1 << 40, host_bytes=1 << 40, links=links)
        made = simulate(step.graph, machine, costs, "dmdas")
        executor, times = Executor(made, devices), []
        for turn in range(config.rounds + 1):
            values = {handle: jax.numpy.array(value) for handle, value in given.items()}
            jax.block_until_ready(values)
            begun = time.perf_counter()
            executor.run(values)
            executor.wait()
            times += [time.perf_counter() - begun] if turn else []
        costs = calibrate(step.graph, devices, costs)
        predicted = simulate(step.graph, machine, costs, "dmdas").seconds
        measured = statistics.median(times)
        errors.append(abs(predicted / measured - 1))
        metrics |= {
            f"predicted/ms/{count}": 1e3 * predicted, f"measured/ms/{count}": 1e3 * measured,
            f"measured/predicted_over_measured/{count}": predicted / measured,
        }  # fmt: skip
    claims = [
        Claim(f"error of the predicted makespan on {count} devices, at most 20 %", _OURS, error, error <= 0.2)
        for count, error in zip(config.devices, errors, strict=True)
    ]
    return metrics, claims, {}
