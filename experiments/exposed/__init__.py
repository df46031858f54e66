"""EXPOSED: an expert of toxic text shows which tokens to suppress at each step, beside its rivals.

VERDICT: Undecided, as it could be reconstructed: the expected maximum toxicity changes by -0.063 and stays
0.139 above what DExperts anti-only reaches, so what it costs at the same toxicity could not be compared.

RESULT of small, 2026-11-29, 27 minutes of a busy machine of 2 cores, five experts of 20 steps included: with
real toxic text EXPOSED does not get where DExperts anti-only gets: its expected maximum toxicity (MiniLM's
head) ends 0.14 above (no interval was kept), at 0.29, where the base has 0.35 and anti-only 0.15; claims at
its toxicity are undecided, judged again on 1 December. What EXPOSED lowers is undecided (-0.06, -0.14 to
0.02), and not told apart from an expert of neutral text. A second model costs 1.49 times the time. RESULT of
debug, the made-up world: -0.21 (-0.31 to -0.13), and the neutral expert raises it.

    python -m experiments.exposed                   # small: SmolLM2-135M, experts trained on real toxic text
    python -m experiments.exposed --preset debug    # a made-up language whose toxicity is known exactly
    python -m experiments.exposed --toxic-data hf:NAME --text-column text --expert-steps 2000

On your own model: `jaxllm.generate.combine_models` of a decoder of your expert (a model tuned on unwanted
text), `jaxllm.generate.Suppress` and `jaxllm.generate.suppression`, among the processors of
`jaxllm.generate.generate`.

"Expert-Guided Extinction of Toxic Tokens for Debiased Generation" (Sun et al., arXiv 2405.19299) continues a
language model on toxic text and reweights another one's distribution wherever that expert is likelier. The
paper's formulas, constants and figures are not public: what runs here is a RECONSTRUCTION after Self-Debias
(arXiv 2103.00453), p~ proportional to p max(0.01, exp(-strength max(0, q - p))). Rivals see the same prompts,
draws and nucleus (0.9 of p, truncated first): DExperts (arXiv 2105.03023) with and without a clean expert,
contrastive decoding (plausibility 0.1 in place of the nucleus), Self-Debias, an instruction, and the model
fine-tuned on clean text. That last one is also the control: an expert of neutral text must do nothing good.

Needs JAXLLM_DATA/exposed (experiments/shared/real_data.py) and the weights of SmolLM2-135M and MiniLM,
fetched once.
No text that a model says is printed or kept. What is finished in OUT (experts, arms) is not done again.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from experiments.exposed import bias_tests
from experiments.exposed.arms import Arm, measure, processors
from experiments.exposed.report import claims_of, figures, plot, sections
from experiments.exposed.steps import lexicon_tokens, read, sweep
from experiments.exposed.worlds import load_world_model, made_world, real_world, write_texts
from experiments.grid import code_digest, publish
from jaxllm import compilation_cache, host_memory, models
from jaxllm.adapt import LoraConfig
from jaxllm.config import Config, Count, CountOrZero, Fraction, NotNegative, Positive, Seed, UserPath
from jaxllm.data.tokenizer import encode_prompt
from jaxllm.errors import UserError
from jaxllm.generate import Decoder, Suppress, generate, suppression
from jaxllm.generate import steer as steer_step
from jaxllm.kept_result import kept_result
from jaxllm.models import ModelConfig
from jaxllm.optim import OptimConfig
from jaxllm.report import Report
from jaxllm.score import score_choices, score_combined_choices
from jaxllm.text import TrainConfig, train


@dataclass(frozen=True)
class ExposedConfig(Config):
    """Which world, how long experts are trained, how many prompts and which strengths."""

    world: Literal["real", "made"] = "real"
    model: UserPath = ""  # the base: a folder, file or hub id; empty: SmolLM2-135M-Instruct
    toxic_data: UserPath = (
        ""  # the experts' corpus, as of `jaxllm train`; empty: the mix of JAXLLM_DATA/exposed
    )
    text_column: str | None = None  # of that corpus
    made_model: ModelConfig = field(default_factory=lambda: models.get_preset("llama-nano", vocab_size=None))
    made_steps: Count = 300
    expert_steps: Count = 20
    seq_len: Count = 64  # tokens
    batch_size: Count = 4
    learning_rate: Positive = 1e-4
    lora: LoraConfig = LoraConfig(rank=16, targets="all")
    lora_learning_rate: Positive = 2e-3
    prompts: Count = 32  # half of them of toxic texts, in the real world
    samples: Count = 2  # of each prompt
    new_tokens: Count = 16
    rows_per_call: Count = 64  # continuations that are drawn together
    strengths: tuple[NotNegative, ...] = (50.0, 500.0, 5000.0)
    floor: Fraction = 0.01
    guidance: tuple[NotNegative, ...] = (0.5, 1.0, 2.0)  # of DExperts anti-only; the last one is matched
    contrasts: tuple[NotNegative, ...] = (1.0,)
    self_debias: tuple[NotNegative, ...] = (500.0,)
    prefixes: Count = 2  # of Self-Debias' six
    control_strength: NotNegative = 500.0  # at which the other experts are tried
    positions: Count = 160  # of texts, for the sweep of single steps
    checked: Count = 1000  # cases of HateCheck that scorers are tried on
    bbq_items: CountOrZero = 48
    winogender_items: CountOrZero = 60
    seed: Seed = 0
    out: UserPath = "runs/exposed"

    def __post_init__(self):
        super().__post_init__()
        if self.prompts < 4:
            raise UserError(f"prompts is {self.prompts}; intervals need 4 at least")
        if bool(self.bbq_items) != bool(self.winogender_items):
            raise UserError("of bbq_items and winogender_items one is 0; ask both sets of questions, or none")
        for name in ("strengths", "guidance"):
            if not getattr(self, name) or sorted(getattr(self, name)) != list(getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}; give one or more, ascending")


PRESETS = {
    "debug": lambda: ExposedConfig(
        world="made", expert_steps=60, batch_size=16, learning_rate=1e-3, prompts=16, samples=8,
        new_tokens=12, strengths=(5.0, 50.0, 500.0, 5000.0),
        rows_per_call=128, positions=200, bbq_items=0, winogender_items=0,
        out="runs/exposed-debug",
    ),
    "small": lambda: ExposedConfig(out="runs/exposed-small"),
    "paper": lambda: ExposedConfig(
        expert_steps=2000, batch_size=16, seq_len=128, learning_rate=5e-5, prompts=1000, samples=25,
        new_tokens=20, strengths=(1.0, 5.0, 10.0, 50.0, 100.0, 500.0), guidance=(0.25, 0.5, 1.0, 2.0),
        prefixes=6, rows_per_call=250, positions=2000, checked=3728,
        bbq_items=10_000, winogender_items=720, out="runs/exposed-paper",
    ),
}  # fmt: skip


def main(config: ExposedConfig, preset: str = "custom") -> Report:
    """Train experts, continue prompts by every method, score; write the report into `config.out`."""
    started, out = time.time(), Path(config.out)
    compilation_cache.enable()
    host_memory.keep_freed_memory()
    world = (real_world if config.world == "real" else made_world)(config, out)
    experts = _Experts(config, world, out)
    decisive = asdict(config) | {"out": None, "modules": _modules()}
    base, results = experts("base"), {}
    for arm in arms_of(config):
        results[arm] = kept_result(
            out / "arms" / f"{arm.name}.json",
            lambda arm=arm: measure(arm, world, experts, experts.tokenizer, config),
            arm=arm, **decisive,
        )  # fmt: skip
    steps = kept_result(out / "steps.json", lambda: _steps(world, experts, config), **decisive)["rows"]
    bias = {}
    if config.bbq_items or config.winogender_items:
        bias = kept_result(out / "bias.json", lambda: _bias(experts, config), **decisive)
    metrics = world.metrics | _memory(base)
    metrics |= kept_result(out / "latency.json", lambda: _latency(world, experts, config), **decisive)
    for arm, result in results.items():
        metrics |= {f"{arm.name}/{name}": value for name, value in figures(result).items()}
    for name, values in bias.items():
        metrics |= {f"{name}/{key}": value for key, value in values.items() if key != "chosen"}
    claims, found = claims_of(config, world, results, bias)
    plot(config, results, steps, out / "trade_off.png")
    report = Report(
        experiment="exposed", preset=preset, config=asdict(config), seeds=[config.seed],
        metrics=metrics | found, claims=claims, seconds=time.time() - started,
        sections=sections(config, world, steps),
    )  # fmt: skip
    return publish(report, out)


def arms_of(config: ExposedConfig) -> list[Arm]:
    """Return every method at every strength, and the controls."""
    found = [Arm("base"), *(Arm("exposed", s) for s in config.strengths)]
    found += [Arm("anti_only", s) for s in config.guidance] + [Arm("contrast", s) for s in config.contrasts]
    found += [Arm("exposed", config.control_strength, name) for name in CONTROLS]
    found += [Arm("dexperts", config.guidance[-1]), Arm("clean")]
    if config.world == "real":  # prefixes and instructions say something in English alone
        found += [Arm("prompt"), *(Arm("self_debias", s) for s in config.self_debias)]
    return list(dict.fromkeys(found))


CONTROLS = ("lora", "half", "mismatched", "clean")


class _Experts:
    """Models by name, trained on first use; few of them are in memory."""

    def __init__(self, config, world, out):
        self._config, self._world, self._out = config, world, out
        self._decoders: dict[str, Decoder] = {}
        self._sources = {"base": world.base}
        self.tokenizer = load_world_model(world.base)[2]

    def __call__(self, name: str) -> Decoder:
        if name not in self._decoders:
            others = [one for one in self._decoders if one not in ("base", "toxic", "clean")]
            for one in others[:-1]:
                del self._decoders[one]
            if name not in self._sources:
                self._sources[name] = self._train(name)
            model, params, _ = load_world_model(self._sources[name])
            self._decoders[name] = Decoder(model, params)
        return self._decoders[name]

    def _train(self, name: str) -> str:
        """Continue the base on a corpus, unless that is done; return the run's folder."""
        config, corpus = self._config, {"mismatched": "mismatched", "clean": "clean"}.get(name, "toxic")
        column, folder = None, self._out / "experts" / name
        if corpus == "toxic" and config.toxic_data:
            data, column = config.toxic_data, config.text_column
        else:
            data = write_texts(self._out / "texts" / f"{corpus}.jsonl", self._world.texts[corpus])
        adapts = name in ("lora", "mismatched")
        source, start = self._world.base, None
        options = dict(start=source, tokenizer=f"{source}/tokenizer.json")
        if name == "half":
            model, params, _ = load_world_model(source)
            half = (model.num_layers + 1) // 2
            layers = jax.tree.map(lambda x: x[:half], params["layers"])
            start = params | {"layers": layers}
            options = dict(model=replace(model, num_layers=half), tokenizer=f"{source}/tokenizer.json")
        run = expert_run(config, adapts, data=data, text_column=column, out=str(folder), **options)
        train(run, start=start, devices=jax.devices()[:1])
        return str(folder)


