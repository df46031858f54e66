"""Post-training quantisation, simulated: numbers are put on an integer grid and used as floats.

Start with `quantization_penalties(config, params, ...)`: how much perplexity each of `SCHEMES` costs.
`quantize_weights` returns a model's weights on a grid, `quantized_activations` the edits that do the same
to what they multiply; `absmax` and `zeropoint` are the grids.

Only linear layers are quantised: their weights and what they multiply. The schemes are those of "From
Attention to Activation" (arXiv 2410.17174), whose question is how much outliers cost.
"""

from jaxllm.quantize.activations import activation_ranges, quantized_activations, shared_ranges
from jaxllm.quantize.penalty import perplexity, quantization_penalties
from jaxllm.quantize.rounding import absmax, zeropoint
from jaxllm.quantize.schemes import SCHEMES, Scheme
from jaxllm.quantize.weights import quantize_weights

__all__ = [
    "SCHEMES",
    "Scheme",
    "absmax",
    "activation_ranges",
    "perplexity",
    "quantization_penalties",
    "quantize_weights",
    "quantized_activations",
    "shared_ranges",
    "zeropoint",
]
