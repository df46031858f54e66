"""Generation against transformers: the same tokens, and how fast they come.

    python -m experiments.benchmarks.generation                  # SmolLM2-135M in float32, minutes on 2 cores
    python -m experiments.benchmarks.generation --preset debug   # a tiny random model, seconds

Both load the same weights and continue the same prompts, the openings of State of the Union addresses,
turn by turn so that a busy moment of the machine hits both. One prompt is continued many times, by sampling:
ours reads and holds it once; transformers repeats it (`num_return_sequences`), or is handed a cache of
it that was read once and copied (`transformers_copied`). The floor of a step is the time in which this
machine reads the weights from memory. Needs torch and transformers (extra: torch) and gguf; the weights
are 93 MB, downloaded once.

RESULT (1 December 2026, small, 2 idle cores): the same greedy tokens for all 20 prompts. Over transformers'
tokens a second 2.20 for one row (1.90 to 2.37; goal 2.4), 1.50 for eight (1.45 to 1.66; 2.2), 3.15 for 32
continuations of one prompt (2.79 to 3.49; 4), 1.69 where transformers is handed a cache that was read once
and copied: all short of their goals. A second call begins after 6 ms, and compiles nothing.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.benchmarks.rivals import small_or_real, transformers_model
from experiments.grid import publish
from jaxllm import compilation_cache, models
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.generate import Decoder, SamplingConfig, generate, stream
from jaxllm.generate.draw import draw
from jaxllm.pretrained.load import Pretrained
from jaxllm.report import Claim, Report, decide

GREEDY = SamplingConfig(temperature=0)
TIE = 1e-4  # a first difference is excused where the two best logits are this close
_SOURCE = "issue: decoder"
_GOALS = {"batch_1": 2.4, "batch_8": 2.2}  # times transformers' speed
_FORK_GOAL = 4.0
_START_GOAL = 10.0  # milliseconds


@dataclass(frozen=True)
class GenerationConfig(Config):
    """How many prompts and tokens, and how often to time them."""

    model: Literal["smollm2", "nano"] = "smollm2"
    prompts: Count = 20
    prompt_tokens: Count = 32
    new_tokens: Count = 64
    fork_prompt_tokens: Count = 256
    continuations: Count = 32
    repeats: Count = 5  # of each timing
    out: UserPath = "runs/generation"

    def __post_init__(self):
        least_of = dict(prompts=8, prompt_tokens=1, new_tokens=1, continuations=2, repeats=1)
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")


PRESETS = {
    "small": GenerationConfig,
    "debug": lambda: GenerationConfig(
        model="nano", prompts=8, prompt_tokens=8, new_tokens=8, fork_prompt_tokens=32, continuations=4,
        repeats=2, out="runs/generation-debug",
    ),
}  # fmt: skip


def main(config: GenerationConfig, preset: str = "custom") -> Report:
    """Compare tokens and speed; write the report into `config.out`."""
    started = time.time()
    compilation_cache.enable()
    ours = small_or_real(config.model)
    decoder, theirs = Decoder(ours.config, ours.params), _Transformers(ours)
    ids = [ours.tokenizer.encode(a["text"]).tolist() for a in sotu_addresses()[:: 233 // config.prompts]]
    prompts = [one[: config.prompt_tokens] for one in ids[: config.prompts]]
    metrics, claims = _same_tokens(config, decoder, theirs, prompts)
    for found in (
        _batches(config, decoder, theirs, prompts),
        _continuations(config, decoder, theirs, ids[0][: config.fork_prompt_tokens]),
        _start(config, decoder, prompts[0]),
    ):
        metrics, claims = metrics | found[0], claims + found[1]
    report = Report(
        experiment="benchmarks/generation", preset=preset, config=vars(config), seeds=[], metrics=metrics,
        claims=claims, seconds=time.time() - started,
    )  # fmt: skip
    return publish(report, config.out)


def _same_tokens(config, decoder, theirs, prompts) -> tuple[dict, list[Claim]]:
    unexcused, excused = [], 0
    for prompt in tqdm(prompts, desc="same tokens", unit="prompt"):
        [a], [b] = _greedy(config, decoder, [prompt]), theirs.greedy([prompt], config.new_tokens)
        if a != b:
            first = next(i for i in range(config.new_tokens) if a[i] != b[i])
            gap = _gap(decoder, prompt + a[:first])
            excused += gap <= TIE
            unexcused += [gap] * (gap > TIE)
    same = len(prompts) - excused - len(unexcused)
    metrics = {"same_tokens": same, "excused_ties": excused, "different": len(unexcused)}
    claim = Claim(f"greedy tokens equal transformers' for {len(prompts)} prompts of {config.new_tokens} "
                  f"new tokens (ties of {TIE:g} excused)", "issue: pretrained",
                  measured=same + excused, holds=not unexcused)  # fmt: skip
    return metrics, [claim]


def _batches(config, decoder, theirs, prompts) -> tuple[dict, list[Claim]]:
    metrics, claims = {}, []
    floor = metrics["floor_ms/read_weights"] = _floor_ms(decoder)
    for size in (1, 8):
        batch, case = prompts[:size], f"batch_{size}"
        seconds = _interleaved(config.repeats, case, {
            "jaxllm": lambda batch=batch: _greedy(config, decoder, batch),
            "transformers": lambda batch=batch: theirs.greedy(batch, config.new_tokens),
        })  # fmt: skip
        metrics |= {
            f"tokens_per_second/{case}/{name}": size * config.new_tokens / statistics.median(values)
            for name, values in seconds.items()
        }
        metrics[f"times_floor/{case}"] = 1e3 * min(seconds["jaxllm"]) / config.new_tokens / floor
        found = _ratio(case, seconds, "transformers", _GOALS[case])
        metrics, claims = metrics | found[0], claims + found[1]
    return metrics, claims


def _continuations(config, decoder, theirs, prompt) -> tuple[dict, list[Claim]]:
    count, case = config.continuations, f"continuations_{config.continuations}"
    options = dict(max_new_tokens=config.new_tokens, sampling=SamplingConfig())
    seconds = _interleaved(config.repeats, case, {
        "jaxllm": lambda: generate(*decoder, [prompt] * count, **options),
        "transformers": lambda: theirs.continuations(prompt, count, config.new_tokens),
        "transformers_copied": lambda: theirs.of_copied_cache(prompt, count, config.new_tokens),
    })  # fmt: skip
    metrics = {
        f"tokens_per_second/{case}/{name}": count * config.new_tokens / statistics.median(values)
        for name, values in seconds.items()
    }
    copied, _ = _ratio(case, seconds, "transformers_copied", 1.0)
    found, claims = _ratio(case, seconds, "transformers", _FORK_GOAL)
    cache = jax.eval_shape(lambda: models.empty_cache(*decoder, 1, len(prompt) + config.new_tokens))
    row = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    metrics["cache_megabytes/copied"] = count * row / 1e6
    own = row * (config.new_tokens * count + len(prompt)) / (len(prompt) + config.new_tokens)
    metrics["cache_megabytes/shared"] = own / 1e6
    return metrics | copied | found, claims


def _start(config, decoder, prompt) -> tuple[dict, list[Claim]]:
    """Time the host's part of a stream's start: until the prompt's program is on its way."""

    def start():
        begun = time.perf_counter()
        pieces = stream(*decoder, [prompt], max_new_tokens=1, sampling=GREEDY, tokens_per_call=1)
        sent = time.perf_counter() - begun
        next(pieces)
        return 1e3 * sent, 1e3 * (time.perf_counter() - begun)

    first_sent, first_total = start()
    before = draw._cache_size()
    sent, total = zip(*(start() for _ in range(max(5, config.repeats))), strict=True)
    compiled = draw._cache_size() - before
    metrics = {
        "start_ms/first_call": first_sent, "start_ms/later_calls": statistics.median(sent),
        "first_token_ms/first_call": first_total, "first_token_ms/later_calls": statistics.median(total),
        "programs_compiled_by_later_calls": compiled,
    }  # fmt: skip
    between = min(sent), max(sent)
    claim = Claim(f"a later call on the same decoder sends its prompt to the device in < {_START_GOAL:g} ms",
                  _SOURCE, measured=statistics.median(sent), interval=between,
                  holds=decide(between, below=_START_GOAL) if compiled == 0 else False)  # fmt: skip
    return metrics, [claim]


