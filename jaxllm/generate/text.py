"""Continue text: strings in, strings out."""

from collections.abc import Iterator, Sequence

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate.decoding import stream


def generate_text(
    config: models.ModelConfig, params, tokenizer, prompts: Sequence[str], **options
) -> list[str]:
    """Return the continuation of each prompt, without the prompt; options are `stream_text`'s."""
    texts = [""] * len(prompts)
    for texts in stream_text(config, params, tokenizer, prompts, **options):  # noqa: B007
        pass
    return texts


def stream_text(
    config: models.ModelConfig,
    params,
    tokenizer,
    prompts: Sequence[str],
    *,
    stop: Sequence[str] = (),
    **options,
) -> Iterator[list[str]]:
    """Yield each prompt's continuation so far, again and again as it grows.

    A text may end in U+FFFD while the bytes of a character are still to come.

    Args:
      config: the model.
      params: its parameters.
      tokenizer: from `jaxllm.data.load_tokenizer`; an empty prompt becomes its end-of-text token.
      prompts: texts.
      stop: a continuation ends before the first of these.
      **options: those of `jaxllm.generate.stream`.

    Raises:
      UserError: an empty stop string, or what `stream` refuses.
    """
    if not all(stop):
        raise UserError("a stop string is empty; give the text to stop before")
    ids = [list(tokenizer.encode(prompt)) or [tokenizer.eos_id] for prompt in prompts]
    rows: list[list[int]] = [[] for _ in prompts]
    texts, done = [""] * len(prompts), [False] * len(prompts)
    for tokens, _ in stream(config, params, ids, eos_id=tokenizer.eos_id, **options):
        for place, new in enumerate(tokens.tolist()):
            if done[place]:
                continue
            if tokenizer.eos_id in new:
                new, done[place] = new[: new.index(tokenizer.eos_id)], True
            rows[place] += new
            text = tokenizer.decode(rows[place])
            ends = [text.index(word) for word in stop if word in text]
            if ends:
                text, done[place] = text[: min(ends)], True
            texts[place] = text
        yield list(texts)
        if all(done):
            return
