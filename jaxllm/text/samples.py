"""What a model writes while it is trained, for a person to read."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxllm import data
from jaxllm.data.tokenizer import encode_prompt, stop_ids
from jaxllm.generate import SamplingConfig, generate
from jaxllm.text.prepare import TextRun

_TOKENS = 64  # of a sample
_SAMPLING = SamplingConfig(temperature=0.8)


def held_out_prompt(corpus: data.Corpus) -> list[int]:
    """Return the ids of the prompt of the first example that is held out; of documents none."""
    valid = corpus.valid
    return [] if valid.predicted is None else valid.document(0)[: int(np.argmax(valid.predicted))].tolist()


def prompt_text(corpus: data.Corpus) -> str:
    """Return that prompt as a person writes it: what an encoder reads is closed by an end."""
    prompt, end = held_out_prompt(corpus), corpus.tokenizer.eos_id
    return corpus.tokenizer.decode(prompt[:-1] if prompt[-1:] == [end] else prompt)


def print_samples(run: TextRun) -> Callable[[int, Any], None]:
    """Return a function (step, params) that prints a sample.

    Of a corpus of documents the model writes the beginning of one; of examples, what follows the prompt of
    the first that is held out.

    Args:
      run: the run (`jaxllm.text.prepare`).
    """
    tokenizer = run.corpus.tokenizer
    prompt = held_out_prompt(run.corpus)
    shown = prompt_text(run.corpus)
    prompt = prompt or encode_prompt(tokenizer, "")

    def show(step, params):
        drawn = generate(
            run.model, run.seen(params), [prompt], max_new_tokens=_TOKENS, sampling=_SAMPLING,
            eos_id=stop_ids(tokenizer), key=jax.random.fold_in(jax.random.key(run.config.seed), step),
        )  # fmt: skip
        text = tokenizer.decode([*prompt, *drawn.tokens[0]])[len(tokenizer.decode(prompt)) :]
        tqdm.write(f"step {step:,} writes: {shown}{text}")

    return show
