"""Training as small tasks on tiles of tensors, placed by a scheduler, moved and evicted by it too.

Start with `TiledTrainer`, which trains GPT-2 so, as `jaxllm train --engine tiles` does. A `Program` is a
stream of tasks; how each uses its tiles (`Mode`) gives the graph of who waits for whom. `simulate`
schedules a graph on a machine by one of `POLICIES`, for machines that are here and for those that are not;
an `Executor` replays a schedule on jax's devices. `gpt2_step` is GPT-2's training step as a program.

After NNTile (Mikhalev et al., arXiv 2504.13236) and the StarPU runtime beneath it. Other than there, arrays
are row-major; the order of tasks is settled once and replayed, by cost models, not anew in every step; and
the first task to add to a tile writes it, so that none has to be cleared.

Examples:
  >>> from jaxllm.tiles import Mode, Op, Program, get_machine, simulate, DataSheet
  >>> program = Program()
  >>> x = program.tensor("x", (8, 8), (4, 8), given=True)
  >>> norm = program.tensor("norm", (), ())
  >>> for i in range(2):
  ...     program.submit(Op("square_sum", lambda x: ((x**2).sum(),)), (Mode.R, x[i, 0]),
  ...                    program.adding(norm[()]), flops=64)
  >>> schedule = simulate(program.graph(), get_machine("a100x4"), DataSheet({"a100": 1e14}, {"a100": 1e12}))
  >>> len(schedule.order()), schedule.moved
  (2, 256)
"""

from jaxllm.tiles.access import Mode
from jaxllm.tiles.config import TilesConfig, TileSizes
from jaxllm.tiles.cost_model import DataSheet, History, calibrate
from jaxllm.tiles.execute import Executor, TaskFailed
from jaxllm.tiles.gpt2 import StepOptions, gpt2_step
from jaxllm.tiles.graph import Graph, Op, Program
from jaxllm.tiles.machines import get_machine
from jaxllm.tiles.policies import POLICIES
from jaxllm.tiles.simulate import simulate
from jaxllm.tiles.trainer import TiledTrainer

__all__ = [
    "POLICIES",
    "DataSheet",
    "Executor",
    "Graph",
    "History",
    "Mode",
    "Op",
    "Program",
    "StepOptions",
    "TaskFailed",
    "TileSizes",
    "TiledTrainer",
    "TilesConfig",
    "calibrate",
    "get_machine",
    "gpt2_step",
    "simulate",
]
