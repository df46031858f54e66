"""What a model says of given texts: of tokens, texts, choices, labels and words, and their calibration."""

from jaxllm.score.calibrate import CALIBRATORS, divide_by_prior, keep_as_given
from jaxllm.score.choices import Choice, label_log_probs, score_choices
from jaxllm.score.few_shot import FewShotTask, content_free_inputs, random_word_inputs
from jaxllm.score.label_metrics import accuracy, macro_auroc, macro_f1
from jaxllm.score.prior import Prior, estimate_prior, uniform_prior
from jaxllm.score.prompted import FewShotPrompt
from jaxllm.score.prototypes import Prototypes, assign_prototypes, fit_prototypes
from jaxllm.score.sample_inputs import SampledInputs, sample_inputs
from jaxllm.score.sequences import map_sequences, prepare, score_sequences
from jaxllm.score.texts import TextScore, rolling_log_probs, rolling_windows, score_examples, score_texts
from jaxllm.score.words import begins_word, word_surprisals

__all__ = [
    "CALIBRATORS",
    "Choice",
    "FewShotPrompt",
    "FewShotTask",
    "Prior",
    "Prototypes",
    "SampledInputs",
    "TextScore",
    "accuracy",
    "assign_prototypes",
    "begins_word",
    "content_free_inputs",
    "divide_by_prior",
    "estimate_prior",
    "fit_prototypes",
    "keep_as_given",
    "label_log_probs",
    "macro_auroc",
    "macro_f1",
    "map_sequences",
    "prepare",
    "random_word_inputs",
    "rolling_log_probs",
    "rolling_windows",
    "sample_inputs",
    "score_choices",
    "score_examples",
    "score_sequences",
    "score_texts",
    "uniform_prior",
    "word_surprisals",
]
