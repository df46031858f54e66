"""Reading what a model does inside: outliers among its channels, attention that goes to the first token."""

from jaxllm.interpret.first_token import FirstTokenAttention as FirstTokenAttention
from jaxllm.interpret.first_token import first_token_attention as first_token_attention
from jaxllm.interpret.first_token import uniform_first_token_mass as uniform_first_token_mass
from jaxllm.interpret.heads import RepeatScores as RepeatScores
from jaxllm.interpret.heads import best_head_accuracy as best_head_accuracy
from jaxllm.interpret.heads import repeat_scores as repeat_scores
from jaxllm.interpret.heads import syntactic_accuracy as syntactic_accuracy
from jaxllm.interpret.kurtosis import kurtosis as kurtosis
from jaxllm.interpret.kurtosis import kurtosis_limits as kurtosis_limits
from jaxllm.interpret.psychometrics import PredictivePower as PredictivePower
from jaxllm.interpret.psychometrics import bootstrap_interval as bootstrap_interval
from jaxllm.interpret.psychometrics import psychometric_power as psychometric_power
from jaxllm.interpret.psychometrics import usable_rows as usable_rows
from jaxllm.interpret.statistics import ActivationStatistics as ActivationStatistics
from jaxllm.interpret.statistics import activation_statistics as activation_statistics
