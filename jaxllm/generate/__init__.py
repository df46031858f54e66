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

from jaxllm.generate.beam import Beam, beam_search
from jaxllm.generate.combine import Beside, combine_models
from jaxllm.generate.decoder import Decoder
from jaxllm.generate.decoding import Generation, Stream, generate, stream
from jaxllm.generate.draw import Drawn
from jaxllm.generate.processors import Processor, SamplingConfig, StatefulProcessor, keep_min_p, keep_top_p
from jaxllm.generate.reweight import Suppress, Suppression, contrast, steer, suppression
from jaxllm.generate.stateful import follow_automaton, scale_each_row
from jaxllm.generate.text import generate_text, stream_text

__all__ = [
    "Beam",
    "Beside",
    "Decoder",
    "Drawn",
    "Generation",
    "Processor",
    "SamplingConfig",
    "StatefulProcessor",
    "Stream",
    "Suppress",
    "Suppression",
    "beam_search",
    "combine_models",
    "contrast",
    "follow_automaton",
    "generate",
    "generate_text",
    "keep_min_p",
    "keep_top_p",
    "scale_each_row",
    "steer",
    "stream",
    "stream_text",
    "suppression",
]
