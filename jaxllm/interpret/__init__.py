"""Reading what a model does inside: outliers among its channels, attention that goes to the first token."""

from jaxllm.interpret.ablation import hidden_without_head, without_head
from jaxllm.interpret.attention_penalty import (
    RepeatedSpans,
    copying_penalty,
    draw_repeated_spans,
    largest_attention,
    syntactic_penalty,
)
from jaxllm.interpret.first_token import FirstTokenAttention, first_token_attention, uniform_first_token_mass
from jaxllm.interpret.heads import RepeatScores, best_head_accuracy, repeat_scores, syntactic_accuracy
from jaxllm.interpret.kurtosis import kurtosis, kurtosis_limits
from jaxllm.interpret.psychometrics import (
    PredictivePower,
    bootstrap_interval,
    psychometric_power,
    usable_rows,
)
from jaxllm.interpret.statistics import ActivationStatistics, activation_statistics

__all__ = [
    "ActivationStatistics",
    "FirstTokenAttention",
    "PredictivePower",
    "RepeatScores",
    "RepeatedSpans",
    "activation_statistics",
    "best_head_accuracy",
    "bootstrap_interval",
    "copying_penalty",
    "draw_repeated_spans",
    "first_token_attention",
    "hidden_without_head",
    "kurtosis",
    "kurtosis_limits",
    "largest_attention",
    "psychometric_power",
    "repeat_scores",
    "syntactic_accuracy",
    "syntactic_penalty",
    "uniform_first_token_mass",
    "usable_rows",
    "without_head",
]