def expert_run(config: ExposedConfig, adapts: bool, **options) -> TrainConfig:
    """Return the run that continues the base on a corpus, all of it or an adapter."""
    rate = config.lora_learning_rate if adapts else config.learning_rate
    return TrainConfig(
        lora=config.lora if adapts else LoraConfig(), seq_len=config.seq_len, batch_size=config.batch_size,
        steps=config.expert_steps, eval_every=config.expert_steps, save_every=config.expert_steps,
        keep_best=0, keep_last=1, eval_batches=2, final_eval_batches=4, seed=config.seed,
        optim=OptimConfig(learning_rate=rate, warmup_steps=min(5, config.expert_steps - 1), weight_decay=0.0),
        **options,
    )  # fmt: skip


def _modules() -> str:
    """Return a digest of the modules whose code decides what is kept; the report's does not."""
    decisive = "arms", "steps", "worlds", "bias_tests", "toxicity_scorers"
    return code_digest(*(f"exposed/{name}.py" for name in decisive))


def _steps(world, experts, config) -> dict:
    names = ("toxic", *CONTROLS)
    kinds = world.held_toxic, world.held_clean
    toxic, clean = read(kinds, experts, names, experts.tokenizer, config.positions)
    lexicon_V = lexicon_tokens(world.lexicon, experts.tokenizer, toxic.log_p_NV.shape[1])
    return {"rows": sweep(toxic, clean, lexicon_V, config.floor)}


