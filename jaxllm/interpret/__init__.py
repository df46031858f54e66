"""Reading what a model does inside: outliers, the attention sink, what heads copy, lenses, surprisal; probes.

Start with `activation_statistics(config, params, batches)`: the attention sink, kurtosis and largest values
of every layer, streamed over batches. Activations themselves, read or edited at named sites, are
`jaxllm.models`': `models.capture(config, params, tokens, models.Sites(capture=("resid_post",)))`. Whether the
model uses what a probe reads: `pooled_states`, `fit_ridge`, `matched_edits`, `forward_from`, in that order.
"""

from jaxllm.interpret.ablation import hidden_without_head
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
from jaxllm.interpret.forward_from import forward_from, site_gradients
from jaxllm.interpret.heads import RepeatScores, best_head_accuracy, repeat_scores, syntactic_accuracy
from jaxllm.interpret.interventions import MatchedEdits, matched_edits, probe_errors
from jaxllm.interpret.kurtosis import kurtosis, kurtosis_limits
from jaxllm.interpret.lens import ComponentScores, Norm, component_scores, lens, unembedding
from jaxllm.interpret.pooled_states import pooled_states
from jaxllm.interpret.probes import (
    Fit,
    LinearProbe,
    MLPProbe,
    fit_mlp,
    fit_ridge,
    held_out_groups,
    r_squared,
)
from jaxllm.interpret.psychometrics import (
    PredictivePower,
    bootstrap_interval,
    psychometric_power,
    usable_rows,
)
from jaxllm.interpret.similarity import Similarity, similarity
from jaxllm.interpret.sphere import degrees, great_circle_km, unit_vectors
from jaxllm.interpret.statistics import ActivationStatistics, activation_statistics

__all__ = [
    "ActivationStatistics",
    "ComponentScores",
    "Components",
    "FirstTokenAttention",
    "Fit",
    "LinearProbe",
    "MLPProbe",
    "MatchedEdits",
    "Norm",
    "PredictivePower",
    "RepeatScores",
    "RepeatedSpans",
    "Similarity",
    "activation_statistics",
    "best_head_accuracy",
    "bootstrap_interval",
    "component_scores",
    "components",
    "copying_penalty",
    "degrees",
    "draw_repeated_spans",
    "first_token_attention",
    "fit_mlp",
    "fit_ridge",
    "forward_from",
    "great_circle_km",
    "head_mask",
    "held_out_groups",
    "hidden_without_head",
    "kurtosis",
    "kurtosis_limits",
    "largest_attention",
    "lens",
    "matched_edits",
    "pooled_states",
    "probe_errors",
    "psychometric_power",
    "r_squared",
    "repeat_scores",
    "row_vectors",
    "shift_row",
    "similarity",
    "site_gradients",
    "swap_attention",
    "syntactic_accuracy",
    "syntactic_penalty",
    "unembedding",
    "uniform_first_token_mass",
    "unit_vectors",
    "usable_rows",
]
