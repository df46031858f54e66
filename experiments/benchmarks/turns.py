"""Time contenders in processes of their own that take turns, so that a busy moment hits them all."""

import multiprocessing
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm


def take_turns(
    contenders: Mapping[str, Callable[[], Callable]], rounds: int, *, steps: int = 1, title: str = ""
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return ({contender: seconds a step in each round}, {contender: seconds until its first step was done}).

    In a process of its own no contender's threads, which may spin for a while, slow the next one down.

    Args:
      contenders: name to a function that can be pickled; called in the new process it returns the
        step, which must wait for its result.
      rounds: turns of each contender.
      steps: that a turn takes.
      title: of the progress bar.
    """
    spawn = multiprocessing.get_context("spawn")
    workers, starts = {}, {}
    seconds = {name: [] for name in contenders}
    try:
        for name, make in tqdm(contenders.items(), desc=f"{title}, first steps", unit="contender"):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(make, steps, theirs), daemon=True)
            process.start()
            workers[name] = (process, ours)
            theirs.close()
            starts[name] = ours.recv()  # compiled and warm before the next one starts
        for _ in tqdm(range(rounds), desc=title, unit="round"):
            for name, (_, pipe) in workers.items():
                pipe.send("go")
                seconds[name].append(pipe.recv())
    finally:
        for process, pipe in workers.values():
            pipe.close()
            process.join(10)
            process.kill()
    return seconds, starts


def _work(make, steps: int, pipe) -> None:
    """Make a step, then time some of them whenever asked; end when the pipe closes."""
    begun = time.perf_counter()
    step = make()
    step()
    first = time.perf_counter() - begun
    step()
    pipe.send(first)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        pipe.send((time.perf_counter() - begun) / steps)


def dispatched(call: Callable, wait: Callable, rounds: int, calls: int) -> list[float]:
    """Return the seconds of a call in each round; of a round's calls only the last is waited for.

    Args:
      call: returns before the device has done the work.
      wait: takes what the call returned, and returns when it is there.
      rounds: how many.
      calls: of each round.
    """
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(calls):
            last = call()
        wait(last)
        seconds.append((time.perf_counter() - begun) / calls)
    return seconds


def waiting_step(job, tokens):
    """Return a function that takes a training step of a `jaxllm.train.Run` and waits for its loss.

    Args:
      job: as `prepare_shapes` returns it.
      tokens: int32 [B, T + 1], every step's batch: one document a row, all of it counted.
    """
    import numpy as np

    shape = (len(tokens), tokens.shape[1] - 1)
    return waiting_batch_step(job, {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:],
        "segment_ids": np.zeros(shape, np.int32), "mask": np.ones(shape, np.float32),
    })  # fmt: skip


def waiting_batch_step(job, batch):
    """Return a function that takes a training step on one batch, always the same, and waits for its loss."""
    import jax

    state = job.init(jax.random.key(0))
    batch = job.put(batch)

    def step():
        nonlocal state
        state, metrics = job.train_step(state, batch)
        metrics["loss"].block_until_ready()

    return step