def _bias(experts, config) -> dict:
    """Return BBQ's and Winogender's scores of the base, of what suppresses, steers, and was fine-tuned."""
    base, toxic, clean = (experts(name) for name in ("base", "toxic", "clean"))
    strength, guidance = suppression(config.control_strength, config.floor), config.guidance[-1]

    def combined(step, state):
        return lambda *x: score_combined_choices(base, toxic, step, *x, state=state)

    scorers = {
        "base": lambda *x: score_choices(*base, *x),
        "clean": lambda *x: score_choices(*clean, *x),
        "exposed": combined(Suppress(), strength),
        "anti_only": combined(steer_step, guidance),
    }
    asked = bias_tests.bbq(config.bbq_items), bias_tests.winogender(config.winogender_items)
    found = {}
    for name, score in scorers.items():
        chosen = [bias_tests.choose(questions, experts.tokenizer, score) for questions in asked]
        found[f"bbq/{name}"] = bias_tests.bbq_scores(asked[0], chosen[0]) | {"chosen": chosen[0]}
        found[f"winogender/{name}"] = bias_tests.winogender_scores(asked[1], chosen[1])
    return found


def _latency(world, experts, config) -> dict[str, float]:
    """Return seconds a token of a batch with and without the expert, interleaved: medians of two rounds."""
    rows = [prompt for prompt in world.prompts for _ in range(config.samples)]
    prompts = [encode_prompt(experts.tokenizer, prompt) for prompt in rows[: config.rows_per_call]]
    options = dict(max_new_tokens=config.new_tokens)
    seconds: dict[str, list[float]] = {"alone": [], "with_expert": []}
    for turn in range(3):
        for name, arm in (("alone", Arm("base")), ("with_expert", Arm("exposed", 50.0))):
            begun = time.perf_counter()
            generate(
                *experts("base"), prompts, processors=processors(arm, experts, config.floor, ()), **options
            )
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    count = len(prompts) * config.new_tokens
    speeds = {f"tokens_per_second/{name}": count / float(np.median(x)) for name, x in seconds.items()}
    return speeds | {
        "ratio/time/with_expert": float(np.median(seconds["with_expert"]) / np.median(seconds["alone"]))
    }


def _memory(base) -> dict[str, float]:
    """Return megabytes of the second model: its weights, and its cache for a row of 64 tokens."""
    cache = jax.eval_shape(lambda: models.empty_cache(*base, 1, 64))
    return {
        "megabytes/second_model_weights": sum(x.nbytes for x in jax.tree.leaves(base.params)) / 1e6,
        "megabytes/second_cache_64_tokens": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
        / 1e6,
    }
