"""jaxllm generate"""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import jax
import tyro
from tqdm import tqdm

from jaxllm import compilation_cache
from jaxllm.atomic import write_file
from jaxllm.cli.hints import USE_HINTS
from jaxllm.cli.parse import parse
from jaxllm.cli.prompts import Prompt, Reader, read_prompts, typed_lines
from jaxllm.config import Count, Seed, UserPath
from jaxllm.errors import UserError
from jaxllm.generate import Decoder, SamplingConfig, generate_text, stream_text
from jaxllm.generate.processors import Temperature
from jaxllm.generate.text import settled
from jaxllm.text.load import load_model_and_tokenizer, with_dtype

_DESCRIPTION = """Continue a prompt with a trained model.

  jaxllm generate runs/my-run --prompt "Once upon a time" --temperature 0
  cat letter.txt | jaxllm generate runs/my-run --prompt-file -
  jaxllm generate OWNER/NAME --chat --prompt "Why is the sky blue?" --dtype bfloat16
  jaxllm generate runs/my-run --prompt-file prompts.jsonl --out answers.jsonl --samples 4
  jaxllm generate runs/my-run --interactive

Each line of a .jsonl file holds a "prompt", or "messages" that the model's chat template writes. Its answer
is written as "completion" beside them; an answer that was there before is called "reference" then."""

_ROWS = 16  # continuations that are drawn at once, of many
FLOWING = 4  # tokens that are drawn before they are shown: 16 come in jerks, 1 costs a call each


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """Values of `jaxllm generate`: how to draw, from what, and how much."""

    run: tyro.conf.Positional[UserPath]  # training run, pretrained folder or file, hub id, pypi:NAME
    adapter: UserPath | None = None  # of that model: a folder as peft writes it, or a run with --lora.rank
    prompt: str = ""  # text to continue; empty starts a new document
    prompt_file: UserPath | None = None  # text to continue, or .jsonl of many prompts; -: what a pipe gives
    chat: bool = False  # the prompt is what a user says to a chat model; jaxllm chat talks turn by turn
    interactive: bool = False  # continue one prompt after the other, as they are typed
    out: UserPath | None = None  # write the answers there as .jsonl, in place of printing them
    max_new_tokens: Count = 200
    stop: tuple[str, ...] = ()  # end before the first of these strings
    samples: Count = 1  # continuations to draw of each prompt
    temperature: Temperature = 0.8  # 0: greedy
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: a run's own, or float32
    checkpoint: Literal["latest", "best"] = "latest"  # of a training run
    seed: Seed = 0

    def __post_init__(self):
        super().__post_init__()
        given = [name for name in ("prompt", "prompt_file", "interactive") if getattr(self, name)]
        if len(given) > 1:
            names = " and ".join(given)
            raise UserError(f"{names} each say what to continue; give one of them")
        if self.interactive and self.out is not None:
            raise UserError("out is of prompts that are there already; leave it out with interactive")
        if self.out is not None and (not self.out or Path(self.out).is_dir()):
            raise UserError(f"out is {self.out!r}; it must be the name of a file, such as answers.jsonl")

    @property
    def sampling(self) -> SamplingConfig:
        """How to draw, alone: a part of what is compiled, which the rest must not be."""
        return SamplingConfig(**{f.name: getattr(self, f.name) for f in fields(SamplingConfig)})


def main(argv: Sequence[str]) -> None:
    """Print continuations, as they are drawn where there is only one, or write them."""
    config, _ = parse(
        GenerateConfig, argv, prog="jaxllm generate", description=_DESCRIPTION, hints=USE_HINTS
    )
    if config.prompt_file not in (None, "-") and not Path(config.prompt_file).is_file():
        raise UserError(f"there is no file '{config.prompt_file}' with prompts")  # before a model is read
    compilation_cache.enable()
    found = load_model_and_tokenizer(
        config.run, config.checkpoint, config.dtype or "float32", adapter=config.adapter
    )
    model, params, tokenizer = with_dtype(*found, config.dtype)
    reader = Reader(tokenizer, config.chat, config.run)
    if config.interactive:
        prompts: Iterator[Prompt] | list[Prompt] = map(reader.text, typed_lines())
    elif config.prompt_file is not None:
        prompts = read_prompts(config.prompt_file, reader)
    else:
        prompts = [reader.text(config.prompt)]
    drawn = _Drawn(config, (*Decoder(model, params), tokenizer))
    if config.interactive or (len(prompts) == 1 and config.out is None):
        for number, prompt in enumerate(prompts):
            drawn.show(prompt, number)
        return
    lines = drawn.lines(prompts)
    if config.out is None:
        for line in lines:
            print(line, flush=True)
        return
    rows = list(lines)
    write_file(config.out, "".join(f"{row}\n" for row in rows).encode())
    print(f"{len(rows):,} answers written to {config.out}", file=sys.stderr)


class _Drawn:
    """Continuations of a model as a command line asks for them."""

    def __init__(self, config: GenerateConfig, model):
        self._config, self._model = config, model
        self._key = jax.random.key(config.seed)
        self._options = dict(
            stop=config.stop, max_new_tokens=config.max_new_tokens, sampling=config.sampling
        )

    def show(self, prompt: Prompt, number: int) -> None:
        """Print the continuations of a prompt; number 0, 1, ... decides what is drawn."""
        key = jax.random.fold_in(self._key, number) if number else self._key
        begin = prompt.shown if self._model[0].start_id is None else ""  # an answer to it stands alone
        if self._config.samples > 1:
            copies = [prompt.content] * self._config.samples
            for place, text in enumerate(generate_text(*self._model, copies, key=key, **self._options), 1):
                print(f"--- {place} ---\n{begin}{text}", flush=True)
            return
        print("" if self._config.interactive else begin, end="", flush=True)
        texts = stream_text(
            *self._model, [prompt.content], key=key, tokens_per_call=FLOWING, **self._options
        )
        for piece in settled((text for [text] in texts), self._config.stop):
            print(piece, end="", flush=True)
        print(flush=True)

    def lines(self, prompts: list[Prompt]) -> Iterator[str]:
        """Yield a line of JSON for each continuation, in the order of the prompts."""
        wanted = [prompt for prompt in prompts for _ in range(self._config.samples)]
        with tqdm(total=len(wanted), unit="answer", delay=2, disable=None, leave=False) as bar:
            for number, start in enumerate(range(0, len(wanted), _ROWS)):
                some = wanted[start : start + _ROWS]
                rows = [prompt.content for prompt in some]
                if start:  # the last few are as many as those before: no other program is compiled
                    rows = list(itertools.islice(itertools.cycle(rows), _ROWS))
                texts = generate_text(
                    *self._model, rows, key=jax.random.fold_in(self._key, number), **self._options
                )
                for prompt, text in zip(some, texts, strict=False):
                    yield json.dumps(_answered(prompt.row, text), ensure_ascii=False)
                bar.update(len(some))


def _answered(row: dict, text: str) -> dict:
    reference = {"reference": row["completion"]} if "completion" in row else {}
    return row | reference | {"completion": text}
