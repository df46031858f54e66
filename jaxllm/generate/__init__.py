"""Text from a model: cached decoding, sampling, logits processors.

Start with `generate_text(config, params, tokenizer, "a prompt")`; ids in place of text: `generate`. Both
have a sibling that yields while it draws: `stream_text`, `stream`.

    model = from_pretrained("HuggingFaceTB/SmolLM2-135M")
    generate_text(*model, "The capital city of France is", max_new_tokens=5)
    generate_text(*model, ["One", "Two"], sampling=SamplingConfig(temperature=0.8, top_p=0.9))

For many calls lay the weights out once: `Decoder(config, params)`, which goes wherever a model does
(`generate(*decoder, prompts)`), with prefill, fork, step and cancel for loops of your own. A `Processor` is
a function of logits, (logits, tokens, seen) -> logits; a `StatefulProcessor` carries arrays from token to
token, such as `combine_models` (two models), `follow_automaton` (what may come next) and `scale_each_row`.
"""

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
