"""One AdamW step of one array, in one pass over memory, with stochastic rounding."""

from jaxllm_kernels.adamw_update.api import AdamWArrays, adamw_update
from jaxllm_kernels.adamw_update.random_bits import GENERATORS, fold_in, random_words
from jaxllm_kernels.adamw_update.rounding import stochastic_round

__all__ = [
    "GENERATORS",
    "AdamWArrays",
    "adamw_update",
    "fold_in",
    "random_words",
    "stochastic_round",
]
