"""Reading what a model does inside: outliers among its channels, attention that goes to the first token."""

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
    "activation_statistics",
    "best_head_accuracy",
    "bootstrap_interval",
    "first_token_attention",
    "kurtosis",
    "kurtosis_limits",
    "psychometric_power",
    "repeat_scores",
    "syntactic_accuracy",
    "uniform_first_token_mass",
    "usable_rows",
]
