"""One AdamW step of one array, in one pass over memory, with stochastic rounding."""

from jaxllm_kernels.adamw_update.api import AdamWArrays as AdamWArrays
from jaxllm_kernels.adamw_update.api import adamw_update as adamw_update
from jaxllm_kernels.adamw_update.random_bits import GENERATORS as GENERATORS
from jaxllm_kernels.adamw_update.random_bits import fold_in as fold_in
from jaxllm_kernels.adamw_update.random_bits import random_words as random_words
from jaxllm_kernels.adamw_update.rounding import stochastic_round as stochastic_round
