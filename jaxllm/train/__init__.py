"""Training: a task, a state, a step, a loop, starts, checkpoints. What is trained is the task's business.

The default task is text, `jaxllm.text`.
"""

from jaxllm.train.config import RunConfig as RunConfig
from jaxllm.train.config import to_dict as to_dict
from jaxllm.train.engine import Engine as Engine
from jaxllm.train.engine import Parts as Parts
from jaxllm.train.engine import jit_engine as jit_engine
from jaxllm.train.interrupt import Interrupted as Interrupted
from jaxllm.train.log import NonFiniteLoss as NonFiniteLoss
from jaxllm.train.loop import Trained as Trained
from jaxllm.train.loop import train as train
from jaxllm.train.loop import train_run as train_run
from jaxllm.train.prepare import Run as Run
from jaxllm.train.prepare import prepare as prepare
from jaxllm.train.state import TrainState as TrainState
from jaxllm.train.state import init_state as init_state
from jaxllm.train.step import make_train_step as make_train_step
from jaxllm.train.task import LossFunction as LossFunction
from jaxllm.train.task import Stage as Stage
from jaxllm.train.task import Task as Task
from jaxllm.train.task import View as View
