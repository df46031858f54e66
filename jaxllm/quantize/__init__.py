"""Post-training quantisation, simulated: numbers are put on an integer grid and used as floats.

Only linear layers are quantised: their weights and what they multiply. The schemes are those of "From
Attention to Activation" (arXiv 2410.17174), whose question is how much outliers cost.
"""

from jaxllm.quantize.activations import activation_ranges as activation_ranges
from jaxllm.quantize.activations import quantized_activations as quantized_activations
from jaxllm.quantize.activations import shared_ranges as shared_ranges
from jaxllm.quantize.penalty import perplexity as perplexity
from jaxllm.quantize.penalty import quantization_penalties as quantization_penalties
from jaxllm.quantize.rounding import absmax as absmax
from jaxllm.quantize.rounding import zeropoint as zeropoint
from jaxllm.quantize.schemes import SCHEMES as SCHEMES
from jaxllm.quantize.schemes import Scheme as Scheme
from jaxllm.quantize.weights import quantize_weights as quantize_weights
