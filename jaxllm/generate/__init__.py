"""Text from a model: cached decoding, sampling, logits processors."""

from jaxllm.generate.decoder import Decoder as Decoder
from jaxllm.generate.decoding import Generation as Generation
from jaxllm.generate.decoding import Stream as Stream
from jaxllm.generate.decoding import generate as generate
from jaxllm.generate.decoding import stream as stream
from jaxllm.generate.draw import Drawn as Drawn
from jaxllm.generate.processors import Processor as Processor
from jaxllm.generate.processors import SamplingConfig as SamplingConfig
from jaxllm.generate.processors import StatefulProcessor as StatefulProcessor
from jaxllm.generate.stateful import combine_models as combine_models
from jaxllm.generate.stateful import follow_automaton as follow_automaton
from jaxllm.generate.stateful import scale_each_row as scale_each_row
from jaxllm.generate.text import generate_text as generate_text
from jaxllm.generate.text import stream_text as stream_text
