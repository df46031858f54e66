"""Models that translate a function into the formula of its area: trained on pairs, decoded, verified."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.integral_discovery.corpus import SIGN, write_pairs
from jaxllm import generate, models
from jaxllm.data.tokenizer import encode_prompt, encode_source
from jaxllm.integrals import Formula, relative_error
from jaxllm.optim import OptimConfig
from jaxllm.text import TrainConfig, load_run, train

ARCHITECTURES = ("decoder", "encoder-decoder")
TOLERANCES = (1e-2, 1e-6)
_SEEN = 0.02  # of the pairs, read to follow the run


def make_model(architecture: str, width: int, layers: int) -> models.LanguageModel:
    """Return a decoder of so many layers, or half as many of an encoder and of a decoder that reads it.

    Both have 12 * width^2 weights a layer: a layer that reads a context has attention twice, so feed-forward
    blocks of the encoder-decoder are three widths wide, and not four.
    """
    if architecture == "decoder":
        return models.get_preset(
            "llama-nano", vocab_size=None, num_layers=layers, embed_dim=width, num_heads=4, num_kv_heads=4,
            mlp_dim=round(8 * width / 3), context_length=256, tie_embeddings=False, init_std=width**-0.5 / 2,
        )  # fmt: skip
    return models.get_preset(
        "t5-nano", vocab_size=None, num_layers=layers // 2, num_encoder_layers=layers // 2, embed_dim=width,
        num_heads=4, head_dim=width // 4, mlp_dim=3 * width, gated_mlp=False, activation="gelu_tanh",
    )  # fmt: skip


def train_config(config, architecture: str, pairs_path: Path, seed: int, out: Path) -> TrainConfig:
    """Return the run of a model on a file of pairs: about `config.batch` pairs a step of either."""
    decoder = architecture == "decoder"
    source = config.decoder_source if decoder else config.encoder_decoder_source
    model = (
        {} if source else dict(model=make_model(architecture, config.width, config.layers), tokenizer="char")
    )
    return TrainConfig(
        **model, start=source, data=str(pairs_path),
        valid_fraction=_SEEN, steps=config.steps, seed=seed, out=str(out),
        # A decoder's rows hold several pairs of 34 tokens; an encoder-decoder's one, of either side.
        seq_len=144 if decoder else 56, batch_size=max(1, config.batch // 4) if decoder else config.batch,
        long_examples="skip", eval_every=max(1, config.steps // 8), save_every=config.steps, log_every=50,
        eval_batches=4, final_eval_batches=4, progress=False, keep_best=0,
        optim=OptimConfig(
            learning_rate=config.learning_rate, warmup_steps=min(100, max(1, config.steps // 10)),
            weight_decay=0.01, beta2=0.98,
        ),
    )  # fmt: skip


def trained(run: TrainConfig, pairs: Sequence[tuple[Formula, Formula]]):
    """Train, or find what was trained; return (config, parameters, tokenizer)."""
    write_pairs(Path(run.data), pairs)
    train(run)
    return load_run(run.out)


def translate(model, functions: Sequence[Formula], *, beams: int, most: int, at_once: int = 128):
    """Return the hypotheses for each function, the likeliest first: lists of texts.

    Args:
      model: (config, parameters, tokenizer).
      functions: what to translate.
      beams: how many hypotheses; 1 is greedy.
      most: characters of an answer.
      at_once: functions that are decoded together.
    """
    config, params, tokenizer = model
    decoder = generate.Decoder(config, params)
    encode = encode_prompt if config.start_id is None else encode_source
    prompts = [list(encode(tokenizer, f"{f}{SIGN}")) for f in functions]
    found: list[list[str]] = []
    for begin in range(0, len(prompts), at_once):
        part = prompts[begin : begin + at_once]
        filled = part + part[-1:] * (at_once - len(part))  # one program for all parts
        rows = generate.beam_search(
            *decoder, filled, beams=beams, max_new_tokens=most, eos_id=tokenizer.eos_id
        )  # fmt: skip
        found += [[tokenizer.decode(beam.tokens) for beam in beams_] for beams_ in rows[: len(part)]]
    return found


def verified(hypotheses: Sequence[str], x_M: np.ndarray, area_M: np.ndarray) -> Formula | None:
    """Return the first hypothesis that has the measured area; else the first that is a formula at all."""
    read = [found for found in map(Formula.parse, hypotheses) if found is not None]
    right = (one for one in read if relative_error(one, x_M, area_M) < TOLERANCES[-1])
    return next(right, read[0] if read else None)


def score(
    answers: Sequence[Formula | None], truths: Sequence[Formula], fresh_M: np.ndarray
) -> dict[str, np.ndarray]:
    """Return which answers are exact, and which are within each tolerance on fresh points, bool [N] each."""
    exact = np.array([one == other for one, other in zip(answers, truths, strict=True)])
    errors = np.array([
        np.inf if one is None else relative_error(one, fresh_M, other.values(fresh_M))
        for one, other in zip(answers, truths, strict=True)
    ])  # fmt: skip
    return {"exact": exact} | {f"within {tolerance:g}": errors < tolerance for tolerance in TOLERANCES}
