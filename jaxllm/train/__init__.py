"""Training: a config, a state, a step, a loop, checkpoints."""

from jaxllm.train.cached_result import cached_result as cached_result
from jaxllm.train.config import TrainConfig as TrainConfig
from jaxllm.train.config import plain_run as plain_run
from jaxllm.train.config import to_dict as to_dict
from jaxllm.train.evaluate import Evaluation as Evaluation
from jaxllm.train.evaluate import evaluate as evaluate
from jaxllm.train.interrupt import Interrupted as Interrupted
from jaxllm.train.job import prepare as prepare
from jaxllm.train.log import NonFiniteLoss as NonFiniteLoss
from jaxllm.train.loop import Trained as Trained
from jaxllm.train.loop import train as train
from jaxllm.train.precision import PRECISIONS as PRECISIONS
