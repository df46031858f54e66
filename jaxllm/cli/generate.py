"""jaxllm generate"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import jax
import tyro

from jaxllm import compilation_cache
from jaxllm.cli.parse import parse
from jaxllm.cli.source import load_model_and_tokenizer
from jaxllm.generate import SamplingConfig, stream


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """Values of `jaxllm generate`: how to draw, from what, and how much."""

    run: tyro.conf.Positional[str]  # a training run's folder, or a pretrained model: folder, file, hub id
    prompt: str = ""  # text to continue; empty starts a new document
    max_new_tokens: int = 200
    samples: int = 1  # continuations to draw
    temperature: float = 0.8  # 0: greedy
    checkpoint: Literal["latest", "best"] = "latest"
    seed: int = 0

    @property
    def sampling(self) -> SamplingConfig:
        """How to draw, alone: a part of what is compiled, which the rest must not be."""
        return SamplingConfig(**{f.name: getattr(self, f.name) for f in fields(SamplingConfig)})


def main(argv: Sequence[str]) -> None:
    """Print continuations, as they are drawn when there is only one."""
    config, _ = parse(
        GenerateConfig, argv, prog="jaxllm generate",
        description="Continue a prompt with a trained model.",
    )  # fmt: skip
    compilation_cache.enable()
    model, params, tokenizer = load_model_and_tokenizer(config.run, config.checkpoint)
    prompt = list(tokenizer.encode(config.prompt)) or [tokenizer.eos_id]
    pieces = stream(
        model, params, [prompt] * config.samples, max_new_tokens=config.max_new_tokens,
        sampling=config.sampling, eos_id=tokenizer.eos_id, key=jax.random.key(config.seed),
    )  # fmt: skip
    rows: list[list[int]] = [[] for _ in range(config.samples)]
    shown = ""
    for tokens, _ in pieces:
        for row, new in zip(rows, tokens.tolist(), strict=True):
            if tokenizer.eos_id not in row:
                row += new
        if config.samples == 1:
            text = config.prompt + _text(tokenizer, rows[0])
            text = text.removesuffix("\ufffd")  # a character whose bytes are not all there yet
            print(text[len(shown) :], end="", flush=True)
            shown = text
    if config.samples == 1:
        print()
        return
    for number, row in enumerate(rows, 1):
        print(f"--- {number} ---\n{config.prompt}{_text(tokenizer, row)}")


def _text(tokenizer, row):
    end = row.index(tokenizer.eos_id) if tokenizer.eos_id in row else len(row)
    return tokenizer.decode(row[:end])
