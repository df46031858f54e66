"""Reading what a model does inside: outliers, the attention sink, what heads copy, lenses, surprisal.

Start with `activation_statistics(config, params, batches)`: the attention sink, kurtosis and largest values
of every layer, streamed over batches. Activations themselves, read or edited at named sites, are
`jaxllm.models`': `models.capture(config, params, tokens, models.Sites(capture=("resid_post",)))`.
"""

from jaxllm.interpret.ablation import hidden_without_head, without_head
from jaxllm.interpret.attention_penalty import (
    RepeatedSpans,
    copying_penalty,
    draw_repeated_spans,
    largest_attention,
    syntactic_penalty,
)
from jaxllm.interpret.components import Components, components, row_vectors
from jaxllm.interpret.edits import head_mask, shift_row, swap_attention
from jaxllm.interpret.first_token import FirstTokenAttention, first_token_attention, uniform_first_token_mass
from jaxllm.interpret.heads import RepeatScores, best_head_accuracy, repeat_scores, syntactic_accuracy
from jaxllm.interpret.kurtosis import kurtosis, kurtosis_limits
from jaxllm.interpret.lens import ComponentScores, Norm, component_scores, lens, unembedding
from jaxllm.interpret.psychometrics import (
    PredictivePower,
    bootstrap_interval,
    psychometric_power,
    usable_rows,
)
from jaxllm.interpret.statistics import ActivationStatistics, activation_statistics

__all__ = [
    "ActivationStatistics",
    "ComponentScores",
    "Components",
    "FirstTokenAttention",
    "Norm",
    "PredictivePower",
    "RepeatScores",
    "RepeatedSpans",
    "activation_statistics",
    "best_head_accuracy",
    "bootstrap_interval",
    "component_scores",
    "components",
    "copying_penalty",
    "draw_repeated_spans",
    "first_token_attention",
    "head_mask",
    "hidden_without_head",
    "kurtosis",
    "kurtosis_limits",
    "largest_attention",
    "lens",
    "psychometric_power",
    "repeat_scores",
    "row_vectors",
    "shift_row",
    "swap_attention",
    "syntactic_accuracy",
    "syntactic_penalty",
    "unembedding",
    "uniform_first_token_mass",
    "usable_rows",
    "without_head",
]