def _interleaved(repeats: int, case: str, runs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Return each one's seconds, turn by turn, after a first round that compiles and warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in tqdm(range(repeats + 1), desc=case, unit="round"):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def _ratio(case: str, seconds, rival: str, goal: float) -> tuple[dict, list[Claim]]:
    ratios = [b / a for a, b in zip(seconds["jaxllm"], seconds[rival], strict=True)]
    ratio, between = statistics.median(ratios), (min(ratios), max(ratios))
    claim = Claim(f"{case}: at least {goal:g} x {rival}' speed", _SOURCE,
                  measured=ratio, interval=between, holds=decide(between, at_least=goal))  # fmt: skip
    return {f"ratio/{case}/{rival}": ratio}, [claim]


def _floor_ms(decoder) -> float:
    """Return how long this machine takes to read the weights that a step reads, once."""
    head = 0 if decoder.config.tie_embeddings else decoder.params["embed"]["tokens"].nbytes
    size = sum(x.nbytes for x in jax.tree.leaves(decoder.params)) - head
    numbers = jnp.ones(size // 4, jnp.float32)
    add = jax.jit(jnp.sum)
    add(numbers).block_until_ready()
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        add(numbers).block_until_ready()
        times.append(time.perf_counter() - begun)
    return 1e3 * min(times)


def _greedy(config, decoder, batch) -> list[list[int]]:
    return generate(*decoder, batch, max_new_tokens=config.new_tokens, sampling=GREEDY).tokens


def _gap(decoder, ids) -> float:
    """Return the distance between the two best logits after some ids."""
    hidden_BD, _ = decoder.prefill(np.array([ids]), slots=len(ids))
    best = np.sort(np.asarray(models.logits(*decoder, hidden_BD))[0])[-2:]
    return float(best[1] - best[0])


class _Transformers:
    """transformers' generate, on the same weights."""

    def __init__(self, ours: Pretrained):
        self._model = transformers_model(ours).model
        import torch
        import transformers

        self._torch, self._cache = torch, transformers.DynamicCache

    def greedy(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """Continue prompts of one length."""
        return self._generate(self._torch.tensor(prompts), count, do_sample=False)

    def continuations(self, prompt: list[int], copies: int, count: int) -> list[list[int]]:
        """Sample several continuations of one prompt, which is repeated."""
        ids = self._torch.tensor([prompt])
        return self._generate(ids, count, do_sample=True, top_k=0, num_return_sequences=copies)

    def of_copied_cache(self, prompt: list[int], copies: int, count: int) -> list[list[int]]:
        """Sample several continuations of one prompt, read once, its cache copied."""
        ids, cache = self._torch.tensor([prompt]), self._cache(config=self._model.config)
        with self._torch.no_grad():
            self._model(ids[:, :-1], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(copies)
        return self._generate(ids.repeat(copies, 1), count, do_sample=True, top_k=0, past_key_values=cache)

    def _generate(self, ids, count, **options):
        with self._torch.no_grad():
            tokens = self._model.generate(
                ids, attention_mask=self._torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                use_cache=True, eos_token_id=None, pad_token_id=0, **options,
            )  # fmt: skip
        return tokens[:, ids.shape[1] :].tolist()


if __name__ == "__main__":
    run_experiment(main, GenerationConfig, PRESETS)
