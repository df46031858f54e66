"""The default task: a language model's next token, from the command line's config to a run."""

from jaxllm.text.cached_result import cached_result as cached_result
from jaxllm.text.config import TrainConfig as TrainConfig
from jaxllm.text.config import plain_run as plain_run
from jaxllm.text.load import load_adapted as load_adapted
from jaxllm.text.load import load_model as load_model
from jaxllm.text.load import load_run as load_run
from jaxllm.text.precision import PRECISIONS as PRECISIONS
from jaxllm.text.prepare import TextRun as TextRun
from jaxllm.text.prepare import prepare as prepare
from jaxllm.text.prepare import prepare_shapes as prepare_shapes
from jaxllm.text.prepare import unstacked as unstacked
from jaxllm.text.task import evaluate as evaluate
from jaxllm.text.task import next_token_loss as next_token_loss
from jaxllm.text.training import train as train
