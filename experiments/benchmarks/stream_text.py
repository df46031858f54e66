"""Tokenise a gigabyte of text and read batches from it, and show that memory stays bounded.

    python -m experiments.benchmarks.stream_text                     # bytes: under a minute
    python -m experiments.benchmarks.stream_text --tokenizer gpt2    # about 9 minutes on 2 cores

The text is the embedded corpus over and over, each time with other numbers, in one file. A process of
its own prepares it and then reads training batches; its peak memory is compared with what it held
after the imports.

RESULT (1 December 2026, a busy machine of 2 cores): 1,000 MB are tokenised into bytes in 23 seconds; the
process grows by 28 MB beyond its imports. Reading 300 batches from all over the text maps 505 MB more of its
cache's pages, which the system takes back when it needs them; a batch takes 2.2 ms.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.data.embedded import sotu_addresses
from jaxllm.report import Claim, Report

LIMIT_MB = 300  # growth that counts as bounded: a third of the text


@dataclass(frozen=True)
class StreamTextConfig(Config):
    """How much text, and how to cut it."""

    megabytes: Count = 1000
    tokenizer: UserPath = "bytes"
    batches: Count = 300  # of 32 x 256 tokens, read after preparing
    out: UserPath = "runs/stream_text"


_READER = """
import json, sys, time
from experiments.benchmarks.resident_memory import resident_bytes
from jaxllm import data
import grain, tokenizers  # so that their own size is not counted
path, tokenizer, count, cache = sys.argv[1:]
peak = lambda: resident_bytes("VmHWM") / 2**20
start, before = time.time(), peak()
corpus = data.prepare(path, tokenizer, seq_len=256, cache_dir=cache)
prepared, after_prepare = time.time() - start, peak()
batches = data.batches(corpus.train, batch_size=32, seq_len=256, seed=0)
next(batches)
start = time.time()
for _ in range(int(count)):
    next(batches)
seconds = time.time() - start
start = time.time()
data.prepare(path, tokenizer, seq_len=256, cache_dir=cache)
print(json.dumps({
    "tokens": len(corpus.train) + len(corpus.valid), "seconds_to_prepare": prepared,
    "seconds_to_prepare_again": time.time() - start, "milliseconds_per_batch": 1000 * seconds / int(count),
    "mb_before": before, "mb_growth_preparing": after_prepare - before, "mb_growth_in_all": peak() - before,
}))
"""


def main(config: StreamTextConfig, preset: str = "small") -> Report:
    """Write the text, read it in a process of its own, report its memory and speed."""
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "text.txt")
        _write_text(path, config.megabytes)
        command = [sys.executable, "-c", _READER, str(path), config.tokenizer, str(config.batches)]
        result = subprocess.run([*command, scratch], check=True, stdout=subprocess.PIPE, text=True)
    metrics = json.loads(result.stdout.splitlines()[-1]) | {"megabytes_of_text": config.megabytes}
    growth = metrics["mb_growth_preparing"]
    report = Report(
        experiment="benchmarks/stream_text", preset=preset, config=vars(config), seeds=[0], metrics=metrics,
        claims=[Claim(f"tokenising takes less than {LIMIT_MB} MB beyond the imports", "this benchmark",
                      measured=growth, holds=growth < LIMIT_MB)],
        seconds=time.time() - started,
    )  # fmt: skip
    report.write(config.out)
    print(report.to_text())
    return report


def _write_text(path, megabytes):
    addresses = [address["text"] for address in sotu_addresses()]
    written, target, copy = 0, megabytes * 10**6, 0
    with path.open("w", encoding="utf-8") as file, tqdm(total=target, unit="B", unit_scale=True) as bar:
        while written < target:
            text = addresses[copy % len(addresses)].replace("year", f"year {copy}") + "\n<|endoftext|>\n"
            file.write(text)
            size = len(text.encode())
            written, copy = written + size, copy + 1
            bar.update(size)


if __name__ == "__main__":
    run_experiment(main, StreamTextConfig)
