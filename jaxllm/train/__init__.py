"""Training any task: a state, a step, a loop, starts, checkpoints. Text is one task, `jaxllm.text`.

Start with `train(task, RunConfig(...), optimizer=...)`, where a `Task` is five things: init, the axes of
the parameters, batches, loss and evaluate (README has a whole one in twenty lines).

    task = Task(init, axes, batches, loss, evaluate)
    trained = train(task, RunConfig(steps=200, out="runs/mine"), optimizer=optax.adam(0.1))
    trained.params, trained.evaluation

The same command goes on after a stop, bit for bit. `views` are functions of the parameters, applied before
the loss (`View`; `Stage` for a part of the steps); an `Engine` makes the step, `jit_engine` by default. For
a loop of your own: `prepare(task, config, ...)` gives a `Run` with its `train_step` and `init`;
`make_train_step` a step alone.
"""

from jaxllm.train.config import RunConfig, to_dict
from jaxllm.train.engine import Engine, Parts, jit_engine
from jaxllm.train.interrupt import Interrupted
from jaxllm.train.log import NonFiniteLoss
from jaxllm.train.loop import Trained, train, train_run
from jaxllm.train.prepare import Run, prepare
from jaxllm.train.state import TrainState, init_state
from jaxllm.train.step import make_train_step
from jaxllm.train.task import Every, LossFunction, OnMetrics, Stage, Task, View

__all__ = [
    "Engine",
    "Every",
    "Interrupted",
    "LossFunction",
    "NonFiniteLoss",
    "OnMetrics",
    "Parts",
    "Run",
    "RunConfig",
    "Stage",
    "Task",
    "TrainState",
    "Trained",
    "View",
    "init_state",
    "jit_engine",
    "make_train_step",
    "prepare",
    "to_dict",
    "train",
    "train_run",
]
