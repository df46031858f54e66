"""jaxllm chat"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import tyro

from jaxllm import compilation_cache
from jaxllm.cli.generate import FLOWING
from jaxllm.cli.hints import USE_HINTS
from jaxllm.cli.parse import parse
from jaxllm.cli.prompts import typed_lines
from jaxllm.config import Count, Seed, UserPath
from jaxllm.data import chat_template
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, stream_text
from jaxllm.generate.processors import Temperature
from jaxllm.generate.text import settled
from jaxllm.text.load import load_model_and_tokenizer, with_dtype

_DESCRIPTION = """Talk with a chat model: each line is a turn, answered as it is drawn.

  jaxllm chat HuggingFaceTB/SmolLM2-135M-Instruct
  jaxllm chat HuggingFaceTB/SmolLM2-135M-Instruct --adapter runs/mine     # what was trained on messages
  printf 'Hello!\\nAnd now in French?\\n' | jaxllm chat runs/mine --temperature 0

The model's own chat template writes the conversation, and what ends a turn there ends an answer. An empty
line or the end of the input ends the conversation; its oldest turns are forgotten when it outgrows the
model's context. A turn that has no room there is left out, with a word on stderr."""


class _TooLong(UserError):
    """A turn that the model's context has no room for."""


@dataclass(frozen=True, kw_only=True)
class ChatConfig(SamplingConfig):
    """Values of `jaxllm chat`: with what, and how to draw."""

    model: tyro.conf.Positional[UserPath]  # training run, pretrained folder or file, hub id, pypi:NAME
    adapter: UserPath | None = None  # of that model: a folder as peft writes it, or a run with --lora.rank
    system: str | None = None  # what the model is told first; None: what its template says
    max_new_tokens: Count = 512  # of an answer
    temperature: Temperature = 0.8  # 0: greedy
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: a run's own, or float32
    checkpoint: Literal["latest", "best"] = "latest"  # of a training run
    seed: Seed = 0


def main(argv: Sequence[str]) -> None:
    """Read turns from the terminal or a pipe, and print the answers."""
    config, _ = parse(ChatConfig, argv, prog="jaxllm chat", description=_DESCRIPTION, hints=USE_HINTS)
    compilation_cache.enable()
    found = load_model_and_tokenizer(
        config.model, config.checkpoint, config.dtype or "float32", adapter=config.adapter
    )
    model, params, tokenizer = with_dtype(*found, config.dtype)
    template = chat_template(tokenizer)
    if template is None:
        raise UserError(
            f"'{config.model}' has no chat template, so it is no chat model; continue a text with it: "
            "jaxllm generate"
        )
    sampling = SamplingConfig(**{name: getattr(config, name) for name in SamplingConfig.__dataclass_fields__})
    first = [] if config.system is None else [{"role": "system", "content": config.system}]
    key, turns = jax.random.key(config.seed), []
    for number, said in enumerate(typed_lines()):
        turns.append({"role": "user", "content": said})
        try:
            ids, turns = _prompt(template, tokenizer, first, turns, model.context_length)
        except _TooLong as error:
            print(f"{error}; this turn is left out", file=sys.stderr)
            turns.pop()
            continue
        room = min(config.max_new_tokens, model.context_length - len(ids) + 1)
        texts = stream_text(model, params, tokenizer, [ids], sampling=sampling, max_new_tokens=room,
                            key=jax.random.fold_in(key, number), tokens_per_call=FLOWING)  # fmt: skip
        answer = ""
        for piece in settled(text for [text] in texts):
            print(piece, end="", flush=True)
            answer += piece
        print(flush=True)
        turns.append({"role": "assistant", "content": answer})


def _prompt(template, tokenizer, first, turns, context: int) -> tuple[list[int], list]:
    """Return (the ids of a conversation, its turns without those that had to be forgotten).

    A quarter of the context stays free for the answer.
    """
    while True:
        ids = tokenizer.encode_marked(template.prompt([*first, *turns]))[0].tolist()
        if len(ids) <= context - context // 4:
            return ids, turns
        if len(turns) == 1:
            raise _TooLong(
                f"a turn makes a conversation of {len(ids)} tokens, and the model's context of {context} has "
                f"room for {context - context // 4} besides an answer; say less at a time"
            )
        turns = turns[2:]
