"""One training command on one, two and four processes; then a process of four is lost, and fewer go on.

    python -m experiments.benchmarks.many_hosts              # about 6 minutes on 2 cores

Processes on this machine stand for hosts: joined by jax.distributed, Gloo between them, four simulated
devices in all (data=2, fsdp=2), each process with its rows of the data and its part of each checkpoint.
Losses and parameters are compared with those of one process. Then a process is killed with SIGKILL, the
one with jax's coordinator too, or hangs (SIGSTOP): how long until all others have ended, with which exit
code, and how many steps have to be done again? Two processes with half of the devices go on each time.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.benchmarks import local_processes
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.parallel.distributed import EXIT_CODE, HEARTBEAT_SECONDS
from jaxllm.report import Claim, Report, markdown_table
from jaxllm.text.load import load_run
from jaxllm.train.writers import read_metrics

_ISSUE = "issue: many hosts"
_DEVICES = 4
_COUNTS = (1, 2, 4)
_LOSSES = {  # which process, and how
    "killed": (3, signal.SIGKILL),
    "coordinator_killed": (0, signal.SIGKILL),
    "hanging": (2, signal.SIGSTOP),
}
_TOLERANCE = 1e-4  # of losses and parameters: sums of float32 in another order, over a run


@dataclass(frozen=True)
class ManyHostsConfig(Config):
    """How long a run is lost when."""

    steps: Count = 40
    lost_at: Count = 20  # steps
    save_every: Count = 7  # steps
    out: UserPath = "runs/many_hosts"


def main(config: ManyHostsConfig, preset: str = "small") -> Report:
    """Run, kill, go on, compare; write the report into `config.out`."""
    started, folder = time.time(), Path(config.out)
    metrics, claims, rows = {}, [], []
    progress = tqdm(total=len(_COUNTS) + len(_LOSSES), desc="runs", unit="run")
    for count in _COUNTS:
        begun = time.time()
        command = _command(config, folder / str(count))
        _finish(local_processes.start([command] * count, _DEVICES // count))
        metrics[f"seconds/{count}_processes"] = time.time() - begun
        metrics[f"shards/{count}_processes"] = _shards(folder / str(count), config.steps)
        progress.update()
    for count in _COUNTS[1:]:
        metrics |= _differences(folder / "1", folder / str(count), f"{count}_processes")
    for name, (victim, signum) in _LOSSES.items():
        metrics |= _lose(config, folder / name, name, victim, signum, rows)
        command = _command(config, folder / name, "--mesh.data", "1")
        _finish(local_processes.start([command] * 2, 1))
        metrics |= _differences(folder / "1", folder / name, name)
        progress.update()
    progress.close()

    for count in _COUNTS[1:]:
        claims += _same(metrics, f"{count}_processes", f"{count} processes")
        parts = metrics[f"shards/{count}_processes"]
        each = f"{count} processes: each writes its part of a checkpoint"
        claims.append(Claim(each, _ISSUE, parts, parts == count))
    for name in _LOSSES:
        seconds, codes = metrics[f"seconds_until_ended/{name}"], metrics[f"clear_exits/{name}"]
        redone = metrics[f"steps_redone/{name}"]
        bound = HEARTBEAT_SECONDS + 10
        claims += [
            Claim(f"{name}: the others end within {bound} s", _ISSUE, seconds, seconds <= bound),
            Claim(f"{name}: all three with a sentence and exit code {EXIT_CODE}", _ISSUE, codes, codes == 3),
            Claim(f"{name}: fewer steps are done again than lie between three checkpoints", _ISSUE, redone,
                  0 <= redone < 2 * config.save_every),
            *_same(metrics, name, f"{name}, then two processes with half of the devices"),
        ]  # fmt: skip
    report = Report(
        experiment="benchmarks/many_hosts", preset=preset, config=vars(config), seeds=[0], metrics=metrics,
        claims=claims, seconds=time.time() - started,
        sections={"What the others say": markdown_table(("lost", "process", "exit code", "last line"), rows)},
    )  # fmt: skip
    report.write(config.out)
    print(report.to_text())
    return report


def _command(config: ManyHostsConfig, out, *more: str) -> list[str]:
    return [
        "--preset", "gpt2-nano", "--tokenizer", "bytes", "--seq-len", "64", "--batch-size", "8",
        "--steps", str(config.steps), "--save-every", str(config.save_every), "--eval-every", "1000000",
        "--final-eval-batches", "2", "--log-every", "1", "--no-progress",
        "--mesh.data", "2", "--mesh.fsdp", "2", "--out", str(out), *more,
    ]  # fmt: skip


def _finish(processes) -> None:
    """Wait until all processes have ended; raise if not all have ended well."""
    said = [process.communicate()[1] for process in processes]
    if any(process.returncode for process in processes):
        codes = [process.returncode for process in processes]
        raise RuntimeError(f"processes ended with exit codes {codes}; they said: {[s[-1000:] for s in said]}")


def _lose(config, out, name, victim, signum, rows) -> dict[str, float]:
    """Start four processes and lose one; return how the others ended."""
    processes = local_processes.start([_command(config, out)] * 4, 1)
    while _logged(out) < config.lost_at:
        time.sleep(0.005)
        if any(process.poll() is not None for process in processes):
            _finish(processes)
            raise RuntimeError(f"the run ended before step {config.lost_at}; raise --steps")
    os.kill(processes[victim].pid, signum)
    lost, logged = time.time(), _logged(out)
    others = [process for process in processes if process is not processes[victim]]
    clear = 0
    for process in others:
        _, said = process.communicate()
        lines = said.strip().splitlines() or [""]
        told = lines[-1].startswith("another process of the run was lost")
        clear += told and process.returncode == EXIT_CODE
        rows.append((name, processes.index(process), process.returncode, lines[-1]))
    ended = time.time() - lost
    processes[victim].kill()
    processes[victim].communicate()
    saved = max(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())
    return {
        f"seconds_until_ended/{name}": ended,
        f"clear_exits/{name}": clear,
        f"last_step/{name}": max(logged, _logged(out)),
        f"checkpoint/{name}": saved,
        f"steps_redone/{name}": max(logged, _logged(out)) - saved,
    }


def _logged(out) -> int:
    rows = read_metrics(out)
    return rows[-1]["step"] if rows else 0


def _shards(out, step) -> int:
    """Count the processes that have written arrays into a checkpoint."""
    parts = (out / "checkpoints" / str(step) / "state").glob("ocdbt.process_*")
    return sum(any(part.rglob("d/*")) for part in parts)


def _differences(expected, found, name: str) -> dict[str, float]:
    """Return the largest differences of two runs: in the loss of any step, in any parameter."""
    a, b = ([row["loss"] for row in read_metrics(out) if "loss" in row] for out in (expected, found))
    p, q = (load_run(out)[1] for out in (expected, found))
    apart = jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x, np.float64) - y))), p, q)
    loss = float(np.max(np.abs(np.subtract(a, b)))) if len(a) == len(b) else float("inf")
    return {f"loss_difference/{name}": loss, f"parameter_difference/{name}": max(jax.tree.leaves(apart))}


def _same(metrics, name: str, who: str) -> list[Claim]:
    claims = []
    for key, what in (("loss", "every step's loss"), ("parameter", "every parameter")):
        apart = metrics[f"{key}_difference/{name}"]
        claim = f"{who}: {what} within {_TOLERANCE:g} of one process's"
        claims.append(Claim(claim, _ISSUE, apart, apart <= _TOLERANCE))
    return claims


if __name__ == "__main__":
    run_experiment(main, ManyHostsConfig)
