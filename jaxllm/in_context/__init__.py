"""Learn in context from labelled vectors: TART's reasoning module, on embeddings of any frozen model.

Start with `InContextClassifier(load_reasoner(), vectors, labels)`: a classifier that is not trained. The
module was, once, on synthetic problems of logistic regression; it reads the labelled vectors and says the
label of others.

    vectors = retrieve.Encoder(*from_pretrained(fetch_minilm())).embed(texts)
    classifier = InContextClassifier(load_reasoner(), vectors[:32], labels[:32])
    classifier.predict(vectors[32:])

`embed_in_prompt` and `embed_leave_one_out` embed texts as a prompt of labelled examples shows them.
`train_reasoner(ReasonerRun(...))` trains a module of other sizes; `reasoner_task` is its task.
"""

from jaxllm.in_context.classifier import InContextClassifier
from jaxllm.in_context.embedding import PromptVectors, embed_in_prompt, embed_leave_one_out
from jaxllm.in_context.problems import Curriculum, ProblemBatches, Problems, draw_problems
from jaxllm.in_context.reasoner import ReasonerConfig, axes, init, logits
from jaxllm.in_context.reduction import Reduction, fit_reduction
from jaxllm.in_context.saved import Reasoner, load_reasoner, save_reasoner
from jaxllm.in_context.training import ReasonerRun, reasoner_optimizer, reasoner_task, train_reasoner

__all__ = [
    "Curriculum",
    "InContextClassifier",
    "ProblemBatches",
    "Problems",
    "PromptVectors",
    "Reasoner",
    "ReasonerConfig",
    "ReasonerRun",
    "Reduction",
    "axes",
    "draw_problems",
    "embed_in_prompt",
    "embed_leave_one_out",
    "fit_reduction",
    "init",
    "load_reasoner",
    "logits",
    "reasoner_optimizer",
    "reasoner_task",
    "save_reasoner",
    "train_reasoner",
]
