"""The default task: a language model's next token, from the command line's config to a run.

Start with `train(TrainConfig(data="my.txt"))`, which is `jaxllm train`; `load_run` gives the model back.

    run = train(TrainConfig(data="my.txt", steps=2000, out="runs/mine"))  # goes on after a stop
    model = load_run("runs/mine")  # (config, params, tokenizer)

`prepare` builds a run and takes no step; `prepare_shapes` one to compile. `PRECISIONS` names the policies.
`next_token_loss` and `evaluate` are the task's own loss and scores. `load_model` reads a run or a
pretrained model, `load_adapted` one with an adapter.

Labels of texts or words are another task: `train_labels` trains an encoder, a `Labeller` says them.
"""

from jaxllm.text.cached_result import cached_result
from jaxllm.text.config import TrainConfig, plain_run
from jaxllm.text.labeller import Labeller
from jaxllm.text.labels import LabelConfig, TrainedLabels, train_labels
from jaxllm.text.load import load_adapted, load_model, load_run
from jaxllm.text.precision import PRECISIONS
from jaxllm.text.prepare import TextRun, prepare, prepare_shapes, unstacked
from jaxllm.text.task import evaluate, next_token_loss
from jaxllm.text.training import train

__all__ = [
    "PRECISIONS",
    "LabelConfig",
    "Labeller",
    "TextRun",
    "TrainConfig",
    "TrainedLabels",
    "cached_result",
    "evaluate",
    "load_adapted",
    "load_model",
    "load_run",
    "next_token_loss",
    "plain_run",
    "prepare",
    "prepare_shapes",
    "train",
    "train_labels",
    "unstacked",
]
