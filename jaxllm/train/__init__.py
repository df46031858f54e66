"""Training: a task, a state, a step, a loop, starts, checkpoints. What is trained is the task's business.

The default task is text, `jaxllm.text`.
"""

from jaxllm.train.config import RunConfig, to_dict
from jaxllm.train.engine import Engine, Parts, jit_engine
from jaxllm.train.interrupt import Interrupted
from jaxllm.train.log import NonFiniteLoss
from jaxllm.train.loop import Trained, train, train_run
from jaxllm.train.prepare import Run, prepare
from jaxllm.train.state import TrainState, init_state
from jaxllm.train.step import make_train_step
from jaxllm.train.task import LossFunction, Stage, Task, View

__all__ = [
    "Engine",
    "Interrupted",
    "LossFunction",
    "NonFiniteLoss",
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
