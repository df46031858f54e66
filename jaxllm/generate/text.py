"""Continue text: strings in, strings out."""

from collections.abc import Sequence

from jaxllm import models
from jaxllm.generate.decoding import generate


def generate_text(
    config: models.ModelConfig, params, tokenizer, prompts: Sequence[str], **options
) -> list[str]:
    """Return the continuation of each prompt, without the prompt.

    Args:
      config: the model.
      params: its parameters.
      tokenizer: from `jaxllm.data.load_tokenizer`; an empty prompt becomes its end-of-text token.
      prompts: texts.
      **options: those of `jaxllm.generate.stream`.
    """
    ids = [list(tokenizer.encode(prompt)) or [tokenizer.eos_id] for prompt in prompts]
    drawn = generate(config, params, ids, eos_id=tokenizer.eos_id, **options)
    return [tokenizer.decode(row) for row in drawn.tokens]
