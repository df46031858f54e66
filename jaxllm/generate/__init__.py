"""Text from a model: cached decoding, sampling, logits processors."""

from jaxllm.generate.decoder import Decoder
from jaxllm.generate.decoding import Generation, Stream, generate, stream
from jaxllm.generate.draw import Drawn
from jaxllm.generate.processors import Processor, SamplingConfig, StatefulProcessor
from jaxllm.generate.stateful import combine_models, follow_automaton, scale_each_row
from jaxllm.generate.text import generate_text, stream_text

__all__ = [
    "Decoder",
    "Drawn",
    "Generation",
    "Processor",
    "SamplingConfig",
    "StatefulProcessor",
    "Stream",
    "combine_models",
    "follow_automaton",
    "generate",
    "generate_text",
    "scale_each_row",
    "stream",
    "stream_text",
]
