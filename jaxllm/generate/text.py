"""Continue text: strings in, strings out."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from jaxllm import models
from jaxllm.data.tokenizer import encode_prompt, stop_ids
from jaxllm.errors import UserError
from jaxllm.generate.decoding import stream


def generate_text(
    config: models.LanguageModel, params, tokenizer, prompts: Sequence[str], **options
) -> list[str]:
    """Return the continuation of each prompt, without the prompt; options are `stream_text`'s."""
    texts = [""] * len(prompts)
    for texts in stream_text(config, params, tokenizer, prompts, **options):  # noqa: B007
        pass
    return texts


def stream_text(
    config: models.LanguageModel,
    params,
    tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    stop: Sequence[str] = (),
    **options,
) -> Iterator[list[str]]:
    """Yield each prompt's continuation so far, again and again as it grows.

    A text may end in U+FFFD while the bytes of a character are still to come.

    Args:
      config: the model.
      params: its parameters.
      tokenizer: from `jaxllm.data.load_tokenizer`. Its special tokens are recognised in prompts, BOS
        comes first if it asks for that, and any of its `stop_ids` ends a continuation. An empty prompt
        begins a document.
      prompts: texts; or token ids, which are read as they are.
      stop: a continuation ends before the first of these.
      **options: those of `jaxllm.generate.stream`.

    Raises:
      UserError: an empty stop string, or what `stream` refuses.
    """
    if not all(stop):
        raise UserError("a stop string is empty; give the text to stop before")
    ids = [encode_prompt(tokenizer, one) if isinstance(one, str) else list(one) for one in prompts]
    ends = stop_ids(tokenizer)
    rows: list[list[int]] = [[] for _ in prompts]
    texts, done = [""] * len(prompts), [False] * len(prompts)
    pieces = stream(config, params, ids, eos_id=ends, **options)
    for drawn in pieces:
        for place, new in enumerate(drawn.tokens.tolist()):
            if done[place]:
                continue
            kept = list(itertools.takewhile(lambda token: token not in ends, new))
            done[place] = len(kept) < len(new)
            rows[place] += kept
            text = _continuation(tokenizer, ids[place] if prompts[place] else [], rows[place])
            cuts = [text.index(word) for word in stop if word in text]
            if cuts:
                text, done[place] = text[: min(cuts)], True
            texts[place] = text
        yield list(texts)
        pieces.cancel([place for place, ended in enumerate(done) if ended])


def settled(texts: Iterable[str], stop: Sequence[str] = ()) -> Iterator[str]:
    """Yield what a growing text adds, each character once.

    What may still become another character, or the start of a stop string, waits.

    Examples:
      >>> list(settled(["Hel", "Hello w\ufffd", "Hello w\u00f6r"]))
      ['He', 'llo w', '\u00f6', 'r']
    """
    shown = text = ""
    for text in texts:
        certain = text[: len(text) - max([1, *map(len, stop)])]
        if len(certain) > len(shown):
            yield certain[len(shown) :]
            shown = certain
    yield text[len(shown) :]


def _continuation(tokenizer, prompt: list[int], ids: list[int]) -> str:
    """Return the text of `ids` as it reads after the prompt: SentencePiece drops a text's first space."""
    return tokenizer.decode([*prompt, *ids])[len(tokenizer.decode(prompt)) :]
