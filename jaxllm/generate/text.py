"""Continue text: strings in, strings out."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from jaxllm import models
from jaxllm.data.tokenizer import encode_prompt, encode_source, stop_ids
from jaxllm.errors import UserError
from jaxllm.generate.decoding import stream
from jaxllm.generate.processors import Processor, SamplingConfig, StatefulProcessor


def generate_text(
    config: models.LanguageModel,
    params,
    tokenizer,
    prompts: str | Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int = 128,
    sampling: SamplingConfig = SamplingConfig(),
    stop: str | Sequence[str] = (),
    processors: Sequence[Processor | StatefulProcessor] = (),
    key: jax.Array | None = None,
    tokens_per_call: int = 16,
) -> str | list[str]:
    """Return the continuation of a prompt, without the prompt; of several a list, in their order.

    See `stream_text` for the arguments.

    Examples:
      >>> from jaxllm import data
      >>> config = models.get_preset("gpt2-nano", vocab_size=257)
      >>> model = config, models.init(config, jax.random.key(0)), data.load_tokenizer("bytes")
      >>> type(generate_text(*model, "Once", max_new_tokens=5))
      <class 'str'>
      >>> len(generate_text(*model, ["Once", "Twice"], max_new_tokens=5))
      2
    """
    texts = [""] * (1 if isinstance(prompts, str) else len(prompts))
    for texts in stream_text(  # noqa: B007
        config, params, tokenizer, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop,
        processors=processors, key=key, tokens_per_call=tokens_per_call,
    ):  # fmt: skip
        pass
    return texts[0] if isinstance(prompts, str) else texts


def stream_text(
    config: models.LanguageModel,
    params,
    tokenizer,
    prompts: str | Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int = 128,
    sampling: SamplingConfig = SamplingConfig(),
    stop: str | Sequence[str] = (),
    processors: Sequence[Processor | StatefulProcessor] = (),
    key: jax.Array | None = None,
    tokens_per_call: int = 16,
) -> Iterator[list[str]]:
    """Yield the list of the prompts' continuations so far, again and again as they grow.

    A text may end in U+FFFD while the bytes of a character are still to come.

    Args:
      config: the model.
      params: its parameters.
      tokenizer: from `jaxllm.data.load_tokenizer`. Its special tokens are recognised in prompts, BOS
        comes first if it asks for that, and any of its `stop_ids` ends a continuation. An empty prompt
        begins a document. An encoder-decoder answers each, as a source.
      prompts: one text, or several; or lists of token ids, which are read as they are.
      max_new_tokens: how many to draw for each at most.
      sampling: how to draw.
      stop: a continuation ends before this text, or the first of several.
      processors: of logits; see `stream`.
      key: typed random key; None is `jax.random.key(0)`.
      tokens_per_call: drawn on the device before the host looks at them.

    Raises:
      UserError: an empty stop string, or what `stream` refuses.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    stop = _words(stop)
    if not all(stop):
        raise UserError("a stop string is empty; give the text to stop before")
    answers = config.start_id is not None  # to sources, which end, and whose text is not gone on with
    encode = encode_source if answers else encode_prompt
    ids = [encode(tokenizer, one) if isinstance(one, str) else np.asarray(one).tolist() for one in prompts]
    ends = stop_ids(tokenizer)
    rows: list[list[int]] = [[] for _ in prompts]
    texts, done = [""] * len(prompts), [False] * len(prompts)
    pieces = stream(
        config, params, ids, max_new_tokens=max_new_tokens, sampling=sampling, processors=processors,
        eos_id=ends, key=key, tokens_per_call=tokens_per_call,
    )  # fmt: skip
    for drawn in pieces:
        for place, new in enumerate(drawn.tokens.tolist()):
            if done[place]:
                continue
            kept = list(itertools.takewhile(lambda token: token not in ends, new))
            done[place] = len(kept) < len(new)
            rows[place] += kept
            before = ids[place] if len(prompts[place]) and not answers else []
            text = _continuation(tokenizer, before, rows[place])
            cuts = [text.index(word) for word in stop if word in text]
            if cuts:
                text, done[place] = text[: min(cuts)], True
            texts[place] = text
        yield list(texts)
        pieces.cancel([place for place, ended in enumerate(done) if ended])


def settled(texts: Iterable[str], stop: str | Sequence[str] = ()) -> Iterator[str]:
    """Yield what a growing text adds, each character once.

    What may still become another character, U+FFFD at the end, or the start of a stop string waits.

    Examples:
      >>> list(settled(["Hel", "Hello w\ufffd", "Hello w\u00f6r"]))
      ['Hel', 'lo w', '\u00f6r']
      >>> list(settled(["one", "one.", "one. E", "one. End"], stop=["END", ". Eve"]))
      ['one', '. End']
    """
    shown, text, stop = "", "", _words(stop)
    for text in texts:
        certain = text.rstrip("\ufffd")  # a character's bytes so far: one for each of up to three
        begun = (n for word in stop for n in range(1, len(word)) if certain.endswith(word[:n]))
        certain = certain[: len(certain) - max(begun, default=0)]
        if len(certain) > len(shown):
            yield certain[len(shown) :]
            shown = certain
    if len(text) > len(shown):
        yield text[len(shown) :]


def _words(stop: str | Sequence[str]) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop)


def _continuation(tokenizer, prompt: list[int], ids: list[int]) -> str:
    """Return the text of `ids` as it reads after the prompt: SentencePiece drops a text's first space."""
    return tokenizer.decode([*prompt, *ids])[len(tokenizer.decode(prompt)) :]
