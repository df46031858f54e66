"""jaxllm generate"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import jax
import tyro

from jaxllm import compilation_cache
from jaxllm.cli.parse import parse
from jaxllm.config import Count, Seed, UserPath
from jaxllm.generate import SamplingConfig, stream_text
from jaxllm.generate.processors import Temperature
from jaxllm.generate.text import settled
from jaxllm.text.load import load_model_and_tokenizer


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """Values of `jaxllm generate`: how to draw, from what, and how much."""

    run: tyro.conf.Positional[UserPath]  # a training run's folder, or a pretrained folder, file or hub id
    adapter: UserPath | None = None  # of that model: a folder as peft writes it, or a run with --lora.rank
    prompt: str = ""  # text to continue; empty starts a new document
    max_new_tokens: Count = 200
    stop: tuple[str, ...] = ()  # end before the first of these strings
    samples: Count = 1  # continuations to draw
    temperature: Temperature = 0.8  # 0: greedy
    checkpoint: Literal["latest", "best"] = "latest"
    seed: Seed = 0

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
    model, params, tokenizer = load_model_and_tokenizer(config.run, config.checkpoint, adapter=config.adapter)
    pieces = stream_text(
        model, params, tokenizer, [config.prompt] * config.samples, stop=config.stop,
        max_new_tokens=config.max_new_tokens, sampling=config.sampling,
        key=jax.random.key(config.seed),
    )  # fmt: skip
    if config.samples > 1:
        *_, texts = pieces
        for number, text in enumerate(texts, 1):
            print(f"--- {number} ---\n{config.prompt}{text}")
        return
    print(config.prompt, end="", flush=True)
    for piece in settled((text for [text] in pieces), config.stop):
        print(piece, end="", flush=True)
    print()
